"""What deploy/ and docs/deploy.md hold can be run, as far as a machine without a cluster shows."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deploy_tools import (
    DEBIAN,
    DEPLOY_PYTHON,
    ROOT,
    Store,
    needs,
    needs_deploy_python,
    run,
    write_tools,
)
from gateway_process import started
from test_docs import blocks
from test_walkthrough import Desk

from fake_engine import FakeEngine
from serving import eventually

PAGE = ROOT / "docs/deploy.md"
UNIT = ROOT / "deploy/systemd/pars-gateway.service"
CHART = ROOT / "deploy/helm/pars"


def typed(program: str) -> list[str]:
    """The lines of the page that begin with `program`."""
    found = []
    for block in blocks(PAGE.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip().startswith(f"{program} "):
                found.append(re.sub(r"\s+", " ", line.strip()))
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


# What needs no tool


def test_each_line_of_the_page_has_a_test() -> None:
    """Those of other programs are typed by the tests below or by test_walkthrough.py."""
    programs = {
        line.strip().split()[0]
        for block in blocks(PAGE.read_text())
        if not block.startswith("pars ")
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip()
    }
    by_us = {"docker", "helm", "kubectl", "systemctl", "install", "python3", "/opt/pars/bin/pip"}
    by_us |= {"sed"}
    elsewhere = {"pars", "curl", "vllm", "pip", "serve", "envoy"}
    assert programs == by_us | elsewhere


def test_every_setting_of_the_chart_is_in_its_schema() -> None:
    """A misspelt value is refused, and a new one cannot be forgotten."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    names = re.findall(r"^(\w+):", (CHART / "values.yaml").read_text(), re.MULTILINE)
    of_vllm = (CHART / "values.yaml").read_text().split("\nvllm:\n")[1]

    assert set(names) | {"global"} == set(schema["properties"])
    assert set(re.findall(r"^  (\w+):", of_vllm, re.M)) == set(
        schema["properties"]["vllm"]["properties"]
    )


def test_the_unit_starts_a_gateway(tmp_path: Path) -> None:
    """Its ExecStart, with its own variables and those of gateway.env, as systemd sets them."""
    text = UNIT.read_text()
    line = re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)
    own = re.search(r"^Environment=(.*)$", text, re.MULTILINE)
    assert line is not None
    assert own is not None
    file = (UNIT.parent / "gateway.env").read_text().splitlines()
    given = [*shlex.split(own[1].replace("%S", str(tmp_path))), *file]
    variables = dict(it.split("=", 1) for it in given if not it.startswith("#"))
    with FakeEngine().served() as engine:
        variables["UPSTREAM"] = engine
        command = re.sub(r"\$\{(\w+)\}", lambda it: variables.pop(it[1]), line[1])
        assert shlex.split(command)[:2] == ["/opt/pars/bin/pars", "gateway"]
        with started(tmp_path, *shlex.split(command)[2:], **variables) as gateway:
            assert gateway.url.startswith("http://127.0.0.1:")
            assert httpx.get(f"{gateway.url}/pars/ready", trust_env=False).status_code == 200
    assert (tmp_path / "pars").is_dir()


# What needs tools


@pytest.mark.deploy
def test_the_dockerfile_has_no_lint() -> None:
    """hadolint finds nothing."""
    needs_deploy_python()
    run(str(DEPLOY_PYTHON.parent / "hadolint"), str(ROOT / "Dockerfile"))


@pytest.mark.deploy
def test_the_plain_manifests_are_what_the_chart_renders() -> None:
    """And they, and the chart, are what Helm and Kubernetes take."""
    needs_deploy_python()
    run(str(DEPLOY_PYTHON), str(ROOT / "deploy/chart.py"), "--check")


@pytest.mark.deploy
@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"replicas": 2, "upstreams": ["http://a", "http://b"]}, "one queue, held in the gateway"),
        ({"replicas": 2, "args": ["--hold", "on"]}, "one queue, held in the gateway"),
        ({"mode": "both"}, "one of 'gateway', 'sidecar', 'ext-proc'"),
        ({"upstream": "http://a"}, "'upstream' not allowed"),
        ({"upstreams": ["a:8000"]}, "upstreams"),
        ({"mode": "ext-proc"}, "envoy.configMap: mode ext-proc wants a ConfigMap"),
    ],
)
def test_the_chart_refuses_what_makes_no_sense(values: dict[str, object], problem: str) -> None:
    """With a reason."""
    needs_deploy_python()
    command = [str(DEPLOY_PYTHON), str(ROOT / "deploy/chart.py"), "--set", json.dumps(values)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode != 0
    assert problem in done.stderr


@pytest.mark.deploy
def test_the_chart_takes_all_of_its_values_at_once() -> None:
    """Each reaches a manifest that Kubernetes takes."""
    needs_deploy_python()
    values = {
        "image": {"repository": "r/pars", "tag": "t1"},
        "replicas": 3,
        "args": ["--max-slowdown", "1.25"],
        "env": [{"name": "PARS_SLOTS", "value": "7"}],
        "secrets": {"apiKeys": "k1", "upstreamKey": "k2", "adminKey": "k3"},
        "stateClaim": "claim1",
        "drainSeconds": 77,
        "service": {"type": "LoadBalancer", "port": 8080, "annotations": {"a1": "b"}},
        "podAnnotations": {"a2": "b"},
        "nodeSelector": {"n1": "b"},
        "tolerations": [{"key": "t2", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
    }
    command = [str(DEPLOY_PYTHON), str(ROOT / "deploy/chart.py"), "--set", json.dumps(values)]
    text = run(*command)

    told = "r/pars:t1 1.25 PARS_SLOTS k1 k2 k3 claim1 77 107 8080 a1 a2 n1 t2 podAntiAffinity"
    assert [it for it in told.split() if it not in text] == []
    assert "PARS_SHARED_ENGINE" in text
    assert "maxUnavailable: 1" in text


@pytest.mark.deploy
def test_beside_an_envoy_the_chart_opens_only_what_clients_and_prometheus_need() -> None:
    """pars starts first, as Envoy's sidecar, and its gRPC stays inside the pod."""
    needs_deploy_python()
    values = {"mode": "ext-proc", "envoy": {"configMap": "c1"}, "args": ["--dialect", "llm-d"]}
    command = [str(DEPLOY_PYTHON), str(ROOT / "deploy/chart.py"), "--set", json.dumps(values)]
    text = run(*command)

    before, _, after = text.partition("\n      containers:\n")
    assert "- ext-proc\n" in before
    assert "restartPolicy: Always" in before
    assert "- llm-d\n" in before.replace('"', "")
    assert "command: [envoy]" in after
    assert 'configMap: {name: "c1"}' in after
    assert re.findall(r"port: (\d+)", text.partition("kind: NetworkPolicy")[2])[:2] == [
        "8100",
        "9003",
    ]
    assert not re.search(r"\b9002\b", text)
    assert "prometheus.io/path: /metrics" in text


@pytest.mark.envoy
def test_the_line_that_makes_a_configuration_for_a_pod_makes_one(tmp_path: Path) -> None:
    """Envoy takes it; clients come from outside, the engine is elsewhere, pars is beside."""
    [line] = typed("sed")
    subprocess.run(
        ["bash", "-c", line.replace("> envoy", f"> {tmp_path}/envoy")], cwd=ROOT, check=True
    )
    envoy = [
        str(ROOT / ".envoy/bin/envoy"),
        "-c",
        str(tmp_path / "envoy.yaml"),
        "--mode",
        "validate",
    ]
    done = subprocess.run(envoy, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    made = (tmp_path / "envoy.yaml").read_text()
    assert "{address: 0.0.0.0, port_value: 8100}" in made
    assert "{address: vllm, port_value: 8000}" in made
    assert "{address: 127.0.0.1, port_value: 9002}" in made


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with Desk(tmp_path) as desk:
        (tmp_path / "deploy").symlink_to(ROOT / "deploy")
        yield desk


@pytest.mark.deploy
def test_the_lines_of_helm_and_kubectl_can_be_typed(desk: Desk) -> None:
    """Each gives manifests that Kubernetes takes."""
    needs_deploy_python()
    write_tools(desk.folder / "tools")
    for line in typed("helm") + typed("kubectl"):
        desk._run(line)


@pytest.mark.deploy
def test_the_lines_of_systemd_can_be_typed(desk: Desk) -> None:
    """The unit is one that systemd takes, and lies with the file of its variables where it says."""
    needs("systemd-analyze", package="systemd")
    write_tools(desk.folder / "tools")
    block = next(it for it in blocks(PAGE.read_text()) if "systemctl" in it)
    for line in block.splitlines():
        here = re.sub(r"(?<= )/(opt|etc)/", rf"{desk.folder}/\1/", f" {line}")
        if "/pip install" not in line:
            desk._run("mkdir -p etc/systemd/system && " + here.strip())
    assert (desk.folder / "etc/pars/gateway.env").stat().st_mode & 0o777 == 0o600


@pytest.mark.deploy
@pytest.mark.timeout(900)
def test_the_image_is_built_and_serves(desk: Desk) -> None:
    """As the page says: nobody's user, a root that is read-only, no capabilities."""
    needs("buildah", "podman", "runc", "mmdebstrap", package=DEBIAN)
    os.environ.setdefault("BUILDAH_ISOLATION", "chroot")
    images = Path(tempfile.mkdtemp(prefix="pars-"))  # podman takes no long path
    store = Store(images).prepare()
    write_tools(desk.folder / "tools", store=store, pip=images / "pip.conf")
    docker = str(desk.folder / "tools/docker")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    build, start, reload, stop = typed("docker")
    try:
        with FakeEngine().served() as engine:
            desk._run(build)
            start = start.replace("http://host.docker.internal:8000", engine)
            desk._run(
                start.replace("--add-host host.docker.internal:host-gateway ", "")
                + f" --port {port}"
            )
            eventually(lambda: answers(f"{url}/pars/ready"))
            body = {"prompt": "x", "max_tokens": 4}
            answer = httpx.post(f"{url}/v1/completions", json=body, trust_env=False)
            assert answer.json()["usage"]["completion_tokens"] == 4

            inside = f"id -u; touch /x; touch /var/lib/pars/x && echo kept; {health_check(port)}"
            told = run(docker, "exec", "pars", "sh", "-c", f"({inside}; echo $?) 2>&1").split("\n")
            assert (told[0], told[2:4]) == ("65532", ["kept", "0"])
            assert "Read-only file system" in told[1]
            status = run(docker, "exec", "pars", "cat", "/proc/1/status")
            assert re.search(r"CapEff:\s+0+\n", status)
            assert re.search(r"NoNewPrivs:\s+1\n", status)

            desk._run(reload)
            eventually(lambda: "read again: the ranker" in log_of(docker))
            desk._run(stop)
            lines = log_of(docker).splitlines()
            assert all(json.loads(line)["logger"] for line in lines)
            assert run(docker, "inspect", "pars", "--format", "{{.State.ExitCode}}").strip() == "0"
    finally:
        subprocess.run([docker, "rm", "-f", "-v", "pars"], check=False, capture_output=True)
        shutil.rmtree(images, ignore_errors=True)


def health_check(port: int) -> str:
    """The image's own, at another port."""
    found = re.search(r"CMD (\[.*/pars/live.*\])", (ROOT / "Dockerfile").read_text())
    assert found is not None
    return shlex.join(json.loads(found[1])).replace("8100", str(port))


def log_of(docker: str) -> str:
    done = subprocess.run([docker, "logs", "pars"], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.deploy
def test_ray_serves_the_score_service() -> None:
    """`serve run` as on the page, with a score at the end."""
    if "PARS_RAY" not in os.environ:
        pytest.skip("NOT TESTED: PARS_RAY names no environment that has pars-llm[ray]")
    [line] = typed("serve")
    command = [f"{os.environ['PARS_RAY']}/bin/{line.split()[0]}", *line.split()[1:]]
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    ray = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert ray.stdout is not None
    try:
        assert any("is ready at" in line for line in ray.stdout)  # after half a minute or so
        asked = {"prompt": "What is the capital of France?"}
        # Ray's port, unless configured.
        answer = httpx.post("http://127.0.0.1:8000/score", json=asked, trust_env=False)
        assert isinstance(answer.json()["score"], float)
    finally:
        ray.send_signal(signal.SIGINT)
        ray.communicate(timeout=60)
