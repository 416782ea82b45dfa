"""Where the parts of a file go that is read from a store; into a file with `store/landing.py`."""

from typing import Protocol

from modelmill.store.ranges import piece_digests


class Target(Protocol):
    """Where the parts of one file go, which several threads bring in any order."""

    def open(self) -> None:
        """Begin, perhaps once more."""
        ...

    def present(self, number: int) -> bytes | None:
        """Give a part that is there already."""
        ...

    def write(self, number: int, body: bytes) -> None:
        """Take a part."""
        ...

    def forget(self) -> None:
        """Drop all parts: together they are not what they should be."""
        ...

    def land(self) -> None:
        """Keep all parts: they are."""
        ...

    def close(self) -> None:
        """Let go of what is open."""
        ...


class Nowhere:
    """Keeps nothing."""

    def open(self) -> None:
        """Do nothing."""

    def present(self, number: int) -> bytes | None:
        """Have nothing."""
        del number
        return None

    def write(self, number: int, body: bytes) -> None:
        """Do nothing."""

    def forget(self) -> None:
        """Do nothing."""

    def land(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Digests(Nowhere):
    """Keeps what each part was."""

    def __init__(self) -> None:
        self._by_number: dict[int, tuple[bytes, ...]] = {}

    def write(self, number: int, body: bytes) -> None:
        """Remember digests."""
        self._by_number[number] = piece_digests(body)

    def in_order(self) -> tuple[bytes, ...]:
        """Give all of them."""
        return tuple(each for _, some in sorted(self._by_number.items()) for each in some)
