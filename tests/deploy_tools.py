"""
Stand-ins for docker, helm, kubectl and systemctl that go as far as one machine can.

    docker      buildah and podman, in folders of their own
    helm        Helm's library: lints, renders, holds what came against Kubernetes' schemas
    kubectl     the schemas alone
    systemctl   systemd-analyze verify
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DEPLOY_PYTHON = ROOT / ".deploy/bin/python"
DEBIAN = "buildah podman runc mmdebstrap"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
BASE = "localhost/pars-test-base"

DOCKER = """#!/bin/bash
set -e
where=(--root {store}/all --runroot {store}/run --storage-driver vfs)
podman=(podman "${{where[@]}}" --cgroup-manager=cgroupfs --runtime runc)
case $1 in
build) shift; cd {root}
    exec buildah "${{where[@]}}" bud --format docker --network host --build-arg BASE={base} \
        -v {certificates}:{certificates}:ro -v {pip}:/etc/pip.conf:ro "$@" ;;
run) shift  # no systemd for its timers of health checks, and this machine's limits
    exec "${{podman[@]}}" run --network host --no-healthcheck \
        --ulimit nofile=1024:1024 --ulimit nproc=1000:1000 "$@" ;;
*) exec "${{podman[@]}}" "$@" ;;
esac
"""

HELM = """#!{python}
import sys
sys.path.insert(0, "{root}/deploy")
from chart import lint_problems, rendered, schema_problems

values = {{}}
for told in [it for word, it in zip(sys.argv, sys.argv[1:]) if word == "--set"]:
    name, _, value = told.partition("=")
    inner = values
    for part in name.split(".")[:-1]:
        inner = inner.setdefault(part, {{}})
    is_list = value.startswith("{{")
    number = int(value) if value.isdecimal() else value
    inner[name.split(".")[-1]] = value.strip("{{}}").split(",") if is_list else number
text = rendered(values)
print(text)
sys.exit("; ".join(lint_problems() + schema_problems(text)) or 0)
"""

KUBECTL = """#!{python}
import sys
sys.path.insert(0, "{root}/deploy")
from chart import schema_problems

problems = []
if sys.argv[1:3] == ["apply", "-f"]:
    problems = schema_problems(open(sys.argv[3]).read())
sys.exit("; ".join(problems) or 0)
"""

SYSTEMCTL = """#!/bin/bash
set -e
cd "$(dirname "$0")/.."
for unit in etc/systemd/system/*.service; do
    sed "s|/opt/pars/bin/pars|/bin/true|" "$unit" > "tools/$(basename "$unit")"
    systemd-analyze verify "tools/$(basename "$unit")"
done
"""


def needs(*programs: str, package: str) -> None:
    """Skip the test, and say what is missing and how it is installed."""
    missing = [it for it in programs if shutil.which(it) is None]
    if missing:
        pytest.skip(f"NOT TESTED: {', '.join(missing)} missing: apt-get install {package}")


def needs_deploy_python() -> None:
    if not DEPLOY_PYTHON.exists():
        pytest.skip("NOT TESTED: no .deploy/: bash deploy/setup.sh")


def write_tools(folder: Path, **more: Path) -> None:
    """The stand-ins that can work here, into `folder`."""
    made = {"helm": HELM, "kubectl": KUBECTL, "systemctl": SYSTEMCTL}
    if "store" in more:
        made["docker"] = DOCKER
    for name, script in made.items():
        text = script
        if name != "systemctl":
            text = script.format(
                python=DEPLOY_PYTHON, root=ROOT, base=BASE, certificates=CERTIFICATES, **more
            )
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


@dataclass(frozen=True)
class Store:
    """Where images and containers lie; Debian with Python is kept in build/ for the next time."""

    folder: Path

    def prepare(self) -> Path:
        """A base image with Python, made of Debian's packages; the folder of images."""
        tar = ROOT / "build/deploy/base.tar"
        if not tar.exists():
            tar.parent.mkdir(parents=True, exist_ok=True)
            packages = "--include=python3,python3-venv,ca-certificates"
            unfinished = tar.with_name("unfinished.tar")
            run("mmdebstrap", "--variant=minbase", packages, "bookworm", str(unfinished))
            unfinished.rename(tar)
        (self.folder / "Dockerfile").write_text(f"FROM scratch\nADD {tar.name} /\n")
        (self.folder / "pip.conf").write_text(f"[global]\ncert = {CERTIFICATES}\n")
        store = self.folder / "store"
        where = ("--root", f"{store}/all", "--runroot", f"{store}/run", "--storage-driver", "vfs")
        file = str(self.folder / "Dockerfile")
        run("buildah", *where, "bud", "-q", "-f", file, "-t", BASE, str(tar.parent))
        return store


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
