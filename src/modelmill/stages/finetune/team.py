"""Processes that train one model together, each on a device of its own, and what they agree on.

Knows torch's process group; must not know who started the processes.
"""

import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final, TypeVar

import torch
from torch import distributed
from torch.utils.data import BatchSampler, Sampler

T = TypeVar("T")

NO_LIMIT: Final = timedelta(days=365)
"""Of waiting for another rank: it is the stage's own watch that ends what hangs."""


@dataclass(frozen=True)
class Team:
    """Which of how many processes this is; all of them call the same method at the same point."""

    rank: int = 0
    size: int = 1
    divides: bool = False
    """Whether each holds a part of the weights only; else each has all of them."""

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def agree(self, found: T) -> T:
        """Take what the first has found."""
        if self.size == 1:
            return found
        holder = [found]
        distributed.broadcast_object_list(holder, src=0, device=torch.device("cpu"))
        return holder[0]

    def gather(self, own: T) -> tuple[T, ...]:
        """List what every process has, by rank."""
        if self.size == 1:
            return (own,)
        found: list[T] = [own] * self.size
        distributed.all_gather_object(found, own)
        return tuple(found)


ALONE: Final = Team()


def meet(team: Team, file: Path) -> None:
    """Make the processes one group, as libraries expect it of torchrun.

    Args:
        team: which of them this is.
        file: by which they find each other: no port is open to anybody else.
    """
    threads = max(1, torch.get_num_threads() // team.size)
    loopback = "lo" if sys.platform == "linux" else "lo0"
    os.environ |= {
        "RANK": str(team.rank),
        "LOCAL_RANK": str(team.rank),
        "WORLD_SIZE": str(team.size),
        "LOCAL_WORLD_SIZE": str(team.size),
        "OMP_NUM_THREADS": str(threads),
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
    }
    torch.set_num_threads(threads)
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(team.rank)
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(
        backend,
        init_method=f"file://{file}",
        rank=team.rank,
        world_size=team.size,
        timeout=NO_LIMIT,
    )


@dataclass(frozen=True)
class Turns(Sampler[list[int]]):
    """Deals out the micro-batches that one process would take, one after the other, to a team.

    So the micro-batches of a step are the same ones, whoever takes them.  At the end of a pass a
    rank may get an empty one: all have to take part in every step.
    """

    batches: Sequence[list[int]] | BatchSampler
    team: Team

    def __len__(self) -> int:
        """Count the turns of every rank."""
        return math.ceil(len(self.batches) / self.team.size)

    def __iter__(self) -> Iterator[list[int]]:
        """Go through those of this rank."""
        batches = iter(self.batches)
        for _ in range(len(self)):
            turn: list[list[int]] = [next(batches, []) for _ in range(self.team.size)]
            yield turn[self.team.rank]
