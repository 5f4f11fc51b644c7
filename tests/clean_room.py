"""Checks an installed aigc_fast: no compiler, no source, parity of every op, a training run.

Run by the Python that has it, from anywhere: `python clean_room.py [--native]`, which also asks for the native library.
With `--install FOLDER` it makes an environment for the newest wheel there, and checks that; it needs nothing installed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

TORCH = "2.13.0"


def check(native: bool) -> None:
    """Checks the installation that runs this."""
    import torch

    import aigc_fast
    import aigc_fast.functional as F

    where = Path(aigc_fast.__file__).parent
    assert "site-packages" in where.parts, f"{where}: not an installed package"
    info = aigc_fast.info()["native"]
    assert not (native and info.get("error")), info
    torch.manual_seed(0)
    x, weight = torch.randn(4, 16, 9, 9), torch.randn(16, 8, 4, 4)
    q = torch.randn(2, 3, 50, 16)
    signal, coeffs = torch.randn(3, 400), torch.tensor([0.5, -0.3])
    lstm = torch.nn.LSTM(8, 16, batch_first=True)
    steps = torch.randn(2, 7, 8)
    expected = torch.zeros(3, 402)
    for t in range(400):
        expected[:, t + 2] = signal[:, t] + 0.5 * expected[:, t + 1] - 0.3 * expected[:, t]
    pairs = {
        "conv_transpose2d": (
            lambda: F.conv_transpose2d(x, weight, stride=2, padding=1),
            torch.nn.functional.conv_transpose2d(x, weight, stride=2, padding=1),
        ),
        "conv2d": (
            lambda: F.conv2d(x, weight.transpose(0, 1), padding=1),
            torch.nn.functional.conv2d(x, weight.transpose(0, 1), padding=1),
        ),
        "attention": (
            lambda: F.scaled_dot_product_attention(q, q, q, is_causal=True),
            torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True),
        ),
        "ar_recursion": (lambda: F.ar_recursion(signal, coeffs), expected[:, 2:]),
        "lstm": (lambda: aigc_fast.optimize(lstm, inplace=False)(steps)[0], lstm(steps)[0]),
    }
    for backend in ("auto", "cpu") if not info.get("error") else ("auto",):
        for name, (ours, theirs) in pairs.items():
            with torch.no_grad(), aigc_fast.backend(backend):
                torch.testing.assert_close(ours(), theirs, rtol=1e-4, atol=1e-4, msg=f"{name} by {backend}")
    torch.manual_seed(1)
    first = F.randn(1001)
    with aigc_fast.backend("reference"):
        torch.manual_seed(1)
        torch.testing.assert_close(F.randn(1001), first)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "aigc_fast.cli", "train", "mlp-gan", "--steps", "3", "--out", f"{folder}/run"]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
    print(f"aigc_fast {aigc_fast.__version__}, torch {torch.__version__}: {info.get('levels') or info.get('error')}")


def newest(folder: Path) -> Path:
    """The newest wheel of a folder with a native library."""
    found = [path for path in folder.glob("aigc_fast-*.whl") if not path.name.endswith("-none-any.whl")]
    if not found:
        sys.exit(f"{folder}: holds no wheel: make wheel")
    return max(found, key=lambda path: path.stat().st_mtime)


def environment(place: Path, wheel: Path, torch: str) -> Path:
    """A new environment with a wheel and a version of torch; its Python."""
    venv.create(place, with_pip=True)
    python = place / ("Scripts" if os.name == "nt" else "bin") / "python"
    # The wheel may not build anything, and neither may what it needs.
    command = [python, "-m", "pip", "install", "-q", "--only-binary", ":all:", f"torch=={torch}", "numpy", wheel]
    subprocess.run(list(map(str, command)), check=True)
    return python


def run_in(python: Path, place: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs the check by an environment's Python, which finds nothing else, in a folder of its own."""
    there = place / "room"
    there.mkdir()
    script = there / "check.py"
    script.write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    variables = {"PATH": str(python.parent), "HOME": str(there), "OMP_WAIT_POLICY": "passive"}
    command = [str(python), "-I", str(script), *options]
    return subprocess.run(command, cwd=there, env=variables, capture_output=True, text=True, check=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--native", action="store_true")
    parser.add_argument("--install", type=Path, metavar="FOLDER")
    parser.add_argument("--torch", default=TORCH)
    given = parser.parse_args()
    if given.install is None:
        check(given.native)
        return
    with tempfile.TemporaryDirectory() as place:
        wheel = newest(given.install).resolve()
        python = environment(Path(place) / "venv", wheel, given.torch)
        found = run_in(python, Path(place), "--native")
    print(f"{wheel.name}: {found.stdout.strip() or found.stderr.strip()}")
    sys.exit(found.returncode)


if __name__ == "__main__":
    main()
