"""Commands of the prove lane that need a live engine, or stand in for one: bench, fake-engine."""

import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pars.cli.serve import run_app
from pars.cli.sources import source_options, sources_of, told_apart
from pars.errors import INTERRUPTED, ParsError
from pars.scheduling.engines import ENGINES

if TYPE_CHECKING:
    from pars.prove.live.bench_plan import BenchOptions


class NumberList(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases only
    """Positive numbers separated by commas."""

    name = "numbers"

    def convert(self, value: Any, param: Any, context: Any) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(part) for part in value.split(",") if part.strip())
        except ValueError:
            numbers = (0.0,)
        if not all(0 < number < float("inf") for number in numbers):
            self.fail(f"{value!r}: want positive numbers separated by commas", param, context)
        return numbers


@click.command()
@click.argument("url")
@click.option(
    "--workload",
    required=True,
    type=click.Path(path_type=Path),
    help="What is sent when: a file of `pars workload`.",
)
@click.option(
    "--policies",
    default="fcfs,ranker,oracle",
    show_default=True,
    metavar="NAMES",
    help="fcfs, ranker (of several: ranker:NAME), oracle, prompt-length, max-tokens, reversed;"
    " NAME@30 is overtaken by 30 s at most, NAME@1.33x waits 1.33 times as long at most."
    " `gateway` sends no priority, to a URL that ranks by itself.",
)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--rates",
    type=NumberList(),
    default="",
    help="Scale the arrivals to these requests per second, one after the other: 2,4,8.",
)
@source_options
@click.option(
    "--own-eos",
    is_flag=True,
    help="Let the model end its answers. Without it answers have the workload's lengths exactly.",
)
@click.option(
    "--own-eos-max-tokens",
    type=click.IntRange(1),
    default=1024,
    show_default=True,
    help="With --own-eos, for requests without a limit of their own.",
)
@click.option(
    "--goodput",
    default="",
    metavar="LIMITS",
    help="Count the requests that keep these, as ttft_s:0.5,ntpot_s:0.1 (also tpot_s, e2e_s,"
    " longest_itl_s).",
)
@click.option(
    "--endpoint",
    type=click.Choice(["completions", "chat"]),
    default="completions",
    show_default=True,
)
@click.option("--model", help="Name of the model.  [default: the first of /v1/models]")
@click.option(
    "--engine",
    type=click.Choice(["auto", *ENGINES]),
    default="auto",
    show_default=True,
    help="How the server takes priorities; auto asks it.",
)
@click.option(
    "--truncate-prompts",
    is_flag=True,
    help="Have vLLM cut prompts to the workload's prompt_tokens: for another tokenizer's model.",
)
@click.option(
    "--api-key-env",
    default="OPENAI_API_KEY",
    show_default=True,
    metavar="NAME",
    help="Environment variable that holds the server's API key, if it wants one.",
)
@click.option(
    "--secret-env",
    metavar="NAME",
    help="Environment variable that holds the PARS_TRUSTED_SECRET of the gateway or middleware"
    " before the engine, so that every policy passes it.",
)
@click.option(
    "--timeout-s",
    type=click.FloatRange(min=0, min_open=True),
    default=1800.0,
    show_default=True,
    help="Count a request as failed after this long without data from the server.",
)
@click.option("--extra-body", default="{}", metavar="JSON", help="Fields for every request's body.")
@click.option(
    "--output-dir",
    required=True,
    type=click.Path(path_type=Path),
    help="Gets requests.jsonl, report.json and report.html.",
)
def bench(url: str, goodput: str, **asked: Any) -> None:
    """
    Measure what each policy is worth on a live engine.

    URL is the engine, or a gateway before it. Policies take turns over the same requests, sent when
    they are due (open loop).
    """
    from pars.prove.live.bench import run_bench
    from pars.prove.report.goodput import parse_limits

    limits = parse_limits(goodput)
    options = _bench_options(url, asked)
    is_whole = run_bench(options, command=shlex.join(["pars", *sys.argv[1:]]))
    _report(options.output_dir, limits)
    if not is_whole:
        sys.exit(INTERRUPTED)


def _bench_options(url: str, asked: dict[str, Any]) -> "BenchOptions":
    from pars.prove.live.bench_plan import BenchOptions

    policies = tuple(part.strip() for part in asked.pop("policies").split(",") if part.strip())
    policies, rankers = told_apart(policies, asked.pop("rankers"))
    secret_env = asked.pop("secret_env")
    secret = os.environ.get(secret_env) if secret_env else None
    if secret_env and not secret:
        raise ParsError(f"--secret-env: {secret_env} is not set")
    return BenchOptions(
        url=url,
        policies=policies,
        sources=sources_of(rankers, asked.pop("scores")),
        api_key=os.environ.get(asked.pop("api_key_env")) or None,
        secret=secret,
        extra_body=_json_object("--extra-body", asked.pop("extra_body")),
        **asked,
    )


def _json_object(option: str, text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ParsError(f"{option}: want a JSON object, not {text!r}")
    return value


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--goodput", default="", metavar="LIMITS", help="As for `pars bench`.")
def report(folder: Path, goodput: str) -> None:
    """Write the tables and pages of a result FOLDER again."""
    from pars.prove.report.goodput import parse_limits

    _report(folder, parse_limits(goodput))


def _report(folder: Path, limits: Mapping[str, float]) -> None:
    from pars.prove.report.report import write_report

    click.echo(write_report(folder, limits))


@click.command("fake-engine")
@click.option("--engine", default="h100-8b", show_default=True, help="A preset of step times.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port; 0 takes a free one and says which.",
)
@click.option(
    "--policy",
    type=click.Choice(["priority", "fcfs"]),
    default="priority",
    show_default=True,
    help="As vLLM's --scheduling-policy.",
)
@click.option("--max-num-seqs", type=click.IntRange(1), help="As vLLM's.  [default: the preset's]")
@click.option(
    "--speed",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="How much faster than the preset's hardware.",
)
@click.option(
    "--model",
    default="fake",
    show_default=True,
    help="The name of its model, which requests give, or none.",
)
def fake_engine(
    engine: str,
    host: str,
    port: int,
    policy: str,
    max_num_seqs: int | None,
    speed: float,
    model: str,
) -> None:
    """
    Serve an OpenAI-compatible engine without a model.

    vLLM's scheduling, a step model's times: for tests and benchmarks of what stands before an
    engine. Its answers make no sense.
    """
    from pars.prove.engine.step_time import EnginePreset
    from pars.prove.fake_engine.server import FakeEngine

    preset = EnginePreset.named(engine)
    app = FakeEngine.of_preset(
        preset, scheduling_policy=policy, max_num_seqs=max_num_seqs, speed=speed, model=model
    )
    greeting = (
        f"fake {engine} ({policy}, speed {speed:g}), its model named {model!r}, listens on {{url}}"
        " - stop with Ctrl-C"
    )
    run_app(app, host, port, greeting, {"backlog": 4096})


BENCH_COMMANDS: tuple[click.Command, ...] = (bench, report, fake_engine)
