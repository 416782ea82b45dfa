"""Whose run it is: a release in a namespace that no other cluster has, or a project of a site.

Pure; run.json holds it as text, which people read too.
"""

import re
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Owner:
    """A Helm release, told from all others of its name."""

    release: str
    namespace: str
    namespace_uid: str

    def __str__(self) -> str:
        """Write it as run.json does."""
        return f"release {self.release} in namespace {self.namespace} ({self.namespace_uid})"


def parse_owner(text: str) -> Owner | None:
    """Read what `str` writes; None for a run that no release owns."""
    match = _FORM.fullmatch(text)
    return None if match is None else Owner(*match.groups())


_FORM: Final = re.compile(r"release (\S+) in namespace (\S+) \((\S+)\)")


@dataclass(frozen=True)
class ProjectOwner:
    """A project of a Cloudera AI site."""

    project_id: str
    url: str

    def __str__(self) -> str:
        """Write it as run.json does."""
        return f"project {self.project_id} at {self.url}"


def parse_project_owner(text: str) -> ProjectOwner | None:
    """Read what `str` writes; None for a run that no project owns."""
    match = _PROJECT_FORM.fullmatch(text)
    return None if match is None else ProjectOwner(*match.groups())


_PROJECT_FORM: Final = re.compile(r"project (\S+) at (\S+)")


def is_of_a_machine(text: str) -> bool:
    """Tell whether neither a release nor a project has the run, but `modelmill run` somewhere."""
    return parse_owner(text) is None and parse_project_owner(text) is None


def command_to_go_on(run: str, owner: str) -> str:
    """Write the command that makes what is missing of a run, wherever the run belongs."""
    if is_of_a_machine(owner):
        return f"modelmill run FILE --name {run}"
    return f"modelmill resume {run}"
