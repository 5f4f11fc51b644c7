"""Measures this package against its peers, and writes the README's tables.

    python bench/run.py [--op OP] [--only TEXT] [--seconds S] [--json FILE]
    python bench/run.py --tables [--json FILE]

Without --json the results of each op are kept in bench/results/OP.json, and --tables reads all that are there.
AIGC_FAST_BENCH_COMPILE=1 lets torch.compile take part.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from aigc_fast.bench.cases import CASES, OPS
from aigc_fast.bench.parity import ParityError
from aigc_fast.bench.runner import Result, Row, run
from aigc_fast.bench.tables import cells, tables
from aigc_fast.errors import UserError

RESULTS = Path(__file__).parent / "results"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", action="append", choices=OPS, help="only this one; may come again")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose label holds it")
    parser.add_argument("--seconds", type=float, default=2.0, help="to measure each case for")
    parser.add_argument("--threads", type=int, help="PyTorch's, and the kernels'")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where results are, instead of bench/results")
    parser.add_argument("--tables", action="store_true", help="measure nothing, print the tables of what was kept")
    return parser.parse_args()


def tell(row: Row | str) -> None:
    print(row if isinstance(row, str) else "  ".join((row.op, *cells(row))), flush=True)


def measure(given: argparse.Namespace) -> None:
    chosen = [case for case in CASES if case.op in (given.op or OPS) and given.only in case.label]
    by_file: dict[Path, list] = {}
    for case in chosen:
        by_file.setdefault(given.json or RESULTS / f"{case.op}.json", []).append(case)
    for path, cases in by_file.items():
        result = run(cases, given.seconds, tell)
        path.parent.mkdir(parents=True, exist_ok=True)
        result.write(path)


def main() -> int:
    given = arguments()
    if given.threads:
        torch.set_num_threads(given.threads)
    try:
        if given.tables:
            print(tables(map(Result.read, [given.json] if given.json else sorted(RESULTS.glob("*.json")))))
        else:
            measure(given)
    except (UserError, ParityError) as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
