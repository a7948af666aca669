"""Commands of the prove lane that need no engine: workload, simulate."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pars.cli.learn import LENGTH_UNITS, conditions
from pars.errors import INTERRUPTED, ParsError

if TYPE_CHECKING:
    from pars.prove.engine.step_time import EnginePreset
    from pars.prove.workload.scores import Source

PATH = click.Path(path_type=Path)
at_least_one = click.IntRange(min=1)
_F = TypeVar("_F", bound=Callable[..., Any])

_RECORD_OPTIONS = (
    click.option(
        "--records", type=PATH, help="Prompts with answers or answer lengths, a line each."
    ),
    click.option("--requests", type=PATH, help="Of a batch: what --records answers."),
    click.option("--prompt-field", help="The prompt's field, as a.b.c.  [default: found]"),
    click.option("--answer-field", help="The answer's text, to be counted.  [default: found]"),
    click.option("--length-field", help="The answer's length.  [default: found]"),
    click.option(
        "--length-unit",
        type=click.Choice(LENGTH_UNITS),
        help="Of the lengths; words and characters are turned into tokens (4/3 and 1/4 of one)."
        "  [default: by the field's name, else tokens]",
    ),
    click.option("--where", multiple=True, metavar="FIELD=VALUE", help="Only such rows; repeats."),
    click.option(
        "--allow-truncated", is_flag=True, help="Take the whole rows of a file cut short."
    ),
    click.option("--num-requests", type=at_least_one, help="[default: a request for each row]"),
    click.option(
        "--max-prompt-tokens", type=at_least_one, help="Leave requests with longer prompts out."
    ),
    click.option("--max-output-tokens", type=at_least_one, help="Cut longer answers to this."),
    click.option(
        "--max-tokens", type=at_least_one, help="The client's limit where no row has one."
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Of draws and arrivals."),
)


def record_options(command: _F) -> _F:
    """The options that say how records become requests."""
    for add in reversed(_RECORD_OPTIONS):
        command = add(command)
    return command


def comma_list(text: str) -> tuple[str, ...]:
    """The parts of "a,b,c"."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


_SOURCE_OPTIONS = (
    click.option(
        "--ranker",
        "rankers",
        multiple=True,
        metavar="[NAME=]RANKER",
        help="Folder, or module:object with score(list[str]), of the policy ranker, or of"
        " ranker:NAME; repeats.  [default: the bundled one]",
    ),
    click.option(
        "--scores",
        multiple=True,
        metavar="NAME=FILE",
        help="Scores of any other system, for a policy NAME: JSON lines or CSV with request_id or"
        " prompt, and score or expected_tokens; repeats.",
    ),
)


def source_options(command: _F) -> _F:
    """The options that say by whose scores policies order."""
    for add in reversed(_SOURCE_OPTIONS):
        command = add(command)
    return command


def sources_of(rankers: Sequence[str], scores: Sequence[str]) -> "dict[str, Source]":
    """
    What the options name, by what a policy orders by: "ranker", "ranker:NAME", or NAME.

    A folder whose own name has a = in it is one if it is there.
    """
    from pars.prove.workload.scores import FileSource, RankerSource, check_scores_name

    sources: dict[str, Source] = {}
    for text in rankers:
        name, equals, ranker = text.partition("=")
        is_named = equals and not Path(text).exists()
        known, ranker = (f"ranker:{name}", ranker) if is_named else ("ranker", text)
        if known in sources:
            raise ParsError("--ranker: two for one name; name them apart: --ranker NAME=RANKER")
        sources[known] = RankerSource(ranker)
    for text in scores:
        name, equals, path = text.partition("=")
        if not (equals and path):
            raise ParsError(f"--scores {text}: want NAME=FILE")
        check_scores_name(name)
        if name in sources:
            raise ParsError(f"--scores {text}: two files for one name")
        sources[name] = FileSource(Path(path))
    return sources


@click.command()
@record_options
@click.option(
    "--arrivals",
    type=click.Choice(["poisson", "gamma", "burst", "trace"]),
    help="When requests come.  [default: trace with --trace, else poisson]",
)
@click.option("--rate", type=float, help="Requests a second on average; a trace is scaled to it.")
@click.option(
    "--cv", type=float, help="Of gamma: the intervals' standard deviation over their mean."
)
@click.option(
    "--trace",
    type=PATH,
    help="Arrivals and tokens: CSV, JSON lines or Parquet, in the columns of Azure's, BurstGPT's or"
    " Mooncake's traces or of a log. With --records it only says when.",
)
@click.option("--output", type=PATH, required=True, help="The workload, as JSON lines.")
def workload(output: Path, where: tuple[str, ...], arrivals: str | None, **asked: Any) -> None:
    """Join prompts that have known answer lengths with arrivals, for bench and simulate."""
    from pars.prove.workload.make_workload import WorkloadPlan, make_workload
    from pars.prove.workload.workload import write_workload

    arrivals = arrivals or ("trace" if asked["trace"] else "poisson")
    facts, requests = make_workload(
        WorkloadPlan(where=conditions(where), arrivals=arrivals, **asked)
    )
    write_workload(output, facts, requests)
    click.echo(f"{output}: {_described(facts)}")


def _described(facts: dict[str, Any]) -> str:
    rate = facts.get("mean_rate")
    parts = [f"{facts['num_requests']:,} requests"]
    if facts["num_prompts"]:
        parts.append(f"{facts['num_prompts']:,} prompts")
    parts.append(f"{rate:g} a second ({facts['arrivals']})" if rate else "all at once")
    parts.append(f"lengths from {facts['lengths_from']}")
    for reason, count in facts.get("left_out", {}).items():
        parts.append(f"left out: {count:,} ({reason})")
    if facts.get("num_skipped_empty") and "left_out" not in facts:
        parts.append(f"{facts['num_skipped_empty']:,} rows without an answer left out")
    if facts.get("num_skipped_long"):
        parts.append(f"{facts['num_skipped_long']:,} longer prompts left out")
    if facts.get("num_out_of_order"):
        parts.append(f"{facts['num_out_of_order']:,} rows put into the order of their times")
    return "; ".join(parts)


@click.command()
@click.option("--workload", type=PATH, help="A file of `pars workload`; or give --records.")
@record_options
@click.option(
    "--policies",
    default="fcfs,ranker,oracle,ranker@30",
    show_default=True,
    help="fcfs, ranker (of several: ranker:NAME), oracle, prompt-length, max-tokens, reversed;"
    " NAME@30 is overtaken by 30 s at most, NAME@1.5x waits 1.5 times as long at most.",
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
    What each policy would be worth, in virtual time: no engine, no GPU.

    With --workload, or in one step with --records. A command that was stopped goes on where it was.
    """
    if vllm_python is not None:
        _run_there(vllm_python)
    if fit is not None:
        _fit(fit, asked)
        return
    if asked["output_dir"] is None:
        raise ParsError("give --output-dir for the result")
    is_whole = vllm_python is not None or _simulate(asked)
    from pars.prove.report.latency import parse_limits
    from pars.prove.report.report import write_report

    click.echo(write_report(asked["output_dir"], parse_limits(asked["goodput"])))
    if not is_whole:
        sys.exit(INTERRUPTED)


def _simulate(asked: dict[str, Any]) -> bool:
    from pars.prove.report.latency import parse_limits
    from pars.prove.report.sweep import SweepPlan, run_sweep

    parse_limits(asked["goodput"])
    preset = _preset(asked)
    path, rates = asked["workload"], comma_list(asked["rates"])
    if (path is None) == (asked["records"] is None):
        raise ParsError("give --workload (a file of `pars workload`) or --records, and not both")
    if path is None:
        path, rates = _workload_of_records(asked, preset, rates)
    plan = SweepPlan(
        workload=path,
        policies=comma_list(asked["policies"]),
        output_dir=asked["output_dir"],
        rates=rates or ("",),
        preset=preset,
        stepper=asked["stepper"],
        sources=sources_of(asked["rankers"], asked["scores"]),
        num_processes=asked["num_processes"],
        command=shlex.join(["pars", *sys.argv[1:]]),
    )
    with ExitStack() as stack:

        def progress(name: str, steps: int) -> Callable[[int], None]:
            stack.close()
            bar = click.progressbar(length=steps, label=name, file=sys.stderr, show_pos=True)
            return stack.enter_context(bar).update

        return run_sweep(plan, progress)


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
    click.echo(f"{path}: {_described(facts)}")
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
