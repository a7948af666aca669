"""
PARS's tables and figures from three kinds of real prompts: `pars reproduce`, small trainings.

    python benchmarks/reproduce.py              # ten minutes on two cores

The lite network stands for BERT, the fast simulator for a GPU, and the data are not the paper's.
The page with the pictures is build/reproduce/report.html. The last line of stdout is one JSON
document; PARS_SHARED names the folder with data/ (default ../shared).
"""

import argparse
import subprocess
import sys
from pathlib import Path

from leaderboard import FILES, SHARED, prepared


def main() -> None:
    """One command, then its report's JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--files", nargs="*", default=list(FILES))
    parser.add_argument("--work-dir", type=Path, default=Path("build/reproduce"))
    parser.add_argument("options", nargs="*", help="more options of `pars reproduce`, after --")
    asked = parser.parse_args()
    if not (SHARED / "data").is_dir():
        sys.exit(f"{SHARED / 'data'} is not there: set PARS_SHARED to the folder with the records")
    command = [sys.executable, "-m", "pars", "reproduce", "--output-dir", str(asked.work_dir)]
    for name in asked.files:
        command += ["--records", str(prepared(name, Path("build/leaderboard")))]
    subprocess.run([*command, *asked.options], check=True)
    print((asked.work_dir / "report.json").read_text().replace("\n", " "))


if __name__ == "__main__":
    main()
