"""Every hostile folder is refused, in words that name the file and the rule, and nothing is run."""

import pickle
import runpy
from pathlib import Path

import jinja2
import pytest

from modelmill.spec.errors import DataError, UnsafeArtifact
from modelmill.store.safety import check_adapter, check_model

from .attacks import injection, payload, script
from .hostile import HOSTILE
from .layouts import minimal_adapter, minimal_model


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_folder_is_refused(tmp_path: Path, name: str) -> None:
    """The file and the rule are named, with what to do, and the canary is untouched."""
    canary = tmp_path / "canary"
    hostile = HOSTILE[name]
    folder = hostile.make(tmp_path / "folder", canary)

    check = check_model if hostile.kind == "model" else check_adapter
    with pytest.raises((UnsafeArtifact, DataError), match=f"(?s){hostile.words}") as caught:
        check(folder)

    assert caught.value.exit_code == (65 if name == "weights with a tail" else 76)
    assert any(
        file in caught.value.at.lower() + caught.value.at for file in hostile.file.split("|")
    )
    assert caught.value.fix
    assert not canary.exists()


def test_folders_that_hostile_ones_are_made_from_pass(tmp_path: Path) -> None:
    """It is what was added that is refused."""
    assert check_model(minimal_model(tmp_path / "model")) == ()
    assert check_adapter(minimal_adapter(tmp_path / "adapter")) == ()


def test_attack_that_is_let_in_touches_the_canary(tmp_path: Path) -> None:
    """The control: pickle, module and template do their work where nothing stops them."""
    canaries = [tmp_path / name for name in ("pickle", "module", "template")]
    pickle.loads(payload(canaries[0]))  # noqa: S301 - its payload is ours
    (tmp_path / "evil.py").write_text(script(canaries[1]))
    runpy.run_path(str(tmp_path / "evil.py"))
    jinja2.Environment().from_string(injection(canaries[2])).render()  # noqa: S701 - no HTML
    assert all(canary.exists() for canary in canaries)
