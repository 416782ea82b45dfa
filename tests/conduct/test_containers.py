"""The backend of docs/backends.md keeps the contract, and is as short as the page says."""

import random
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from modelmill.conduct.backend import Order
from modelmill.conduct.conductor import Conducted
from modelmill.spec.errors import DeviceFault, InputMissing

from ..workshop import Workshop
from .backend_contract import *  # noqa: F403 - the tests of every backend
from .backend_contract import Bench, LocalBehaviour
from .conftest import Preparer

EXAMPLE = Path(__file__).parents[2] / "examples" / "backend" / "containers.py"
ENGINE = Path(__file__).with_name("containers.py")
LINES = 200


@pytest.fixture
def engine(workshop: Workshop, tmp_path: Path) -> Path:
    """Make a command that is a container engine."""
    (tmp_path / "containers").mkdir()
    program = tmp_path / "docker"
    text = f'#!/bin/sh\nexec "{sys.executable}" "{ENGINE}" "{tmp_path}/containers" "$@"\n'
    program.write_text(text, encoding="utf-8")
    program.chmod(0o755)
    return program


@pytest.fixture
def bench(
    engine: Path,
    workshop: Workshop,
    fetched: Conducted,
    prepared: Preparer,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Bench]:
    """Make a backend with keys that nothing else has."""
    tokens = random.SystemRandom().randrange(1, 65536)
    assert fetched.run == "fetched"
    changes: dict[str, Any] = {"infer.max_new_tokens": tokens, "finetune": "{}"}
    given = prepared("bench", **{"data.test": "fetched.jsonl"}, **changes)
    images = {
        name: str(workshop.home / "environments" / name / "bin" / "python")
        for name in ("light", "train", "quantize")
    }
    backend = _example().ContainerBackend(
        given.run, given.store.url, images, engine.parent / "left", str(engine), grace_seconds=15
    )
    yield Bench(given, backend, LocalBehaviour(workshop, monkeypatch))
    backend.close()
    workshop.lay_out_environments()


def _example() -> Any:
    spec = spec_from_file_location("containers_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["containers_example"] = module
    spec.loader.exec_module(module)
    return module


def test_example_is_as_short_as_the_page_says() -> None:
    """Whoever writes another one reads it in a sitting."""
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= LINES


def test_secrets_stand_in_no_command_line(bench: Bench, engine: Path) -> None:
    """Whoever lists processes sees names of variables, and not their values."""
    text = engine.read_text(encoding="utf-8")
    engine.write_text(text.replace("exec", f'echo "$@" >> {engine}.said\nexec'), encoding="utf-8")
    bench.ended(bench.backend.start(bench.order("infer-base")))
    said = Path(f"{engine}.said").read_text(encoding="utf-8")
    assert "--env AWS_SECRET_ACCESS_KEY " in said
    assert "AWS_SECRET_ACCESS_KEY=" not in said


def test_environment_without_an_image_is_said(bench: Bench) -> None:
    """Before anything is started."""
    bench.backend.images = {}  # type: ignore[attr-defined]
    with pytest.raises(InputMissing, match="No image for 'quantize'"):
        bench.backend.start(bench.order("infer-base"))


def test_engine_that_refuses_is_a_fault_of_the_place(bench: Bench, engine: Path) -> None:
    """In its words."""
    text = engine.read_text(encoding="utf-8")
    engine.write_text("#!/bin/sh\necho no daemon >&2; exit 1\n", encoding="utf-8")
    order = bench.order("infer-base")
    assert isinstance(order, Order)
    with pytest.raises(DeviceFault, match="run failed: no daemon"):
        bench.backend.start(order)
    engine.write_text(text, encoding="utf-8")
