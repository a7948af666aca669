"""
The `pars` command: builds arguments, calls one function, prints its report.

The commands of each lane live in a file of their own (`cli_learn`, `cli_serve`) and import what
they run inside the command, so that `pars --help` is quick and serving never loads torch.
"""

import sys
from itertools import chain

import click

from pars import __version__
from pars.cli.bench import BENCH_COMMANDS
from pars.cli.collect import COLLECT_COMMANDS
from pars.cli.data import DATA_COMMANDS
from pars.cli.doctor import DOCTOR_COMMANDS
from pars.cli.evaluate import EVALUATE_COMMANDS
from pars.cli.ext_proc import EXT_PROC_COMMANDS
from pars.cli.forget import FORGET_COMMANDS
from pars.cli.leaderboard import LEADERBOARD_COMMANDS
from pars.cli.learn import LEARN_COMMANDS
from pars.cli.operate import OPERATE_COMMANDS
from pars.cli.own_traffic import OWN_TRAFFIC_COMMANDS
from pars.cli.reproduce import REPRODUCE_COMMANDS
from pars.cli.score import SCORE_COMMANDS
from pars.cli.serve import SERVE_COMMANDS
from pars.cli.simulate import SIMULATE_COMMANDS
from pars.errors import INTERRUPTED, ParsError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="pars")
def commands() -> None:
    """Rank LLM requests by predicted answer length, so that short ones stop waiting behind long."""


LANES = (
    LEARN_COMMANDS,
    EVALUATE_COMMANDS,
    DATA_COMMANDS,
    COLLECT_COMMANDS,
    SCORE_COMMANDS,
    OWN_TRAFFIC_COMMANDS,
    FORGET_COMMANDS,
    SERVE_COMMANDS,
    EXT_PROC_COMMANDS,
    DOCTOR_COMMANDS,
    OPERATE_COMMANDS,
    BENCH_COMMANDS,
    SIMULATE_COMMANDS,
    LEADERBOARD_COMMANDS,
    REPRODUCE_COMMANDS,
)
for command in chain(*LANES):
    commands.add_command(command)


def main() -> None:
    """
    Run `pars`.

    An error made for people is one line on stderr and exit code 2; Ctrl-C at any moment is 130.
    """
    try:
        sys.exit(commands.main(standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(INTERRUPTED)
    except ParsError as error:
        print(f"pars: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
