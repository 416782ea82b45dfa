"""A network small enough to be trained in a second, to see what training has to do with bits.

For the tables of the concepts page only.  Shapes: weights (outputs, inputs), data (inputs,
samples); float64 throughout.
"""

from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np

from docs.quantizers import Array, absmean

HIDDEN: Final = 32
INPUTS: Final = 8
SAMPLES: Final = 768
STEPS: Final = 1000

Seen: TypeAlias = Callable[[Array], Array]
"""What the forward pass sees of a weight matrix."""


def plain(weights: Array) -> Array:
    """See the weights as they are."""
    return weights


def to_bits(bits: int) -> Seen:
    """See weights on a symmetric grid, with one scale per row."""
    most = 2 ** (bits - 1) - 1

    def seen(weights: Array) -> Array:
        scale = np.abs(weights).max(1, keepdims=True) / most
        back: Array = scale * np.round(weights / scale)
        return back

    return seen


def ternary(weights: Array) -> Array:
    """See BitNet's three values."""
    return absmean(weights)


class Network:
    """Two layers that learn a smooth function of their inputs."""

    def __init__(self, seed: int) -> None:
        """Draw weights, and data to learn from and to be judged on."""
        draw = np.random.default_rng(seed)
        self.first: Array = draw.normal(size=(HIDDEN, INPUTS)) / np.sqrt(INPUTS)
        self.second: Array = draw.normal(size=(1, HIDDEN)) / np.sqrt(HIDDEN)
        wave = draw.normal(size=(3, INPUTS))
        self._data = [draw.normal(size=(INPUTS, SAMPLES)) for _ in range(2)]
        self._answers = [np.sin(0.5 * wave @ data).sum(0, keepdims=True) for data in self._data]

    def train(self, seen: Seen, steps: int = STEPS, rate: float = 0.01) -> "Network":
        """Take steps with Adam; the gradient passes the rounding as if it were not there.

        The straight-through estimator: Bengio et al., 2013.
        """
        data, answers = self._data[0], self._answers[0]
        means = [np.zeros_like(self.first), np.zeros_like(self.second)]
        squares = [np.zeros_like(self.first), np.zeros_like(self.second)]
        for step in range(1, steps + 1):
            hidden = np.tanh(seen(self.first) @ data)
            missed = (seen(self.second) @ hidden - answers) / SAMPLES
            back = (seen(self.second).T @ missed) * (1 - hidden**2)
            slopes = [back @ data.T, missed @ hidden.T]
            moves = []
            for place, slope in enumerate(slopes):
                means[place] = 0.9 * means[place] + 0.1 * slope
                squares[place] = 0.99 * squares[place] + 0.01 * slope**2
                spread = np.sqrt(squares[place] / (1 - 0.99**step)) + 1e-9
                even = means[place] / (1 - 0.9**step) / spread
                moves.append(rate * (1 - step / steps) * even)
            self.first, self.second = self.first - moves[0], self.second - moves[1]
        return self

    def error(self, seen: Seen) -> float:
        """Judge on data that was not trained on: the share of the answers' variance missed."""
        data, answers = self._data[1], self._answers[1]
        found = seen(self.second) @ np.tanh(seen(self.first) @ data)
        return float(np.square(found - answers).mean() / answers.var())
