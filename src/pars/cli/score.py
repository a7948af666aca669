"""The command that scores whole logs: score."""

import signal
import sys
from pathlib import Path

import click

from pars.cli.learn import FILE, FOLDER
from pars.cli.workload import at_least_one
from pars.errors import INTERRUPTED
from pars.learn.scoring.parts import ROWS_A_PART


@click.command()
@click.argument("files", nargs=-1, required=True, type=FILE)
@click.option("--output", type=FOLDER, required=True, help="The folder; gone on with if there.")
@click.option(
    "--ranker",
    metavar="RANKER",
    help="A ranker folder, or module:object with score(list[str]).  [default: the bundled one]",
)
@click.option("--prompt-field", help="As a.b.c: text or messages.  [default: found]")
@click.option("--id-field", help="As a.b.c.  [default: found, else FILE:ROW]")
@click.option("--allow-truncated", is_flag=True, help="Take the whole rows of a file cut short.")
@click.option("--num-processes", type=at_least_one, help="[default: one a core]")
@click.option(
    "--rows-a-part",
    type=at_least_one,
    default=ROWS_A_PART,
    show_default=True,
    help="What is lost at most by each process when it is stopped.",
)
@click.option(
    "--ray",
    metavar="ADDRESS",
    help="Read and score on a Ray cluster: HOST:PORT, auto, or local for one here.",
)
def score(
    files: tuple[Path, ...],
    output: Path,
    ranker: str | None,
    prompt_field: str | None,
    id_field: str | None,
    allow_truncated: bool,
    num_processes: int | None,
    rows_a_part: int,
    ray: str | None,
) -> None:
    """
    Score the prompts of large logs.

    JSON lines, CSV or Parquet in; for each row its id, score and expected_tokens out. Stopped, the
    same command goes on where it was.
    """
    from pars.learn.scoring.parts import Reading
    from pars.learn.scoring.score import ScorePlan
    from pars.learn.scoring.score import score as run
    from pars.ranking.ranker import bundled_ranker

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the processes end with this one
    reading = Reading(
        prompt_field=prompt_field,
        id_field=id_field,
        rows_a_part=rows_a_part,
        allow_truncated=allow_truncated,
    )
    report = run(
        ScorePlan(
            files=files,
            output=output,
            ranker=ranker or str(bundled_ranker()),
            reading=reading,
            num_processes=num_processes,
            ray=ray,
        )
    )
    click.echo(report.render())
    if not report.is_whole:
        sys.exit(INTERRUPTED)


SCORE_COMMANDS: tuple[click.Command, ...] = (score,)
