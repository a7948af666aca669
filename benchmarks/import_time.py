"""
What `import pars` costs a notebook or a server: milliseconds of fresh processes, beside numpy's.

    python benchmarks/import_time.py

Each time is that of the import statement alone, in a process of its own, the middle of 21 runs by
turns. The last line is JSON.
"""

import json
import statistics
import subprocess
import sys

NUM_RUNS = 21
STATEMENTS = (
    "import pars",
    "from pars import Request",
    "from pars import Ranker",
    "import numpy",
)
CODE = """
import time
began_s = time.perf_counter()
{}
print(1000 * (time.perf_counter() - began_s))
"""


def main() -> None:
    """Take turns, so that what the machine does meanwhile meets all of them."""
    times_ms: dict[str, list[float]] = {statement: [] for statement in STATEMENTS}
    for _ in range(NUM_RUNS):
        for statement, known in times_ms.items():
            call = [sys.executable, "-c", CODE.format(statement)]
            known.append(float(subprocess.run(call, capture_output=True, check=True).stdout))
    print(f"{'statement':28}{'ms, median':>12}{'least':>8}{'most':>8}")
    result = {}
    for statement, known in times_ms.items():
        middle, least, most = statistics.median(known), min(known), max(known)
        print(f"{statement:28}{middle:12.1f}{least:8.1f}{most:8.1f}")
        result[statement] = {"median_ms": round(middle, 2), "most_ms": round(most, 2)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
