"""Checks one wheel beside several torch, and records what comes of it: `python versions.py FOLDER [VERSION|PYTHON...]`.

Of those that nobody named one for which more than a few hundred megabytes would have to be fetched is left out, and
said to be; what is recorded of it stays. Where such a torch is there already, its environment's PYTHON is named: the
wheel is installed into it, and nothing else, so that it must have the rest of what the wheel needs.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from clean_room import environment, newest, run_in

VERSIONS = "2.6.0", "2.9.1", "2.13.0", "2.14.1"
RESULTS = Path(__file__).with_name("versions.json")
_MOST_BYTES = 500_000_000
_MISSING = "not to be had"


def to_fetch(version: str) -> int | str:
    """How many bytes of this version of torch and what it needs are not on this machine; or why it can't be had."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed", "--report", "-"]
    found = subprocess.run([*command, f"torch=={version}"], capture_output=True, text=True, check=False)
    if found.returncode:
        return found.stderr.strip().splitlines()[-1]
    urls = [each["download_info"]["url"] for each in json.loads(found.stdout)["install"]]
    return sum(map(_size, (url for url in urls if not url.startswith("file:"))))


def _size(url: str) -> int:
    with urllib.request.urlopen(urllib.request.Request(url, method="HEAD")) as answer:
        return int(answer.headers.get("Content-Length", 0))


def result_of(wheel: Path, version: str, most_bytes: float) -> str:
    """What the check of a wheel says beside a version of torch, for which so much may be fetched."""
    size = to_fetch(version)
    if isinstance(size, str):
        return f"{_MISSING}: {size}"
    if size > most_bytes:
        return f"{_MISSING} here: {size / 1e9:.1f} GB to fetch"
    with tempfile.TemporaryDirectory() as place:
        return _checked(environment(Path(place), wheel, version))


def _checked(python: Path) -> str:
    with tempfile.TemporaryDirectory() as place:
        found = run_in(python, Path(place), "--native")
    return found.stdout.strip() if found.returncode == 0 else f"failed: {found.stderr.strip().splitlines()[-1]}"


def version_of(python: Path) -> str:
    """The version of torch that an environment has, without the build's."""
    command = [str(python), "-I", "-c", "import torch; print(torch.__version__)"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return found.stdout.strip().partition("+")[0]


def result_in(python: Path, wheel: Path) -> str:
    """What the check of a wheel says in an environment."""
    command = [str(python), "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", str(wheel)]
    subprocess.run(command, check=True)
    return _checked(python)


def main(folder: Path, named: tuple[str, ...]) -> None:
    wheel = newest(folder).resolve()
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for each in named or VERSIONS:
        python = Path(each).absolute() if Path(each).is_file() else None
        version = version_of(python) if python else each
        found = result_in(python, wheel) if python else result_of(wheel, version, math.inf if named else _MOST_BYTES)
        print(f"torch {version}: {found}", flush=True)
        if version not in results or not found.startswith(_MISSING):
            results[version] = found
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    sys.exit(any(text.startswith("failed") for text in results.values()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), tuple(sys.argv[2:]))
