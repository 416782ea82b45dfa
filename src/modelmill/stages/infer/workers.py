"""Several batches at once on a CPU, each on threads of its own.

A token is hundreds of short operations.  Threads that share each of them wait for one another more
than they compute, the more so where other processes want the cores too.  Knows threads; must
not know prompts.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final, TypeVar

import torch
from transformers import PreTrainedModel

from modelmill.spec.batching import ANSWERED_AT_ONCE, UPDATED_ROPES

LOOK_SECONDS: Final = 0.2
"""How long a request to stop may go unheard: the kernel may give a signal to any thread, and only
the main one acts on it, when it wakes."""

Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Workers:
    """How the cores are shared out; the same for every batch, whatever is left to be done."""

    count: int
    threads: int
    """torch's, for each worker: results may depend on it in the last bit."""


def workers_for(model: PreTrainedModel) -> Workers:
    """Share the threads that torch has here out to batches; a GPU answers one at a time."""
    cores = torch.get_num_threads()
    # Some recurrent models keep what they have read in their modules: of two batches at once, each
    # would go on from the other's.  transformers marks them, and a PeftModel passes the mark on.
    is_stateful = getattr(model, "_is_stateful", False)
    if model.device.type != "cpu" or is_stateful or _ropes(model) & UPDATED_ROPES:
        return Workers(1, cores)
    # Their first forward moves or repacks weights without a lock: of 4,000 forwards of int8 layers
    # in two threads, two were more than 5 % off.
    if any(type(each).__module__.startswith("bitsandbytes") for each in model.modules()):
        return Workers(1, cores)
    count = min(cores, ANSWERED_AT_ONCE)
    return Workers(count, cores // count)


def at_once(
    work: Callable[[Given, threading.Event], Made], items: Sequence[Given], threads: int
) -> list[Made]:
    """Do some work on all items at the same time; returns what was made, in their order.

    Args:
        work: one item's, in a thread of its own; told to give up, it ends soon.
        items: at least one.
        threads: torch's, for each.
    """
    give_up = threading.Event()
    with ThreadPoolExecutor(
        len(items), initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        try:
            running = [pool.submit(work, item, give_up) for item in items]
            left = set(running)
            while left:
                done, left = wait(left, LOOK_SECONDS, FIRST_EXCEPTION)
                for each in done:
                    each.result()
            return [each.result() for each in running]
        finally:
            # A failed one, or a request to stop, must not wait for whole batches.
            give_up.set()


def _ropes(model: PreTrainedModel) -> set[str]:
    """Collect the kinds of rotary positions; a model may have one for each kind of layer."""
    told = [getattr(module, "rope_type", None) for module in model.modules()]
    kinds = [each.values() if isinstance(each, dict) else (each,) for each in told]
    return {str(kind) for some in kinds for kind in some}
