"""Runs the tests of generation in place on several versions of transformers, each in a folder of its own.

Usage: python tests/integrations/generate_versions.py FOLDER [VERSION ...]; the results stand in generate_versions.json.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "generate_versions.json"
# The packages of these versions that the newest ones are too new for.
_OLD = ("huggingface_hub==0.36.0",)
_NEWER = ("huggingface_hub<2", "tokenizers==0.22.1", "httpx", "httpcore", "anyio", "idna", "h11", "certifi")
VERSIONS: dict[str, tuple[str, ...]] = {
    "4.53.3": (*_OLD, "tokenizers==0.21.4"),
    "4.57.6": (*_OLD, "tokenizers==0.22.1"),
    "5.0.0": _NEWER,
    "5.9.0": _NEWER,
    "5.23.0": (),
    "5.24.0": (),
}


def install(version: str, folder: Path) -> None:
    """Puts a version of transformers into a folder, unless it is there."""
    if not folder.exists():
        packages = f"transformers=={version}", *VERSIONS[version]
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *packages]
        subprocess.run(command, check=True)


def run(version: str, folder: Path) -> str:
    """What pytest says of the tests on that version."""
    paths = (str(folder), str(HERE.parents[1]), os.environ.get("PYTHONPATH", ""))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    # Some versions warn of their own imports.
    command = [sys.executable, "-m", "pytest", "-q", "-W", "default", str(HERE / "test_generate_in_place.py")]
    found = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    summary = found.stdout.strip().splitlines()[-1]
    print(version, summary, *re.findall("^FAILED.*", found.stdout, re.MULTILINE), sep="\n", flush=True)
    return re.sub(r" in .*|, \d+ warnings?", "", summary)


def main(root: Path, versions: list[str]) -> int:
    """Runs the tests and writes down what came of them; 1 where some failed."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for version in versions:
        install(version, root / version)
        results[version] = run(version, root / version)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    return int(any("failed" in results[version] or "error" in results[version] for version in versions))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:] or list(VERSIONS)))
