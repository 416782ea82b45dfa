"""Put what learns step by step for the concepts page into measured/learned.json.

    python -m docs.learned

from the root of the checkout.  Steps that round make much of the last bit of a sum, which is
another on another CPU: with 2 bits one network was 110 % off on one machine and 140 % on another.
So the page shows the middle of several networks, is drawn from what one machine has found, and
`tests/unit/docs` holds what is found elsewhere against that.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from docs.network import Network, Seen, plain, ternary, to_bits
from docs.quantizers import autoround, example_layer

LEARNED: Final = Path(__file__).parent / "measured" / "learned.json"
BITS: Final = (8, 4, 3, 2)


NETWORKS: Final = 9


class Learned(BaseModel):
    """Errors as shares of the variance of what a network learned; one for each network."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    as_trained: Sequence[float]
    rounded: Mapping[int, Sequence[float]]
    """After training, by bits."""
    trained_while_rounded: Mapping[int, Sequence[float]]
    ternary: Sequence[float]
    """Rounded to three values after training."""
    ternary_trained_further: Sequence[float]
    ternary_from_the_beginning: Sequence[float]
    autoround: Mapping[int, Sequence[float]]
    """Of the example layer's output, by bits; there is one such layer."""


def learn(networks: int = NETWORKS) -> Learned:
    """Train everything on this machine, three seconds for each network."""
    seeds = range(networks)
    trained = [Network(seed).train(plain, 2000) for seed in seeds]

    def errors(seen: Seen) -> list[float]:
        return [each.error(seen) for each in trained]

    def further(seen: Seen) -> list[float]:
        return [copy.deepcopy(each).train(seen, rate=0.005).error(seen) for each in trained]

    layer = example_layer()
    return Learned(
        as_trained=errors(plain),
        rounded={bits: errors(to_bits(bits)) for bits in BITS},
        trained_while_rounded={bits: further(to_bits(bits)) for bits in BITS},
        ternary=errors(ternary),
        ternary_trained_further=further(ternary),
        ternary_from_the_beginning=[
            Network(seed).train(ternary, 3000).error(ternary) for seed in seeds
        ],
        autoround={
            bits: [layer.error(autoround(layer.weights, layer.calibration, bits))] for bits in BITS
        },
    )


def recorded() -> Learned:
    """Read what was found when this was last asked for."""
    return Learned.model_validate_json(LEARNED.read_bytes())


if __name__ == "__main__":
    LEARNED.write_text(learn().model_dump_json(indent=2) + "\n", encoding="utf-8")
