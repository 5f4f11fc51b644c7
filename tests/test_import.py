"""`import aigc_fast` brings nothing in that is slow to import and that a call may never need."""

from __future__ import annotations

import pytest
from test_backends import python

# Each takes longer than the package itself.
SLOW = ("torch._dynamo", "sympy", "triton", "torch.utils.flop_counter", "torch.nn.attention.bias", "torch.onnx")


def test_what_is_slow_to_import_is_not_imported() -> None:
    run = python(f"""
import torch
before = set(sys.modules)
import aigc_fast
print([name for name in {SLOW!r} if name in sys.modules and name not in before])
""")
    assert run.stdout == "[]\n", run.stdout + run.stderr


@pytest.mark.parametrize("first", ["aigc_fast", "torch.utils.flop_counter"])
def test_products_are_counted_whatever_is_imported_first(first: str) -> None:
    run = python(f"""
import {first}
import torch, aigc_fast
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    aigc_fast.functional.conv2d(torch.ones(1, 16, 32, 32), torch.ones(16, 16, 3, 3))
print(counter.get_total_flops())
""")
    assert run.stdout == f"{2 * 16 * 16 * 9 * 30 * 30}\n", run.stdout + run.stderr
