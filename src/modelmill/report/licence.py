"""The licence of a base model, as far as its own card says.

Pure.  The card is a stranger's text: three of its lines are looked for, nothing of it is
parsed as YAML, and only values of harmless characters are taken.
"""

import re
from dataclasses import dataclass
from typing import Final

UNKNOWN: Final = "unknown"
"""What hubs call a licence that nobody has named."""

LICENCE_NAMES: Final = frozenset({"LICENSE", "LICENCE", "NOTICE", "COPYING"})
"""Files, whatever their suffix, that whoever passes a model on must keep."""

_FRONT: Final = re.compile(r"---\r?\n(.*?)\r?\n---\s", re.DOTALL)
_LINE: Final = r"^{}:[ \t]*(['\"]?)([\w.+:/-]{{1,200}})\1[ \t]*\r?$"


@dataclass(frozen=True)
class Licence:
    """What may be done with a base model, and so with what is made of it."""

    id: str = UNKNOWN
    """As hubs know it: an SPDX identifier in lower case, or `other`."""
    name: str = ""
    """Of a licence that hubs do not know."""
    link: str = ""
    """Where that one stands."""


def licence_of(card: str) -> Licence:
    """Read the licence off the front matter of a model card."""
    front = _FRONT.match(card)
    if front is None:
        return Licence()
    found = {
        key: _value(key, front.group(1)) for key in ("license", "license_name", "license_link")
    }
    return Licence(found["license"] or UNKNOWN, found["license_name"], found["license_link"])


def _value(key: str, front: str) -> str:
    line = re.search(_LINE.format(key), front, re.MULTILINE | re.ASCII)
    return "" if line is None else line.group(2)
