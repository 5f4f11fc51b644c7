"""Measures this package against its peers into bench/results, and writes the README's tables.

    python bench/run.py [options of aigc-fast bench]
    python bench/run.py --tables
    python bench/run.py --readme

The results of each op are kept in a file for each op, processor and level, and --tables and --readme read all that are
there. Results of a part, by --only, are not kept; --json takes them. AIGC_FAST_BENCH_COMPILE=1 lets torch.compile take
part.
"""

from __future__ import annotations

import sys
from pathlib import Path

from aigc_fast.bench.runner import Result
from aigc_fast.bench.speed import written
from aigc_fast.bench.tables import tables
from aigc_fast.cli import app
from aigc_fast.errors import UserError
from aigc_fast.files import atomic

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"


def kept() -> list[Result]:
    """All results of the repository."""
    return [Result.read(path) for path in sorted(RESULTS.glob("*.json"))]


def write_readme() -> None:
    found = kept()
    if not found:
        raise UserError(f"{RESULTS}: holds no results; python bench/run.py measures")
    with atomic(README) as temporary:
        temporary.write_text(written(README.read_text(encoding="utf-8"), found), encoding="utf-8")


def main(arguments: list[str]) -> None:
    try:
        if arguments == ["--tables"]:
            print(tables(kept()))
        elif arguments == ["--readme"]:
            write_readme()
        else:
            ours = ["--all", "--device", "cpu", "--seconds", "2", "--keep", str(RESULTS)]
            app(["bench", *ours, *arguments], prog_name="bench/run.py")
    except UserError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
