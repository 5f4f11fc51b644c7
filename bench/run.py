"""Measures this package against its peers, and writes the README's tables.

    python bench/run.py [--op OP] [--only TEXT] [--seconds S] [--threads N] [--json FILE]
    python bench/run.py --tables [--json FILE]
    python bench/run.py --readme

Without --json the results of each op are kept in bench/results, in a file for each op, processor and level, and
--tables and --readme read all that are there. Results of a part, by --only, are kept where --json says, or not at all.
AIGC_FAST_BENCH_COMPILE=1 lets torch.compile take part.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import torch

from aigc_fast.bench.cases import CASES, OPS
from aigc_fast.bench.parity import ParityError
from aigc_fast.bench.runner import Result, Row, run
from aigc_fast.bench.speed import written
from aigc_fast.bench.tables import cells, tables
from aigc_fast.errors import UserError
from aigc_fast.files import atomic
from aigc_fast.runtime.machine import description

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", action="append", choices=OPS, help="only this one; may come again")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose label holds it")
    parser.add_argument("--seconds", type=float, default=2.0, help="to measure each case for")
    parser.add_argument("--threads", type=int, help="PyTorch's, and the kernels'")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where results are, instead of bench/results")
    parser.add_argument("--tables", action="store_true", help="measure nothing, print the tables of what was kept")
    parser.add_argument("--readme", action="store_true", help="measure nothing, write README.md's section on speed")
    return parser.parse_args()


def tell(row: Row | str) -> None:
    print(row if isinstance(row, str) else "  ".join((row.op, *cells(row))), flush=True)


def kept() -> list[Result]:
    """All results of the repository."""
    return [Result.read(path) for path in sorted(RESULTS.glob("*.json"))]


def name_of(op: str) -> str:
    """The file of an op's results on this machine."""
    machine = description()
    words = f"{op} {machine['processor']} {machine['level']} {machine['threads']} threads"
    return "-".join(re.findall(r"[\w.]+", words.lower())) + ".json"


def measure(given: argparse.Namespace) -> None:
    chosen = [case for case in CASES if case.op in (given.op or OPS) and given.only in case.label]
    by_file: dict[Path, list] = {}
    for case in chosen:
        by_file.setdefault(given.json or RESULTS / name_of(case.op), []).append(case)
    for path, cases in by_file.items():
        result = run(cases, given.seconds, tell)
        if given.json or not given.only:
            path.parent.mkdir(parents=True, exist_ok=True)
            result.write(path)


def write_readme() -> None:
    found = kept()
    if not found:
        raise UserError(f"{RESULTS}: holds no results; python bench/run.py measures")
    with atomic(README) as temporary:
        temporary.write_text(written(README.read_text(encoding="utf-8"), found), encoding="utf-8")


def main() -> int:
    given = arguments()
    if given.threads:
        torch.set_num_threads(given.threads)
    try:
        if given.tables:
            print(tables([Result.read(given.json)] if given.json else kept()))
        elif given.readme:
            write_readme()
        else:
            measure(given)
    except (UserError, ParityError) as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
