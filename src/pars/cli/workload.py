"""The command that joins prompts with arrivals: workload."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from pars.cli.learn import LENGTH_UNITS, conditions, field_options

PATH = click.Path(path_type=Path)
at_least_one = click.IntRange(min=1)
_F = TypeVar("_F", bound=Callable[..., Any])

_RECORD_OPTIONS = (
    click.option(
        "--records", type=PATH, help="Prompts with answers or answer lengths, a line each."
    ),
    click.option("--requests", type=PATH, help="Of a batch: what --records answers."),
    field_options,
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
    click.option(
        "--seed",
        type=int,
        default=0,
        show_default=True,
        help="Random seed for sampling and arrivals.",
    ),
)


def record_options(command: _F) -> _F:
    """The options that say how records become requests."""
    for add in reversed(_RECORD_OPTIONS):
        command = add(command)
    return command


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
    """Join prompts of known answer lengths with arrivals."""
    from pars.prove.workload.make_workload import WorkloadPlan, make_workload
    from pars.prove.workload.workload import write_workload

    arrivals = arrivals or ("trace" if asked["trace"] else "poisson")
    facts, requests = make_workload(
        WorkloadPlan(where=conditions(where), arrivals=arrivals, **asked)
    )
    write_workload(output, facts, requests)
    click.echo(f"{output}: {described(facts)}")


def described(facts: dict[str, Any]) -> str:
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
