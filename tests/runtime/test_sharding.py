"""Ops on DTensors whose batch is in several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_backends import needs_native

HERE = Path(__file__).parent


@needs_native
@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32" or not torch.distributed.is_available(), reason="no fork, or no gloo")
def test_each_process_computes_its_rows_by_our_kernels(tmp_path):
    paths = [str(HERE.parent), *filter(None, sys.path)]
    found = subprocess.run(
        [sys.executable, str(HERE / "sharded.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        check=False,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stdout.split() == ["2", "4"]
