"""
Lints the Helm chart, renders it, holds each manifest against Kubernetes' schemas.

    bash deploy/setup.sh                                        # Helm as a library, into .deploy/
    .deploy/bin/python deploy/chart.py                          # writes deploy/kubernetes/*.yaml
    .deploy/bin/python deploy/chart.py --check                  # says whether they are current
    .deploy/bin/python deploy/chart.py --set '{"replicas": 3}'  # prints what that renders to
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import helm_python  # noqa: F401 (loads Helm's library)
import kubernetes_validate
import yaml
from helm_python.chart import Chart, lint

FOLDER = Path(__file__).parent
CHART = FOLDER / "helm/pars"
VERSIONS = ("1.30", "1.34")  # of Kubernetes: the oldest that the chart takes, and a newer one
PLAIN: dict[str, dict[str, Any]] = {
    "gateway.yaml": {"replicas": 2},
    "vllm-sidecar.yaml": {"mode": "sidecar"},
    "envoy.yaml": {"mode": "ext-proc", "envoy": {"configMap": "pars-envoy"}, "replicas": 2},
}
HEAD = "# Rendered from deploy/helm/pars by deploy/chart.py, with {values}\n"


def main() -> None:
    """As the options say; exit code 1 where something is wrong."""
    options = argparse.ArgumentParser()
    options.add_argument("--check", action="store_true")
    options.add_argument("--set", type=json.loads)
    given = options.parse_args()
    problems = lint_problems()
    if given.set is not None:
        text = rendered(given.set)
        problems += schema_problems(text)
        print(text)
    else:
        for name, values in PLAIN.items():
            text = HEAD.format(values=json.dumps(values)) + rendered(values)
            problems += [f"{name}: {it}" for it in schema_problems(text)]
            path = FOLDER / "kubernetes" / name
            if not given.check:
                path.write_text(text)
            elif not path.exists() or path.read_text() != text:
                problems.append(f"{name} is not current: run deploy/chart.py")
    if problems:
        sys.exit("\n".join(problems))


def lint_problems() -> list[str]:
    """What Helm's linter says, but for its advice to have an icon."""
    told = lint(str(CHART))
    found = [it for it in _messages(told) if "icon is recommended" not in str(it)]
    return [f"lint: {it}" for it in found]


def _messages(told: Any) -> list[Any]:
    return list(told.get("messages") or []) if isinstance(told, dict) else list(told or [])


def rendered(values: dict[str, Any]) -> str:
    """The manifests of a release called pars in the namespace default, in a fixed order."""
    with Chart.load(str(CHART)) as chart:
        chart.validate_schema(values)
        made = chart.render(values=values, name="pars", namespace="default")
    texts = [made[it].strip() for it in sorted(made) if it.endswith(".yaml")]
    return "".join(f"---\n{text}\n" for text in texts if text)


def schema_problems(text: str) -> list[str]:
    """What Kubernetes would not take."""
    problems = []
    for manifest in yaml.safe_load_all(text):
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(manifest, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                where = "/".join(map(str, error.path))
                problems.append(f"{manifest['kind']}, {where}: {error.message} ({version})")
    return problems


if __name__ == "__main__":
    main()
