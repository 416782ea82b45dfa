"""What a fine-tune goes on from: everything its next step depends on, in safe files.

Tensors are safetensors and the rest is JSON: nothing in a checkpoint can run code when it is
read.  Knows the trainer's objects; must not know stores, nor when a state is kept.
"""

import random
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import torch
from pydantic import JsonValue, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from modelmill.spec.records import Record
from modelmill.stages.finetune.fsdp import fill, like, whole_ones
from modelmill.stages.finetune.team import Team
from modelmill.stages.finetune.watch import Best, Watch, WatchRecord, trainable

if TYPE_CHECKING:
    from modelmill.stages.finetune.trainer import Trainer

STATE: Final = "state.json"
TRAINER_STATE: Final = "trainer_state.json"
"""The library's own name for it, and its own JSON."""

FILE_BYTES: Final = 512 * 2**20
"""Of one file of tensors: the library builds a whole one in memory."""

Tensors = dict[str, torch.Tensor]


class MadeWith(Record):
    """What a state's numbers depend on beside the key's settings."""

    method: str
    device: Literal["cpu", "cuda"]
    precision: str
    world_size: int
    micro_batch_size: int
    divided: bool = False
    """Whether each rank had a part of the weights; the state has all of them anyway."""

    def refusal(self, present: "MadeWith") -> str:
        """Say why a state made so cannot be gone on from here; empty if it can."""
        return self._differences(present, ["method", "device", "precision"])

    def inexactness(self, present: "MadeWith") -> str:
        """Say what makes the result another in its last bits; empty for nothing."""
        return self._differences(present, ["world_size", "micro_batch_size", "divided"])

    def _differences(self, present: "MadeWith", names: Iterable[str]) -> str:
        pairs = [(name, getattr(self, name), getattr(present, name)) for name in names]
        return ", ".join(f"{name} was {was} and is {now}" for name, was, now in pairs if was != now)


class PythonState(Record):
    """The state of Python's own generator and of NumPy's."""

    python: tuple[int, tuple[int, ...], float | None]
    numpy: tuple[tuple[int, ...], int, int, float]


class State(Record):
    """What of a state is no tensor."""

    format: Literal[1] = 1
    made_with: MadeWith
    halvings: int
    """Of the micro-batch: what did not fit once is not tried again."""
    step: int
    tokens: int
    watch: WatchRecord
    groups: tuple[Mapping[str, JsonValue], ...]
    """The optimizer's, without their parameters."""
    scheduler: Mapping[str, JsonValue]
    scaler: Mapping[str, JsonValue] | None
    generators: PythonState


@dataclass(frozen=True)
class Kept:
    """A state on disk that fits."""

    folder: Path
    state: State

    def tensors(self, name: str) -> Tensors:
        """Read one group of tensors."""
        return dict(self.one_by_one(name))

    def one_by_one(self, name: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Read one group of tensors without having a whole one in memory."""
        return _read(self.folder, name)


def newest_that_fits(
    folder: Path,
    fall_back: Callable[[], bool],
    present: MadeWith,
    say: Callable[[str], None],
) -> Kept | None:
    """Read the newest state that training can go on from, saying why others cannot serve.

    Args:
        folder: where a state is, if there is one.
        fall_back: puts the state before it there.
        present: what training is done with now.
        say: told about each state that is refused, in a sentence.
    """
    while (folder / STATE).exists():
        try:
            state = State.model_validate_json((folder / STATE).read_bytes())
        except ValidationError as error:
            reason = f"it is not one of this version ({error.error_count()} differences)"
        else:
            reason = state.made_with.refusal(present)
            if not reason:
                return Kept(folder, state)
        say(f"A checkpoint is refused: {reason}; going on from the one before, or from the start")
        if not fall_back():
            break
    return None


def is_of_divided_weights(folder: Path) -> bool:
    """Tell whether the newest state is of ranks that had a part of the weights each."""
    try:
        kept = State.model_validate_json((folder / STATE).read_bytes())
    except (OSError, ValidationError):  # `newest_that_fits` says it
        return False
    return kept.made_with.divided


def write_state(
    trainer: "Trainer", watch: Watch, made_with: MadeWith, halvings: int, folder: Path
) -> None:
    """Write everything the next step depends on, in place of what the folder holds.

    The state is one between two steps, after what was evaluated at the first of them.  The first
    of a team writes it; where weights are divided, all have to take part.
    """
    assert trainer.optimizer is not None
    optimizer = trainer.optimizer.state_dict()
    moments = {
        f"{index}.{name}": value
        for index, each in optimizer["state"].items()
        for name, value in each.items()
    }
    weights, moving = whole_ones(trainable(trainer.model)), whole_ones(moments)
    try:
        if not trainer.team.is_first:
            return
        _empty(folder)
        _write(folder, "weights", weights)
        _write(folder, "optimizer", moving)
        _write(folder, "generators", trainer.generators.items())
        if watch.best is not None:
            _write(folder, "best", watch.best.weights.items())
        _write_rest(trainer, watch, made_with, halvings, folder)
    finally:  # of every tensor each has a part, also where the first can write no more
        deque(weights, maxlen=0)
        deque(moving, maxlen=0)


def _write_rest(
    trainer: "Trainer", watch: Watch, made_with: MadeWith, halvings: int, folder: Path
) -> None:
    """Write what is no tensor; last, because a state is whole when this is there."""
    assert trainer.optimizer is not None
    assert trainer.lr_scheduler is not None
    scaler = trainer.accelerator.scaler
    state = State(
        made_with=made_with,
        halvings=halvings,
        step=trainer.state.global_step,
        tokens=trainer.tokens,
        watch=watch.record(),
        groups=tuple(
            # JSON knows no tuples.
            {k: list(v) if isinstance(v, tuple) else v for k, v in group.items() if k != "params"}
            for group in trainer.optimizer.state_dict()["param_groups"]
        ),
        scheduler=trainer.lr_scheduler.state_dict(),
        scaler=None if scaler is None else scaler.state_dict(),
        generators=_python_state(),
    )
    # The curve is in ours, and nothing of the library's callbacks is in use.
    replace(trainer.state, log_history=[], stateful_callbacks={}).save_to_json(
        str(folder / TRAINER_STATE)
    )
    (folder / STATE).write_text(state.model_dump_json(), encoding="utf-8")


def restore_weights(kept: Kept, model: torch.nn.Module) -> None:
    """Give the trained weights the values they had."""
    weights = trainable(model)
    for name, values in kept.one_by_one("weights"):
        fill(weights.pop(name), values)
    assert not weights


def restore_watch(kept: Kept, watch: Watch) -> None:
    """Let the watch know what it knew."""
    record = kept.state.watch
    best = None
    if record.best_step is not None and record.best_loss is not None:
        weights = kept.tensors("best") if watch.keeps_weights else {}
        best = Best(record.best_step, record.best_loss, weights)
    watch.restore(record, best)


def restore_optimizer(kept: Kept, trainer: "Trainer") -> None:
    """Give optimizer, schedule and loss scale the states they had."""
    assert trainer.optimizer is not None
    assert trainer.lr_scheduler is not None
    fresh = trainer.optimizer.state_dict()
    learned = [each for group in trainer.optimizer.param_groups for each in group["params"]]
    moments: dict[int, Tensors] = {}
    for name, value in kept.one_by_one("optimizer"):
        index, _, moment = name.partition(".")
        moments.setdefault(int(index), {})[moment] = like(learned[int(index)], value)
    groups = [
        {**group, **{k: tuple(v) if isinstance(v, list) else v for k, v in was.items()}}
        for group, was in zip(fresh["param_groups"], kept.state.groups, strict=True)
    ]
    trainer.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    trainer.lr_scheduler.load_state_dict(dict(kept.state.scheduler))
    if kept.state.scaler is not None and trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler.load_state_dict(dict(kept.state.scaler))


def restore_generators(kept: Kept, team: Team) -> None:
    """Let every generator of this process go on where it was.

    One of a rank that there was not goes on from where it is.
    """
    state, tensors = kept.state.generators, kept.tensors("generators")
    random.setstate(state.python)
    keys, place, has_gauss, gauss = state.numpy
    np.random.set_state(("MT19937", np.array(keys, np.uint32), place, has_gauss, gauss))  # noqa: NPY002 - libraries draw from it
    cpu, cuda = (_of_rank(name, team.rank) for name in ("cpu", "cuda"))
    if team.size == 1:
        torch.set_rng_state(order_generator(kept))
    elif cpu in tensors:
        torch.set_rng_state(tensors[cpu])
    if cuda in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors[cuda])


def epoch_generator(kept: Kept) -> torch.Tensor:
    """Read what the generator of orders was when the epoch's order was drawn from it."""
    return kept.tensors("generators")["epoch"]


def order_generator(kept: Kept) -> torch.Tensor:
    """Read what the generator of orders was; one process draws everything from one."""
    tensors = kept.tensors("generators")
    return tensors.get("order", tensors["cpu"])


def present_generators(team: Team) -> Tensors:
    """Copy torch's generators of all processes; every one of them has to ask."""
    own = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()
    return {
        _of_rank(name, rank): each
        for rank, found in enumerate(team.gather(own))
        for name, each in found.items()
    }


def _of_rank(name: str, rank: int) -> str:
    return f"{name}.{rank}" if rank else name


_PYTHON: Final = TypeAdapter(tuple[int, tuple[int, ...], float | None])


def _python_state() -> PythonState:
    _, keys, place, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    return PythonState(
        python=_PYTHON.validate_python(random.getstate()),
        numpy=(tuple(np.asarray(keys).tolist()), int(place), int(has_gauss), float(gauss)),
    )


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _write(folder: Path, name: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Write tensors in files of a bounded size."""
    for number, part in enumerate(_parts(tensors)):
        try:
            save_file(part, folder / f"{name}-{number:05d}.safetensors")
        except SafetensorError as error:  # what the library makes of a full disk
            raise OSError(str(error)) from error


def _parts(tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[Tensors]:
    part: Tensors = {}
    size_bytes = 0
    for name, tensor in tensors:
        if part and size_bytes + tensor.nbytes > FILE_BYTES:
            yield part
            part, size_bytes = {}, 0
        part[name] = tensor.detach().contiguous()
        size_bytes += tensor.nbytes
    yield part


def _read(folder: Path, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    for path in sorted(folder.glob(f"{name}-*.safetensors")):
        yield from load_file(path).items()
