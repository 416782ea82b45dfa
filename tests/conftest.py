"""What every test folder shares."""

from hypothesis import HealthCheck, settings

# No wall-clock asserts: these machines are shared, and slow is not wrong.
settings.register_profile(
    "modelmill",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("modelmill")
