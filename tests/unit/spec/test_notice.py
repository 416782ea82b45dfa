"""What is signed, and with what."""

import base64

import pytest

from modelmill.spec.notice import headers_of, signing_key

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
SECONDS = 1614265330
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_signature_is_the_one_of_the_specifications_example() -> None:
    """Secret, id, time and body of its reference implementations give their signature."""
    headers = headers_of(BODY, ID, SECONDS, signing_key(SECRET))
    assert headers["webhook-id"] == ID
    assert headers["webhook-timestamp"] == str(SECONDS)
    assert headers["webhook-signature"] == SIGNATURE


def test_another_body_has_another_signature() -> None:
    """One byte is enough."""
    assert headers_of(BODY + b" ", ID, SECONDS, signing_key(SECRET)) != headers_of(
        BODY, ID, SECONDS, signing_key(SECRET)
    )


def test_nothing_is_signed_without_a_secret() -> None:
    """Rather no signature than one that anybody can make."""
    assert "webhook-signature" not in headers_of(BODY, ID, SECONDS, None)


@pytest.mark.parametrize("secret", ["whsec_", "whsec_not base64!", "whsec_" + "YWJj", "abc"])
def test_secret_that_protects_nothing_is_refused(secret: str) -> None:
    """Not base64, or fewer than 24 bytes."""
    with pytest.raises(ValueError, match="24 bytes"):
        signing_key(secret)


def test_secret_may_come_without_its_prefix() -> None:
    """As some senders write it."""
    assert signing_key(base64.b64encode(bytes(range(24))).decode()) == bytes(range(24))
