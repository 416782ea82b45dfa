"""The `helm` on this machine, as far as a submitter needs it.

Uses only what Helm 3 and 4 have in common.
"""

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from modelmill.spec.errors import InputMissing, PermissionRefused, SpecError
from modelmill.spec.errors import Problem as SpecProblem

OLDEST: Final = (3, 14)
"""The first that resets values to a chart's new defaults before reusing old ones."""

INSTALL: Final = "https://helm.sh/docs/intro/install"


@dataclass(frozen=True)
class Helm:
    """A Helm that is new enough, pointed at one namespace."""

    program: str
    namespace: str
    context: str | None

    @property
    def place(self) -> str:
        """Say where releases go."""
        return f"namespace {self.namespace}"

    def install(self, release: str, values: Mapping[str, JsonValue]) -> str:
        """Install a run, or upgrade it to these values; returns what Helm says.

        Raises:
            SpecError: the chart refuses the values.
            PermissionRefused: the cluster refuses the release.
        """
        with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
            json.dump(values, file)
            file.flush()
            with as_file(chart()) as folder:
                return self._run(
                    "upgrade", release, str(folder), "--install", "--values", file.name
                )

    def upgrade(self, release: str) -> str:
        """Make a new revision with the values of the present one.

        Raises:
            PermissionRefused: there is no such release, or the cluster refuses.
        """
        with as_file(chart()) as folder:
            return self._run("upgrade", release, str(folder), "--reset-then-reuse-values")

    def uninstall(self, release: str) -> str:
        """Remove a release and everything it owns.

        Raises:
            PermissionRefused: the cluster refuses.
        """
        return self._run("uninstall", release)

    def _run(self, *words: str) -> str:
        context = () if self.context is None else ("--kube-context", self.context)
        ended = subprocess.run(
            [self.program, *words, "--namespace", self.namespace, *context],
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode == 0:
            return ended.stdout
        said = ended.stderr.strip().removeprefix("Error: ")
        if "schema" in said or "execution error" in said:
            raise SpecError("values", [SpecProblem("", line) for line in said.splitlines() if line])
        raise PermissionRefused(
            f"Helm could not install the release: {said}",
            fix=f"modelmill doctor --namespace {self.namespace}",
        )


def find_helm(namespace: str, context: str | None) -> Helm:
    """Find Helm on PATH.

    Raises:
        InputMissing: there is none, or it is too old.
    """
    program = shutil.which("helm")
    if program is None:
        raise InputMissing(
            "There is no `helm` on PATH", at="PATH", fix=f"install Helm 3 or 4: {INSTALL}"
        )
    said = subprocess.run(
        [program, "version", "--template", "{{.Version}}"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    match = re.match(r"v?(\d+)\.(\d+)", said)
    if match is None or (int(match[1]), int(match[2])) < OLDEST:
        raise InputMissing(
            f"Helm is too old ({said or 'it does not tell its version'})",
            at=program,
            fix=f"install Helm {'.'.join(map(str, OLDEST))} or newer: {INSTALL}",
        )
    return Helm(program, namespace, context)


def chart() -> Path:
    """Find the chart: inside the installed package, or in the checkout."""
    packaged = Path(str(files("modelmill"))) / "chart"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "helm" / "modelmill"
