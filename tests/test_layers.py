"""Imports point one way: each room knows only the rooms on lower floors."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import pars

SOURCE = Path(pars.__file__).parent
HEAVY = {
    "torch",
    "transformers",
    "datasets",
    "matplotlib",
    "sklearn",
    "onnx",
    "tqdm",
    "pyarrow",
    "ray",
}
GROUND = {"errors", "files", "processes", "__version__"}
# What a room may import, beside itself and the ground floor.
FLOORS: dict[str, set[str]] = {"request": set()}
FLOORS["scheduling"] = FLOORS["request"] | {"request"}
FLOORS["ranking"] = FLOORS["scheduling"] | {"scheduling"}
FLOORS["outcomes"] = FLOORS["ranking"] | {"ranking"}
FLOORS["serving"] = FLOORS["learn"] = FLOORS["outcomes"] | {"outcomes"}
FLOORS["doctor"] = FLOORS["outcomes"] | {"outcomes", "serving"}
FLOORS["score_service"] = FLOORS["outcomes"] | {"outcomes"}
FLOORS["prove"] = FLOORS["outcomes"] | {"outcomes", "serving", "doctor"}
FLOORS["cli"] = FLOORS["prove"] | {"prove", "score_service", "learn"}
# Doors through a wall, each opened inside a function by the file named.
DOORS = {
    "score_service/server.py": ("pars.learn.training.checkpoint",),  # a .pt needs torch
    "prove/workload/make_workload.py": (
        *("pars.learn.data.batches", "pars.learn.data.fields", "pars.learn.data.record_reader"),
    ),
    "prove/workload/score_files.py": ("pars.learn.data.fields", "pars.learn.data.rows"),
    "prove/workload/traces.py": ("pars.learn.data.fields", "pars.learn.data.rows"),
}
# Who compares predictors trains them too, so these rooms of `prove` may learn, but import what is
# heavy inside a function: a leaderboard of scores in hand needs none of it.
RESEARCH = ("prove/leaderboard/", "prove/reproduce/", "prove/rivals/")
# The rooms that run where an engine runs: nothing heavy is named there, not even in a function.
LIGHT = ("request", "scheduling", "ranking", "outcomes", "serving", "doctor", "cli")


def imports_of(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, is_at_the_top) of every import in a file, those inside functions too."""
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "pars":
            yield from ((f"pars.{alias.name}", id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, id(node) in top


def may_learn(path: Path) -> bool:
    return path.relative_to(SOURCE).as_posix().startswith(RESEARCH)


def wrong_imports(room: str) -> list[tuple[str, str]]:
    """Each import of `room` that points up, or through a wall without a door."""
    allowed = FLOORS[room] | GROUND | {room}
    return [
        (str(path.relative_to(SOURCE)), module)
        for path in sorted((SOURCE / room).rglob("*.py"))
        for module, is_at_the_top in imports_of(path)
        if module.startswith("pars.") and module.split(".")[1] not in allowed
        if not (may_learn(path) and module.split(".")[1] == "learn" and not is_at_the_top)
        if is_at_the_top or module not in DOORS.get(path.relative_to(SOURCE).as_posix(), ())
    ]


@pytest.mark.parametrize("room", FLOORS)
def test_a_room_imports_only_lower_floors(room: str) -> None:
    """No arrow runs back up, and what serves and what learns do not know each other."""
    assert wrong_imports(room) == []


def test_every_room_has_a_floor() -> None:
    """A new folder cannot escape the rule."""
    rooms = {path.parent.name for path in SOURCE.glob("*/__init__.py")}

    assert rooms == set(FLOORS)


def test_the_ground_floor_knows_nothing_above_it() -> None:
    """The ground floor imports only itself."""
    wrong = [
        (name, module)
        for name in ("errors", "files", "processes")
        for module, _ in imports_of(SOURCE / f"{name}.py")
        if module.startswith("pars.") and module.split(".")[1] not in GROUND
    ]

    assert wrong == []


def test_heavy_libraries_stay_where_one_learns_and_draws() -> None:
    """Torch and its like are named nowhere on the serving path, not even inside a function."""
    wrong = [
        (str(path.relative_to(SOURCE)), module)
        for room in LIGHT
        for path in (SOURCE / room).rglob("*.py")
        for module, _ in imports_of(path)
        if module.split(".")[0] in HEAVY
    ]

    assert wrong == []


def test_what_proves_needs_torch_never_and_pictures_inside_a_function() -> None:
    """A simulation runs where nothing heavy is installed."""
    wrong = [
        (str(path.relative_to(SOURCE)), module)
        for path in (SOURCE / "prove").rglob("*.py")
        for module, is_at_the_top in imports_of(path)
        if module.split(".")[0] in HEAVY
        if is_at_the_top or (module.split(".")[0] != "matplotlib" and not may_learn(path))
    ]

    assert wrong == []


def test_the_guard_sees_a_planted_import(tmp_path: Path) -> None:
    """Otherwise the tests above could not fail."""
    planted = tmp_path / "planted.py"
    planted.write_text(
        "import onnx\ndef f():\n    import torch\n    from pars.learn import train\n"
    )

    assert set(imports_of(planted)) == {("onnx", True), ("torch", False), ("pars.learn", False)}
