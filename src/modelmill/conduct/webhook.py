"""Tell another system that a run has ended: one signed request, tried a few times.

Whatever becomes of it, the run has ended as it has; so no failure of it is raised, and all tries
together take half a minute or so: each has LONGEST_SECONDS, and there are pauses between them.  A
request to stop is heard at once, and the next conductor tells it instead.
"""

import http.client
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from modelmill.conduct.clock import now
from modelmill.conduct.conductor import Conducted, Verdict
from modelmill.report.document import ReportDocument
from modelmill.spec.errors import meaning_of
from modelmill.spec.names import (
    ENV_WEBHOOK_FOLDER,
    ENV_WEBHOOK_SECRET,
    ENV_WEBHOOK_URL,
    artifact_prefix,
)
from modelmill.spec.notice import (
    EndedModel,
    EndedRun,
    FailedStage,
    Notice,
    headers_of,
    notice_bytes,
    signing_key,
)

TRIES: Final = 3
SILENCE_SECONDS: Final = 5.0
LONGEST_SECONDS: Final = 10.0
"""Of one try: an answer may come a byte at a time, and looking a name up has no limit."""
PAUSE_SECONDS: Final = 1.0
"""Before the second try; twice as long before the next."""


@dataclass(frozen=True)
class Webhook:
    """Where to, and with what key; both are secrets, for many a URL is one."""

    url: str = field(repr=False)
    key: bytes | None = field(repr=False)

    @property
    def host(self) -> str:
        """What of the URL may be shown."""
        return urlsplit(self.url).hostname or "?"


def read_webhook(environment: Mapping[str, str]) -> Webhook | None:
    """Read where to tell it, from variables or from files; None where nobody asks.

    Raises:
        ValueError: naming the variable that is wrong, and not its value.
    """
    folder = environment.get(ENV_WEBHOOK_FOLDER)
    told = _mounted(Path(folder)) if folder else environment
    url = told.get(ENV_WEBHOOK_URL, "").strip()
    if not url:
        return None
    if not _is_web_address(url):
        raise ValueError(f"{ENV_WEBHOOK_URL}: must be an http(s) URL")
    secret = told.get(ENV_WEBHOOK_SECRET, "")
    try:
        return Webhook(url, signing_key(secret) if secret else None)
    except ValueError as error:
        raise ValueError(f"{ENV_WEBHOOK_SECRET}: {error}") from error


def _is_web_address(url: str) -> bool:
    """Tell whether a request can be made of a URL, in the ASCII that HTTP is written in."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - it is parsed when it is asked for
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and url.isascii()


def _mounted(folder: Path) -> Mapping[str, str]:
    """Read a mounted Secret; of one that is not there, nothing."""
    files = {ENV_WEBHOOK_URL: folder / "url", ENV_WEBHOOK_SECRET: folder / "secret"}
    return {name: each.read_text(encoding="utf-8") for name, each in files.items() if each.exists()}


def ended_run(
    given: Conducted, exit_code: int, verdict: Verdict, document: ReportDocument | None
) -> EndedRun:
    """Say how a run came out, in what may leave the place: no rows, no answers, no last words.

    Args:
        given: the run.
        exit_code: of the run, the gate included.
        verdict: of its conductor.
        document: the report, if there is one.
    """
    gate = document.gate if document is not None else None
    reported = verdict.report.manifest if verdict.report is not None else None
    return EndedRun(
        run=given.run,
        exit_code=exit_code,
        meaning=meaning_of(exit_code),
        plan_sha256=given.plan_sha256,
        report=given.store.url_of(artifact_prefix("report", reported.key)) if reported else "",
        gate=gate.outcome if gate is not None else "",
        models=tuple(
            EndedModel(model=each.model, verdict=each.verdict or "")
            for each in (document.models if document is not None else ())
        ),
        failures=tuple(
            FailedStage(
                stage=stage, exit_code=ending.exit_code, meaning=meaning_of(ending.exit_code)
            )
            for stage, ending in verdict.failures.items()
        ),
    )


def tell(environment: Mapping[str, str], ended: EndedRun) -> str:
    """Send the notice that a run has ended, if somebody asks for it.

    Returns:
        Why it was not received; empty where it was, or nobody asks.
    """
    try:
        webhook = read_webhook(environment)
    except (ValueError, OSError) as error:
        return f"nobody was told of the end: {error}"
    if webhook is None:
        return ""
    time_of_end = now()
    body = notice_bytes(Notice(type="run.ended", timestamp=time_of_end, data=ended))
    # The same for whoever tells the same end again, so that it can be recognized.
    notice_id = f"{ended.run}-{ended.plan_sha256[:12]}-{time_of_end}"
    reason = ""
    for number in range(TRIES):
        if number:
            time.sleep(PAUSE_SECONDS * 2 ** (number - 1))
        reason, is_final = _post_in_time(webhook, body, notice_id)
        if not reason or is_final:
            break
    return f"{webhook.host} was not told of the end: {reason}" if reason else ""


def _opener() -> urllib.request.OpenerDirector:
    """Make one that follows no redirect: a POST would become a GET without a body."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _post_in_time(webhook: Webhook, body: bytes, notice_id: str) -> tuple[str, bool]:
    """Try once, and leave a server to itself that takes too long."""
    answers: list[tuple[str, bool]] = []

    def post() -> None:
        try:
            answers.append(_post(webhook, body, notice_id))
        except Exception as error:  # noqa: BLE001 - the run has ended as it has
            # Its words, or a traceback, might repeat the URL.
            answers.append((f"the request cannot be made ({type(error).__name__})", False))

    thread = threading.Thread(target=post, daemon=True)
    thread.start()
    thread.join(LONGEST_SECONDS)
    return answers[0] if answers else ("it took too long", False)


def _post(webhook: Webhook, body: bytes, notice_id: str) -> tuple[str, bool]:
    """Try once; returns what went wrong, and whether it would again."""
    try:
        request = urllib.request.Request(  # noqa: S310 - the scheme was looked at
            webhook.url, body, dict(headers_of(body, notice_id, int(time.time()), webhook.key))
        )
        with _opener().open(request, timeout=SILENCE_SECONDS):
            return "", True
    except urllib.error.HTTPError as error:
        error.close()
        # 408 and 429 ask to come again; other 4xx and redirects will not change.
        is_final = error.code < 500 and error.code not in (408, 429)  # noqa: PLR2004
        return f"it answered {error.code}", is_final
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        return f"{type(reason).__name__}", False
    except ValueError as error:
        # A host or a path that cannot be written in a request; its words would repeat it.
        return f"the URL cannot be used ({type(error).__name__})", True
