"""
The built-in rivals side by side, on three kinds of real prompts: `pars leaderboard` on small parts.

    python benchmarks/leaderboard.py            # a quarter of an hour on two cores

Neural rivals share the lite network, so that they differ by what their loss asks for: it is not
each paper's own model (`--network FOLDER` trains another). ShareGPT's conversations stay on one
side of the split, and requests bring the lengths of the answers before them, as a server sees them.
The last line of stdout is one JSON document; PARS_SHARED names the folder with data/ (default
../shared).
"""

import argparse
import gzip
import json
import os
import sys
from pathlib import Path

from pars.cli.leaderboard import USUAL
from pars.prove.leaderboard.board import Leaderboard, Plan, leaderboard
from pars.prove.leaderboard.contestants import BUNDLED
from pars.prove.leaderboard.records import Split
from pars.prove.leaderboard.tables import as_json, render

SHARED = Path(os.environ.get("PARS_SHARED", Path(__file__).parents[2] / "shared"))
FILES = ("instruction_alpaca_davinci003", "chat_sharegpt", "code_gpteacher_gpt4")
CONVERSATIONS = "chat_sharegpt"
# What the bundled ranker was trained on (experiments/bundled_ranker.py) says nothing of it.
SEEN_BY_BUNDLED = ("code_gpteacher_gpt4",)


def main() -> None:
    """The boards, then the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--files", nargs="*", default=list(FILES))
    parser.add_argument("--predictors", default=USUAL)
    parser.add_argument("--network", default="lite")
    parser.add_argument("--num-train", type=int, default=5_000)
    parser.add_argument("--num-test", type=int, default=1_500)
    parser.add_argument("--work-dir", type=Path, default=Path("build/leaderboard"))
    options = parser.parse_args()
    if not (SHARED / "data").is_dir():
        sys.exit(f"{SHARED / 'data'} is not there: set PARS_SHARED to the folder with the records")
    split = Split(num_train=options.num_train, num_test=options.num_test)
    plan = Plan(split=split, network=options.network)
    boards = [
        leaderboard(
            [prepared(name, options.work_dir)],
            [
                it
                for it in options.predictors.split(",")
                if not (it == BUNDLED and name in SEEN_BY_BUNDLED)
            ],
            plan=plan,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
        for name in options.files
    ]
    files = [it for board in boards for it in board.files]
    board = Leaderboard(files=files, facts=boards[0].facts | {"records": options.files})
    print(render(board))
    print(json.dumps(as_json(board)))


def prepared(name: str, folder: Path) -> Path:
    """
    The records; of conversations with the conversation's name and the answers before.

    An id is the conversation's, a hyphen and the message's place in it.
    """
    source = SHARED / f"data/{name}.jsonl.gz"
    if name != CONVERSATIONS:
        return source
    noted = folder / f"{name}.jsonl"
    noted.parent.mkdir(parents=True, exist_ok=True)
    before: dict[str, list[int]] = {}
    with gzip.open(source, "rt", encoding="utf-8") as rows, noted.open("w") as file:
        for row in map(json.loads, rows):
            conversation = row["id"].rpartition("-")[0]
            so_far = before.setdefault(conversation, [])
            told = {"conversation_id": conversation, "answers_before": so_far}
            file.write(json.dumps({**row, **told}) + "\n")
            so_far.append(row["response_chars"])
    return noted


if __name__ == "__main__":
    main()
