"""Builds the kernels for aarch64 and runs csrc/check/cpu.cpp on them under an emulator: `python aarch64.py [FOLDER]`.

Needs Debian's g++-aarch64-linux-gnu and qemu-user, or on such a machine its own compiler. Objects stay in the folder.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

SOURCES = Path(__file__).parent.parent / "csrc"
OPTIONS = ["-std=gnu++20", "-O2", "-fno-math-errno", "-fno-trapping-math", "-fno-lto", "-DAIGC_LEVEL=baseline"]
# To see that it builds there.
BUILT_ALONE = ("core/glibc.cpp",)
LINKED = "check/cpu.cpp", "core/arena.cpp", "core/cpu.cpp", "core/parallel.cpp"


def tools() -> tuple[list[str], list[str]]:
    """The compiler, and what runs what it makes.

    Raises:
        SystemExit: where they are not there.
    """
    if platform.machine() == "aarch64":
        return [os.environ.get("CXX", "c++")], []
    compiler, emulator = "aarch64-linux-gnu-g++", "qemu-aarch64"
    for name, package in ((compiler, "g++-aarch64-linux-gnu"), (emulator, "qemu-user")):
        if shutil.which(name) is None:
            sys.exit(f"{name}: not there: apt-get install {package}")
    return [*(["ccache"] if shutil.which("ccache") else []), compiler], [emulator]


def built(compiler: list[str], folder: Path, source: str) -> Path:
    """The object of a source."""
    target = folder / (source.replace("/", "-") + ".o")
    command = [*compiler, *OPTIONS, f"-I{SOURCES}", "-c", str(SOURCES / source), "-o", str(target)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        sys.exit(f"{source}:\n{found.stderr[-3000:]}")
    print(f"{source}: built", flush=True)
    return target


def main(folder: Path) -> None:
    compiler, emulator = tools()
    ops = [f"cpu/{path.name}" for path in sorted((SOURCES / "cpu").glob("*.cpp"))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(partial(built, compiler, folder), [*ops, *LINKED, *BUILT_ALONE]))[: -len(BUILT_ALONE)]
    program = folder / "check"
    # Static: an emulator has none of that system's libraries.
    link = [*compiler, "-static", "-pthread", *map(str, objects), "-o", str(program)]
    subprocess.run(link, check=True)
    sys.exit(subprocess.run([*emulator, str(program)], check=False).returncode)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    with tempfile.TemporaryDirectory() as place:
        main(Path(place))
