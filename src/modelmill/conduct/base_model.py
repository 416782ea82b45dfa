"""Look at a run's base model, and refuse what it rules out.

Reads a config and the beginnings of weight files, wherever they are: in the artifact of a
committed fetch, on this machine, in a bucket, on a hub.
"""

import json
from pathlib import Path

from pydantic import JsonValue, TypeAdapter, ValidationError

from modelmill.spec.errors import ModelmillError
from modelmill.spec.impossible import refuse_impossible
from modelmill.spec.plan import Plan
from modelmill.spec.shape import ModelShape, shape_of
from modelmill.spec.sources import is_local
from modelmill.store.artifact import attempt_prefix, read_manifest
from modelmill.store.beginning import DistantFile, distant_tensors
from modelmill.store.s3 import Store
from modelmill.store.sources import distant_object, look_local, look_source

CONFIG = "config.json"
LONGEST_CONFIG_BYTES = 10**7

_CONFIG = TypeAdapter(dict[str, JsonValue])


def refuse_unfit(store: Store, plan: Plan, folder: Path) -> None:
    """Refuse a plan that its base model rules out; what cannot be seen yet passes.

    Args:
        store: where uploaded sources and committed artifacts are.
        plan: as laid out.
        folder: of local sources.

    Raises:
        SpecError: the model cannot become what is asked for.
    """
    try:
        shape = shape_in(files_of(store, plan, plan.run.model.source, folder))
    except (ModelmillError, ValueError):
        return
    refuse_impossible(plan.run, shape, "run")


def files_of(store: Store, plan: Plan, source: str, folder: Path | None) -> tuple[DistantFile, ...]:
    """List the files of a source of a plan, where they are nearest.

    Raises:
        ModelmillError: they cannot be seen.
    """
    stage = next(each for each in plan.stages if each.kind == "fetch-model")
    if source == plan.run.model.source:
        committed = read_manifest(store, stage.kind, stage.key)
        if committed is not None:
            manifest = committed.manifest
            prefix = attempt_prefix(manifest.kind, manifest.key, manifest.attempt)
            return tuple(
                distant_object(store, each.path, f"{prefix}/{each.path}", each.size_bytes)
                for each in manifest.files
            )
    if is_local(source) and folder is not None:
        return look_local(folder / source)
    return look_source(store, plan.pins[source])


def shape_in(files: tuple[DistantFile, ...]) -> ModelShape:
    """Read the shape of the model in a folder.

    Raises:
        ValueError: in words, where it cannot be told.
        ModelmillError: a header is broken, or the files cannot be read.
    """
    config = next((each for each in files if each.path == CONFIG), None)
    if config is None or config.size_bytes > LONGEST_CONFIG_BYTES:
        raise ValueError("there is no config.json")
    try:
        said = _CONFIG.validate_python(json.loads(config.whole()))
    except (ValidationError, ValueError) as error:
        raise ValueError("config.json is no JSON object") from error
    weights = [each for each in files if "/" not in each.path]
    return shape_of(said, distant_tensors(weights))
