"""The command that makes PARS's tables and figures again: reproduce."""

import shlex
import subprocess
import sys
from pathlib import Path

import click

from pars.cli.leaderboard import numbers
from pars.cli.learn import FILE, FOLDER, conditions, field_options, names_in, need


@click.command()
@click.option("--records", type=FILE, multiple=True, required=True, help="A log; repeats.")
@click.option("--output-dir", type=FOLDER, required=True, help="Gets report.html, CSV and figures.")
@click.option(
    "--network",
    default="lite",
    show_default=True,
    help="Of all three rankers: lite, or as for `pars train --model-name`.",
)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Trainings.")
@field_options
@click.option("--where", multiple=True, metavar="FIELD=VALUE", help="Keep only such rows; repeats.")
@click.option("--num-train", type=int, default=4000, show_default=True, help="At most.")
@click.option("--num-test", type=int, default=1500, show_default=True, help="At most.")
@click.option("--loads", default="0.6,0.8,1,1.2,1.5", show_default=True, help="Of capacity.")
@click.option("--engine", default="h100-8b", show_default=True, help="As for `pars simulate`.")
@click.option(
    "--slots", type=click.IntRange(1), default=32, show_default=True, help="Of the engine."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of split and arrivals.")
@click.option(
    "--live", metavar="URL", help="Also run the burst on this engine, by `pars bench`, once each."
)
def reproduce(
    records: tuple[Path, ...],
    output_dir: Path,
    network: str,
    seeds: int,
    where: tuple[str, ...],
    num_train: int,
    num_test: int,
    loads: str,
    engine: str,
    slots: int,
    seed: int,
    live: str | None,
    **fields: str | None,
) -> None:
    """
    Make PARS's tables and figures from logs of your own.

    Tau-b of pairwise, pointwise and listwise rankers, and time per token against the arrival rate
    for first come, first served, the three, and the oracle, in virtual time.
    """
    need("pars reproduce", ("torch", "sklearn"))
    from pars.prove.leaderboard.records import Split, read_answered
    from pars.prove.report.plot import need_matplotlib
    from pars.prove.reproduce.experiment import POLICIES, Setting, experiment
    from pars.prove.reproduce.report import render, write_report

    need_matplotlib("pars reproduce")
    split = Split(
        num_train=num_train,
        num_test=num_test,
        seed=seed,
        where=conditions(where),
        names=names_in(fields),
    )
    setting = Setting(
        network=network,
        seeds=seeds,
        loads=numbers("--loads", loads),
        engine=engine,
        slots=slots,
        seed=seed,
    )

    def say(line: str) -> None:
        click.echo(line, file=sys.stderr)

    data = [read_answered(path, split) for path in records]
    found = [experiment(it, setting, say) for it in data]
    facts = {
        "command": shlex.join(["pars", *sys.argv[1:]]),
        "records": ", ".join(map(str, records)),
        "network": network,
        "trainings of each objective": seeds,
        "engine": f"{engine}, {slots} slots, the fast simulator (step for step vLLM's scheduler)",
    }
    write_report(found, data, output_dir, facts, f"--engine {engine} --max-num-seqs {slots}")
    click.echo(render(found))
    click.echo(f"\nWritten: {output_dir / 'report.html'}, {output_dir / 'figures'}")
    for it in data if live else ():
        own = output_dir / "live" / it.name
        scores = [f"--scores={name}={own / name}.jsonl" for name in POLICIES[1:-1]]
        command = [sys.executable, "-m", "pars", "bench", str(live), "--repeats", "1"]
        command += ["--workload", str(own / "burst.jsonl"), "--policies", ",".join(POLICIES)]
        subprocess.run([*command, *scores, "--output-dir", str(own / "bench")], check=True)


REPRODUCE_COMMANDS: tuple[click.Command, ...] = (reproduce,)
