"""Properties are judged by their truth, not by the speed of a shared machine."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "shared-machine", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("shared-machine")
