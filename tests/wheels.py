"""Builds what is published into a folder, and checks it: `python wheels.py FOLDER`.

A wheel for this Python, which keeps to manylinux_2_28 on Linux; the source, from which the wheel is built; and the
wheel of pure Python.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
MOST_BYTES = 25_000_000
POLICY = f"manylinux_2_28_{platform.machine()}"


def run(*command: object, **variables: str) -> str:
    words = list(map(str, command))
    # Not where a folder called build hides the module.
    where = tempfile.gettempdir()
    found = subprocess.run(words, capture_output=True, text=True, cwd=where, env=os.environ | variables, check=False)
    if found.returncode:
        sys.exit(f"{' '.join(words)}:\n{found.stdout[-3000:]}{found.stderr[-3000:]}")
    return found.stdout


def one(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def built(folder: Path, source: object, **variables: str) -> Path:
    """The wheel of a source, in a folder."""
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", folder, source, **variables)
    return one(folder, "aigc_fast-*.whl")


def check(wheel: Path, native: bool) -> None:
    """Refuses a wheel that is too large, has no native library or one too many, or brings an OpenMP."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    size = wheel.stat().st_size
    libraries = [name for name in names if re.search(r"\.(so|pyd|dylib|dll)(\.|$)", name)]
    wanted = [name for name in libraries if re.fullmatch(r"aigc_fast/_C\.[\w.-]+", name)]
    assert size < MOST_BYTES, f"{wheel.name}: {size} bytes, expected less than {MOST_BYTES}"
    assert libraries == wanted, f"{wheel.name}: holds {libraries}"
    assert len(libraries) == native, f"{wheel.name}: holds {libraries}, expected {int(native)} library"
    print(f"{wheel.name}: {size / 1e6:.1f} MB")


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("aigc_fast-*.whl"), *folder.glob("aigc_fast-*.tar.gz")]:
        old.unlink()
    with tempfile.TemporaryDirectory() as place:
        run(sys.executable, "-m", "build", "--sdist", "--outdir", folder, ROOT)
        source = one(folder, "aigc_fast-*.tar.gz")
        print(f"{source.name}: {source.stat().st_size / 1e6:.1f} MB")
        wheel = built(Path(place) / "native", source)
        if sys.platform == "linux":
            run("auditwheel", "repair", "--plat", POLICY, "--wheel-dir", folder, wheel)
            wheel = one(folder, f"*{POLICY}*.whl")
            verdict = " ".join(run("auditwheel", "show", wheel).split())
            print(verdict.partition(" The wheel references")[0])
        else:
            wheel = Path(shutil.move(wheel, folder / wheel.name))
        check(wheel, native=True)
        pure = built(Path(place) / "pure", source, AIGC_FAST_PURE="1")
        assert pure.name.endswith("-py3-none-any.whl"), pure.name
        check(pure, native=False)
        shutil.move(pure, folder / pure.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
