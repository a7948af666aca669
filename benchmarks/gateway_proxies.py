"""
The servers of `benchmarks/gateway_cost.py`, each in a process of its own.

Rivals live in virtual environments of their own and run with the settings their authors give for
production: one worker, logs of errors only, no retries, and nothing fetched from outside or
reported to it.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
START_LIMIT_S = 120

# LiteLLM fetches prices and more at start-up unless it is told that its own copies will do.
LITELLM_ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_AUTOROUTER_PRESETS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
    "LITELLM_LOG": "ERROR",
    "LITELLM_MODE": "PRODUCTION",
    "DISABLE_ADMIN_UI": "True",
    "NO_DOCS": "True",
}
# JSON is YAML. Without a key, as the gateway: checking one would only make LiteLLM slower.
LITELLM_CONFIG = {
    "litellm_settings": {"num_retries": 0, "set_verbose": False},
    "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},
}
QUIET_UVICORN = {
    "version": 1,
    "disable_existing_loggers": False,
    "loggers": {"uvicorn.access": {"level": "WARNING"}},
}

Command = Callable[[Path, Path, str, int, int], list[str]]


@dataclass(frozen=True)
class Rival:
    """
    Attributes:
        requirement: What pip installs.
        ready_path: Answers 200 once the proxy serves.
        command: From its venv's bin, a scratch folder, the upstream's URL, its port and another
            free port.
    """

    requirement: str
    executable: str
    ready_path: str
    environment: dict[str, str]
    command: Command


def litellm_command(bin_: Path, folder: Path, upstream: str, port: int, _: int) -> list[str]:
    model = {"model": "openai/fake", "api_base": f"{upstream}/v1", "api_key": "none"}
    config, logs = folder / "litellm.yaml", folder / "uvicorn.json"
    models = [{"model_name": "fake", "litellm_params": model}]
    config.write_text(json.dumps({"model_list": models, **LITELLM_CONFIG}))
    logs.write_text(json.dumps(QUIET_UVICORN))
    address = ["--host", "127.0.0.1", "--port", str(port)]
    options = ["--config", str(config), "--log_config", str(logs), "--telemetry", "False"]
    return [str(bin_ / "litellm"), *address, *options]


def router_command(bin_: Path, _: Path, upstream: str, port: int, metrics_port: int) -> list[str]:
    return [
        str(bin_ / "vllm-router"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--prometheus-port", str(metrics_port), "--log-level", "error"),
        *("--policy", "round_robin", "--disable-retries", "--worker-urls", upstream),
    ]


RIVALS = {
    "litellm": Rival(
        "litellm[proxy]==1.106.2",
        "litellm",
        "/health/liveliness",
        LITELLM_ENVIRONMENT,
        litellm_command,
    ),
    "vllm-router": Rival("vllm-router==0.1.17", "vllm-router", "/health", {}, router_command),
}


def install(rival: Rival, venv: Path) -> str:
    """Install the rival into `venv` unless it is there; what went wrong, or nothing."""
    if (venv / "bin" / rival.executable).exists():
        return ""
    print(f"installing {rival.requirement} into {venv}", flush=True)
    pip = [str(venv / "bin" / "pip"), "install", "--quiet", rival.requirement]
    for step in ([sys.executable, "-m", "venv", str(venv)], pip):
        done = subprocess.run(step, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            return f"not installed: {last_line(done.stderr)}"
    return ""


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no word")


@dataclass(frozen=True)
class Server:
    """How to start one; `{port}` in the command becomes the port."""

    command: list[str]
    ready_path: str = "/health"
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))


@dataclass(frozen=True)
class Running:
    url: str
    pid: int

    def get(self, path: str, method: str = "GET") -> str:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(self.url + path, method=method)
        with opener.open(request, timeout=10) as answer:
            return str(answer.read().decode())


class DidNotStart(Exception):
    """With the reason."""


@contextlib.contextmanager
def running(server: Server, port: int, log: Path) -> Iterator[Running]:
    """The server while the block runs, from when its ready page answers."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            server.command, stdout=output, stderr=output, env=server.environment, cwd=log.parent
        )
    with process:
        try:
            here = Running(f"http://127.0.0.1:{port}", process.pid)
            give_up_s = time.monotonic() + START_LIMIT_S
            while not is_ready(here, server.ready_path):
                if process.poll() is not None or time.monotonic() > give_up_s:
                    raise DidNotStart(last_line(log.read_text(errors="replace")))
                time.sleep(0.2)
            yield here
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


def is_ready(server: Running, path: str) -> bool:
    try:
        server.get(path)
    except OSError:
        return False
    return True


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def own_server(name: str, port: int, upstream: str, rankers: dict[str, Path]) -> Server:
    if name == "echo":
        return Server([sys.executable, str(HERE / "gateway_servers.py"), "echo", str(port)])
    engine = "none" if name == "relay" else "vllm"
    ranker = rankers.get(name, rankers["lite"])
    command = [sys.executable, "-m", "pars", "gateway", "--upstream", upstream]
    command += ["--port", str(port), "--ranker", str(ranker), "--engine", engine]
    return Server(command, "/pars/health", {**os.environ, "PARS_HOLD": "off"})


def rival_server(name: str, port: int, upstream: str, venv: Path, folder: Path) -> Server:
    rival = RIVALS[name]
    problem = install(rival, venv)
    if problem:
        raise DidNotStart(problem)
    command = rival.command(venv.resolve() / "bin", folder, upstream, port, free_port())
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), **rival.environment}
    return Server(command, rival.ready_path, environment)
