"""Whether a loss has run away for good.  Pure.

A spike is no divergence, and neither is a loss that hardly falls.  What is meant is a run
that is far worse than before it began and stays so: nothing good comes of it, and on a GPU
every hour of it is paid for.
"""

from dataclasses import dataclass
from typing import Final

FIRST: Final = 8
"""Steps whose mean is the loss at the start."""

SMOOTHED: Final = 16
"""Steps over which the loss is smoothed, exponentially."""

FACTOR: Final = 2.0
MARGIN: Final = 1.0
"""Far above is more than twice the start and a nat: a loss of 0.3 may rise to 1.6, one of 2.5 to
6; a model that knows nothing of a vocabulary of 50,000 has 10.8."""

PATIENCE: Final = 64
"""Steps in a row that it has to be far above; a warm-up that is too steep recovers sooner."""


@dataclass
class Divergence:
    """Remembers what it takes to tell."""

    seen: int = 0
    start: float = 0.0
    smoothed: float = 0.0
    above: int = 0
    """Steps in a row far above the start."""

    @property
    def bound(self) -> float:
        """What is far above the start."""
        return FACTOR * self.start + MARGIN

    def has_diverged(self, loss: float) -> bool:
        """Look at the loss of one more step."""
        self.seen += 1
        if self.seen <= FIRST:
            self.start += (loss - self.start) / self.seen
            self.smoothed = self.start
            return False
        self.smoothed += (loss - self.smoothed) / SMOOTHED
        self.above = self.above + 1 if self.smoothed > self.bound else 0
        return self.above >= PATIENCE
