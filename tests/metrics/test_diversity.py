import math

import pytest
import torch

from aigc_fast.metrics import class_spread


def test_even_collapsed_and_in_between():
    even = class_spread(torch.eye(4).repeat(3, 1))
    assert even.histogram == pytest.approx((0.25,) * 4)
    assert even.entropy == pytest.approx(math.log(4))
    assert even.effective_classes == pytest.approx(4)
    collapsed = class_spread(torch.eye(4)[[2, 2, 2]])
    assert collapsed.histogram == (0.0, 0.0, 1.0, 0.0)
    assert (collapsed.entropy, collapsed.effective_classes) == (0.0, 1.0)
    mixed = class_spread(torch.eye(4)[[0, 0, 0, 1]])
    assert mixed.entropy == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))


@pytest.mark.parametrize("shape", [(0, 4), (4,), (3, 0)])
def test_bad_shapes(shape):
    with pytest.raises(ValueError, match="logits"):
        class_spread(torch.zeros(shape))
