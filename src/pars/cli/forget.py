"""The command that wipes what was learned: forget."""

from pathlib import Path

import click


@click.command()
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The folder of what was learned.  [default: PARS_STATE, else ~/.local/state/pars]",
    envvar="PARS_STATE",
)
@click.option("--caller", metavar="KEY", help="Only of this API key, or user field.")
def forget(state: Path | None, caller: str | None) -> None:
    """Delete what was learned from served requests."""
    from pars.ranking.online.state import default_folder
    from pars.ranking.online.state import forget as wipe

    folder = state or default_folder()
    if caller is not None:
        from pars.ranking.online.forgetting import forget_caller

        num_answers = forget_caller(folder, caller)
        click.echo(f"the caller's part is wiped in {folder}, with {num_answers} answers in logs")
        return
    num_files = wipe(folder)
    click.echo(f"{num_files} files deleted in {folder}; a server that runs begins anew")


FORGET_COMMANDS: tuple[click.Command, ...] = (forget,)
