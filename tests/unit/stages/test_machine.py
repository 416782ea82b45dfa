"""How much room there is for what a stage does not have to write."""

from pathlib import Path

import pytest

from modelmill.stages.machine import has_room

MIB = 2**20


@pytest.mark.parametrize(
    ("limit_mib", "expected"),
    [
        (None, True),
        (100, True),
        (39, False),  # 10 of inputs, 10 of output, and 20 of state
        (40, True),
    ],
)
def test_state_leaves_room_for_inputs_and_output(
    tmp_path: Path, limit_mib: int | None, *, expected: bool
) -> None:
    """The state that is there already is replaced, so its room counts as free."""
    for name, mib in (("inputs/model", 10), ("resume", 15)):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_bytes(bytes(mib * MIB))
    limit_bytes = None if limit_mib is None else limit_mib * MIB
    assert has_room(tmp_path, 20 * MIB, limit_bytes) is expected
