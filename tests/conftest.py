from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["engine"]

# Files of tests that take seconds each, on real sockets and processes: not part of `make check`.
SLOW = frozenset(
    f"test_{name}.py"
    for name in (
        *("bench", "body_priority", "collect", "control", "doctor", "experiment", "gateway"),
        *("gateway_command", "gateway_engine", "gateway_faults", "gateway_fleet", "gateway_fuzz"),
        *("gateway_hold", "gateway_smuggling", "gateway_upstream", "learner", "online", "page"),
        *(
            "prepare",
            "probe",
            "queue_order",
            "ranker_judge",
            "report",
            "score",
            "score_fuzz",
            "server",
        ),
        *(
            "simulate",
            "simulation",
            "learning_policy",
            "own_traffic",
            "learn",
            "probes",
            "gateway_process",
            "spans",
        ),
    )
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in SLOW:
            item.add_marker("slow")


# No test may fail because the machine stands still for a second.
settings.register_profile("pars", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pars")


@pytest.fixture(autouse=True)
def _state_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    """What a test has learned is no other test's, nor the user's."""
    folder: Path = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
