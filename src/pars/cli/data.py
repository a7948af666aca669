"""The commands about public data: data list, data get, data schema."""

import json
from pathlib import Path

import click

from pars.cli.learn import FILE, need


@click.group()
def data() -> None:
    """Public sets of prompts with answers, in one format."""


@data.command(name="list")
def list_sets() -> None:
    """Name the sets, with their licences as stated."""
    from pars.learn.data.public import PUBLIC_SETS

    for name, it in PUBLIC_SETS.items():
        click.echo(f"{name:<10} {it.dataset:<44} {it.licence}\n{'':<10} {it.what}")


@data.command()
@click.argument("name")
@click.option("--output", type=FILE, required=True, help="A .jsonl or a .parquet.")
@click.option("--input", type=FILE, help="A file of the set's shape, in place of the Hub.")
@click.option("--revision", help="Branch, tag or commit on the Hub.")
@click.option("--tokenizer", help="Counts answer_tokens: a tokenizer.json, a folder, a Hub name.")
@click.option("--limit", type=int, help="At most so many rows.")
def get(
    name: str,
    output: Path,
    input: Path | None,
    revision: str | None,
    tokenizer: str | None,
    limit: int | None,
) -> None:
    """Write a set's rows, from the Hub or from a file, in the one format."""
    need("pars data get", ("datasets",))
    from pars.learn.data.public import PUBLIC_SETS, Wanted
    from pars.learn.data.public import get as run

    count = run(
        Wanted(
            name=name,
            output=output,
            input=input,
            revision=revision,
            tokenizer=tokenizer,
            limit=limit,
        )
    )
    click.echo(f"{count:,} rows in {output}. Licence, as stated: {PUBLIC_SETS[name].licence}")


@data.command()
def schema() -> None:
    """Print what a row holds, as JSON Schema."""
    from pars.learn.data.public import SCHEMA

    click.echo(json.dumps(SCHEMA, indent=2))


DATA_COMMANDS: tuple[click.Command, ...] = (data,)
