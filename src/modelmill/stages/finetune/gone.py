"""Why a rank has ended without a word: the kernel, for its memory; somebody else; or a defect.

Knows how a process ended; must not know what it did.
"""

import signal

from modelmill.spec.errors import DeviceFault, InternalError, ModelmillError
from modelmill.stages.finetune.training import TooManyRows
from modelmill.store.memory import Memory


def why_gone(who: str, exit_code: int | None, memory: Memory) -> ModelmillError:
    """Say what has become of a rank, so that whoever hears it knows what to try.

    Args:
        who: the rank, at the beginning of a sentence.
        exit_code: of its process; None where that is still being ended.
        memory: as it was last seen.
    """
    if exit_code is None or exit_code >= 0:
        return InternalError(f"{who} ended with {exit_code} and without a word", fix="read the log")
    if exit_code == -signal.SIGKILL and memory.is_spent():
        return TooManyRows(
            f"{who} was killed by the kernel for its memory: {memory.used_words()}",
            fix="give stages.finetune more memory, or fewer ranks: each holds the model",
        )
    killed = f"{who} was killed by {signal.Signals(-exit_code).name}"
    again = "the conductor tries again, from the last checkpoint"
    if memory.is_counted or exit_code != -signal.SIGKILL:
        return DeviceFault(killed, fix=again)
    return DeviceFault(
        f"{killed}, perhaps by the kernel for its memory: nobody counts that here",
        fix=f"{again}; if it comes back, give stages.finetune more memory, or fewer ranks: each "
        "holds the model",
    )
