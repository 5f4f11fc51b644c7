"""`nn.Dropout` on the random numbers of `aigc_fast.functional.dropout`."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_fast.nn.drop_in import drop_in
from aigc_fast.ops.random.functional import dropout


@drop_in
class Dropout(torch.nn.Dropout):
    """`torch.nn.Dropout`, with a mask that is drawn on all threads and redrawn in backward, not stored.

    Args:
        p: the probability of dropping an element, in [0, 1]; 0.5 by default.
        inplace: whether to write the result into the input; False by default.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drops elements in training mode; any shape, any floating-point dtype."""
        return dropout(input, self.p, self.training, self.inplace)
