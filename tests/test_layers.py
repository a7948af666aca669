"""Imports point one way, and what serves never needs what learns."""

import ast
from pathlib import Path

import pars

SOURCE = Path(pars.__file__).parent
HEAVY = {"torch", "transformers", "datasets", "matplotlib", "sklearn", "onnx", "tqdm", "pyarrow"}
GROUND = {"conversation", "errors", "files", "metrics", "words", "ranker", "outcomes"}
# What `pars workload` reads of other people's files, inside a function.
READING = ("pars.learn.records", "pars.learn.rows")
# Scoring with a .pt is the one door from serving to torch, opened inside a function.
DOORS = {"server": ("pars.learn.checkpoint",)}


def imports_of(path):
    """(module, is_at_the_top) of every import in a file, those inside functions too."""
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, id(node) in top
            if node.module.split(".")[0] == "pars":
                names = (f"{node.module}.{alias.name}" for alias in node.names)
                yield from ((name, id(node) in top) for name in names)


def modules(pattern):
    return {path.stem: list(imports_of(path)) for path in SOURCE.glob(pattern)}


def test_serving_never_imports_what_learns():
    """No module outside the learn lane and the command line imports one of it."""
    wrong = [
        (name, module)
        for name, imported in modules("*.py").items()
        if not name.startswith("cli")
        for module, _ in imported
        if module.startswith("pars.learn.")
        and not any(module.startswith(door) for door in DOORS.get(name, ()))
    ]

    assert wrong == []


def test_what_learns_imports_only_the_ground():
    """The learn lane knows nothing of serving."""
    wrong = [
        (name, module)
        for name, imported in modules("learn/*.py").items()
        for module, _ in imported
        if module.startswith("pars.")
        and not module.startswith("pars.learn")
        and module.split(".")[1] not in GROUND | {"__version__"}
    ]

    assert wrong == []


def test_what_proves_needs_neither_torch_nor_what_learns():
    """It reads records as the learn lane does, and that inside a function; pictures likewise."""
    wrong = [
        (name, module)
        for name, imported in modules("prove/*.py").items()
        for module, is_at_the_top in imported
        if (module.startswith("pars.learn") and (is_at_the_top or not module.startswith(READING)))
        or (module.split(".")[0] in HEAVY - {"matplotlib"})
        or (module.split(".")[0] == "matplotlib" and is_at_the_top)
    ]

    assert wrong == []


def test_serving_never_imports_what_proves():
    """No module outside the prove lane and the command line imports one of it."""
    wrong = [
        (name, module)
        for pattern in ("*.py", "learn/*.py")
        for name, imported in modules(pattern).items()
        if not name.startswith("cli")
        for module, _ in imported
        if module.startswith("pars.prove")
    ]

    assert wrong == []


def test_the_ground_knows_nothing_above_it():
    """Errors, files, metrics and the ranker import only each other."""
    wrong = [
        (name, module)
        for name, imported in modules("*.py").items()
        if name in GROUND
        for module, _ in imported
        if module.startswith("pars.") and module.split(".")[1] not in GROUND
    ]

    assert wrong == []


def test_heavy_libraries_stay_in_the_learn_lane():
    """Torch and its like are named nowhere else, not even inside a function."""
    wrong = [
        (name, module)
        for name, imported in modules("*.py").items()
        for module, _ in imported
        if module.split(".")[0] in HEAVY
    ]

    assert wrong == []


def test_the_guard_sees_a_planted_import(tmp_path):
    """Otherwise the tests above could not fail."""
    planted = tmp_path / "planted.py"
    planted.write_text("def f():\n    import torch\n    from pars.learn import train\n")

    assert {module for module, _ in imports_of(planted)} == {
        "torch",
        "pars.learn",
        "pars.learn.train",
    }
