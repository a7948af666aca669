"""The command that gets labels from where the model runs: collect."""

import os
import sys
from typing import Any

import click

from pars.cli.learn import FILE, need
from pars.errors import ParsError

DEFAULT_KEY_ENV = "OPENAI_API_KEY"


@click.command()
@click.option(
    "--endpoint",
    "endpoints",
    required=True,
    multiple=True,
    metavar="URL",
    help="OpenAI-compatible: http://HOST:PORT; of several, whichever has room is asked.",
)
@click.option("--model", required=True, help="As the endpoint calls it.")
@click.option("--prompts", type=FILE, required=True, help="JSON, JSONL, Parquet, .txt, or a .gz.")
@click.option("--output", type=FILE, required=True, help="JSON lines; gone on with if it is there.")
@click.option("--prompt-field", help="Of the prompts' rows, as a.b.c.  [default: found]")
@click.option(
    "--api", type=click.Choice(["chat", "completions"]), default="chat", show_default=True
)
@click.option("--samples", type=int, default=1, show_default=True, help="Answers to each prompt.")
@click.option("--max-tokens", type=int, help="Of an answer.  [default: the server's]")
@click.option("--temperature", type=float, help="[default: the server's]")
@click.option("--seed", type=int, help="Of sample 0; sample s has seed + s.")
@click.option("--extra-body", metavar="JSON", help="More fields of each request's body.")
@click.option(
    "--concurrency", type=int, default=8, show_default=True, help="Requests at once, at each."
)
@click.option("--rate", type=float, help="Requests a second at most, at each.")
@click.option(
    "--api-key-env",
    metavar="NAME",
    help="The environment variable that holds the API key, which each endpoint is shown."
    f"  [default: {DEFAULT_KEY_ENV}, if set]",
)
@click.option("--keep-text", is_flag=True, help="Keep the answers, and not only their lengths.")
@click.option(
    "--timeout-s", type=float, default=600.0, show_default=True, help="For a whole answer."
)
@click.option("--max-retries", type=int, default=8, show_default=True, help="Of one answer.")
def collect(api_key_env: str | None, extra_body: str | None, **options: Any) -> None:
    """Ask endpoints for answers and keep how long each became."""
    need("pars collect", ("httpx", "tqdm"))
    from pars.learn.collect.collect import collect as run
    from pars.learn.collect.config import CollectConfig, parse_extra_body

    key = key_from(api_key_env)
    config = CollectConfig(extra_body=parse_extra_body(extra_body or "{}"), **options)
    report = run(config, key=key)
    print(report.render())
    sys.exit(report.exit_code)


def key_from(name: str | None) -> str | None:
    """
    The API key in the environment; None where no variable is named and the usual one is not set.

    Raises:
        ParsError: the variable that is named is not set. It is not repeated: people give the key.
    """
    key = os.environ.get(name or DEFAULT_KEY_ENV, "").strip()
    if name and not key:
        raise ParsError("--api-key-env: there is no such environment variable, or it is empty")
    return key or None


COLLECT_COMMANDS: tuple[click.Command, ...] = (collect,)
