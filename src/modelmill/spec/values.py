"""What the chart is told: the closed model of Helm's values.

Its JSON schema ships with the chart, so a typo fails at `helm install`.  The submitter
writes values from it, so both say the same.
"""

from collections.abc import Mapping

from pydantic import ConfigDict, Field, JsonValue

from modelmill.spec.closed import Spec
from modelmill.spec.profile import Profile
from modelmill.spec.run import RunSpec


class Switch(Spec):
    """Something the chart makes only if asked."""

    create: bool = False
    """Make it with this release."""


class Values(Spec):
    """One release: a run and the place it runs in."""

    model_config = ConfigDict(serialize_by_alias=True)

    run: RunSpec
    profile: Profile = Field(default_factory=Profile)
    submitted: bool = False
    """Set by `modelmill submit`, which has uploaded local sources: a path in `run` then stands
    for its copy in the store."""
    rbac: Switch = Switch()
    """ServiceAccounts and the conductor's Role, for a playground; elsewhere they come from k8s/."""
    global_: Mapping[str, JsonValue] = Field({}, alias="global")
    """Helm's own; not read here."""
