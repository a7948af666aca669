"""The command that runs a workload in virtual time: simulate."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pars.cli.learn import conditions
from pars.cli.sources import source_options, sources_of, told_apart
from pars.cli.workload import PATH, at_least_one, described, record_options, workload
from pars.errors import INTERRUPTED, ParsError

if TYPE_CHECKING:
    from pars.prove.engine.step_time import EnginePreset


def comma_list(text: str) -> tuple[str, ...]:
    """The parts of "a,b,c"."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


WITH_PROMPTS = "fcfs,online@1.33x,ranker@1.33x,oracle"
WITHOUT_PROMPTS = "fcfs,oracle@1.33x,oracle"


@click.command()
@click.option("--workload", type=PATH, help="A file of `pars workload`; or give --records.")
@record_options
@click.option(
    "--policies",
    default="",
    help="fcfs, ranker (of several: ranker:NAME), online (learns as answers end), oracle,"
    " prompt-length, max-tokens, reversed;"
    " NAME@30 is overtaken by 30 s at most, NAME@1.33x waits 1.33 times as long at most."
    f"  [default: {WITH_PROMPTS}; without prompts {WITHOUT_PROMPTS}]",
)
@click.option(
    "--rates",
    default="",
    help="Loads, as 20,40 (requests a second) or 0.5x,1x (of the workload's own rate)."
    "  [default: the workload's arrivals; of --records, 0.5 to 1.2 of what the engine can do]",
)
@click.option(
    "--engine", default="h100-8b", show_default=True, help="A preset's name, or a file of --fit."
)
@click.option(
    "--stepper",
    type=click.Choice(["fast", "vllm"]),
    default="fast",
    show_default=True,
    help="Whose scheduler: ours, or that of the installed vLLM (a hundred times slower).",
)
@click.option("--max-num-seqs", type=at_least_one, help="As vLLM's.  [default: the engine's]")
@click.option("--max-num-batched-tokens", type=at_least_one, help="As vLLM's.")
@click.option("--num-blocks", type=at_least_one, help="KV-cache blocks, as vLLM's.")
@click.option("--block-size", type=at_least_one, help="Tokens of a block, as vLLM's.")
@source_options
@click.option("--goodput", default="", metavar="LIMITS", help="As for `pars bench`.")
@click.option("--num-processes", type=at_least_one, help="[default: one a core]")
@click.option(
    "--vllm-python", type=PATH, help="Python of an environment with vLLM; the command runs there."
)
@click.option(
    "--fit", type=PATH, metavar="RESULT", help="Fit the step time to a result of `pars bench`."
)
@click.option("--output", type=PATH, help="Of --fit: the preset.  [default: RESULT/engine.json]")
@click.option("--output-dir", type=PATH, help="Gets requests.jsonl, report.json and report.html.")
def simulate(fit: Path | None, vllm_python: Path | None, **asked: Any) -> None:
    """
    Estimate what each policy is worth, in virtual time.

    No engine and no GPU. With --workload, or in one step with --records. A command that was stopped
    goes on where it was.
    """
    if vllm_python is not None:
        _run_there(vllm_python)
    if fit is not None:
        _fit(fit, asked)
        return
    if asked["output_dir"] is None:
        raise ParsError("give --output-dir for the result")
    is_whole = vllm_python is not None or _simulate(asked)
    from pars.prove.report.goodput import parse_limits
    from pars.prove.report.report import write_report

    click.echo(write_report(asked["output_dir"], parse_limits(asked["goodput"])))
    if not is_whole:
        sys.exit(INTERRUPTED)


def _simulate(asked: dict[str, Any]) -> bool:
    from pars.prove.report.goodput import parse_limits
    from pars.prove.report.sweep import SweepPlan, run_sweep

    parse_limits(asked["goodput"])
    preset = _preset(asked)
    path, rates = asked["workload"], comma_list(asked["rates"])
    if (path is None) == (asked["records"] is None):
        raise ParsError("give --workload (a file of `pars workload`) or --records, and not both")
    if path is None:
        path, rates = _workload_of_records(asked, preset, rates)
    names = comma_list(asked["policies"] or _usual_policies(path))
    policies, rankers = told_apart(names, asked["rankers"])
    plan = SweepPlan(
        workload=path,
        policies=policies,
        output_dir=asked["output_dir"],
        rates=rates or ("",),
        preset=preset,
        stepper=asked["stepper"],
        sources=sources_of(rankers, asked["scores"]),
        num_processes=asked["num_processes"],
        command=shlex.join(["pars", *sys.argv[1:]]),
    )
    with ExitStack() as stack:

        def progress(name: str, steps: int) -> Callable[[int], None]:
            stack.close()
            bar = click.progressbar(length=steps, label=name, file=sys.stderr, show_pos=True)
            return stack.enter_context(bar).update

        return run_sweep(plan, progress)


def _usual_policies(workload: Path) -> str:
    """What the gateway does by default, with perfect knowledge beside it, as far as can be told."""
    from pars.prove.workload.workload import open_workload

    _, requests = open_workload(workload)
    return WITHOUT_PROMPTS if next(requests).prompt is None else WITH_PROMPTS


def _preset(asked: dict[str, Any]) -> "EnginePreset":
    """The engine, with the options of vLLM's that were given."""
    from dataclasses import replace

    from pars.prove.engine.step_time import EnginePreset

    preset = EnginePreset.named(asked["engine"])
    names = ("max_num_seqs", "max_num_batched_tokens", "num_blocks", "block_size")
    given = {name: asked[name] for name in names if asked[name] is not None}
    return replace(preset, limits=replace(preset.limits, **given))


def _workload_of_records(
    asked: dict[str, Any], preset: "EnginePreset", rates: tuple[str, ...]
) -> tuple[Path, tuple[str, ...]]:
    """Poisson arrivals of one a second, to be scaled; and loads around what the engine can do."""
    from pars.prove.report.sweep import loads_around
    from pars.prove.workload.make_workload import WorkloadPlan, make_workload
    from pars.prove.workload.workload import write_workload

    names = ["records", "requests", "prompt_field", "answer_field", "length_field", "length_unit"]
    names += ["allow_truncated", "num_requests", "max_output_tokens", "max_prompt_tokens"]
    names += ["max_tokens", "seed"]
    plan = WorkloadPlan(
        where=conditions(asked["where"]), rate=1.0, **{name: asked[name] for name in names}
    )
    facts, requests = make_workload(plan)
    path: Path = asked["output_dir"] / "workload.jsonl"
    write_workload(path, facts, requests)
    click.echo(f"{path}: {described(facts)}")
    return path, rates or loads_around(requests, preset)


def _fit(result: Path, asked: dict[str, Any]) -> None:
    from pars.prove.engine.fit import fit_step_time

    fitted = fit_step_time(result, _preset(asked))
    path = asked["output"] or result / "engine.json"
    fitted.preset.write(path)
    click.echo(f"{fitted}\n{path}: use it with --engine {path}")


def _run_there(python: Path) -> None:
    """The same command in vLLM's environment, with this pars; its report is made anew here."""
    import pars

    arguments, at = sys.argv[1:], 0
    while at < len(arguments):
        if arguments[at] == "--vllm-python":
            del arguments[at : at + 2]
        elif arguments[at].startswith("--vllm-python="):
            del arguments[at]
        else:
            at += 1
    environment = {**os.environ, "PYTHONPATH": str(Path(pars.__file__).parents[1])}
    try:
        ended = subprocess.run([python, "-m", "pars", *arguments], env=environment, check=False)
    except OSError as error:
        raise ParsError(f"--vllm-python {python}: {error.strerror or error}") from error
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    if ended.returncode:
        sys.exit(ended.returncode)


SIMULATE_COMMANDS: tuple[click.Command, ...] = (workload, simulate)
