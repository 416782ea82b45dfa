# ruff: noqa: INP001 - a script, in no package
"""Write the packages of an image's Python as a CycloneDX document on stdout.

    sbom.py LOCK

Reads the lock and the metadata of what is installed; what is installed and not locked is refused,
so the document says what is in the image and not what should be.
"""

import json
import re
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import distributions
from pathlib import Path

_PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;\\]+)")
_HASH = re.compile(r"--hash=sha256:(?P<digest>[0-9a-f]{64})")

Pin = tuple[str, str]
"""Normalized name and version."""


def read_lock(text: str) -> Mapping[Pin, list[str]]:
    """List the pins of a lock with the SHA-256 of every file that may stand for them."""
    digests: dict[Pin, list[str]] = {}
    accepted: list[str] = []
    for line in text.splitlines():
        if pin := _PIN.match(line):
            accepted = digests.setdefault((_normal(pin["name"]), pin["version"]), [])
        elif found := _HASH.search(line):
            accepted.append(found["digest"])
    return digests


def document(installed: Iterable[Pin], locked: Mapping[Pin, list[str]]) -> str:
    """Describe the installed packages: equal packages give equal bytes.

    Raises:
        SystemExit: something is installed that the lock does not name.
    """
    pins = sorted(installed)
    if strangers := [
        f"{name}=={version}" for name, version in pins if (name, version) not in locked
    ]:
        raise SystemExit(f"Installed and not in the lock: {', '.join(strangers)}")
    components = [
        {
            "type": "library",
            "bom-ref": f"pkg:pypi/{name}@{version}",
            "name": name,
            "version": version,
            "purl": f"pkg:pypi/{name}@{version}",
            "properties": [
                {"name": "modelmill:accepted-sha256", "value": digest}
                for digest in locked[name, version]
            ],
        }
        for name, version in pins
    ]
    bill = {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": components}
    return json.dumps(bill, indent=1) + "\n"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    """Describe the Python that runs this."""
    installed = [(_normal(each.name), each.version) for each in distributions()]
    sys.stdout.write(document(installed, read_lock(Path(sys.argv[1]).read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
