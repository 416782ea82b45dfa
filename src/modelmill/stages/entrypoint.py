"""What every stage container and every local stage process starts: environment in, exit code out.

Knows the environment variables, signals and exit codes, and nothing about what stages do.
Loads no model library itself; the stage that runs does.
"""

import contextlib
import errno
import faulthandler
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, cast, get_args

from modelmill.spec.errors import (
    DeviceFault,
    DoesNotFit,
    InputMissing,
    InternalError,
    Interrupted,
    ModelmillError,
    Problem,
    SpecError,
)
from modelmill.spec.names import (
    ENV_ATTEMPT,
    ENV_CHECKPOINT_SECONDS,
    ENV_FSDP,
    ENV_GRACE_SECONDS,
    ENV_HALVINGS,
    ENV_HUNG_AFTER_SECONDS,
    ENV_PARENT_PID,
    ENV_PLAN_SHA256,
    ENV_PROGRESS_FILE,
    ENV_RANKS,
    ENV_RUN,
    ENV_SHARD,
    ENV_SHARDS,
    ENV_STAGE,
    ENV_STORE,
    ENV_TERMINATION,
    ENV_WORK,
    ENV_WORK_BYTES,
    Fsdp,
)
from modelmill.spec.plan import Plan, Stage
from modelmill.spec.records import Ending, Live, Progress
from modelmill.stages import machine
from modelmill.stages.attempt import Assignment, carry_out, is_committed
from modelmill.stages.hang import Hang
from modelmill.stages.keeper import CHECKPOINT_SECONDS, Commit
from modelmill.stages.pulse import LivePulse, Outlets, Told
from modelmill.stages.stop import STOPPED, Stop, StopRequested, end_with
from modelmill.stages.workplace import workplace
from modelmill.store.address import open_store
from modelmill.store.artifact import Published, attempt_id
from modelmill.store.checkpoint import drop_live, put_live, save_checkpoint, save_shard
from modelmill.store.runs import get_plan, put_progress
from modelmill.store.s3 import Store

LAST_WORDS_SECONDS: Final = 5.0
SAVE_SECONDS: Final = 10.0
"""A state that a store does not take is soon followed by another."""
_NUMBERS: Final = (
    ENV_WORK_BYTES,
    ENV_HALVINGS,
    ENV_PARENT_PID,
    ENV_CHECKPOINT_SECONDS,
    ENV_GRACE_SECONDS,
    ENV_HUNG_AFTER_SECONDS,
    ENV_SHARD,
    ENV_SHARDS,
    ENV_RANKS,
)
logger = logging.getLogger("modelmill")


@dataclass(frozen=True)
class Asked:
    """What the environment asks for."""

    store: str
    run: str
    stage: str
    plan_sha256: str
    attempt: str
    work: Path | None
    work_limit_bytes: int | None
    halvings: int
    checkpoint_seconds: float
    grace_seconds: float | None
    hung_after_seconds: float | None
    progress_file: Path | None
    termination: Path | None
    parent_pid: int | None
    shard: int
    shards: int
    ranks: int
    fsdp: Fsdp


def read_environment(environment: Mapping[str, str]) -> Asked:
    """Parse the environment.

    Raises:
        SpecError: with every variable that is missing or wrong.
    """
    required = (ENV_STORE, ENV_RUN, ENV_STAGE, ENV_PLAN_SHA256)
    problems = [Problem(name, "not set") for name in required if not environment.get(name)]
    problems += [
        Problem(name, f"should be a whole number (got {environment[name]!r})")
        for name in _NUMBERS
        if environment.get(name) and not environment[name].isdecimal()
    ]
    if not problems and int(environment.get(ENV_SHARD) or 0) >= _shards(environment):
        problems.append(Problem(ENV_SHARD, f"should be below {ENV_SHARDS}, and counts from 0"))
    if environment.get(ENV_FSDP) and environment[ENV_FSDP] not in get_args(Fsdp):
        known = ", ".join(get_args(Fsdp))
        problems.append(
            Problem(ENV_FSDP, f"should be one of {known} (got {environment[ENV_FSDP]!r})")
        )
    if problems:
        raise SpecError("environment", problems)

    def path(name: str) -> Path | None:
        return Path(environment[name]) if environment.get(name) else None

    def number(name: str) -> int | None:
        return int(environment[name]) if environment.get(name) else None

    return Asked(
        store=environment[ENV_STORE],
        run=environment[ENV_RUN],
        stage=environment[ENV_STAGE],
        plan_sha256=environment[ENV_PLAN_SHA256],
        attempt=environment.get(ENV_ATTEMPT) or attempt_id(),
        work=path(ENV_WORK),
        work_limit_bytes=number(ENV_WORK_BYTES),
        halvings=number(ENV_HALVINGS) or 0,
        checkpoint_seconds=number(ENV_CHECKPOINT_SECONDS) or CHECKPOINT_SECONDS,
        grace_seconds=number(ENV_GRACE_SECONDS),
        hung_after_seconds=number(ENV_HUNG_AFTER_SECONDS),
        progress_file=path(ENV_PROGRESS_FILE),
        termination=path(ENV_TERMINATION),
        parent_pid=number(ENV_PARENT_PID),
        shard=number(ENV_SHARD) or 0,
        shards=_shards(environment),
        ranks=number(ENV_RANKS) or 0,
        fsdp=cast("Fsdp", environment.get(ENV_FSDP) or "auto"),
    )


def _shards(environment: Mapping[str, str]) -> int:
    return int(environment.get(ENV_SHARDS) or 1)


def main() -> int:
    """Run the stage the environment names and return its exit code."""
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)-7s %(message)s",
        datefmt="%H:%M:%S",
    )
    # At INFO one says in every log where it found credentials, the other every address, and
    # among those are addresses that open a file for whoever knows them.
    for library in ("botocore", "httpx2"):
        logging.getLogger(library).setLevel(logging.WARNING)
    # A crash in native code says where it was.
    faulthandler.enable()
    stop = Stop()
    termination: Path | None = None
    started = time.monotonic()
    try:
        stop.install()
        asked = read_environment(os.environ)
        termination, stop.grace_seconds = asked.termination, asked.grace_seconds
        if asked.parent_pid is not None:
            end_with(asked.parent_pid)
        words = _attempt(asked, stop)
    except BaseException as error:  # noqa: BLE001 - the process ends here, whatever happened
        failure = as_failure(error)
        logger.error("%s", failure)
        if failure.exit_code == InternalError.exit_code:
            traceback.print_exception(error)
        _say_last(termination, failure)
        return failure.exit_code
    logger.info(
        "%s %s in %.1f s, peak %.0f MiB",
        asked.stage,
        words,
        time.monotonic() - started,
        machine.peak_rss_bytes() / 2**20,
    )
    return 0


def _attempt(asked: Asked, stop: Stop) -> str:
    store = open_store(asked.store)
    plan = Plan.model_validate_json(get_plan(store, asked.run, asked.plan_sha256))
    with workplace(asked.work, asked.stage) as place:
        if asked.stage == "report":
            return _report(asked, store, plan, stop, place.own)
        given = Assignment(
            store,
            asked.run,
            plan,
            _planned(plan, asked),
            asked.attempt,
            place,
            asked.work_limit_bytes,
            asked.halvings,
            asked.shard,
            asked.shards,
            asked.ranks,
            asked.fsdp,
        )
        return _carry_out(asked, given, stop)


def _planned(plan: Plan, asked: Asked) -> Stage:
    try:
        return plan.stage(asked.stage)
    except KeyError:
        raise InputMissing(
            f"The plan has no stage '{asked.stage}'",
            at=f"plan {asked.plan_sha256}",
            fix=f"choose from: {', '.join(each.name for each in plan.stages)}, report",
        ) from None


def _carry_out(asked: Asked, given: Assignment, stop: Stop) -> str:
    store, key = given.store, given.stage.key
    if is_committed(store, given.stage):
        return "was committed already"
    resume = given.workplace.own / "resume"

    def save(on_bytes: Callable[[int], None], *, is_last: bool) -> None:
        seconds = LAST_WORDS_SECONDS if is_last else SAVE_SECONDS
        into = replace(store, retry_budget_seconds=seconds)
        keep = save_checkpoint if asked.shards == 1 else save_shard
        keep(into, key, asked.attempt, resume, on_bytes)

    def tell(progress: Progress) -> None:
        put_progress(store, asked.run, progress)
        put_live(store, key, Live(run=asked.run, attempt=asked.attempt, time=progress.time))

    try:
        with _pulse(asked, stop, Told(tell, save), given.workplace.own) as pulse:
            published = _published(given, pulse, save)
    except BaseException:
        with contextlib.suppress(ModelmillError):
            drop_live(_brief(asked), key, asked.attempt)
        raise
    if published is not None:
        return "committed" if published.state == "won" else "adopted what another had committed"
    if is_committed(store, given.stage):
        # The last shard was faster, and has taken away all that says who works on the key.
        drop_live(store, key, asked.attempt)
    return f"has done shard {asked.shard + 1} of {asked.shards}; the last one commits"


def _published(given: Assignment, pulse: LivePulse, save: Commit) -> Published | None:
    """Do the work; of one that is stopped keep what is new, and publish nothing."""
    try:
        return carry_out(given, pulse)
    except BaseException as error:
        pulse.keeper.settle()
        if pulse.is_unsaved and isinstance(error, StopRequested | Interrupted):
            # Without anything new the conductor must see that this attempt got nowhere.
            with contextlib.suppress(ModelmillError):
                save(lambda _: None, is_last=True)
        raise


def _brief(asked: Asked) -> Store:
    """Open the store for last words: there is a grace period, and the store may be gone."""
    return open_store(asked.store, retry_budget_seconds=LAST_WORDS_SECONDS)


def _report(asked: Asked, store: Store, plan: Plan, stop: Stop, work: Path) -> str:
    from modelmill.stages.report import carry_out_report

    def tell(progress: Progress) -> None:
        put_progress(store, asked.run, progress)

    def commit(on_bytes: Callable[[int], None], *, is_last: bool) -> None:
        """Keep nothing: a report is made from records in a moment."""

    with _pulse(asked, stop, Told(tell, commit), work) as pulse:
        return carry_out_report(asked, store, plan, work, pulse)


@contextlib.contextmanager
def _pulse(asked: Asked, stop: Stop, told: Told, work: Path) -> Iterator[LivePulse]:
    """Beat, under a watch that ends the process when nothing shows life any more."""

    def hung(seconds: float) -> None:
        failure = pulse.as_hung(seconds)
        logger.error("%s", failure)
        _say_last(asked.termination, failure)

    hang = None
    outlets = Outlets(
        asked.progress_file,
        told,
        logger.warning,
        checkpoint_seconds=asked.checkpoint_seconds,
        has_room=lambda size_bytes: machine.has_room(work, size_bytes, asked.work_limit_bytes),
    )
    if asked.hung_after_seconds is not None:
        hang = Hang(asked.hung_after_seconds, DeviceFault.exit_code, hung)
        outlets = replace(outlets, live=hang.live)
    pulse = LivePulse(asked.stage, asked.attempt, outlets, stop)
    try:
        if hang is not None:
            hang.start()
        with pulse:
            yield pulse
    finally:
        if hang is not None:
            hang.stop()


def as_failure(error: BaseException) -> ModelmillError:
    """Say which of our classes an exception belongs to."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    match error:
        case ModelmillError():
            return error
        case StopRequested() | KeyboardInterrupt():
            return Interrupted(STOPPED, fix=_RESUME)
        case MemoryError():
            return DoesNotFit("Out of memory", fix="a smaller batch, or a machine with more memory")
        case RuntimeError() if machine.NO_MEMORY in str(error):
            return DoesNotFit(text, fix="a smaller batch, or a machine with more memory")
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DoesNotFit(
                "The disk is full",
                at=str(error.filename or ""),
                fix="free some space, or name a larger folder in MODELMILL_WORK",
            )
        case _ if type(error).__name__ == "OutOfMemoryError":
            return DoesNotFit(text, fix="a smaller finetune.micro_batch_size, or a larger GPU")
        case _ if type(error).__name__ == "AcceleratorError":
            return DeviceFault(text, fix="the conductor tries again; look at the node if it stays")
        case _:
            return InternalError(f"{type(error).__name__}: {text}", fix=_REPORT_IT)


_RESUME = "run the same command again: it goes on from what is committed"
_REPORT_IT = "this is a defect; the log has the traceback"


def _say_last(path: Path | None, failure: ModelmillError) -> None:
    if path is not None:
        ending = Ending(exit_code=failure.exit_code, message=str(failure))
        path.write_text(ending.termination_message(), encoding="utf-8")
