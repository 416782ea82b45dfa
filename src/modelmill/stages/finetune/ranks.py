"""Start the processes that train together, serve the first of them, and end them all.

This process trains nothing: it stays free to hear a signal, to keep states and to notice that a
rank is gone, whatever library the ranks hang in.  Knows processes and pipes; must not know what is
trained (docs/adr/0031).
"""

import faulthandler
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, Self

import torch

from modelmill.spec.batching import HALVINGS, micro_batch_size
from modelmill.spec.errors import DoesNotFit, ModelmillError
from modelmill.spec.settings import FinetuneSettings
from modelmill.stages import machine
from modelmill.stages.finetune.gone import why_gone
from modelmill.stages.finetune.team import Team, meet
from modelmill.stages.finetune.training import TooManyRows
from modelmill.stages.stage import Folders, Outcome, Pulse
from modelmill.stages.stop import end_with
from modelmill.store.memory import Memory

Work = Callable[[FinetuneSettings, Folders, Pulse, Team], Outcome]
"""What each rank does; must be found by its name, for they are processes of their own."""

LOOK_SECONDS: Final = 1.0
"""How often ranks that say nothing are looked at."""

SETTLE_SECONDS: Final = 5.0
"""A rank that fails takes the others with it; whoever knows more says so within this time."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Task:
    """What a rank is told when it starts."""

    work: Work
    settings: FinetuneSettings
    inputs: Mapping[str, Path]
    output: Path
    resume: Path
    team: Team
    meeting: Path
    """A file by which ranks find each other: no port is open to anybody else."""


@dataclass(frozen=True)
class _Said:
    """A call of the first rank's pulse."""

    name: str
    given: tuple[Any, ...] = ()


@dataclass(frozen=True)
class _Done:
    outcome: Outcome


@dataclass(frozen=True)
class _Failed:
    error: BaseException


def train_together(
    work: Work, settings: FinetuneSettings, folders: Folders, pulse: Pulse, teams: Sequence[Team]
) -> Outcome:
    """Do the work in several processes, and give back what the first of them made.

    Where memory is too small all begin anew with half the rows at a time, from the last state;
    where it is so for one row too, as the next team.

    Args:
        work: of each process.
        settings: of the stage.
        folders: of the stage.
        pulse: of the stage.
        teams: how to share the work, from what is quickest to what takes least memory.

    Raises:
        ModelmillError: whichever was raised by a rank.
        DeviceFault: a rank was killed.
        Interrupted: the stage was asked to stop; no rank is left.
    """
    for team in teams:
        try:
            return _train_as(team, work, settings, folders, pulse)
        except (DoesNotFit, MemoryError, torch.OutOfMemoryError) as error:
            if team is teams[-1]:
                raise
            pulse.warn(
                f"{error.what if isinstance(error, DoesNotFit) else 'One device is too small'}; "
                f"from here on each of the {team.size} devices holds a part of the weights"
            )
    raise AssertionError  # the last team has returned or raised


def _train_as(
    team: Team, work: Work, settings: FinetuneSettings, folders: Folders, pulse: Pulse
) -> Outcome:
    for halvings in range(HALVINGS + 1):
        ordered = settings.micro_batch_halvings + halvings
        tried = settings.model_copy(update={"micro_batch_halvings": ordered})
        try:
            with tempfile.TemporaryDirectory() as meeting:
                task = _Task(
                    work,
                    tried,
                    folders.inputs,
                    folders.output,
                    folders.resume,
                    team,
                    Path(meeting) / "ranks",
                )
                with _Ranks(task) as ranks:
                    return _Served(ranks, folders, pulse).until_done()
        except TooManyRows as error:
            # A rank that was killed could not say it: as many as there can have been at most.
            is_gpu = torch.cuda.is_available()
            rows = error.rows or micro_batch_size(
                settings.finetune, 1, is_gpu=is_gpu, halvings=ordered, ranks=team.size
            )
            if rows == 1 or halvings == HALVINGS:
                raise
            pulse.warn(f"{error.what}; all ranks begin anew with half as many rows at a time")
    raise AssertionError  # the last try has returned or raised


@dataclass(frozen=True)
class _Served:
    """Does for the first rank what its pulse is asked for."""

    ranks: "_Ranks"
    folders: Folders
    pulse: Pulse

    def until_done(self) -> Outcome:
        """Serve until the work is done."""
        while True:
            heard = self.ranks.hear()
            if isinstance(heard, _Done):
                return heard.outcome
            self._serve(heard)

    def _serve(self, said: _Said) -> None:
        pulse, answer = self.pulse, self.ranks.answer
        match said.name, said.given:
            case "part", (str(name),):
                with pulse.part(name):
                    self._until_left()
            case "steps", ():
                with pulse.steps():
                    self._until_left()
            case "is_due", ():
                answer(pulse.is_due())
            case "keep", (int(size_bytes),):
                pulse.keep(size_bytes, self.ranks.let_write)
                answer("kept")
            case "fall_back", ():
                answer(self.folders.fall_back())
            case ("progress" | "warn" | "save") as name, given:
                getattr(pulse, name)(*given)

    def _until_left(self) -> None:
        while isinstance(heard := self.ranks.hear(), _Said) and heard.name != "left":
            self._serve(heard)


@dataclass
class _Ranks:
    """The processes, while they live."""

    task: _Task
    processes: list[BaseProcess] = field(default_factory=list)
    memories: list[Memory] = field(default_factory=list)
    lines: list[Connection] = field(default_factory=list)

    def __enter__(self) -> Self:
        """Start them."""
        spawning = multiprocessing.get_context("spawn")
        for rank in range(self.task.team.size):
            ours, theirs = spawning.Pipe()
            task = replace(self.task, team=replace(self.task.team, rank=rank))
            process = spawning.Process(
                target=_rank, args=(task, theirs, os.getpid()), name=f"rank {rank}", daemon=True
            )
            self.lines.append(ours)
            self.processes.append(process)
            process.start()
            assert process.pid is not None
            self.memories.append(Memory(process.pid, stays=True))
            theirs.close()  # so that the end of the process is the end of the line
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End those that are left: they leave nothing that is not whole."""
        for process in self.processes:
            if process.pid is not None:
                process.kill()
                process.join()
        for line in self.lines:
            line.close()

    def hear(self) -> _Said | _Done:
        """Wait for what the first rank says.

        Raises:
            ModelmillError: why a rank has failed.
        """
        while True:
            for memory in self.memories:
                memory.look()
            for line in wait(self.lines, LOOK_SECONDS):
                heard = self._receive(self.lines.index(line))  # type: ignore[arg-type]
                if isinstance(heard, _Failed):
                    self._fail(heard.error)
                return heard

    def answer(self, value: object) -> None:
        """Answer the first rank's question."""
        try:
            self.lines[0].send(value)
        except OSError:
            self._fail(self._gone(0))

    def let_write(self) -> None:
        """Let the first rank write a state.

        Raises:
            OSError: it could not be written.
        """
        self.answer("write")
        heard = self.hear()
        assert isinstance(heard, _Said)
        [failure] = heard.given
        if failure is not None:
            raise failure

    def _receive(self, rank: int) -> _Said | _Done | _Failed:
        try:
            heard: _Said | _Done | _Failed = self.lines[rank].recv()
        except (EOFError, OSError):
            return _Failed(self._gone(rank))
        return heard

    def _gone(self, rank: int) -> ModelmillError:
        """Say what has become of a rank that said nothing."""
        process, memory = self.processes[rank], self.memories[rank]
        process.join(SETTLE_SECONDS)
        return why_gone(f"Rank {rank} of {len(self.processes)}", process.exitcode, memory)

    def _fail(self, first: BaseException) -> NoReturn:
        """Raise the cause: what most ranks see of it is that another does not answer."""
        errors, until = [first], time.monotonic() + SETTLE_SECONDS
        others = list(self.lines)
        while others and not any(map(_is_cause, errors)):
            ready = wait(others, max(0.0, until - time.monotonic()))
            if not ready:
                break
            for line in ready:
                heard = self._receive(self.lines.index(line))  # type: ignore[arg-type]
                if isinstance(heard, _Failed):
                    errors.append(heard.error)
                    others.remove(line)  # type: ignore[arg-type]
        raise next(filter(_is_cause, errors), first)


def _is_cause(error: BaseException) -> bool:
    return isinstance(error, ModelmillError | MemoryError | torch.OutOfMemoryError)


@dataclass
class _RankPulse:
    """The pulse of a rank: the first one's is that of the stage, the others only follow."""

    line: Connection
    team: Team

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a part of the stage."""
        self._say("part", name)
        yield
        self._say("left")

    @contextmanager
    def steps(self) -> Iterator[None]:
        """Let a request to stop wait for the end of a step."""
        self._say("steps")
        yield
        self._say("left")

    def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
        """Tell how far the present part is."""
        self._say("progress", done, total, unit, note)

    def save(self) -> None:
        """Say that `resume` is consistent."""
        self._say("save")

    def warn(self, sentence: str) -> None:
        """Log a warning that the report must show as well."""
        self._say("warn", sentence)

    def is_due(self) -> bool:
        """Tell every rank the same: a state is one between the same two steps of all."""
        return bool(self._ask_first("is_due"))

    def keep(self, size_bytes: int, write: Callable[[], None]) -> None:
        """Take part in writing a state, when the first is told to write one."""
        answer = self._ask_first("keep", size_bytes)
        while answer == "write":
            failure = None
            try:
                write()
            except OSError as error:
                failure = error
            answer = self._ask_first("written", failure)

    def fall_back(self) -> bool:
        """Have the state before put into `resume`; only the first asks."""
        return bool(self._ask("fall_back"))

    def _say(self, name: str, *given: object) -> None:
        if self.team.is_first:
            self.line.send(_Said(name, given))

    def _ask_first(self, name: str, *given: object) -> object:
        return self.team.agree(self._ask(name, *given) if self.team.is_first else None)

    def _ask(self, name: str, *given: object) -> object:
        self.line.send(_Said(name, given))
        return self.line.recv()


def _rank(task: _Task, line: Connection, parent_pid: int) -> None:
    """Be one of the processes, from its start to its last word."""
    # Who started us decides: it lets a step end, and kills us when nothing is left to do.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    end_with(parent_pid, signal.SIGKILL)
    logging.basicConfig(
        level=logging.INFO if task.team.is_first else logging.WARNING,
        stream=sys.stderr,
        format=f"%(asctime)s %(levelname)-7s rank {task.team.rank}: %(message)s",
        datefmt="%H:%M:%S",
    )
    pulse = _RankPulse(line, task.team)
    folders = Folders(task.inputs, task.output, task.resume, pulse.fall_back)
    try:
        meet(task.team, task.meeting)
        outcome = task.work(task.settings, folders, pulse, task.team)
        peaks = task.team.gather(machine.peak_gpu_bytes())
        if task.team.is_first:
            versions = machine.versions()
            line.send(_Done(replace(outcome, versions=versions, peak_gpu_bytes=max(peaks))))
    except BaseException as error:  # noqa: BLE001 - it is raised where the stage ends
        if not _is_cause(error):
            traceback.print_exception(error)
        line.send(_Failed(_as_sent(error)))
    line.recv()  # it never comes: the last word must be heard before the line breaks


def _as_sent(error: BaseException) -> BaseException:
    """Make sure that an error survives the pipe."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    except Exception:  # noqa: BLE001 - whatever a library's class does
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
