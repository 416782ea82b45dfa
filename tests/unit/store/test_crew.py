"""Turns and bounds of parts that are moved side by side, without any store."""

import hashlib
import random
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmill.store.connection import Stopped
from modelmill.store.crew import BUDGET_BYTES, Crew, Digest, Job, no_progress


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 12), max_size=6), st.integers(1, BUDGET_BYTES), st.integers())
def test_digests_of_files_whose_parts_come_in_any_order(
    counts: list[int], part_bytes: int, seed: int
) -> None:
    """Each digest is that of the parts in their order, and memory stays within the bound."""
    stop, lock, chance = threading.Event(), threading.Lock(), random.Random(seed)
    digests = [Digest(stop) for _ in counts]
    present = peak = 0

    def bring(file: int, number: int) -> None:
        nonlocal present, peak
        with lock:
            present += part_bytes
            peak = max(peak, present)
            delay = chance.choice([0, 0, 0.001])
        time.sleep(delay)
        digests[file].add(number, f"{file}.{number};".encode())
        with lock:
            present -= part_bytes

    def jobs(file: int) -> Iterator[Job]:
        return (Job(part_bytes, partial(bring, file, each)) for each in range(counts[file]))

    with Crew(stop, no_progress) as crew:
        crew.run(jobs(file) for file in range(len(counts)))

    for file, count in enumerate(counts):
        whole = "".join(f"{file}.{number};" for number in range(count))
        assert digests[file].hexdigest() == hashlib.sha256(whole.encode()).hexdigest()
    assert peak <= BUDGET_BYTES


def test_part_that_fails() -> None:
    """Nobody waits for ever for a part that will not come, and its error is what is told."""
    stop = threading.Event()
    digest = Digest(stop)

    def fail() -> None:
        raise ValueError("lost")

    jobs = [Job(1, fail), *(Job(1, partial(digest.add, number, b"x")) for number in range(1, 20))]
    with Crew(stop, no_progress) as crew, pytest.raises(ValueError, match="lost"):
        crew.run([iter(jobs)])


def test_file_that_is_given_up() -> None:
    """Parts of one file that are given up do not stop the others."""
    digest = Digest(threading.Event())
    digest.give_up()
    with pytest.raises(Stopped):
        digest.add(1, b"never")
