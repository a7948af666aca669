from hypothesis import HealthCheck, settings

pytest_plugins = ["engine"]

# No test may fail because the machine stands still for a second.
settings.register_profile("pars", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pars")
