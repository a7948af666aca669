"""The command that compares predictors on logs: leaderboard."""

import sys
from pathlib import Path

import click

from pars.cli.learn import FILE, FOLDER, conditions, field_options, names_in, need
from pars.cli.simulate import comma_list

USUAL = (
    "prompt-length,tfidf-ridge,ssjf,ltr,pars-margin,tie,clairvoyant,sagesched,online-cold,"
    "online-warm,lite,bundled"
)


@click.command()
@click.option("--records", type=FILE, multiple=True, required=True, help="A log; repeats.")
@click.option(
    "--predictors",
    default=USUAL,
    show_default=True,
    help="Names of built-in ones, bundled, ranker folders, module:object.",
)
@click.option(
    "--scores", multiple=True, metavar="NAME=FILE", help="Scores of another system; repeats."
)
@click.option(
    "--network",
    default="lite",
    show_default=True,
    help="Of the neural rivals: lite, or an encoder or decoder as for `pars train --model-name`.",
)
@field_options
@click.option("--where", multiple=True, metavar="FIELD=VALUE", help="Keep only such rows; repeats.")
@click.option("--conversation-field", help="What holds a conversation together.  [default: found]")
@click.option("--test-share", type=float, default=0.2, show_default=True, help="Held out.")
@click.option("--num-train", type=int, help="At most so many requests to train on.")
@click.option("--num-test", type=int, help="At most so many to judge by.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of split and arrivals.")
@click.option("--threshold", type=float, default=0.2, show_default=True, help="Of filtered pairs.")
@click.option("--against", help="Whom the others are tested against.  [default: the best]")
@click.option("--loads", default="0.8,1,1.2", show_default=True, help="Of capacity; none: ''.")
@click.option(
    "--bounds", default="none,1.33x,30", show_default=True, help="As behind the @ of --policies."
)
@click.option("--engine", default="h100-8b", show_default=True, help="As for `pars simulate`.")
@click.option(
    "--slots", type=click.IntRange(1), default=32, show_default=True, help="Of the engine."
)
@click.option("--output-dir", type=FOLDER, help="Gets leaderboard.csv, .json, .md and .html.")
def leaderboard(
    records: tuple[Path, ...],
    predictors: str,
    scores: tuple[str, ...],
    network: str,
    where: tuple[str, ...],
    conversation_field: str | None,
    test_share: float,
    num_train: int | None,
    num_test: int | None,
    seed: int,
    threshold: float,
    against: str | None,
    loads: str,
    bounds: str,
    engine: str,
    slots: int,
    output_dir: Path | None,
    **fields: str | None,
) -> None:
    """
    Compare predictors: order, calibration, cost and worth.

    The built-in ones are rivals as they were published, each trained here on a part of the log.
    """
    need("pars leaderboard", ("torch", "sklearn"))
    from pars.prove.leaderboard.board import Plan
    from pars.prove.leaderboard.board import leaderboard as run
    from pars.prove.leaderboard.contestants import parsed_scores
    from pars.prove.leaderboard.records import Split
    from pars.prove.leaderboard.tables import render, write_board
    from pars.prove.leaderboard.worth import Queue

    split = Split(
        test_share=test_share,
        num_train=num_train,
        num_test=num_test,
        seed=seed,
        where=conditions(where),
        names=names_in(fields),
        conversation_field=conversation_field,
    )
    spelled = tuple("" if it == "none" else f"@{it}" for it in comma_list(bounds))
    parts = numbers("--loads", loads)
    queue = Queue(loads=parts, bounds=spelled, engine=engine, slots=slots, seed=seed)
    board = run(
        records,
        comma_list(predictors),
        scores=parsed_scores(scores),
        plan=Plan(
            split=split,
            threshold=threshold,
            network=network,
            queue=queue if parts else None,
            against=against,
        ),
        say=lambda line: click.echo(line, file=sys.stderr),
    )
    click.echo(render(board))
    if output_dir:
        told = ", ".join(map(str, write_board(board, output_dir)))
        click.echo(f"Written: {told}")


def numbers(option: str, text: str) -> tuple[float, ...]:
    """The numbers above 0 of "0.8,1"."""
    from pars.errors import ParsError

    try:
        found = tuple(map(float, comma_list(text)))
    except ValueError:
        found = (0.0,)
    if any(not it > 0 for it in found):
        raise ParsError(f"{option} takes numbers above 0, as 0.8,1.2, not {text}")
    return found


LEADERBOARD_COMMANDS: tuple[click.Command, ...] = (leaderboard,)
