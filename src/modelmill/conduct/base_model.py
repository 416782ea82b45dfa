"""Look at a run's base model and other sources, and refuse what the model rules out.

Reads a config and the beginnings of weight files, wherever they are: in the artifact of a
committed fetch, on this machine, in a bucket, on a hub.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import JsonValue, TypeAdapter, ValidationError

from modelmill.spec.errors import ModelmillError
from modelmill.spec.estimate import Known
from modelmill.spec.figures import Measurements
from modelmill.spec.impossible import refuse_impossible
from modelmill.spec.layout import given_adapter, make_plan
from modelmill.spec.names import MEASUREMENTS
from modelmill.spec.plan import Plan
from modelmill.spec.shape import ModelShape, shape_of
from modelmill.spec.sources import is_local
from modelmill.store.artifact import Committed, attempt_prefix, pull, read_manifest
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


def known_of(store: Store, plan: Plan, folder: Path | None) -> Known:
    """Look at the sources of a plan; what cannot be seen is said and stops nothing."""
    sizes: dict[str, int] = {}
    files: dict[str, tuple[DistantFile, ...]] = {}
    problems: dict[str, str] = {}
    for source, pin in plan.pins.items():
        try:
            files[source] = files_of(store, plan, source, folder)
            sizes[pin.address] = sum(each.size_bytes for each in files[source])
        except ModelmillError as error:
            problems[source] = error.what
    model, adapter = plan.run.model.source, given_adapter(plan.run)
    shape, why = None, problems.get(model, "")
    try:
        if model in files:
            shape = shape_in(files[model])
    except (ModelmillError, ValueError) as error:
        why = str(error).splitlines()[0]
    return Known(
        shape=shape,
        why_unknown=f"unknown until the model is fetched ({why})" if shape is None else "",
        adapter_parameters=_adapter_parameters(files.get(adapter or "", ())),
        bytes_by_address=sizes,
        measured_seconds=measured_before(store, plan),
    )


def measured_before(store: Store, plan: Plan) -> Mapping[str, float]:
    """Find what stages took that are asked for once more: what they are told is the same."""
    if not plan.again:
        return {}
    before = {each.name: each for each in make_plan(plan.run, plan.facts, plan.pins).stages}
    seconds: dict[str, float] = {}
    for stage in plan.stages:
        if before[stage.name].key == stage.key:
            continue
        committed = read_manifest(store, stage.kind, before[stage.name].key)
        if committed is not None:
            seconds[stage.name] = _measured(store, committed).seconds
    return seconds


def _measured(store: Store, committed: Committed) -> Measurements:
    with TemporaryDirectory(prefix="modelmill-") as folder:
        pull(store, committed, Path(folder), (MEASUREMENTS,))
        return Measurements.model_validate_json((Path(folder) / MEASUREMENTS).read_bytes())


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


def _adapter_parameters(files: tuple[DistantFile, ...]) -> int | None:
    weights = [each for each in files if each.path.endswith("adapter_model.safetensors")]
    try:
        tensors = distant_tensors(weights[:1])
    except ModelmillError:
        return None
    return sum(each.elements for each in tensors.values()) or None
