"""One project of a Cloudera AI (CML) site: its jobs and their runs, through the site's API v2.

The only module that speaks to a site.  Answers come out parsed (`conduct/cml_seen.py`); what the
site refuses becomes one of the exceptions in `conduct/answers.py`.  Decides nothing.

Paths, fields and states are those of the description that every site serves under
`/api/v2/swagger.html`: the operations ListJobs, CreateJob, UpdateJob, DeleteJob, ListJobRuns,
CreateJobRun and StopJobRun, and the models Job, JobRun and EngineStatus; for who looks before a
run GetProject, ListRuntimes, ListAllAcceleratorNodeLabels and ListAllResourceGroups.  The client
of the same site, `cmlapi`, is generated from it; it is in no package index, differs from site to
site, and one path that is tested is better than two.
"""

import http.client
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar
from urllib.parse import quote, urlencode

from pydantic import JsonValue, ValidationError

from modelmill.conduct.answers import Conflict, NotThere, Refused, Unavailable
from modelmill.conduct.cml_seen import (
    Accelerators,
    AcceleratorSeen,
    JobRequest,
    Jobs,
    JobSeen,
    ProjectSeen,
    ResourceGroups,
    ResourceGroupSeen,
    Runs,
    RunSeen,
    Runtimes,
    RuntimeSeen,
    Seen,
)
from modelmill.spec.errors import PermissionRefused, Problem, SpecError
from modelmill.spec.project import ProjectPlace

ENV_API_KEY: Final = "CDSW_APIV2_KEY"
ENV_DOMAIN: Final = "CDSW_DOMAIN"
ENV_PROJECT_ID: Final = "CDSW_PROJECT_ID"
"""Set by the site in whatever runs inside of a project; outside, whoever submits sets them."""

REQUEST_SECONDS: Final = 20.0
RETRY_BUDGET_SECONDS: Final = 30.0
FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 8.0
PAGE_ENTRIES: Final = 50
REFUSAL_BYTES: Final = 64 * 2**10
"""A proxy may answer with a whole page."""


class _Refusal(Seen):
    message: str = ""
    error: str = ""


Answer = TypeVar("Answer", bound=Seen)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Go nowhere else: the key would go along."""

    def redirect_request(self, *_: object) -> None:
        """Refuse."""


_OPENER: Final = urllib.request.build_opener(_NoRedirect)
"""Honours the variables that name proxies and certificates."""


@dataclass(frozen=True)
class Project:
    """A project as one API key sees it."""

    url: str
    project_id: str
    key: str = field(repr=False)
    request_seconds: float = REQUEST_SECONDS
    retry_budget_seconds: float = RETRY_BUDGET_SECONDS

    @property
    def _path(self) -> str:
        return f"/projects/{quote(self.project_id)}"

    def about(self) -> ProjectSeen:
        """Say what the project is, and what may be done in it.

        Raises:
            Unavailable: the site does not answer.
            PermissionRefused: it does not accept the key.
            NotThere: it has no such project, or hides it.
        """
        return self._get(self._path, ProjectSeen)

    def runtimes(self) -> tuple[RuntimeSeen, ...]:
        """List the catalogue of the site."""
        pages = self._pages("/runtimes", Runtimes, {})
        return tuple(runtime for page in pages for runtime in page.runtimes)

    def accelerators(self) -> tuple[AcceleratorSeen, ...]:
        """List the kinds of GPUs of the site; older ones do not know of kinds."""
        pages = self._pages("/nodelabels", Accelerators, {})
        return tuple(label for page in pages for label in page.accelerator_node_label)

    def resource_groups(self) -> tuple[ResourceGroupSeen, ...]:
        """List the kinds of nodes of the site; not every site tells everybody."""
        pages = self._pages("/resourcegroups", ResourceGroups, {})
        return tuple(group for page in pages for group in page.resource_group)

    def jobs(self, name: str) -> tuple[JobSeen, ...]:
        """List the jobs whose name begins so, oldest first.

        Raises:
            Unavailable: the site does not answer.
            PermissionRefused: it does not accept the key.
        """
        # The site's filter decides what comes, and this what counts.
        query = {"search_filter": json.dumps({"name": name})}
        found = (
            job for page in self._pages(f"{self._path}/jobs", Jobs, query) for job in page.jobs
        )
        mine = [job for job in found if job.name.startswith(name)]
        return tuple(sorted(mine, key=lambda job: (str(job.created_at or ""), job.id)))

    def runs(self, job_id: str) -> tuple[RunSeen, ...]:
        """List the runs of a job, oldest first."""
        pages = self._pages(f"{self._path}/jobs/{quote(job_id)}/runs", Runs, {})
        found = (run for page in pages for run in page.job_runs)
        return tuple(sorted(found, key=lambda run: (run.created_at, run.id)))

    def create_job(self, wanted: JobRequest) -> JobSeen:
        """Create a job; it does not run yet.

        Raises:
            Conflict: a quota is spent.
            Refused: the site has no such runtime, or the like.
        """
        body = {"project_id": self.project_id, **wanted.model_dump(exclude_defaults=True)}
        return self._post("POST", f"{self._path}/jobs", body, JobSeen)

    def update_job(self, job_id: str, changes: Mapping[str, JsonValue]) -> JobSeen:
        """Change a job; runs that there are stay as they were started."""
        return self._post("PATCH", f"{self._path}/jobs/{quote(job_id)}", changes, JobSeen)

    def delete_job(self, job_id: str) -> None:
        """Delete a job and the history of its runs."""
        self._post("DELETE", f"{self._path}/jobs/{quote(job_id)}", None, Seen)

    def create_run(self, job_id: str, environment: Mapping[str, str]) -> RunSeen:
        """Start a job.  It is asked for once: who gets no answer looks whether there is a run.

        Raises:
            Conflict: a run of this job is active, or a quota is spent.
        """
        body: dict[str, JsonValue] = {
            "project_id": self.project_id,
            "job_id": job_id,
            "environment": dict(environment),
        }
        return self._post("POST", f"{self._path}/jobs/{quote(job_id)}/runs", body, RunSeen)

    def stop_run(self, run: RunSeen) -> None:
        """End a run, whatever it does."""
        path = f"{self._path}/jobs/{quote(run.job_id)}/runs/{quote(run.id)}:stop"
        self._post("POST", path, {}, Seen)

    def _pages(self, path: str, kind: type[Answer], query: Mapping[str, str]) -> Iterator[Answer]:
        token = ""
        while True:
            asked = {**query, "page_size": str(PAGE_ENTRIES)}
            page = self._get(
                f"{path}?{urlencode(asked | ({'page_token': token} if token else {}))}", kind
            )
            yield page
            token = getattr(page, "next_page_token", "")
            if not token:
                return

    def _get(self, path: str, kind: type[Answer]) -> Answer:
        """Repeat a request that changes nothing until it is answered, or for too long."""
        started, pause = time.monotonic(), FIRST_PAUSE_SECONDS
        while True:
            try:
                return self._ask("GET", path, None, kind)
            except _ComeBack as error:
                wait = max(pause * random.uniform(0.5, 1.0), error.after_seconds)  # noqa: S311
                if time.monotonic() - started + wait > self.retry_budget_seconds:
                    raise Unavailable(str(error)) from None
            time.sleep(wait)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    def _post(
        self, method: str, path: str, body: Mapping[str, JsonValue] | None, kind: type[Answer]
    ) -> Answer:
        try:
            return self._ask(method, path, body, kind)
        except _ComeBack as error:
            raise Unavailable(str(error)) from None

    def _ask(
        self, method: str, path: str, body: Mapping[str, JsonValue] | None, kind: type[Answer]
    ) -> Answer:
        request = urllib.request.Request(  # noqa: S310 - http or https, says the profile
            f"{self.url}/api/v2{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "authorization": f"Bearer {self.key}",
                "content-type": "application/json",
                "accept": "application/json",
            },
            method=method,
        )
        try:
            with _OPENER.open(request, timeout=self.request_seconds) as answer:
                return kind.model_validate_json(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            with error:
                raise self._as_ours(error) from None
        except (OSError, http.client.HTTPException) as error:
            raise _ComeBack(f"{type(error).__name__}: {error}") from None
        except ValidationError:
            raise Unavailable(
                f"what answers at {self.url} is not the API v2 of a site; a proxy may have "
                "answered in its place"
            ) from None

    def _as_ours(self, error: urllib.error.HTTPError) -> Exception:
        try:
            body = error.read(REFUSAL_BYTES)
            refusal = _Refusal.model_validate_json(body)
        except (OSError, http.client.HTTPException, ValidationError):
            refusal = _Refusal()
        text = (refusal.message or refusal.error or str(error.reason)).replace(self.key, "***")
        match error.code:
            case 401:
                return PermissionRefused(
                    f"The site does not accept the API key ({text})",
                    at=self.url,
                    fix="make an API v2 key (User Settings, API Keys), no legacy one, and set "
                    f"{ENV_API_KEY} to it",
                )
            case 403:
                return PermissionRefused(
                    f"The site does not let this key do that ({text})",
                    at=f"{self.url}, project {self.project_id}",
                    fix="ask for the role Contributor in the project",
                )
            case 404:
                return NotThere(text)
            case 409:
                return Conflict(text)
            # `code 9` is gRPC's FAILED_PRECONDITION, which reaches us as 400.
            case 400 if "already active" in text:
                return Conflict(text)
            case 429 | 500 | 502 | 503 | 504:
                return _ComeBack(f"{error.code}: {text}", _seconds(error.headers["retry-after"]))
            case _:
                return Refused(f"{error.code}: {text}")


class _ComeBack(Exception):
    """The site may answer later."""

    def __init__(self, text: str, after_seconds: float = 0.0) -> None:
        super().__init__(text)
        self.after_seconds = after_seconds


def _seconds(retry_after: str | None) -> float:
    return float(retry_after) if retry_after and retry_after.isdecimal() else 0.0


def open_project(place: ProjectPlace, environment: Mapping[str, str]) -> Project:
    """Find the project that a profile names, or that this process runs inside of.

    Raises:
        SpecError: with everything that is missing.
    """
    domain = environment.get(ENV_DOMAIN)
    url = place.url or (f"https://{domain}" if domain else "")
    project_id = place.project_id or environment.get(ENV_PROJECT_ID, "")
    key = environment.get(ENV_API_KEY, "")
    needed = {
        ENV_API_KEY: (key, "not set; it holds your API v2 key"),
        ENV_DOMAIN: (url, "not set, and the profile has no cml.url"),
        ENV_PROJECT_ID: (project_id, "not set, and the profile has no cml.project_id"),
    }
    missing = [Problem(name, reason) for name, (value, reason) in needed.items() if not value]
    if missing:
        raise SpecError("environment", missing)
    return Project(url, project_id, key)
