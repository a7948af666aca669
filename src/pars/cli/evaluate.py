"""Commands of the learn lane that measure: evaluate, noise."""

from pathlib import Path

import click

from pars.cli.learn import FILE, FOLDER, conditions, field_options, names_in, need
from pars.errors import ParsError


@click.command()
@click.option(
    "--ranker",
    metavar="RANKER",
    help="A ranker folder, or module:object with score(list[str]).  [default: the bundled one]",
)
@click.option("--data", type=FILE, help="val_data.json, or prompts with lengths.")
@click.option(
    "--online",
    type=FILE,
    help="Instead: replay this file in its order with the ranker that learns while it serves.",
)
@field_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON (with --online).")
@click.option("--train-data", type=FILE, help="What TF-IDF is fitted on.  [default: other folds]")
@click.option("--where", multiple=True, metavar="FIELD=VALUE", help="Keep only such rows; repeats.")
@click.option("--threshold", type=float, default=0.2, show_default=True, help="Of filtered pairs.")
@click.option("--resamples", type=int, default=1000, show_default=True, help="For the intervals.")
@click.option("--output-dir", type=FOLDER, help="Also write evaluation.json and evaluation.png.")
def evaluate(
    ranker: str | None,
    data: Path | None,
    online: Path | None,
    as_json: bool,
    train_data: Path | None,
    where: tuple[str, ...],
    threshold: float,
    resamples: int,
    output_dir: Path | None,
    **fields: str | None,
) -> None:
    """Compare a ranker's order with that of the answers' lengths."""
    from pars.files import write_json

    if online is not None:
        if data is not None or ranker is not None:
            raise ParsError("--online takes no --data and no --ranker: it begins with nothing")
        _evaluate_online(online, names_in(fields), where, as_json)
        return
    if data is None:
        raise ParsError("give --data FILE, or --online FILE")
    need("pars evaluate", ("sklearn", "matplotlib"))
    from pars.learn.evaluation.evaluate import evaluate as run
    from pars.learn.evaluation.evaluate import render
    from pars.ranking.ranker import bundled_ranker

    if not 0 <= threshold <= 1:
        raise ParsError(f"--threshold must be between 0 and 1, not {threshold}")
    if resamples < 100:
        raise ParsError(f"--resamples must be at least 100, not {resamples}")
    result = run(
        ranker or bundled_ranker(),
        data,
        train_data=train_data,
        threshold=threshold,
        num_resamples=resamples,
        where=conditions(where),
        names=names_in(fields),
    )
    print(render(result))
    if output_dir:
        write_json(output_dir / "evaluation.json", result.as_json())
        from pars.learn.evaluation import plots

        plots.evaluation(result, output_dir / "evaluation.png")
        print(f"Written: {output_dir / 'evaluation.json'}, {output_dir / 'evaluation.png'}")


def _evaluate_online(
    records: Path,
    names: tuple[str | None, str | None, str | None],
    where: tuple[str, ...],
    as_json: bool,
) -> None:
    import json

    from pars.learn.evaluation.online import evaluate_online, render

    result = evaluate_online(records, names=names, where=conditions(where))
    print(json.dumps(result.as_json(), indent=2) if as_json else render(result))


@click.command()
@click.option("--data", type=FILE, required=True, help="Prompts with several answers, or lengths.")
@field_options
@click.option("--where", multiple=True, metavar="FIELD=VALUE", help="Keep only such rows; repeats.")
@click.option("--resamples", type=int, default=1000, show_default=True, help="For the intervals.")
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed for sampling.")
@click.option("--output-dir", type=FOLDER, help="Also write noise.json.")
def noise(
    data: Path,
    where: tuple[str, ...],
    resamples: int,
    seed: int,
    output_dir: Path | None,
    **fields: str | None,
) -> None:
    """Estimate the best possible tau-b from repeated answers."""
    from pars.files import write_json
    from pars.learn.evaluation.noise import measure_noise
    from pars.learn.evaluation.noise_report import render

    if resamples < 100:
        raise ParsError(f"--resamples must be at least 100, not {resamples}")
    result = measure_noise(
        data,
        num_resamples=resamples,
        where=conditions(where),
        names=names_in(fields),
        seed=seed,
    )
    print(render(result))
    if output_dir:
        write_json(output_dir / "noise.json", result.as_json())
        print(f"Written: {output_dir / 'noise.json'}")


EVALUATE_COMMANDS: tuple[click.Command, ...] = (evaluate, noise)
