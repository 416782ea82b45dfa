"""Nobody else on the machine can put a file where an attempt works."""

import re
import stat
import tempfile
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"
OPEN_TO_OTHERS = re.compile(r"mktemp\(|0o7[0-7]?[2367]\b|umask\(0\)")


def test_scratch_folders_are_closed_to_others() -> None:
    """They are made by what makes them with mode 0700, and no mode is opened later."""
    found = {
        path.name: OPEN_TO_OTHERS.findall(path.read_text(encoding="utf-8"))
        for path in SOURCE.rglob("*.py")
    }
    assert {name: wrong for name, wrong in found.items() if wrong} == {}
    with tempfile.TemporaryDirectory() as scratch:
        assert stat.S_IMODE(Path(scratch).stat().st_mode) == 0o700


def test_folder_open_to_others_would_be_found() -> None:
    """The search above can fail."""
    assert OPEN_TO_OTHERS.search("os.chmod(work, 0o777)")
    assert OPEN_TO_OTHERS.search("tempfile.mktemp()")
    assert not OPEN_TO_OTHERS.search("tempfile.mkdtemp(); path.chmod(0o755)")
