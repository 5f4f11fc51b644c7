"""Builds the checks of csrc/check with sanitizers and runs them: memory, undefined behaviour, and our own threads.

`python sanitize.py`; needs GCC or Clang with its sanitizers.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent.parent / "csrc"
SANITIZERS = {"thread": ["thread"], "memory": ["address", "undefined"]}
# Of each check the sources besides its own, and what it is held to.
CHECKS = {
    "arena": (("core/arena.cpp",), ("memory",)),
    "packed": ((), ("memory",)),
    "team": (("core/parallel.cpp",), ("memory", "thread")),
    "pool": (("core/parallel.cpp",), ("memory", "thread")),
}


def run(check: str, sanitizer: str, folder: Path) -> bool:
    """Whether a check finds nothing."""
    others, _ = CHECKS[check]
    program = folder / f"{check}-{sanitizer}"
    options = ["-std=gnu++20", "-O1", "-g", "-fno-omit-frame-pointer", "-DAIGC_LEVEL=baseline", f"-I{SOURCES}"]
    for name in SANITIZERS[sanitizer]:
        options += [f"-fsanitize={name}", f"-fno-sanitize-recover={name}"]
    units = [SOURCES / "check" / f"{check}.cpp", *(SOURCES / other for other in others)]
    compiler = os.environ.get("CXX", "c++")
    subprocess.run([compiler, *options, *map(str, units), "-o", str(program), "-ldl", "-pthread"], check=True)
    # GCC's thread sanitizer does not take addresses as random as some kernels make them.
    fixed = ["setarch", platform.machine(), "-R"] if sanitizer == "thread" and shutil.which("setarch") else []
    found = subprocess.run([*fixed, str(program)], env=os.environ | {"OMP_NUM_THREADS": "4"}, check=False)
    print(
        f"{check}, {' and '.join(SANITIZERS[sanitizer])}: {'fine' if found.returncode == 0 else 'FAILED'}", flush=True
    )
    return found.returncode == 0


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        fine = [run(check, name, Path(folder)) for check, (_, names) in CHECKS.items() for name in names]
    sys.exit(not all(fine))


if __name__ == "__main__":
    main()
