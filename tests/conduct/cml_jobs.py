"""What a site on loopback has: jobs, their runs, and the processes that runs are.

Fields and states are those of Job and JobRun in the description of API v2.
"""

import json
import os
import secrets
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

PROJECT: Final = "abcd-1234-efgh-5678"

JOB_FIELDS: Final = frozenset(
    {
        *("name", "script", "cpu", "memory", "nvidia_gpu", "parent_job_id", "environment"),
        *("arguments", "timeout", "kill_on_timeout", "runtime_identifier", "project_id"),
        *("runtime_addon_identifiers", "accelerator_label_id", "kernel", "schedule", "parent_id"),
    }
)
"""Of CreateJobRequest; another one is refused here, though a site ignores it."""
RUN_FIELDS: Final = frozenset({"project_id", "job_id", "environment", "arguments"})
"""Of CreateJobRunRequest."""

INHERITED: Final = ("cpu", "memory", "nvidia_gpu", "runtime_identifier")


@dataclass
class Offer:
    """What the site has for every project, and what it says of this one; some may be changed."""

    permissions: dict[str, bool] = field(default_factory=lambda: {"read": True, "write": True})
    engine: str = "ml_runtime"
    shared_memory_megabytes: int = 8192
    kernel: str = "Python 3.12"
    status: str = "ENABLED"
    labels: list[dict[str, Any]] = field(
        default_factory=lambda: [
            {
                "id": "2",
                "label_value": "NVIDIA-A100",
                "availability": True,
                "max_gpu_per_workload": "2",
            },
            {"id": "3", "label_value": "NVIDIA-T4", "max_gpu_per_workload": "8"},
        ]
    )
    """Kinds of GPUs; nodes with the second are away."""
    groups: list[dict[str, Any]] = field(
        default_factory=lambda: [
            {"name": "apps", "cpu_count": 64, "memory_in_gib": 512},
            {"name": "workers", "cpu_count": 16, "memory_in_gib": 128, "allow_jobs": True},
        ]
    )
    """Kinds of nodes; jobs are not for the first."""

    def project(self, environment: dict[str, str]) -> dict[str, Any]:
        """Write the project as Project."""
        return {
            "id": PROJECT,
            "name": "mill",
            "permissions": self.permissions,
            "default_engine_type": self.engine,
            "shared_memory_limit": self.shared_memory_megabytes,
            "environment": json.dumps(environment),
        }

    def runtimes(self, identifiers: tuple[str, ...]) -> list[dict[str, Any]]:
        """Write the catalogue as Runtimes."""
        told = {"kernel": self.kernel, "status": self.status}
        return [{"image_identifier": each, **told} for each in identifiers]


@dataclass
class Run:
    """A run of a job."""

    id: str
    job: "Job"
    environment: dict[str, str]
    arguments: str
    created_at: str
    settings: dict[str, Any]
    status: str = "ENGINE_SCHEDULING"
    process: "subprocess.Popen[bytes] | None" = None
    printed: Path | None = None
    is_stopped: bool = False

    @property
    def is_active(self) -> bool:
        """Whether it has not ended."""
        return self.status.removeprefix("ENGINE_") in {
            *("SCHEDULING", "STARTING", "RUNNING", "STOPPING"),
        }

    def document(self) -> dict[str, Any]:
        """Write it as JobRun."""
        return {
            "id": self.id,
            "project_id": PROJECT,
            "job_id": self.job.id,
            "created_at": self.created_at,
            "status": self.status,
            "environment": json.dumps(self.environment),
            "arguments": self.arguments,
            **self.settings,
        }


@dataclass
class Job:
    """A job."""

    id: str
    settings: dict[str, Any]
    created_at: str
    runs: list[Run] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Write it as Job."""
        told = {**self.settings, "environment": json.dumps(self.settings.get("environment", {}))}
        if "timeout" in told:
            told["timeout"] = str(told["timeout"])  # int64, which JSON cannot be trusted with
        return {"id": self.id, "created_at": self.created_at, **told}


def new_id() -> str:
    """Name a job as sites do."""
    return "-".join(secrets.token_hex(2) for _ in range(4))


def now() -> str:
    """Write the time as sites do."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def end_pod(run: str) -> None:
    """Kill whatever a run has started, as the end of its pod does."""
    marks = f"CDSW_ENGINE_ID={run}\0".encode()
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdecimal() and marks in (folder / "environ").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)


def signal_group(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    """Send a signal to a process and what it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
