"""Builds the checks of csrc/check with sanitizers and runs them: memory, undefined behaviour, and our own threads.
Then the module that Python loads, whose parity tests run in it: each tensor's memory lies between guard zones there.

`python sanitize.py`, by a Python that has aigc_fast installed, for the tests; needs GCC with its sanitizers.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from aigc_fast.runtime import native

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "csrc"
SANITIZERS = {"thread": ["thread"], "memory": ["address", "undefined"]}
# Of each check the sources besides its own, and what it is held to.
CHECKS = {
    "arena": (("core/arena.cpp",), ("memory",)),
    "packed": ((), ("memory",)),
    "team": (("core/parallel.cpp",), ("memory", "thread")),
    "pool": (("core/parallel.cpp",), ("memory", "thread")),
}


# Drawn calls of every function, every op on every level, packed weights, whole models that decode.
PARITY = ("test_fuzz.py", "ops/test_places.py", "ops/test_kept_weights.py", "ops/test_decode.py")
# Beyond a tensor's ends: what a kernel reads or writes there is found.
GUARD_BYTES = 512


def compiler() -> str:
    return os.environ.get("CXX", "c++")


def library(name: str) -> str:
    """Where the compiler's library is."""
    found = subprocess.run([compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def run(check: str, sanitizer: str, folder: Path) -> bool:
    """Whether a check finds nothing."""
    others, _ = CHECKS[check]
    program = folder / f"{check}-{sanitizer}"
    options = ["-std=gnu++20", "-O1", "-g", "-fno-omit-frame-pointer", "-DAIGC_LEVEL=baseline", f"-I{SOURCES}"]
    for name in SANITIZERS[sanitizer]:
        options += [f"-fsanitize={name}", f"-fno-sanitize-recover={name}"]
    units = [SOURCES / "check" / f"{check}.cpp", *(SOURCES / other for other in others)]
    subprocess.run([compiler(), *options, *map(str, units), "-o", str(program), "-ldl", "-pthread"], check=True)
    # GCC's thread sanitizer does not take addresses as random as some kernels make them.
    fixed = ["setarch", platform.machine(), "-R"] if sanitizer == "thread" and shutil.which("setarch") else []
    found = subprocess.run([*fixed, str(program)], env=os.environ | {"OMP_NUM_THREADS": "4"}, check=False)
    print(
        f"{check}, {' and '.join(SANITIZERS[sanitizer])}: {'fine' if found.returncode == 0 else 'FAILED'}", flush=True
    )
    return found.returncode == 0


def build(folder: Path) -> None:
    """The package with a module of the first level and of the highest that this machine has, in a folder."""
    levels = native.levels()
    settings = {"AIGC_FAST_SANITIZE": "ON", "AIGC_FAST_LEVELS": ";".join(dict.fromkeys([levels[0], levels[-1]]))}
    options = ["-Cinstall.strip=false", *(f"-Ccmake.define.{name}={value}" for name, value in settings.items())]
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *options, str(ROOT)]
    subprocess.run(command, env=os.environ | {"AIGC_FAST_CUDA": "OFF"}, check=True)
    if not list((folder / "aigc_fast").glob("_C.*")):
        sys.exit("the module could not be built with sanitizers")


def run_parity(folder: Path) -> bool:
    """Whether the parity tests find nothing, and the sanitizers neither."""
    variables = {
        "PYTHONPATH": str(folder),
        # The latter, which Python does not load itself, throws exceptions, which the former looks at.
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so')}",
        # What Python never gives back is no leak of ours.
        "ASAN_OPTIONS": f"detect_leaks=0:redzone={GUARD_BYTES}",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_WAIT_POLICY": "passive",
    }
    tests = [str(ROOT / "tests" / name) for name in PARITY]
    # Triton's interpreter is nothing of the module's.
    options = ["-q", "-p", "no:cacheprovider", "-k", "not interpreter"]
    pytest = [str(Path(sys.executable).with_name("pytest")), *options, *tests]
    found = subprocess.run(pytest, cwd=ROOT, env=os.environ | variables, check=False)
    print(f"the module, address and undefined: {'fine' if found.returncode == 0 else 'FAILED'}", flush=True)
    return found.returncode == 0


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        fine = [run(check, name, Path(folder)) for check, (_, names) in CHECKS.items() for name in names]
        build(Path(folder) / "module")
        fine.append(run_parity(Path(folder) / "module"))
    sys.exit(not all(fine))


if __name__ == "__main__":
    main()
