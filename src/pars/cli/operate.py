"""The commands that look at a running gateway, and change it: top, ctl and experiment."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from pars.errors import ParsError

NAMES = ("policy", "learn", "shadow", "ranker", "rollback")


@click.command()
@click.argument("url")
@click.option("--every-s", type=click.FloatRange(min=0.5), default=5.0, show_default=True)
@click.option("--once", is_flag=True, help="Print it once, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON of /pars/now once.")
def top(url: str, every_s: float, once: bool, as_json: bool) -> None:
    """
    Show what a gateway's order is worth, and who waits.

    The same as its page, /pars/. Where PARS_API_KEYS is set, its first key is sent.
    """
    from pars.doctor.live_page import lines_of, now_of

    if as_json:
        click.echo(json.dumps(now_of(url)))
        return
    while True:
        lines = lines_of(now_of(url))
        if not once:
            click.clear()
        click.echo("\n".join(lines))
        if once:
            return
        time.sleep(every_s)


@click.command()
@click.argument("url")
@click.argument("name", type=click.Choice(NAMES), required=False)
@click.argument("value", required=False)
@click.option("--keep", is_flag=True, help="Let it outlive a restart of the gateway.")
def ctl(url: str, name: str | None, value: str | None, keep: bool) -> None:
    """
    Change a gateway while it serves, or say what is set.

    \b
    pars ctl URL                     what is set
    pars ctl URL policy fcfs         first come, first served from now on
    pars ctl URL policy default      as the gateway was started
    pars ctl URL policy 1.25x        at most 1.25 times the first-come wait
    pars ctl URL learn off           go by what is known, and learn no more
    pars ctl URL shadow on           order only in thought, and tell its worth
    pars ctl URL ranker DIR          ask another ranker
    pars ctl URL rollback            take the last change back

    PARS_ADMIN_KEY must be the same here and at the gateway.
    """
    from pars.doctor.live_page import change

    key = os.environ.get("PARS_ADMIN_KEY", "")
    if not key:
        raise ParsError("PARS_ADMIN_KEY is not set")
    asked: dict[str, Any] = {}
    if name == "rollback":
        asked = {"rollback": True}
    elif name is not None:
        if value is None:
            raise ParsError(f"{name}: to what? See pars ctl --help")
        asked = {name: value}
    if keep:
        asked["keep"] = True
    for set_name, set_to in change(url, key, asked).items():
        click.echo(f"{set_name:<8}{set_to or '(the bundled one)'}")


@click.command()
@click.argument("url")
@click.option("--arms", default="fcfs,default", show_default=True, help="As `pars ctl policy`.")
@click.option(
    "--window-s",
    type=click.FloatRange(min=0.1),
    default=600.0,
    show_default=True,
    help="Of one arm's turn. Several times as long as requests wait.",
)
@click.option("--blocks", type=click.IntRange(min=1), default=12, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Gets a line for each window; the command goes on where it was stopped.",
)
@click.option("--report", "only_report", is_flag=True, help="Only tell what is known by now.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def experiment(
    url: str,
    arms: str,
    window_s: float,
    blocks: int,
    seed: int,
    output: Path,
    only_report: bool,
    as_json: bool,
) -> None:
    """
    Let policies take turns on a gateway, and tell their worth.

    A switchback experiment: every block has each arm once, in an order drawn by --seed. It needs
    PARS_ADMIN_KEY, as `pars ctl` does, and sets the policy back at its end.
    """
    from pars.outcomes.switchback import report_of
    from pars.prove.live.experiment import Experiment, read_windows, render

    if not only_report:
        key = os.environ.get("PARS_ADMIN_KEY", "")
        if not key:
            raise ParsError("PARS_ADMIN_KEY is not set")
        named = tuple(arm.strip() for arm in arms.split(",") if arm.strip())
        plan = Experiment(url, named, window_s, blocks, key, seed)
        plan.run(output, lambda at, num, arm: click.echo(f"window {at} of {num}: {arm}", err=True))
    elif not output.exists():
        raise ParsError(f"{output}: there is no such file")
    effects = report_of(read_windows(output))
    click.echo(json.dumps([asdict(it) for it in effects]) if as_json else render(effects))


OPERATE_COMMANDS: tuple[click.Command, ...] = (top, ctl, experiment)
