"""The entrypoint turns every end of a stage into one exit code and words."""

import errno
from pathlib import Path

import pytest

from modelmill.spec.errors import SpecError, UnsafeArtifact
from modelmill.spec.records import Ending
from modelmill.stages.entrypoint import _say_last, as_failure, read_environment
from modelmill.stages.stop import StopRequested
from modelmill.store.space import check_space

ASKED = {
    "MODELMILL_STORE": "s3://bucket",
    "MODELMILL_RUN": "run",
    "MODELMILL_STAGE": "merge",
    "MODELMILL_PLAN_SHA256": "0" * 64,
}


def test_missing_variables_are_named_together() -> None:
    """A container that is set up wrongly says everything that is missing."""
    with pytest.raises(SpecError) as caught:
        read_environment({"MODELMILL_RUN": "run", "MODELMILL_WORK_BYTES": "10Gi"})
    assert [problem.key for problem in caught.value.problems] == [
        "MODELMILL_STORE",
        "MODELMILL_STAGE",
        "MODELMILL_PLAN_SHA256",
        "MODELMILL_WORK_BYTES",
    ]


def test_attempt_gets_a_name_where_nobody_gave_one() -> None:
    """A container started by hand works like one that a conductor started."""
    first, second = read_environment(ASKED), read_environment(ASKED)
    assert first.attempt != second.attempt
    assert read_environment({**ASKED, "MODELMILL_ATTEMPT": "mine"}).attempt == "mine"


def test_shard_is_one_of_those_that_there_are() -> None:
    """A number that is out of range would leave rows unanswered for ever."""
    whole = read_environment(ASKED)
    assert (whole.shard, whole.shards) == (0, 1)
    last = read_environment({**ASKED, "MODELMILL_SHARD": "3", "MODELMILL_SHARDS": "4"})
    assert (last.shard, last.shards) == (3, 4)
    for wrong in ({"MODELMILL_SHARD": "4", "MODELMILL_SHARDS": "4"}, {"MODELMILL_SHARD": "1"}):
        with pytest.raises(SpecError, match="should be below MODELMILL_SHARDS"):
            read_environment({**ASKED, **wrong})


def test_last_words_are_a_whole_document_however_long(tmp_path: Path) -> None:
    """A kubelet reads 4,096 bytes; the beginning of a message is what helps."""
    path = tmp_path / "termination"
    _say_last(path, UnsafeArtifact("é" * 10_000, fix="remove it"))
    assert path.stat().st_size <= 4096
    ending = Ending.model_validate_json(path.read_bytes())
    assert (ending.exit_code, ending.message[0], ending.message[-3:]) == (76, "é", "...")


class OutOfMemoryError(RuntimeError):
    """What torch raises, by name: the entrypoint must not import torch to know it."""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnsafeArtifact("no"), 76),
        (StopRequested(), 75),
        (KeyboardInterrupt(), 75),
        (MemoryError(), 78),
        (OutOfMemoryError("CUDA out of memory"), 78),
        (OSError(errno.ENOSPC, "No space left on device", "/volume/x"), 78),
        (ValueError("surprise"), 70),
    ],
)
def test_every_error_has_its_code(error: BaseException, code: int) -> None:
    """The conductor decides by codes, so none may be wrong."""
    assert as_failure(error).exit_code == code


def test_stage_that_cannot_fit_says_both_sizes(tmp_path: Path) -> None:
    """What is needed and what is there, before a byte is pulled."""
    with pytest.raises(Exception, match=r"2 MiB of disk are needed and 1 MiB are free"):
        check_space(tmp_path, 2 * 2**20, 2**20)
    check_space(tmp_path, 2**10, None)
