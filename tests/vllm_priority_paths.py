"""
On which paths vLLM's own models read a `priority`; runs in vLLM's environment.

    .engine/bin/python tests/vllm_priority_paths.py
"""

import importlib
import json
import pkgutil
import sys
from typing import Any, get_args

import vllm.entrypoints
from fastapi import APIRouter


def main() -> None:
    paths = set()
    for module in pkgutil.walk_packages(vllm.entrypoints.__path__, "vllm.entrypoints."):
        if not module.name.endswith("api_router"):
            continue
        try:
            router = importlib.import_module(module.name).router
        except (ImportError, AttributeError) as error:
            sys.stderr.write(f"{module.name}: {error}\n")
            continue
        assert isinstance(router, APIRouter)
        for route in router.routes:
            fields = getattr(getattr(route, "dependant", None), "body_params", [])
            if any(reads_priority(field.field_info.annotation) for field in fields):
                paths.add(route.path)
    sys.stdout.write(f"PATHS {json.dumps(sorted(paths))}\n")


def reads_priority(kind: Any) -> bool:
    """Whether a model, or one of a union, has the field."""
    own = "priority" in getattr(kind, "model_fields", {})
    return own or any(reads_priority(it) for it in get_args(kind))


if __name__ == "__main__":
    main()
