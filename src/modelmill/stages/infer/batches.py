"""Which rows are answered together: fixed once, so that a resumed stage answers equally.

Quantized kernels round differently with the batch they see; so batches depend on the
prompts alone, never on what has already been answered.  Pure.
"""

from collections.abc import Mapping, Sequence

Batch = tuple[int, ...]
"""Row numbers."""


def make_batches(lengths: Mapping[int, int], size: int) -> tuple[Batch, ...]:
    """Group rows of similar length, so that little is padded.

    Args:
        lengths: prompt tokens by row number.
        size: rows in every batch but the last.
    """
    order = sorted(lengths, key=lambda row: (lengths[row], row))
    return tuple(tuple(order[start : start + size]) for start in range(0, len(order), size))


def batches_of(batches: Sequence[Batch], shard: int, shards: int) -> tuple[Batch, ...]:
    """Deal the batches of a plan out to shards; neighbours in length go to different ones.

    Whole ones: so each is answered as it would be without shards.
    """
    return tuple(batches[shard::shards])


def pad_left(sequences: list[list[int]], pad: int) -> tuple[list[list[int]], list[list[int]]]:
    """Make sequences equally long by padding in front; returns ids and attention mask."""
    width = max(map(len, sequences))
    ids = [[pad] * (width - len(each)) + each for each in sequences]
    mask = [[0] * (width - len(each)) + [1] * len(each) for each in sequences]
    return ids, mask


def pad_right(sequences: list[list[int]], pad: int) -> tuple[list[list[int]], list[list[int]]]:
    """Make sequences equally long by padding behind; returns ids and attention mask."""
    width = max(map(len, sequences))
    ids = [each + [pad] * (width - len(each)) for each in sequences]
    mask = [[1] * len(each) + [0] * (width - len(each)) for each in sequences]
    return ids, mask


def answer_of(generated: list[int], stops: frozenset[int]) -> tuple[list[int], int]:
    """Cut what a row generated at its first stop.

    Args:
        generated: new ids, filled up behind the stop.
        stops: end-of-text and padding ids.

    Returns:
        The answer's ids, and how many tokens were generated, the stop included.
    """
    for position, token in enumerate(generated):
        if token in stops:
            return generated[:position], position + 1
    return generated, len(generated)
