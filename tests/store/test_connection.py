"""What a connection learns about the place: renewed credentials, other checksums, TLS."""

import logging
import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from threading import Event

import pytest

from modelmill.spec.errors import InputMissing, PermissionRefused
from modelmill.store.address import open_store
from modelmill.store.embedded import EmbeddedStore
from modelmill.store.s3 import Store
from modelmill.store.transfer import PART_BYTES, download, upload
from tests.store.proxy import Fault, Proxy, Request
from tests.store.weed import Weed

TLS = Path(__file__).with_name("tls")
"""An authority and certificates by it, made once: its key is gone."""

SECOND = "second"
LIMITED = "limited"


@pytest.fixture(scope="module")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    """Run a store that knows more than one identity."""
    allowed = [f"{action}:modelmill/allowed/*" for action in ("Read", "Write", "List", "Tagging")]
    others = {SECOND: ["Admin"], LIMITED: allowed}
    with Weed(tmp_path_factory.mktemp("weed"), others) as server:
        yield server


class CredentialsFile:
    """A file of credentials as a cluster mounts it: replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, access_key: str, secret_key: str) -> None:
        """Replace it."""
        new = self.path.with_suffix(".new")
        new.write_text(
            f"[default]\naws_access_key_id={access_key}\naws_secret_access_key={secret_key}\n",
            encoding="utf-8",
        )
        new.replace(self.path)


@pytest.fixture
def mounted(weed: Weed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CredentialsFile:
    """Let the SDK find credentials in a file only, as in a pod."""
    for name, value in weed.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    file = CredentialsFile(tmp_path / "credentials")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file.path))
    file.write(weed.environment["AWS_ACCESS_KEY_ID"], weed.environment["AWS_SECRET_ACCESS_KEY"])
    return file


@pytest.fixture
def gate(weed: Weed, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Stand before that store."""
    with closing(Proxy(weed.environment)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        yield proxy


def _expire(weed: Weed, is_over: Event) -> Callable[[Request], Fault | None]:
    """Refuse the first identity once its time is over."""
    first = f"Credential={weed.environment['AWS_ACCESS_KEY_ID']}/"

    def choose(request: Request) -> Fault | None:
        is_first = first in request.headers.get("authorization", "")
        return "expired" if is_over.is_set() and is_first else None

    return choose


def test_credentials_are_renewed_in_the_middle_of_an_upload(
    weed: Weed, mounted: CredentialsFile, gate: Proxy, tmp_path: Path
) -> None:
    """The file has changed when the old ones expire: the upload goes on with the new ones."""
    is_over = Event()
    gate.choose = _expire(weed, is_over)
    source = tmp_path / "source"
    source.write_bytes(Random(0).randbytes(2 * PART_BYTES))
    store = open_store(f"{weed.url}/renewed", retry_budget_seconds=60)
    upload_id = store.start_multipart("file")
    parts = [store.put_part("file", upload_id, 1, source.read_bytes()[:PART_BYTES])]

    mounted.write(SECOND, SECOND)
    is_over.set()
    parts.append(store.put_part("file", upload_id, 2, source.read_bytes()[PART_BYTES:]))
    store.finish_multipart("file", upload_id, parts)

    stored = store.get("file")
    assert stored is not None
    assert stored.body == source.read_bytes()
    assert gate.applied == ["expired"]


def test_expired_credentials_that_have_worked_are_waited_for(
    weed: Weed, mounted: CredentialsFile, gate: Proxy
) -> None:
    """A mounted file changes a little after the Secret does: a stage survives the gap."""
    is_over = Event()
    expire = _expire(weed, is_over)

    def choose(request: Request) -> Fault | None:
        if gate.seen["PutObject"] == 4:
            mounted.write(SECOND, SECOND)
        return expire(request)

    gate.choose = choose
    store = open_store(f"{weed.url}/late", retry_budget_seconds=60)
    store.put("before", b"x")
    is_over.set()

    store.put("after", b"x")

    assert gate.applied == ["expired"] * 3


def test_credentials_that_stay_expired_end_with_77(
    weed: Weed, mounted: CredentialsFile, gate: Proxy
) -> None:
    """Those that never worked are not waited for, and others not longer than the budget."""
    is_over = Event()
    gate.choose = _expire(weed, is_over)
    used = open_store(f"{weed.url}/expired", retry_budget_seconds=0.5)
    used.put("file", b"x")
    is_over.set()

    for store in (open_store(f"{weed.url}/expired"), used):
        with pytest.raises(PermissionRefused, match="The credentials have expired") as caught:
            store.put("file", b"x")
        assert (caught.value.exit_code, caught.value.at) == (77, f"{weed.url}/expired/file")
        assert "get new credentials" in caught.value.fix


def test_access_key_that_is_replaced_under_a_stage(weed: Weed, mounted: CredentialsFile) -> None:
    """An access key that the store no longer knows is looked up again as well."""
    right = mounted.path.read_text(encoding="utf-8")
    mounted.write("unknown", "unknown")
    store = open_store(f"{weed.url}/replaced")
    mounted.path.write_text(right, encoding="utf-8")

    store.put("file", b"x")

    assert store.head("file") is not None


def test_prefix_that_is_not_allowed_ends_with_77(weed: Weed, mounted: CredentialsFile) -> None:
    """The message names the address, and what to ask for."""
    mounted.write(LIMITED, LIMITED)
    open_store(f"{weed.url}/allowed").put("file", b"x")

    with pytest.raises(PermissionRefused, match="do not allow this") as caught:
        open_store(f"{weed.url}/denied").put("file", b"x")

    assert (caught.value.exit_code, caught.value.at) == (77, f"{weed.url}/denied/file")
    assert "ask for read, write, list and delete below this address" in caught.value.fix


def test_bucket_that_is_not_there_ends_with_66(weed: Weed, mounted: CredentialsFile) -> None:
    """It is told apart from an object that is not there, and is not waited for."""
    with pytest.raises(InputMissing, match="has no such bucket") as caught:
        open_store("s3://elsewhere/x").put("file", b"x")

    assert (caught.value.exit_code, caught.value.at) == (66, "s3://elsewhere/x/file")


def test_clock_that_is_wrong_ends_with_77(behind: Store, proxy: Proxy) -> None:
    """A store that finds our time wrong is not waited for."""
    proxy.always("*", "skewed")

    with pytest.raises(PermissionRefused, match="clock here and the store's clock") as caught:
        behind.put("file", b"x")

    assert caught.value.exit_code == 77
    assert "NTP" in caught.value.fix


def test_store_that_refuses_the_checksums_of_the_sdk(
    store: Store,
    behind: Store,
    proxy: Proxy,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """MD5 takes their place for files, parts, documents and deletions, and the log says so."""
    caplog.set_level(logging.INFO, logger="modelmill")
    proxy.always("*", "no crc")
    for name, size in (("small", 10_000), ("big", PART_BYTES + 10_000)):
        source, target = tmp_path / name, tmp_path / f"{name}.out"
        source.write_bytes(Random(name).randbytes(size))
        download(behind, name, target, upload(behind, name, source))
        assert target.read_bytes() == source.read_bytes()
    behind.put("document", b"{}", if_none_match=True)
    behind.delete(["small", "big", "document"])

    assert list(store.list()) == []
    assert behind.connection.checksums == "md5"
    assert proxy.applied == ["no crc"]
    (line,) = [each for each in caplog.messages if "MD5" in each]
    assert line == (
        f"The store at {proxy.url} refuses the checksums of the SDK (InvalidArgument): "
        "MD5 is used instead"
    )


@pytest.mark.parametrize("size_bytes", [10_000, PART_BYTES + 10_000])
def test_damage_is_noticed_without_the_checksums_of_the_sdk(
    store: Store, behind: Store, proxy: Proxy, tmp_path: Path, size_bytes: int
) -> None:
    """A bit that flips on the way up is refused by the MD5, one on the way down by the ETag."""
    proxy.always("*", "no crc")
    behind.put("first", b"x")
    source = tmp_path / "source"
    source.write_bytes(Random(0).randbytes(size_bytes))
    proxy.plan("PutObject" if size_bytes < PART_BYTES else "UploadPart", "flip up")

    upload(behind, "file", source)
    proxy.plan("GetObject", "flip down")
    first = behind.get("first")

    stored = store.get("file")
    assert stored is not None
    assert stored.body == source.read_bytes()
    assert first is not None
    assert first.body == b"x"
    assert proxy.applied == ["no crc", "flip up", "flip down"]


def test_damage_is_stored_in_silence_where_nothing_protects(
    store: Store, behind: Store, proxy: Proxy
) -> None:
    """Negative control: what everybody does for such stores, `when_required` alone."""
    proxy.always("*", "no crc")
    behind.put("first", b"x")
    behind.client.meta.events.unregister("before-parameter-build.s3.PutObject", _md5_of(behind))
    behind.connection.checksums = "crc32"
    proxy.plan("PutObject", "flip up")

    behind.put("file", b"x" * 1000)

    stored = store.get("file")
    assert stored is not None
    assert stored.body != b"x" * 1000


def test_refusal_that_has_nothing_to_do_with_checksums(
    aws: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong secret stays a wrong secret: no other checksums, and no word about them."""
    caplog.set_level(logging.INFO, logger="modelmill")
    aws.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = open_store(EmbeddedStore.url)

    with pytest.raises(PermissionRefused, match="does not belong to the access key"):
        store.put("file", b"x")

    assert (store.connection.checksums, caplog.messages) == ("crc32", [])


def _md5_of(store: Store) -> object:
    from modelmill.store import client

    return client._add_md5


@pytest.mark.parametrize(
    ("certificate", "bundle", "words", "fix"),
    [
        ("loopback", "other-host", "is not trusted here", "AWS_CA_BUNDLE"),
        ("other-host", "authority", "is for another host", "AWS_ENDPOINT_URL"),
        ("other-address", "authority", "is for another host", "AWS_ENDPOINT_URL"),
    ],
)
def test_certificate_that_cannot_be_trusted_ends_with_77(
    aws: pytest.MonkeyPatch, certificate: str, bundle: str, words: str, fix: str
) -> None:
    """An unknown authority and another host are told apart; neither is waited for."""
    aws.setenv("AWS_CA_BUNDLE", str(TLS / f"{bundle}.pem"))
    with closing(Proxy(dict(os.environ), _tls(certificate))) as proxy:
        aws.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        with pytest.raises(PermissionRefused, match=words) as caught:
            open_store(EmbeddedStore.url, retry_budget_seconds=20).check()

    assert (caught.value.exit_code, caught.value.at) == (77, EmbeddedStore.url)
    assert fix in caught.value.fix


def test_certificate_of_the_authority_that_is_named(
    server: EmbeddedStore, aws: pytest.MonkeyPatch
) -> None:
    """The same endpoint is fine where its authority is known."""
    aws.setenv("AWS_CA_BUNDLE", str(TLS / "authority.pem"))
    with closing(Proxy(server.environment, _tls("loopback"))) as proxy:
        aws.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        open_store(server.url).check()


def test_bundle_of_certificates_that_is_not_there_ends_with_77(aws: pytest.MonkeyPatch) -> None:
    """A wrong path is a mistake to mend, not a store to wait for."""
    aws.setenv("AWS_CA_BUNDLE", "/nowhere/bundle.pem")
    with closing(Proxy(dict(os.environ), _tls("loopback"))) as proxy:
        aws.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        with pytest.raises(PermissionRefused, match="no file at AWS_CA_BUNDLE") as caught:
            open_store(EmbeddedStore.url, retry_budget_seconds=20).check()

    assert (caught.value.exit_code, caught.value.fix) == (77, "correct AWS_CA_BUNDLE")


def _tls(name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / f"{name}.pem")
    return context
