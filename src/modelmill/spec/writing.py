"""Write documents as YAML, in the order in which they were made, for people to read.

Pure.  What is read back is read by `loading`.
"""

import io
import re
from collections.abc import Iterable

from pydantic import JsonValue
from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter

_AMBIGUOUS = re.compile(r"(?i)y|n|yes|no|on|off|[-+]?[0-9][0-9_]*([:.][0-9_]*)*(e[-+]?[0-9]+)?")
"""Texts that readers of YAML 1.1, such as kubectl, take for something else."""


class _Representer(SafeRepresenter):
    """Writes so that YAML 1.1 and 1.2 read the same."""

    def represent_str(self, data: str) -> ScalarNode:
        """Quote what a reader could take for a number or a truth value."""
        style = "'" if _AMBIGUOUS.fullmatch(data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    def ignore_aliases(self, _data: object) -> bool:
        """Write equal parts twice: nobody reads anchors in a manifest."""
        return True


_Representer.add_representer(str, _Representer.represent_str)


def yaml_text(documents: Iterable[JsonValue]) -> str:
    """Write documents one after the other, each behind `---`."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.explicit_start = True
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # declared as None
    # A long line is never folded.
    yaml.width = 4096
    text = io.StringIO()
    yaml.dump_all(list(documents), text)
    return text.getvalue()
