"""Two users of one store whose requests happen in an order that a test decides."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from itertools import combinations
from typing import TypeVar

from modelmill.store.s3 import Store

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")


class Turns:
    """Lets two threads make one request at a time, in the order of a schedule.

    Who is not in the schedule any more goes on as soon as the other has ended.
    """

    def __init__(self, schedule: Sequence[int]) -> None:
        self._schedule = list(schedule)
        self._ended: set[int] = set()
        self._changed = threading.Condition()
        self.made = [0, 0]

    def wait(self, user: int) -> None:
        """Wait until it is this user's turn."""
        with self._changed:
            while not self._is_turn(user):
                self._changed.wait(10)

    def done(self, user: int) -> None:
        """Let the next one have its turn."""
        with self._changed:
            self.made[user] += 1
            if self._schedule and self._schedule[0] == user:
                self._schedule.pop(0)
            self._changed.notify_all()

    def end(self, user: int) -> None:
        """Make no more requests."""
        with self._changed:
            self._ended.add(user)
            self._changed.notify_all()

    def _is_turn(self, user: int) -> bool:
        while self._schedule and self._schedule[0] in self._ended:
            self._schedule.pop(0)
        return not self._schedule or self._schedule[0] == user


@dataclass(frozen=True)
class TurnStore(Store):
    """A store whose every request waits for its turn."""

    turns: Turns = field(default_factory=lambda: Turns(()))
    user: int = 0

    def _try(self, at: str, request: Callable[[], T]) -> T:
        self.turns.wait(self.user)
        try:
            return super()._try(at, request)
        finally:
            self.turns.done(self.user)


def play(
    store: Store, schedule: Sequence[int], first: Callable[[Store], A], second: Callable[[Store], B]
) -> tuple[A | Exception, B | Exception]:
    """Let two users work on a store, and return what each returned or raised.

    Args:
        store: the one store.
        schedule: whose request comes next, 0 or 1.
        first: what user 0 does.
        second: what user 1 does.
    """
    turns = Turns(schedule)

    def run(user: int, act: Callable[[Store], T]) -> T | Exception:
        try:
            return act(
                TurnStore(
                    **{each.name: getattr(store, each.name) for each in fields(store)},
                    turns=turns,
                    user=user,
                )
            )
        except Exception as error:  # noqa: BLE001 - a test looks at it
            return error
        finally:
            turns.end(user)

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.submit(run, 0, first), pool.submit(run, 1, second)
        return one.result(), two.result()


def schedules(first: int, second: int) -> Iterator[tuple[int, ...]]:
    """List every order of so many requests of the one and of the other."""
    total = first + second
    for places in combinations(range(total), second):
        yield tuple(int(index in places) for index in range(total))
