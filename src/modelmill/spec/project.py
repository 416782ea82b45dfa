"""What a project of Cloudera AI (CML) offers to a run: the site, runtimes, a time limit.

Closed, frozen models; part of the profile.  How much a stage gets is under `stages`, as on a
cluster; who we are is in the environment, never here.
"""

from collections.abc import Mapping

from pydantic import Field

from modelmill.spec.closed import Spec
from modelmill.spec.names import Environment


class ProjectPlace(Spec):
    """A project of Cloudera AI, for `--backend cml`."""

    url: str = Field("", pattern=r"^(https?://[^@/]+)?$")
    """Of the site, such as `https://ml-1234.example.com`; empty for the one we are inside of."""
    project_id: str = Field("", pattern=r"^[-A-Za-z0-9]*$")
    """Empty for the project we are inside of."""
    runtimes: Mapping[Environment, str] = {}
    """Runtime identifier by environment (`light`, `train`, `quantize`), as the site's Runtime
    Catalog says it; `light` is required and serves for those that are left out."""
    accelerator_label_id: str = Field("", pattern=r"^[0-9]*$")
    """Which GPUs, where the site has several kinds; empty for any."""
    timeout_seconds: int = Field(0, ge=0, le=2_100_000)
    """How long one attempt may take; 0 leaves it to the site, which ends a job after a week."""
    scripts: str = Field("examples/cml", pattern=r"^[-A-Za-z0-9_.][-A-Za-z0-9_./]*$")
    """Folder of the project that has `stage.py` and `conduct.py`."""

    def runtime(self, environment: Environment) -> str:
        """Say what a stage of an environment runs in."""
        return self.runtimes.get(environment) or self.runtimes["light"]
