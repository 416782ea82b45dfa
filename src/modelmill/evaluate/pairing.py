"""Tell whether two runs were asked the same test rows, and which row is which.

Knows rows by number and content; knows nothing about answers.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from modelmill.evaluate.scores import Scores
from modelmill.evaluate.statistics import Floats
from modelmill.spec.records import Prediction


def fingerprint(prediction: Prediction) -> str:
    """Digest what was asked, whatever the prompt around it and whoever answered."""
    asked = {"reference": prediction.reference, "fields": dict(prediction.fields)}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def pair_rows(before: Mapping[int, str], after: Mapping[int, str]) -> Mapping[int, int] | None:
    """Find for every row of one run its row in the other, by fingerprint.

    Equal rows are paired in their order.

    Returns:
        Rows of `before` by rows of `after`, or None unless both hold the same rows.
    """
    places: defaultdict[str, list[int]] = defaultdict(list)
    for row in sorted(before, reverse=True):
        places[before[row]].append(row)
    pairs: dict[int, int] = {}
    for row in sorted(after):
        if not places[after[row]]:
            return None
        pairs[row] = places[after[row]].pop()
    return pairs if len(pairs) == len(before) else None


def changes(before: Scores, after: Scores) -> Floats:
    """Subtract row by row over the rows that both have a score for, whichever way is better."""
    shared = sorted(before.values.keys() & after.values.keys())
    return np.array([after.values[row] - before.values[row] for row in shared])
