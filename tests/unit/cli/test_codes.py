"""What commands about runs on a cluster end with."""

import pytest

from modelmill.cli import codes
from modelmill.cli.codes import code_of_error, code_of_run
from modelmill.spec.errors import (
    ClusterUnreachable,
    DoesNotFit,
    InputMissing,
    InternalError,
    ModelmillError,
    NoSuchRun,
    PermissionRefused,
    SpecError,
    StoreUnfit,
    StoreUnreachable,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NoSuchRun("x"), codes.NO_SUCH_RUN),
        (InputMissing("x"), codes.PREFLIGHT_FAILED),
        (PermissionRefused("x"), codes.PREFLIGHT_FAILED),
        (SpecError("x", []), codes.PREFLIGHT_FAILED),
        (DoesNotFit("x"), codes.PREFLIGHT_FAILED),
        (StoreUnreachable("x"), codes.UNREACHABLE),
        (ClusterUnreachable("x"), codes.UNREACHABLE),
        (StoreUnfit("x"), codes.PREFLIGHT_FAILED),
        (InternalError("x"), codes.OUR_FAULT),
    ],
)
def test_every_error_has_its_code(error: ModelmillError, code: int) -> None:
    """A script can tell what it did wrong from what is away."""
    assert code_of_error(error) == code


@pytest.mark.parametrize(
    ("exit_code", "code"),
    [(0, 0), (None, 4), (75, 6), (79, 79), (65, 3), (70, 3), (78, 3)],
)
def test_every_end_of_a_run_has_its_code(exit_code: int | None, code: int) -> None:
    """The run's own code is in the JSON."""
    assert code_of_run(exit_code) == code
