"""Write documents as YAML, in the order in which they were made, for people to read.

Pure.  What is read back is read by `loading`.
"""

import io
from collections.abc import Iterable

from pydantic import JsonValue
from ruamel.yaml import YAML


def yaml_text(documents: Iterable[JsonValue]) -> str:
    """Write documents one after the other, each behind `---`."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.explicit_start = True
    yaml.sort_base_mapping_type_on_output = False
    # Equal parts are written twice: nobody reads anchors in a manifest.
    yaml.representer.ignore_aliases = lambda _: True
    # A long line is never folded.
    yaml.width = 4096
    text = io.StringIO()
    yaml.dump_all(list(documents), text)
    return text.getvalue()
