"""Folders of attempts: whose they are, and what becomes of those that nobody has any more."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modelmill.stages.workplace import workplace
from modelmill.store.kept import KEPT

KILLED = """
import os, signal, sys
from pathlib import Path
from modelmill.stages.workplace import workplace

with workplace(Path(sys.argv[1]), "merge") as place:
    (place.own / "inputs").mkdir()
    (place.own / "inputs" / "model").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def _folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if not path.name.startswith("."))


def test_folder_of_a_killed_attempt(tmp_path: Path) -> None:
    """The next attempt removes it, and nothing else that lies there."""
    (tmp_path / "mine").mkdir()
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("modelmill-merge-*/inputs/model"))) == 1

    with workplace(tmp_path, "merge") as place:
        assert _folders(tmp_path) == sorted(["mine", place.own.name])

    assert _folders(tmp_path) == ["mine"]


def test_folder_of_a_live_attempt(tmp_path: Path) -> None:
    """Another attempt on the same volume leaves it alone, and both share what is kept."""
    with workplace(tmp_path, "a") as first, workplace(tmp_path, "b") as second:
        assert first.own.is_dir()
        assert second.own.is_dir()
        assert first.kept == second.kept
        assert first.kept is not None
        assert first.kept.folder == tmp_path / KEPT


def test_folder_of_an_attempt_that_failed(tmp_path: Path) -> None:
    """It goes at once; what is kept stays for the next attempt."""

    def fail() -> None:
        with workplace(tmp_path / "root", "a") as place:
            assert place.kept is not None
            place.kept.folder.mkdir()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()

    assert _folders(tmp_path / "root") == []
    assert (tmp_path / "root" / KEPT).is_dir()


def test_folder_where_none_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a folder that everybody writes to nothing is kept: it could be anybody's."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with workplace(None, "a") as place:
        assert place.own.parent == tmp_path
        assert place.kept is None
        assert os.listdir(place.own) == []  # noqa: PTH208 - hidden names too
    assert list(tmp_path.iterdir()) == []
