"""Shows one schedule: `python -m tests.simulation SEED [NAME=VALUE ...] [--broken RULE] [--shrink]`.

NAME=VALUE sets the weather (weather.py), RULE takes something away from docferry (broken.py). With --shrink a calmer
schedule is looked for that fails as well.
"""

from __future__ import annotations

import sys
import traceback
from argparse import ArgumentParser

from .broken import BROKEN
from .search import command, shrink, story


def main() -> int:
    """Exit code 1 if the schedule fails."""
    parser = ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("weather", nargs="*")
    parser.add_argument("--broken", choices=list(BROKEN))
    parser.add_argument("--shrink", action="store_true")
    asked = parser.parse_args()
    seed = asked.seed
    given = {name: float(value) for name, value in (one.split("=") for one in asked.weather)}
    if asked.shrink:
        seed, given = shrink(seed, given, asked.broken)
    lines, error = story(seed, given, asked.broken)
    sys.stdout.write("\n".join(lines) + "\n")
    if error is not None:
        traceback.print_exception(error)
    sys.stdout.write(f"{command(seed, given, asked.broken)}\n")
    return int(error is not None)


if __name__ == "__main__":
    sys.exit(main())
