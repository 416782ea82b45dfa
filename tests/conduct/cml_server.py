"""A Cloudera AI site on loopback: API v2 for a project, its jobs, and kernels that run scripts.

Written from the description every site serves (`/api/v2/swagger.html`) and from what is known of
its manners: a job runs once at a time (400 with gRPC's code 9, and a run that is SKIPPED), a full
quota is 409, arguments lose their blanks, `environment` comes back as JSON, an enumeration's first
value and other zeros are left out.  A run is a process of this machine in the project's folder.
"""

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit

from .cml_jobs import (
    INHERITED,
    JOB_FIELDS,
    PROJECT,
    RUN_FIELDS,
    Job,
    Offer,
    Run,
    end_pod,
    new_id,
    now,
    signal_group,
)

KEY: Final = "4d9c7a51e0b2.canary"
PAGE_ENTRIES: Final = 2
"""However many are asked for, so that every listing has several pages."""

Fault = Literal[
    "302", "401", "403", "404", "409", "429", "500", "503", "slow", "drop", "page", "lost"
]
"""`drop`: the connection is closed without an answer; `page`: a proxy answers in the site's place;
`lost`: it is done, and the answer never comes; `302`: it leads elsewhere on this site."""


@dataclass
class CmlServer:
    """A site with one project; use as a context manager."""

    folder: Path
    """Of the project: scripts are relative to it, and run in it."""
    environment: dict[str, str] = field(default_factory=dict)
    """Of the project."""
    runtimes: tuple[str, ...] = ("runtime/light", "runtime/gpu")
    offer: Offer = field(default_factory=Offer)
    stop_grace_seconds: float = 2.0
    """Between SIGTERM and SIGKILL, as a pod that is deleted has it."""
    scheduling_seconds: float = 0.1
    strips_blanks: bool = True
    """Of arguments; False for a control."""
    gives_back: bool = True
    """What a run was told, in listings; the description does not promise that."""
    jobs: dict[str, Job] = field(default_factory=dict)
    faults: list[tuple[str, Fault]] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    retry_after_seconds: int = 1
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        """Take a port."""
        handler = type("Handler", (_Handler,), {"site": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = False  # closing waits for a slow answer, which starts a run
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        for run in self.all_runs():
            self.stop(run)
        for thread in self._threads:
            thread.join()

    def plan(self, fault: Fault, request: str = "", times: int = 1) -> None:
        """Let the next requests that match, written as `GET /path`, go wrong."""
        self.faults += [(request, fault)] * times

    def take(self, request: str) -> Fault | None:
        """Use up a planned fault."""
        with self.lock:
            for index, (pattern, fault) in enumerate(self.faults):
                if re.search(pattern, request):
                    del self.faults[index]
                    return fault
        return None

    def all_runs(self) -> list[Run]:
        """List every run of every job."""
        with self.lock:
            return [run for job in self.jobs.values() for run in job.runs]

    def create_job(self, settings: dict[str, Any]) -> Job:
        """Create a job."""
        with self.lock:
            job = Job(new_id(), settings, now())
            self.jobs[job.id] = job
            return job

    def create_run(self, job: Job, environment: dict[str, str], arguments: str) -> Run:
        """Start a run, or record that it was skipped."""
        with self.lock:
            settings = {name: job.settings[name] for name in INHERITED if name in job.settings}
            run = Run(secrets.token_hex(8), job, environment, arguments, now(), settings)
            if any(each.is_active for each in job.runs):
                run.status = "ENGINE_SKIPPED"
            job.runs.append(run)
            if run.is_active:
                thread = threading.Thread(target=self._run, args=(run,), daemon=True)
                self._threads.append(thread)
                thread.start()
            return run

    def stop(self, run: Run) -> None:
        """Delete the pod of a run."""
        with self.lock:
            if not run.is_active or run.is_stopped:
                return
            run.is_stopped, run.status = True, "ENGINE_STOPPING"
            process = run.process
        if process is None:
            return
        signal_group(process, signal.SIGTERM)
        kill = threading.Timer(self.stop_grace_seconds, signal_group, (process, signal.SIGKILL))
        kill.daemon = True
        kill.start()

    def _run(self, run: Run) -> None:
        due = time.monotonic() + self.scheduling_seconds
        while time.monotonic() < due and not run.is_stopped:
            time.sleep(0.05)
        settings = run.job.settings
        with self.lock:
            if not run.is_stopped:
                run.status = "ENGINE_RUNNING"
                run.printed = self.folder / f".run-{run.id}"
                with run.printed.open("wb") as printed:
                    run.process = subprocess.Popen(
                        [sys.executable, settings["script"], *run.arguments.split()],
                        cwd=self.folder,
                        env=self._environment_of(run),
                        stdin=subprocess.DEVNULL,
                        stdout=printed,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
        if run.process is None:
            run.status = "ENGINE_STOPPED"
            return
        seconds = settings.get("timeout") if settings.get("kill_on_timeout") else None
        end = {True: "ENGINE_SUCCEEDED", False: "ENGINE_FAILED"}
        try:
            status = end[run.process.wait(seconds) == 0]
        except subprocess.TimeoutExpired:
            status = "ENGINE_TIMEDOUT"
        end_pod(run.id)
        run.process.wait()
        with self.lock:
            run.status = "ENGINE_STOPPED" if run.is_stopped else status

    def _environment_of(self, run: Run) -> dict[str, str]:
        """Lay the run's environment over the job's over the project's over the site's."""
        kept = ("PATH", "PYTHONPATH", "LANG", "TMPDIR", "HOME")
        return {
            **{name: os.environ[name] for name in kept if name in os.environ},
            "CDSW_DOMAIN": urlsplit(self.url).netloc,
            "CDSW_PROJECT_ID": PROJECT,
            "CDSW_APIV2_KEY": KEY,
            "CDSW_ENGINE_ID": run.id,
            "JOB_ARGUMENTS": run.arguments,
            **self.environment,
            **run.job.settings.get("environment", {}),
            **run.environment,
        }


class _Handler(BaseHTTPRequestHandler):
    site: ClassVar[CmlServer]

    def do_GET(self) -> None:
        self._answer(self.command)

    do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815 - the base class's names

    def log_message(self, *_: object) -> None:
        """Be silent."""

    def _answer(self, method: str) -> None:
        split = urlsplit(self.path)
        body = self.rfile.read(int(self.headers["content-length"] or 0))
        request = f"{method} {split.path}"
        self.site.seen.append(request)
        fault = self.site.take(request)
        if fault == "drop":
            self.close_connection = True
            return
        if fault == "slow":
            time.sleep(1.0)
        if fault == "page":
            self._send(200, b"<html>Sign in</html>")
            return
        if fault is not None and fault.isdecimal():
            self._refuse(int(fault), HTTPStatus(int(fault)).phrase)
            return
        if self.headers["authorization"] != f"Bearer {KEY}":
            self._refuse(401, "invalid api key", 16)
            return
        try:
            query = {name: values[0] for name, values in parse_qs(split.query).items()}
            document = self._serve(method, split.path, query, json.loads(body or b"{}"))
        except _RefusedError as refused:
            self._refuse(refused.code, refused.text, refused.grpc)
            return
        if fault == "lost":
            self.close_connection = True
            return
        self._send(200, json.dumps(document).encode())

    def _serve(
        self, method: str, path: str, query: Mapping[str, str], body: dict[str, Any]
    ) -> dict[str, Any]:
        match [method, *unquote(path).strip("/").split("/")]:
            case [_, "api", "v2", "projects", project, *_] if project != PROJECT:
                raise _RefusedError(404, "project not found", 5)
            case [_, "api", "v2", "projects", _, "jobs", *_]:
                return self._serve_jobs(method, path, query, body)
            case ["GET", "api", "v2", "projects", _]:
                return self.site.offer.project(self.site.environment)
            case ["GET", "api", "v2", "runtimes"]:
                return _page("runtimes", self.site.offer.runtimes(self.site.runtimes), query)
            case ["GET", "api", "v2", "nodelabels"]:
                return _page("accelerator_node_label", self.site.offer.labels, query)
            case ["GET", "api", "v2", "resourcegroups"]:
                return _page("resource_group", self.site.offer.groups, query)
        raise _RefusedError(404, "Not Found", 5)

    def _serve_jobs(
        self, method: str, path: str, query: Mapping[str, str], body: dict[str, Any]
    ) -> dict[str, Any]:
        match [method, *unquote(path).strip("/").split("/")]:
            case ["GET", "api", "v2", "projects", _, "jobs"]:
                wanted = json.loads(query.get("search_filter", "{}")).get("name", "")
                found = [
                    each for each in self.site.jobs.values() if wanted in each.settings["name"]
                ]
                return _page("jobs", [job.document() for job in found], query)
            case ["POST", "api", "v2", "projects", _, "jobs"]:
                self._check(body, JOB_FIELDS)
                return self.site.create_job(body).document()
            case ["PATCH", "api", "v2", "projects", _, "jobs", job]:
                self._check(body, JOB_FIELDS, is_change=True)
                self._job(job).settings.update(body)
                return self._job(job).document()
            case ["DELETE", "api", "v2", "projects", _, "jobs", job]:
                del self.site.jobs[self._job(job).id]
                return {}
            case ["GET", "api", "v2", "projects", _, "jobs", job, "runs"]:
                runs = [run.document() for run in self._job(job).runs]
                if not self.site.gives_back:
                    runs = [{**run, "environment": ""} for run in runs]
                return _page("job_runs", runs, query)
            case ["POST", "api", "v2", "projects", _, "jobs", job, "runs"]:
                return self._start(self._job(job), body)
            case ["POST", "api", "v2", "projects", _, "jobs", job, "runs", run] if run.endswith(
                ":stop"
            ):
                self.site.stop(self._run(job, run.removesuffix(":stop")))
                return {}
        raise _RefusedError(404, "Not Found", 5)

    def _start(self, job: Job, body: dict[str, Any]) -> dict[str, Any]:
        self._check(body, RUN_FIELDS, is_change=True)
        environment = body.get("environment", {})
        if not all(isinstance(value, str) for value in environment.values()):
            raise _RefusedError(400, "cannot unmarshal a value of environment into a string", 3)
        arguments = body.get("arguments", job.settings.get("arguments", ""))
        if self.site.strips_blanks:
            arguments = arguments.replace(" ", "")
        run = self.site.create_run(job, environment, arguments)
        if run.status == "ENGINE_SKIPPED":
            raise _RefusedError(400, f"job run for job {job.id} already active", 9)
        return run.document()

    def _check(
        self, body: dict[str, Any], known: frozenset[str], *, is_change: bool = False
    ) -> None:
        if unknown := set(body) - known:
            raise _RefusedError(400, f"unknown field {min(unknown)}", 3)
        if not is_change and not (body.get("name") and body.get("script")):
            raise _RefusedError(400, "name and script are required", 3)
        runtime = body.get("runtime_identifier")
        if runtime is not None and runtime not in self.site.runtimes:
            raise _RefusedError(400, f"runtime {runtime} not found", 3)

    def _job(self, id_: str) -> Job:
        try:
            return self.site.jobs[id_]
        except KeyError:
            raise _RefusedError(404, "job not found", 5) from None

    def _run(self, job: str, id_: str) -> Run:
        for run in self._job(job).runs:
            if run.id == id_:
                return run
        raise _RefusedError(404, "job run not found", 5)

    def _refuse(self, code: int, text: str, grpc: int = 2) -> None:
        body = json.dumps({"error": text, "code": grpc, "message": text, "details": []}).encode()
        self._send(code, body)

    def _send(self, code: int, body: bytes) -> None:
        with suppress(OSError):  # whoever asked may have stopped waiting
            self.send_response(code)
            if code == HTTPStatus.TOO_MANY_REQUESTS:
                self.send_header("retry-after", str(self.site.retry_after_seconds))
            if code == HTTPStatus.FOUND:
                self.send_header("location", f"{self.site.url}/login")
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)


class _RefusedError(Exception):
    def __init__(self, code: int, text: str, grpc: int) -> None:
        super().__init__(text)
        self.code, self.text, self.grpc = code, text, grpc


def _page(name: str, found: list[dict[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """Cut a page out of a listing, newest first, without what is zero."""
    found = sorted(found, key=lambda each: each.get("created_at", ""), reverse=True)
    begin = int(query.get("page_token", "0"))
    end = begin + min(int(query.get("page_size", "10")), PAGE_ENTRIES)
    entries = [
        {key: value for key, value in each.items() if value not in ("", 0, "ENGINE_SCHEDULING")}
        for each in found[begin:end]
    ]
    token = {"next_page_token": str(end)} if end < len(found) else {}
    return {name: entries, **token}
