import pytest
from botocore.exceptions import ClientError, SSLError

from modelmill.spec.errors import (
    InputMissing,
    ModelmillError,
    PermissionRefused,
    SpecError,
    StoreUnreachable,
    UnsafeArtifact,
)
from modelmill.store.address import open_store
from modelmill.store.embedded import EmbeddedStore
from modelmill.store.failures import translate
from modelmill.store.s3 import Store

DEAD = "http://127.0.0.1:9"
"""The discard port: nothing listens there."""


def _open(url: str = "s3://modelmill/test", budget: float = 0.3) -> Store:
    return open_store(url, retry_budget_seconds=budget)


def test_check_of_a_working_store(store: Store) -> None:
    """A store that works passes in silence."""
    store.check()


def test_check_when_nothing_listens(aws: pytest.MonkeyPatch) -> None:
    """A store that does not answer within the budget is 74, with its endpoint."""
    aws.setenv("AWS_ENDPOINT_URL_S3", DEAD)

    with pytest.raises(StoreUnreachable) as caught:
        _open().check()

    assert caught.value.exit_code == 74
    assert DEAD in caught.value.what
    assert caught.value.at == "s3://modelmill/test"
    assert "AWS_ENDPOINT_URL" in caught.value.fix


def test_check_of_a_missing_bucket(aws: pytest.MonkeyPatch) -> None:
    """A bucket that is not there is 66 and is not waited for."""
    with pytest.raises(InputMissing, match="has no such bucket") as caught:
        _open("s3://nosuchbucket/test", budget=300).check()

    assert (caught.value.exit_code, caught.value.at) == (66, "s3://nosuchbucket/test")


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("AWS_ACCESS_KEY_ID", "does not know this access key"),
        ("AWS_SECRET_ACCESS_KEY", "does not belong to the access key"),
    ],
)
def test_check_with_wrong_credentials(aws: pytest.MonkeyPatch, variable: str, words: str) -> None:
    """A wrong key or secret is 77, told apart, and is not waited for."""
    aws.setenv(variable, "wrong")

    with pytest.raises(PermissionRefused, match=words) as caught:
        _open(budget=300).check()

    assert caught.value.exit_code == 77
    assert "AWS_SECRET_ACCESS_KEY" in caught.value.fix


def test_check_without_credentials(aws: pytest.MonkeyPatch) -> None:
    """Missing credentials are 77 and name the variables to set."""
    aws.delenv("AWS_ACCESS_KEY_ID")
    aws.delenv("AWS_SECRET_ACCESS_KEY")
    aws.delenv("AWS_SESSION_TOKEN")
    aws.setenv("AWS_EC2_METADATA_DISABLED", "true")

    with pytest.raises(PermissionRefused, match="No credentials") as caught:
        _open().check()

    assert "AWS_ACCESS_KEY_ID" in caught.value.fix


def test_check_of_a_plain_port_by_https(server: EmbeddedStore, aws: pytest.MonkeyPatch) -> None:
    """An endpoint without TLS is told as that and is not waited for."""
    endpoint = server.environment["AWS_ENDPOINT_URL"].replace("http:", "https:")
    aws.setenv("AWS_ENDPOINT_URL_S3", endpoint)

    with pytest.raises(PermissionRefused, match="There is no TLS at https:") as caught:
        _open(budget=300).check()

    assert "http://" in caught.value.fix


@pytest.mark.parametrize("url", ["bucket/prefix", "https://host/bucket", "s3://", "s3:///x"])
def test_open_of_another_address(url: str) -> None:
    """An address of another form is a problem of the spec."""
    with pytest.raises(SpecError, match="s3://bucket/prefix"):
        open_store(url)


def test_open_of_a_prefix_outside_the_grammar() -> None:
    """A prefix that stores could read differently is refused."""
    with pytest.raises(UnsafeArtifact):
        open_store("s3://bucket/a//b")


@pytest.mark.parametrize(
    ("code", "error", "words", "fix"),
    [
        ("RequestTimeTooSkewed", PermissionRefused, "clock", "NTP"),
        ("ExpiredToken", PermissionRefused, "expired", "get new credentials"),
        ("AccessDenied", PermissionRefused, "do not allow", "read, write, list and delete"),
        ("AuthorizationHeaderMalformed", PermissionRefused, "region", "AWS_REGION"),
        ("NoSuchBucket", InputMissing, "no such bucket", "create the bucket"),
        ("SlowDown", StoreUnreachable, "no usable answer for 7 s", "AWS_ENDPOINT_URL"),
    ],
)
def test_translate_of_an_answer(
    code: str, error: type[ModelmillError], words: str, fix: str
) -> None:
    """Every cause has its class, its words and its mend."""
    status = 503 if code == "SlowDown" else 403
    answer = ClientError(
        {
            "Error": {"Code": code, "Message": "m"},
            "ResponseMetadata": {
                "HTTPStatusCode": status,
                "RequestId": "",
                "HostId": "",
                "HTTPHeaders": {},
                "RetryAttempts": 0,
            },
        },
        "PutObject",
    )

    translated = translate(answer, "s3://b/k", "http://e", 7)

    assert type(translated) is error
    assert words in translated.what
    assert fix in translated.fix
    assert translated.at == "s3://b/k"


def test_translate_of_an_untrusted_certificate() -> None:
    """A certificate of an unknown authority names the variable that mends it."""
    failure = SSLError(endpoint_url="https://e", error="CERTIFICATE_VERIFY_FAILED")

    translated = translate(failure, "s3://b", "https://e", 0)

    assert isinstance(translated, PermissionRefused)
    assert "AWS_CA_BUNDLE" in translated.fix
