"""What `torch.utils.flop_counter.FlopCounterMode` counts for our ops.

Its module is slow to import, Triton with it: the formulas are registered when somebody imports it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from aigc_fast.runtime.imports import after_import


def count(packet: torch._ops.OpOverloadPacket, formula: Callable[..., int]) -> None:
    """Has a call of the op counted by a formula, as for `torch.utils.flop_counter.register_flop_formula`."""
    after_import("torch.utils.flop_counter", lambda module: module.register_flop_formula(packet)(formula))
