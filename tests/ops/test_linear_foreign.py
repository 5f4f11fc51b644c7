"""Linear layers where PyTorch's products are MKL's on another maker's processor: which are ours; their gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as TF
from convolution_checks import doubled, every_gradient, needs_native
from parity import assert_parity
from watching import launches

import aigc_fast
import aigc_fast.functional as AF
import aigc_fast.nn as fast_nn
from aigc_fast.ops.linear import choice
from aigc_fast.ops.linear.products import multiply


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes every product for one that is ours."""
    monkeypatch.setattr(choice, "has_foreign_products", lambda: True)
    for limit in ("FOREIGN_PRODUCTS", "FOREIGN_WEIGHT", "FOREIGN_PRODUCTS_OF_GRADIENTS"):
        monkeypatch.setattr(choice, limit, 1)


@needs_native
def test_linear_layers_train_on_them(foreign: None) -> None:
    tensors = [torch.randn(shape) for shape in ((300, 70), (270, 70), (270,))]
    upstream = torch.randn(300, 270)
    with launches("linear") as called:
        ours = every_gradient(AF.linear, tensors, upstream)
    assert called.count("linear") >= 3
    theirs = every_gradient(TF.linear, tensors, upstream)
    exact = every_gradient(TF.linear, doubled(tensors), upstream)
    for index, results in enumerate(zip(ours, theirs, exact, strict=True)):
        assert_parity(*results, f"result {index}")


LAYOUTS = {
    "rows": lambda x: x.contiguous(),
    "columns": lambda x: x.t().contiguous().t(),
    "rows of wider ones": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "columns of longer ones": lambda x: torch.cat([x, x]).t().contiguous().t()[: x.shape[0]],
    "every second number": lambda x: torch.stack([x, x], 2)[..., 0],
}


@needs_native
@pytest.mark.parametrize("of_b", LAYOUTS)
@pytest.mark.parametrize("of_a", LAYOUTS)
@pytest.mark.parametrize(("rows", "depth", "columns"), [(300, 113, 70), (97, 1023, 65), (17, 1, 3), (1, 33, 5)])
def test_products_of_any_layout(rows: int, depth: int, columns: int, of_a: str, of_b: str, foreign: None) -> None:
    a, b = torch.randn(rows, depth), torch.randn(depth, columns)
    out = torch.empty(rows, columns)
    with launches("linear") as called:
        assert multiply(LAYOUTS[of_a](a), LAYOUTS[of_b](b), out) is out
    assert called.count("linear") == 1
    assert_parity(out, torch.mm(a, b), a.double() @ b.double(), "the product")


@pytest.mark.parametrize("cell", ["RNN", "LSTM", "GRU"])
@needs_native
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}])
def test_recurrent_networks_train_on_them(cell: str, options: dict[str, object], foreign: None) -> None:
    module = getattr(torch.nn, cell)(33, 40, **options)
    input = torch.randn(9, 7, 33)
    found = []
    for made, given in ((fast_nn, input), (torch.nn, input), (torch.nn, input.double())):
        twin = getattr(made, cell)(33, 40, **options).to(given.dtype)
        twin.load_state_dict(module.state_dict())
        given = given.clone().requires_grad_()
        with launches("linear") as called, aigc_fast.backend("cpu" if made is fast_nn else "auto"):
            output, _ = twin(given)
            found.append(torch.autograd.grad(output.square().sum(), [given, *twin.parameters()]))
        assert (called.count("linear") > 0) == (made is fast_nn)
    for index, results in enumerate(zip(*found, strict=True)):
        assert_parity(*results, f"result {index}")


@pytest.mark.parametrize(
    ("intels", "rows", "columns", "depth", "forward", "training"),
    [
        (False, 394, 3072, 768, True, True),
        (False, 64, 512, 512, True, False),
        (False, 3, 4000, 784, True, False),
        (False, 64, 128, 64, False, False),
        (False, 100_000, 8, 8, False, False),
        (True, 394, 3072, 768, False, False),
    ],
)
def test_what_is_taken(
    intels: bool, rows: int, columns: int, depth: int, forward: bool, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "has_foreign_products", lambda: not intels)
    input, weight = torch.empty(rows, depth), torch.empty(columns, depth)
    assert (choice.slower(input, weight, None, "none", 0.0) is None) == forward
    assert (choice.leave(input, weight) is None) == training
