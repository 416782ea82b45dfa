"""Whoever asks is told that a run has ended, by a server that may be slow, wrong or away."""

import base64
import hashlib
import hmac
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from modelmill.conduct import webhook
from modelmill.conduct.webhook import tell
from modelmill.spec.notice import EndedRun
from tests.workshop import STAND_IN, Workshop

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
ENDED = EndedRun(
    run="quick",
    exit_code=0,
    meaning="Done.",
    plan_sha256="0" * 64,
    report="s3://bucket/runs/quick/reports/1",
    gate="",
    models=(),
    failures=(),
)


@dataclass
class Receiver:
    """A server that answers as it is told, and keeps what it heard."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    """Codes of the next answers; 200 when there is none left."""
    heard: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What points a conductor here."""
        return {"MODELMILL_WEBHOOK_URL": self.url, "MODELMILL_WEBHOOK_SECRET": SECRET}

    def notice(self) -> Any:
        """Check the last signature as a receiver does, and parse what it signs."""
        headers, body = self.heard[-1]
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        expected = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{expected}"
        return json.loads(body)


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """Listen on loopback."""
    monkeypatch.setattr(webhook, "PAUSE_SECONDS", 0.01)
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.heard.append(({k.lower(): v for k, v in self.headers.items()}, body))
            code = receiver.answers.pop(0) if receiver.answers else 200
            self.send_response(code)
            if 300 <= code < 400:
                self.send_header("location", receiver.url)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver.url = f"http://127.0.0.1:{server.server_address[1]}/hook?token=hidden"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield receiver
        server.shutdown()
        thread.join()


def test_end_is_told_and_signed(receiver: Receiver) -> None:
    """One request, which the receiver can check."""
    assert tell(receiver.environment, ENDED) == ""
    notice = receiver.notice()
    assert notice["type"] == "run.ended"
    assert notice["data"]["run"] == "quick"
    assert len(receiver.heard) == 1


@pytest.mark.parametrize("code", [500, 503, 408, 429])
def test_failure_that_may_pass_is_tried_again_under_the_same_id(
    receiver: Receiver, code: int
) -> None:
    """So a receiver that heard it after all can leave the second one out."""
    receiver.answers = [code]
    assert tell(receiver.environment, ENDED) == ""
    assert len({headers["webhook-id"] for headers, _ in receiver.heard}) == 1
    assert len(receiver.heard) == 2


@pytest.mark.parametrize("code", [400, 401, 404, 410, 302])
def test_refusal_is_said_once_and_without_the_url(receiver: Receiver, code: int) -> None:
    """It would be the same again; a URL may hold a token."""
    receiver.answers = [code]
    words = tell(receiver.environment, ENDED)
    assert f"it answered {code}" in words
    assert "hidden" not in words
    assert len(receiver.heard) == 1


def test_server_that_keeps_failing_is_given_up(receiver: Receiver) -> None:
    """Three tries are all."""
    receiver.answers = [500] * 9
    assert "it answered 500" in tell(receiver.environment, ENDED)
    assert len(receiver.heard) == webhook.TRIES


def test_server_that_says_nothing_is_given_up(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its silence does not hold up the run."""
    monkeypatch.setattr(webhook, "SILENCE_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        words = tell({**receiver.environment, "MODELMILL_WEBHOOK_URL": url}, ENDED)
    assert "was not told" in words
    assert "TimeoutError" in words


def test_server_that_answers_a_byte_at_a_time_is_left(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of its silences is long, and all together would hold up the run for ever."""
    monkeypatch.setattr(webhook, "LONGEST_SECONDS", 0.2)
    is_over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            for _ in range(webhook.TRIES):
                peer, _ = server.accept()
                kept.append(peer)
            while not is_over.wait(0.02):
                for peer in kept:
                    peer.sendall(b"H")

        kept: list[socket.socket] = []
        thread = threading.Thread(target=drip)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        words = tell({**receiver.environment, "MODELMILL_WEBHOOK_URL": url}, ENDED)
        is_over.set()
        thread.join()
        for peer in kept:
            peer.close()
    assert "was not told of the end: it took too long" in words


def test_files_that_may_not_be_read_are_no_error(tmp_path: Path) -> None:
    """A folder where the file should be, as root may read every file."""
    (tmp_path / "url").mkdir()
    told = tell({"MODELMILL_WEBHOOK_FOLDER": str(tmp_path)}, ENDED)
    assert "nobody was told of the end" in told


@pytest.mark.parametrize("url", ["http://a..b/hidden", f"http://{'a' * 70}.b/"])
def test_address_that_no_request_can_have_is_said(receiver: Receiver, url: str) -> None:
    """The run has ended as it has; nothing is raised, and the URL is not repeated."""
    words = tell({**receiver.environment, "MODELMILL_WEBHOOK_URL": url}, ENDED)
    assert "the URL cannot be used" in words
    assert "hidden" not in words


def test_failure_that_nobody_foresaw_is_told_by_its_kind(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A port that no proxy can have is no slow server; there is no traceback, nor the URL."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{10**20}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    words = tell(receiver.environment, ENDED)
    assert words == "127.0.0.1 was not told of the end: the request cannot be made (OverflowError)"
    assert "Traceback" not in capfd.readouterr().err
    assert not receiver.heard


def test_request_to_stop_is_heard_while_a_server_keeps_silent(receiver: Receiver) -> None:
    """A conductor's pod has ten seconds, fewer than the tries."""

    class Stopped(BaseException):
        """As conductors raise it."""

    def stop(_number: int, _frame: object) -> None:
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
            begun = time.monotonic()
            with pytest.raises(Stopped):
                tell({**receiver.environment, "MODELMILL_WEBHOOK_URL": url}, ENDED)
            assert time.monotonic() - begun < webhook.SILENCE_SECONDS
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MODELMILL_WEBHOOK_URL", "file:///etc/passwd"),
        ("MODELMILL_WEBHOOK_URL", "hooks.example.com"),
        ("MODELMILL_WEBHOOK_URL", "http://[::1"),
        ("MODELMILL_WEBHOOK_URL", "http://127.0.0.1:port/"),
        ("MODELMILL_WEBHOOK_URL", "http://127.0.0.1/\N{SNOWMAN}"),
        ("MODELMILL_WEBHOOK_SECRET", "guessable"),
    ],
)
def test_setting_that_cannot_be_used_is_named_and_not_shown(
    receiver: Receiver, name: str, value: str
) -> None:
    """And nothing is sent, least of all unsigned."""
    words = tell({**receiver.environment, name: value}, ENDED)
    assert name in words
    assert value not in words
    assert not receiver.heard


def test_secret_is_read_from_the_files_that_a_pod_is_given(
    receiver: Receiver, tmp_path: Path
) -> None:
    """Without them, nobody asks to be told."""
    environment = {"MODELMILL_WEBHOOK_FOLDER": str(tmp_path)}
    assert tell(environment, ENDED) == ""
    assert not receiver.heard
    (tmp_path / "url").write_text(f"{receiver.url}\n", encoding="utf-8")
    (tmp_path / "secret").write_text(f"{SECRET}\n", encoding="utf-8")
    assert tell(environment, ENDED) == ""
    assert receiver.notice()["data"]["run"] == "quick"


def test_run_tells_how_it_ended_and_stages_are_told_nothing(
    workshop: Workshop, receiver: Receiver
) -> None:
    """Good or bad."""
    told = workshop.folder / "told"
    for name in ("light", "train", "quantize"):
        script = f'env >> {told}; exec "{sys.executable}" "{STAND_IN}"'
        workshop.write_environment(name, script)
    answer = workshop.modelmill("run", "run.yaml", "--name", "good", **receiver.environment)
    assert answer.returncode == 0, answer.stderr
    data = receiver.notice()["data"]
    assert (data["run"], data["exit_code"]) == ("good", 0)
    assert data["report"].startswith("s3://modelmill/runs/good/reports/")
    assert [model["model"] for model in data["models"]] == ["base"]
    assert "MODELMILL_STAGE=" in told.read_text(encoding="utf-8")
    assert "MODELMILL_WEBHOOK" not in told.read_text(encoding="utf-8")

    failing = '{"infer-base": {"exit": 66}}'
    answer = workshop.modelmill(
        *("run", "run.yaml", "--name", "bad", "--again", "infer-base"),
        **receiver.environment,
        MODELMILL_STAND_IN=failing,
    )
    assert answer.returncode != 0
    data = receiver.notice()["data"]
    assert data["exit_code"] == answer.returncode
    assert [failure["stage"] for failure in data["failures"]] == ["infer-base"]


def test_run_ends_as_it_has_though_nobody_could_be_told(
    workshop: Workshop, receiver: Receiver
) -> None:
    """The exit code stays, and a line says so."""
    receiver.answers = [404]
    answer = workshop.modelmill("run", "run.yaml", "--name", "quiet", **receiver.environment)
    assert answer.returncode == 0
    assert "127.0.0.1 was not told of the end: it answered 404" in answer.stderr
