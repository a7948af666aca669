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
def forget(state: Path | None) -> None:
    """Delete what was learned from served requests."""
    from pars.ranking.online.state import default_folder
    from pars.ranking.online.state import forget as wipe

    folder = state or default_folder()
    num_files = wipe(folder)
    click.echo(f"{num_files} files deleted in {folder}; a server that runs begins anew")


FORGET_COMMANDS: tuple[click.Command, ...] = (forget,)
