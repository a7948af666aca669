from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["engine"]

# No test may fail because the machine stands still for a second.
settings.register_profile("pars", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pars")


@pytest.fixture(autouse=True)
def _state_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    """What a test has learned is no other test's, nor the user's."""
    folder: Path = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
