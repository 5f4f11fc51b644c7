"""Methods that somebody replaced, hooks and reparametrizations: what they do is done, before and after optimize."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as TF
from parity import relative_error
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import aigc_fast
from aigc_fast.nn.overrides import as_written

Patch = Callable[[nn.Module, pytest.MonkeyPatch], Any]


def plain_chain() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU())


def chain() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.LeakyReLU(0.2), nn.ConvTranspose2d(6, 3, 2)
    )
    nn.init.normal_(model[1].weight)
    return model


def transposed_chain() -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(4, 3, 3, 2), nn.Tanh())


def attention() -> nn.Module:
    class SelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            return self.inner(x, x, x, need_weights=False, attn_mask=mask)[0]

    return SelfAttention()


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)


def changed(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, whose tensors come out tripled."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        found = method(*args, **kwargs)
        return (found[0] * 3, *found[1:]) if isinstance(found, tuple) else found * 3

    return call


def circular(self: nn.Conv2d, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return TF.conv2d(TF.pad(input, (1, 1, 1, 1), mode="circular"), weight, bias)


circular_alone = functools.partial(circular, None)


def shifted(method: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: [extra + 1 for extra in method(*args)]


def on_instance(path: str, name: str, change: Callable[..., Any] = changed) -> Patch:
    def patch(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        module = model.get_submodule(path)
        setattr(module, name, change(getattr(module, name)))

    return patch


def in_class(cls: type, name: str, change: Callable[..., Any] = changed) -> Patch:
    return lambda model, monkeypatch: monkeypatch.setattr(cls, name, change(getattr(cls, name)))


ON_INSTANCES = {
    "a convolution's inner forward": (plain_chain, on_instance("0", "_conv_forward", lambda _: circular_alone)),
    "a convolution's forward": (chain, on_instance("0", "forward")),
    "a convolution's call": (chain, on_instance("0", "_call_impl")),
    "a norm's forward": (chain, on_instance("1", "forward")),
    "an activation's forward": (chain, on_instance("2", "forward")),
    "an activation's forward without a norm": (plain_chain, on_instance("1", "forward")),
    "an output padding": (transposed_chain, on_instance("0", "_output_padding", shifted)),
    "a Sequential's forward": (chain, on_instance("", "forward")),
    "an attention's forward": (attention, on_instance("inner", "forward")),
    "an attention's blocks": (encoder, on_instance("", "_sa_block")),
    "a feed-forward block": (encoder, on_instance("", "_ff_block")),
    "a hook": (chain, lambda model, _: model[0].register_forward_hook(lambda module, args, output: output * 3)),
    "a hook before": (chain, lambda model, _: model[2].register_forward_pre_hook(lambda module, args: (args[0] - 1,))),
    "pruning": (chain, lambda model, _: prune.l1_unstructured(model[0], "weight", 0.5)),
    "weight_norm": (chain, lambda model, _: parametrizations.weight_norm(model[0])),
    "spectral_norm": (chain, lambda model, _: parametrizations.spectral_norm(model[3])),
    "a norm of the batch": (chain, lambda model, _: model[1].train()),
}
IN_CLASSES = {
    "a convolution's inner forward": (plain_chain, in_class(nn.Conv2d, "_conv_forward", lambda _: circular)),
    "a convolution's forward": (chain, in_class(nn.Conv2d, "forward")),
    "a transposed convolution's forward": (chain, in_class(nn.ConvTranspose2d, "forward")),
    "an output padding": (transposed_chain, in_class(nn.ConvTranspose2d, "_output_padding", shifted)),
    "a norm's forward": (chain, in_class(nn.BatchNorm2d, "forward")),
    "an activation's forward": (chain, in_class(nn.LeakyReLU, "forward")),
    "a Sequential's forward": (chain, in_class(nn.Sequential, "forward")),
    "an attention's forward": (attention, in_class(nn.MultiheadAttention, "forward")),
    "an attention's blocks": (encoder, in_class(nn.TransformerEncoderLayer, "_sa_block")),
    "a layer's forward": (encoder, in_class(nn.TransformerEncoderLayer, "forward")),
    "dropout's forward": (lambda: nn.Sequential(nn.Dropout(0.5)), in_class(nn.Dropout, "forward")),
}
SHAPES = {attention: (2, 300, 8), encoder: (2, 300, 8)}


def assert_as_stock(model: nn.Module, stock: nn.Module, make: Callable[[], nn.Module]) -> None:
    input = torch.randn(SHAPES.get(make, (2, 4, 9, 9)))
    expected = stock(input)
    assert relative_error(model(input), expected) < 5e-6
    with torch.no_grad():
        assert relative_error(model(input), expected) < 5e-6


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("patch", ON_INSTANCES)
def test_what_is_replaced_on_an_instance_runs(patch: str, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, apply = ON_INSTANCES[patch]
    model = make().train(make is encoder)
    model.requires_grad_(False)
    stock = copy.deepcopy(model)
    order = [lambda: apply(model, monkeypatch), lambda: aigc_fast.optimize(model)]
    for step in order if when == "before" else order[::-1]:
        step()
    torch.manual_seed(1)
    apply(stock, monkeypatch)
    stock.load_state_dict(model.state_dict())
    assert_as_stock(model, stock, make)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("patch", IN_CLASSES)
def test_what_is_replaced_in_a_class_runs(patch: str, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, apply = IN_CLASSES[patch]
    model = make().train(make is encoder)
    stock, unchanged = copy.deepcopy(model), copy.deepcopy(model)
    input = torch.randn(SHAPES.get(make, (2, 4, 9, 9)))
    before = unchanged(input)
    if when == "before":
        apply(model, monkeypatch)
    aigc_fast.optimize(model)
    if when == "after":
        apply(model, monkeypatch)
    assert_as_stock(model, stock, make)
    assert before.shape != stock(input).shape or relative_error(stock(input), before) > 1e-3


@pytest.mark.parametrize("level", ["instance", "class"])
def test_masks_that_are_merged_otherwise(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    stock, calls = copy.deepcopy(layer), []
    aigc_fast.optimize(layer)
    owner = layer if level == "instance" else nn.MultiheadAttention
    merge = owner.merge_masks
    monkeypatch.setattr(owner, "merge_masks", lambda *args: (calls.append(1), merge(*args))[1])
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        assert relative_error(layer(x, x, x, need_weights=False)[0], stock(x, x, x, need_weights=False)[0]) < 5e-6
    assert calls


def test_calls_of_modules_that_are_counted_in_their_class(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = aigc_fast.optimize(chain().eval()), []
    call = nn.Module.__call__
    monkeypatch.setattr(
        nn.Module, "__call__", lambda self, *args: (seen.append(type(self).__name__), call(self, *args))[1]
    )
    with torch.no_grad():
        model(torch.randn(2, 4, 5, 5))
    assert seen == ["FusedSequential", "Conv2d", "BatchNorm2d", "LeakyReLU", "ConvTranspose2d"]


def test_what_was_replaced_before_the_package_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Conv2d, "forward", changed(nn.Conv2d.forward))
    assert as_written(nn.Conv2d, ["forward", "_conv_forward"]) == {
        "forward": None,
        "_conv_forward": nn.Conv2d._conv_forward,
    }


@pytest.mark.parametrize("name", ["_conv_forward", "forward"])
def test_the_report_says_what_was_replaced(name: str) -> None:
    layer = nn.Conv2d(1, 1, 1)
    setattr(layer, name, getattr(layer, name))
    (entry,) = aigc_fast.report(aigc_fast.optimize(layer)).layers
    assert not entry.swapped
    assert entry.note == f"its {name} was replaced on the instance"


def test_the_report_says_what_was_replaced_in_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", circular)
    (entry,) = aigc_fast.report(aigc_fast.optimize(nn.Conv2d(1, 1, 1))).layers
    assert entry.note == "Conv2d._conv_forward was replaced"
