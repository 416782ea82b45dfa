"""What every test folder shares."""

import pytest
from hypothesis import HealthCheck, settings

# Not a test module by its name; its asserts shall explain themselves all the same.
pytest.register_assert_rewrite("tests.conduct.backend_contract")

# No wall-clock asserts: these machines are shared, and slow is not wrong.
settings.register_profile(
    "modelmill",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("modelmill")
