"""What every test folder shares."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from .hub_server import HubServer

# Before anything loads torch, and for the stages that tests start.  Models are tiny here, and there
# are several workers: threads that share a microsecond's work spin at its end and starve the rest.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Not a test module by its name; its asserts shall explain themselves all the same.
pytest.register_assert_rewrite("tests.conduct.backend_contract")

# No wall-clock asserts: these machines are shared, and slow is not wrong.
settings.register_profile(
    "modelmill",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("modelmill")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Serve an empty hub, and let this process and its children ask it without a token."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN_PATH", "/nowhere/token")
        yield server
