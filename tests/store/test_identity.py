"""An identity of the cloud instead of keys: a token in a file, exchanged for keys by an STS.

The SDK does it (IRSA, Workload Identity); what is tested is that nothing here stands in its way.
The STS is a stand-in, the store that its keys open is real.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from modelmill.spec.errors import PermissionRefused, StoreUnreachable
from modelmill.store.address import open_store
from modelmill.store.embedded import EmbeddedStore
from modelmill.store.s3 import Store

ROLE = "arn:aws:iam::123456789012:role/team-a"

GOOD = """\
<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
  <AssumeRoleWithWebIdentityResult><Credentials>
    <AccessKeyId>{access_key}</AccessKeyId><SecretAccessKey>{secret_key}</SecretAccessKey>
    <SessionToken></SessionToken><Expiration>{expiration}</Expiration>
  </Credentials></AssumeRoleWithWebIdentityResult>
</AssumeRoleWithWebIdentityResponse>
"""
BAD = """\
<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
  <Error><Type>Sender</Type><Code>{code}</Code><Message>Not for you</Message></Error>
</ErrorResponse>
"""


@dataclass
class Sts:
    """Exchanges any token for the store's keys, unless it is told to refuse."""

    access_key: str
    secret_key: str
    url: str = ""
    valid_for: timedelta = timedelta(hours=1)
    refuses_with: str = ""
    asked: list[dict[str, str]] = field(default_factory=list)

    def answer(self, form: dict[str, str]) -> tuple[int, str]:
        """Answer one request."""
        self.asked.append(form)
        if self.refuses_with:
            return 403, BAD.format(code=self.refuses_with)
        expiration = (datetime.now(UTC) + self.valid_for).strftime("%Y-%m-%dT%H:%M:%SZ")
        return 200, GOOD.format(
            access_key=self.access_key, secret_key=self.secret_key, expiration=expiration
        )


@pytest.fixture
def sts(server: EmbeddedStore) -> Iterator[Sts]:
    """Listen on loopback."""
    known = server.environment
    sts = Sts(known["AWS_ACCESS_KEY_ID"], known["AWS_SECRET_ACCESS_KEY"])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            form = {name: values[0] for name, values in parse_qs(body).items()}
            code, text = sts.answer(form)
            self.send_response(code)
            self.send_header("content-type", "text/xml")
            self.send_header("content-length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        sts.url = f"http://127.0.0.1:{listening.server_address[1]}"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield sts
        listening.shutdown()
        thread.join()


@pytest.fixture
def token(sts: Sts, aws: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Leave nothing in the environment but a role, and a token in a file, as a pod is given."""
    file = tmp_path / "token"
    file.write_text("first", encoding="utf-8")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        aws.delenv(name)
    aws.setenv("AWS_ROLE_ARN", ROLE)
    aws.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(file))
    aws.setenv("AWS_ENDPOINT_URL_STS", sts.url)
    return file


def opened_by_token(store: Store) -> Store:
    """Open a prefix of the store with what the environment has."""
    return open_store(store.url, retry_budget_seconds=2)


@pytest.mark.usefixtures("token")
def test_token_in_a_file_opens_the_store(store: Store, sts: Sts) -> None:
    """Role and token go to the STS, its keys to the store."""
    opened = opened_by_token(store)
    opened.put("one", b"1")
    found = opened.get("one")
    assert found is not None
    assert found.body == b"1"
    [asked] = sts.asked
    assert (asked["Action"], asked["RoleArn"]) == ("AssumeRoleWithWebIdentity", ROLE)
    assert asked["WebIdentityToken"] == "first"


def test_keys_that_run_out_are_exchanged_for_new_ones(store: Store, sts: Sts, token: Path) -> None:
    """A kubelet has put another token there meanwhile; a run is longer than any of them."""
    sts.valid_for = timedelta(seconds=60)  # within the time in which the SDK renews at once
    opened = opened_by_token(store)
    opened.put("one", b"1")
    token.write_text("second", encoding="utf-8")
    opened.put("two", b"2")
    assert [asked["WebIdentityToken"] for asked in sts.asked][-1] == "second"
    assert opened.get("two") is not None


@pytest.mark.usefixtures("token")
@pytest.mark.parametrize("code", ["AccessDenied", "InvalidIdentityToken", "ExpiredTokenException"])
def test_identity_that_is_refused_is_said_in_words(store: Store, sts: Sts, code: str) -> None:
    """With the code of the STS, and not as a store that is away."""
    sts.refuses_with = code
    with pytest.raises(PermissionRefused) as caught:
        opened_by_token(store).get("one")
    assert code in str(caught.value)
    assert "AWS_ROLE_ARN" in str(caught.value)


def test_token_that_is_not_there_is_said_in_words(store: Store, token: Path) -> None:
    """The volume is missing: nobody has to read a traceback."""
    token.unlink()
    with pytest.raises(PermissionRefused) as caught:
        opened_by_token(store).get("one")
    assert "AWS_WEB_IDENTITY_TOKEN_FILE" in str(caught.value)


@pytest.mark.usefixtures("token")
def test_sts_that_is_away_is_told_from_the_store(store: Store, aws: pytest.MonkeyPatch) -> None:
    """Its address is in the words."""
    aws.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:9")
    with pytest.raises(StoreUnreachable) as caught:
        opened_by_token(store).get("one")
    assert "127.0.0.1:9" in str(caught.value)
