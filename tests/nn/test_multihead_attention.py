"""nn.MultiheadAttention against torch.nn's: masks, layouts, projections, weights, and the layers that hold it."""

from __future__ import annotations

import copy
import inspect
import itertools
import re

import pytest
import torch
from parity import relative_error
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import aigc_fast
from aigc_fast.nn import MultiheadAttention, TransformerEncoderLayer
from aigc_fast.ops.linear import choice as linears

L, S, N, E, H = 37, 45, 3, 24, 4
KINDS = {
    "plain": {},
    "no bias": {"bias": False},
    "sizes of its own": {"kdim": 10, "vdim": 14},
    "bias_k": {"add_bias_kv": True},
    "add_zero_attn": {"add_zero_attn": True},
}
MASKS = {
    "none": lambda: None,
    "bool": lambda: torch.rand(L, S) < 0.3,
    "float": lambda: torch.randn(L, S),
    "heads": lambda: torch.rand(N * H, L, S) < 0.3,
}
PADDINGS = {
    "none": lambda: None,
    "bool": lambda: torch.arange(S) >= torch.tensor([[S], [30], [7]]),
    "float": lambda: torch.randn(N, S),
}


def pair(**kwargs) -> tuple[nn.Module, nn.Module]:
    theirs = nn.MultiheadAttention(E, H, **kwargs)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours = MultiheadAttention(E, H, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def inputs(layer: nn.Module, batched: bool = True) -> list[Tensor]:
    sizes = ((L, E), (S, layer.kdim), (S, layer.vdim))
    if not batched:
        return [torch.randn(size) for size in sizes]
    tensors = [torch.randn(N, *size) for size in sizes]
    return tensors if layer.batch_first else [tensor.transpose(0, 1).contiguous() for tensor in tensors]


def assert_same(ours: nn.Module, theirs: nn.Module, tensors: list[Tensor], **kwargs) -> None:
    results = []
    for layer in (ours, theirs):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        output, weights = layer(*leaves, **kwargs)
        grads = torch.autograd.grad(output.sin().sum(), [*leaves, *layer.parameters()])
        results.append([output, *([] if weights is None else [weights]), *grads])
    for found, expected in zip(*results, strict=True):
        assert found.shape == expected.shape
        assert relative_error(found, expected) < 1e-5 or expected.norm() < 1e-4


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_and_gradients(kind: str, batch_first: bool, need_weights: bool, backend: str) -> None:
    ours, theirs = pair(batch_first=batch_first, **KINDS[kind])
    assert_same(ours, theirs, inputs(theirs), need_weights=need_weights)


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
@pytest.mark.parametrize(("mask", "padding"), itertools.product(MASKS, PADDINGS))
def test_masks(mask: str, padding: str) -> None:
    ours, theirs = pair(batch_first=True)
    masks = {"attn_mask": MASKS[mask](), "key_padding_mask": PADDINGS[padding]()}
    assert_same(ours, theirs, inputs(theirs), need_weights=False, **masks)


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
@pytest.mark.parametrize("padding", PADDINGS)
def test_the_causal_hint(padding: str) -> None:
    ours, theirs = pair()
    causal = torch.ones(L, S, dtype=torch.bool).triu(1)
    masks = {"attn_mask": causal, "is_causal": True, "key_padding_mask": PADDINGS[padding]()}
    assert_same(ours, theirs, inputs(theirs), need_weights=False, **masks)
    with pytest.raises(RuntimeError, match="attn_mask"):
        ours(*inputs(ours), is_causal=True, need_weights=False)


def test_a_mask_for_a_single_query() -> None:
    ours, theirs = pair(batch_first=True)
    query, key, value = inputs(theirs)
    assert_same(ours, theirs, [query[:, :1], key, value], need_weights=False, attn_mask=torch.rand(1, S) < 0.3)


@pytest.mark.parametrize("batch_first", [False, True])
def test_without_a_batch(batch_first: bool) -> None:
    ours, theirs = pair(batch_first=batch_first)
    assert_same(ours, theirs, inputs(theirs, batched=False), need_weights=False, attn_mask=torch.randn(H, L, S))


def test_self_attention_runs_on_the_op(attentions: list[str]) -> None:
    ours, theirs = pair(batch_first=True)
    x = torch.randn(N, L, E, requires_grad=True)
    found, weights = ours(x, x, x, need_weights=False)
    assert weights is None
    assert attentions == ["attention"]
    torch.testing.assert_close(found, theirs(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("length", [L, 80])
@pytest.mark.parametrize("padding", [False, True])
def test_self_attention_at_inference(length: int, padding: bool) -> None:
    """Short sequences go through PyTorch's one call, long ones through ours."""
    ours, theirs = (layer.eval() for layer in pair(batch_first=True))
    x = torch.randn(N, length, E)
    hidden = torch.arange(length) >= torch.tensor([[length], [20], [7]]) if padding else None
    with torch.no_grad():
        found, weights = ours(x, x, x, hidden, need_weights=False)
        exact = theirs.double()(*[x.double()] * 3, hidden, need_weights=False)[0]
    assert weights is None
    assert relative_error(found, exact) < 1e-5


def test_dropout_is_a_seeds_and_off_in_eval_mode() -> None:
    ours, theirs = pair(dropout=0.4, batch_first=True)
    tensors = inputs(ours)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(ours(*tensors, need_weights=False)[0])
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(*tensors, need_weights=False)[0], theirs.eval()(*tensors)[0])


MISFITS = {
    "query": {"query": torch.zeros(N, L, 2 * E)},
    "query's dimensions": {"query": torch.zeros(E)},
    "query of one": {"query": torch.zeros(1, L, E)},
    "key": {"key": torch.zeros(N, S, 10)},
    "key of one": {"key": torch.zeros(1, S, E), "value": torch.zeros(1, S, E)},
    "key's dimensions": {"key": torch.zeros(S, E)},
    "value": {"value": torch.zeros(N, S - 1, E)},
    "value of one": {"value": torch.zeros(1, S, E)},
    "attn_mask": {"attn_mask": torch.zeros(1, S)},
    "attn_mask of heads": {"attn_mask": torch.zeros(H, L, S)},
    "attn_mask's dimensions": {"attn_mask": torch.zeros(S)},
    "key_padding_mask": {"key_padding_mask": torch.zeros(S, N, dtype=torch.bool)},
    "key_padding_mask's dimensions": {"key_padding_mask": torch.zeros(N * S, dtype=torch.bool)},
}


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", MISFITS)
def test_shapes_that_do_not_fit(kind: str, batch_first: bool) -> None:
    ours, theirs = pair(batch_first=batch_first)
    given = {"query": torch.zeros(N, L, E), "key": torch.zeros(N, S, E), "value": torch.zeros(N, S, E), **MISFITS[kind]}
    if not batch_first:
        given = {name: t.transpose(0, 1) if t.dim() == 3 and "mask" not in name else t for name, t in given.items()}
    with pytest.raises((RuntimeError, AssertionError)):
        theirs(**given, need_weights=False)
    name = "key" if kind == "query of one" else kind.removesuffix("'s dimensions").split(" of ")[0]
    with pytest.raises(RuntimeError, match=rf"^{name} has shape {re.escape(str(tuple(given[name].shape)))}: expected "):
        ours(**given, need_weights=False)


def test_a_query_for_all_where_keys_have_a_size_of_their_own() -> None:
    ours, _ = pair(**KINDS["sizes of its own"])
    x = torch.zeros(L, N, E)
    with pytest.raises(RuntimeError, match=rf"^key has shape \({L}, {N}, {E}\): expected \({L}, {N}, 10\)"):
        ours(x, x, x, need_weights=False)


def test_masks_that_do_not_fit_without_a_batch() -> None:
    ours, _ = pair()
    tensors = inputs(ours, batched=False)
    for name, shape, expected in (
        ("attn_mask", (1, S), f"({L}, {S})"),
        ("attn_mask", (N * H, L, S), f"({H}, {L}, {S})"),
        ("key_padding_mask", (1, S), f"({S},)"),
    ):
        with pytest.raises(RuntimeError, match=re.escape(f"{name} has shape {shape}: expected {expected}")):
            ours(*tensors, need_weights=False, **{name: torch.zeros(shape, dtype=torch.bool)})


def test_a_padding_that_does_not_fit_a_long_encoder_layer() -> None:
    layer = aigc_fast.optimize(nn.TransformerEncoderLayer(E, H, 32, batch_first=True).eval())
    with pytest.raises(RuntimeError, match=rf"key_padding_mask has shape \(300, {N}\): expected \({N}, 300\)"):
        layer(torch.randn(N, 300, E), src_key_padding_mask=torch.zeros(300, N, dtype=torch.bool))


@pytest.mark.parametrize("training", [True, False])
def test_torchs_layers_after_optimize(training: bool, backend: str) -> None:
    model = nn.Transformer(E, H, 2, 2, 32, 0.0, batch_first=True).train(training)
    stock = copy.deepcopy(model)
    aigc_fast.optimize(model)
    assert sum(type(module) is MultiheadAttention for module in model.modules()) == 6
    assert list(model.state_dict()) == list(stock.state_dict())
    source, target = torch.randn(N, S, E), torch.randn(N, L, E)
    mask = nn.Transformer.generate_square_subsequent_mask(L)
    padding = PADDINGS["bool"]()
    masks = {"tgt_mask": mask, "src_key_padding_mask": padding, "memory_key_padding_mask": padding}
    found, expected = (m(source, target, **masks, tgt_is_causal=True) for m in (model, stock))
    assert relative_error(found, expected) < 1e-5
    assert type(aigc_fast.restore(model).encoder.layers[0].self_attn) is nn.MultiheadAttention


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("length", [16, 600])
def test_an_encoder_layer_at_inference(
    length: int, norm_first: bool, causal: bool, padded: bool, attentions: list[str]
) -> None:
    layer = nn.TransformerEncoderLayer(E, H, 32, 0.1, batch_first=True, norm_first=norm_first).eval()
    stock = copy.deepcopy(layer)
    assert type(aigc_fast.optimize(layer)) is TransformerEncoderLayer
    x = torch.randn(N, length, E)
    padding = torch.arange(length) >= torch.tensor([[length], [length // 2], [3]]) if padded else None
    mask = torch.ones(length, length, dtype=torch.bool).triu(1) if causal else None
    with torch.no_grad():
        found, expected = (m(x, mask, padding, is_causal=causal) for m in (layer, stock))
    seen = slice(None) if padding is None else ~padding
    assert relative_error(found[seen], expected[seen]) < 1e-5
    assert attentions == (["attention"] if length == 600 else [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [2, 3])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("length", [16, 600])
def test_an_encoder_layer_under_autocast_has_pytorchs_dtype(
    length: int, norm_first: bool, heads: int, dtype: torch.dtype
) -> None:
    stock = nn.TransformerEncoderLayer(12, heads, 32, 0.0, batch_first=True, norm_first=norm_first).eval()
    layer = aigc_fast.optimize(copy.deepcopy(stock))
    x = torch.randn(2, length, 12).to(dtype)
    exact = copy.deepcopy(stock).double()(x.double())
    for training, gradients in ((False, False), (False, True), (True, True)):
        with torch.set_grad_enabled(gradients), torch.autocast("cpu", torch.bfloat16):
            found, expected = (m.train(training)(x) for m in (layer, stock))
        assert found.dtype == expected.dtype
        assert relative_error(found, exact) <= 2 * relative_error(expected, exact)


@pytest.mark.parametrize("length", [16, 600])
def test_an_encoder_layer_under_autocast_compiles_whole(length: int) -> None:
    stock = nn.TransformerEncoderLayer(12, 2, 32, 0.0, batch_first=True).eval()
    layers = aigc_fast.optimize(copy.deepcopy(stock)), stock
    x = torch.randn(2, length, 12)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, expected = (torch.compile(each, fullgraph=True, backend="aot_eager")(x) for each in layers)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("foreign", [True, False])
def test_a_short_encoder_layer_runs_on_its_parts_where_linear_layers_are_faster(
    foreign: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linears, "has_foreign_products", lambda: foreign)
    at_once, whole = [], torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *args: at_once.append(1) or whole(*args))
    layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True).eval()
    small, large = torch.randn(1, 2, 64), torch.randn(8, 64, 64)
    with torch.no_grad():
        expected = [layer.double()(x.double()) for x in (small, large)]
        layer = aigc_fast.optimize(layer.float())
        at_once.clear()
        for x, wanted in zip((small, large), expected, strict=True):
            assert relative_error(layer(x), wanted) < 1e-5
    assert len(at_once) == (1 if foreign else 2)


class Averaged(nn.Module):
    """An attention of a user's own, without the attributes of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(E, E)
        self.masks: list[Tensor | None] = []

    def forward(self, query, key, value, attn_mask=None, key_padding_mask=None, need_weights=False, is_causal=False):
        self.masks += [attn_mask, key_padding_mask]
        weights = torch.zeros(query.shape[1], key.shape[1])
        weights = weights if attn_mask is None else weights + attn_mask
        weights = weights if key_padding_mask is None else weights + key_padding_mask[:, None]
        return self.mix(weights.softmax(-1) @ value), None


class Hidden(nn.MultiheadAttention):
    """A user's own subclass, which reads the masks as torch's layer gives them."""

    def forward(self, *args, key_padding_mask=None, **kwargs):
        assert key_padding_mask is None or key_padding_mask.is_floating_point()
        return super().forward(*args, key_padding_mask=key_padding_mask, **kwargs)


REPLACEMENTS = {
    "attention": {"self_attn": Averaged},
    "subclassed attention": {"self_attn": lambda: Hidden(E, H, batch_first=True)},
    "norms": {"norm1": lambda: nn.RMSNorm(E), "norm2": nn.Identity},
    "linears": {
        "linear1": lambda: nn.Sequential(nn.Linear(E, 32), nn.Tanh()),
        "linear2": lambda: nn.Linear(32, E, False),
    },
    "dropouts": {"dropout": nn.Identity, "dropout1": nn.Identity, "dropout2": lambda: nn.Dropout(0.0)},
    "activation": {"activation": nn.SiLU},
}


class TestReplacedChildren:
    """An encoder layer asks of its children no more than PyTorch's does."""

    @pytest.mark.parametrize("length", [16, 300])
    @pytest.mark.parametrize("norm_first", [True, False])
    @pytest.mark.parametrize("what", REPLACEMENTS)
    def test_in_training(self, what: str, norm_first: bool, length: int) -> None:
        theirs, ours = self.pair(what, norm_first)
        x = torch.randn(N, length, E)
        mask = torch.ones(length, length, dtype=torch.bool).triu(1)
        padding = torch.arange(length) >= torch.tensor([[length], [length // 2], [3]])
        for arguments in ({}, {"src_mask": mask}, {"src_key_padding_mask": padding}):
            results = []
            for layer in (ours, theirs):
                leaf = x.clone().requires_grad_()
                output = layer(leaf, **arguments)
                results += [output, torch.autograd.grad(output.square().sum(), leaf)[0]]
            torch.testing.assert_close(results[:2], results[2:], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("length", [16, 300])
    @pytest.mark.parametrize("what", REPLACEMENTS)
    def test_at_inference(self, what: str, length: int) -> None:
        theirs, ours = self.pair(what, False)
        x = torch.randn(N, length, E)
        with torch.no_grad():
            try:
                expected = theirs.eval()(x)
            except AttributeError:  # PyTorch's one call asks for what the replacement lacks
                if what == "attention":
                    with pytest.raises(AttributeError):
                        ours.eval()(x)
                return
            torch.testing.assert_close(ours.eval()(x), expected, rtol=1e-4, atol=1e-5)

    def test_masks_as_torchs_layer_gives_them(self) -> None:
        theirs, ours = self.pair("attention", True)
        x, mask = torch.randn(N, 300, E), torch.ones(300, 300, dtype=torch.bool).triu(1)
        for layer in (theirs, ours):
            layer(x, mask, mask[:N])
        torch.testing.assert_close(ours.self_attn.masks, theirs.self_attn.masks)

    def test_a_new_layer_is_an_optimized_one(self) -> None:
        options = {"dropout": 0.0, "batch_first": True, "dtype": torch.float64}
        new, stock = TransformerEncoderLayer(E, H, 32, **options), nn.TransformerEncoderLayer(E, H, 32, **options)
        optimized = aigc_fast.optimize(copy.deepcopy(stock))
        assert [type(module) for module in new.modules()] == [type(module) for module in optimized.modules()]
        assert inspect.signature(TransformerEncoderLayer) == inspect.signature(nn.TransformerEncoderLayer)
        new.load_state_dict(stock.state_dict())
        x = torch.randn(N, 3, E, dtype=torch.float64, requires_grad=True)
        torch.testing.assert_close(new(x), stock(x))
        (gradient,) = torch.autograd.grad(new(x).pow(3).sum(), x, create_graph=True)
        gradient.square().sum().backward()
        assert x.grad.isfinite().all()
        assert [type(module) for module in aigc_fast.restore(new).modules()] == [type(m) for m in stock.modules()]

    @pytest.mark.parametrize("method", ["_sa_block", "_ff_block"])
    def test_a_block_that_is_replaced_on_the_instance(self, method: str) -> None:
        layer = TransformerEncoderLayer(E, H, 32, 0.0, batch_first=True)
        setattr(layer, method, lambda x, *args, **kwargs: torch.zeros_like(x))
        stock = nn.TransformerEncoderLayer(E, H, 32, 0.0, batch_first=True)
        stock.load_state_dict(layer.state_dict())
        setattr(stock, method, getattr(layer, method))
        x = torch.randn(N, 300, E)
        torch.testing.assert_close(layer(x), stock(x))

    @staticmethod
    def pair(what: str, norm_first: bool) -> tuple[nn.Module, nn.Module]:
        theirs = nn.TransformerEncoderLayer(E, H, 32, 0.0, batch_first=True, norm_first=norm_first)
        for name, make in REPLACEMENTS[what].items():
            setattr(theirs, name, make())
        return theirs, aigc_fast.optimize(copy.deepcopy(theirs))


class Scaled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Adapter(nn.Module):
    """Stands for a projection whose weight and bias it has, and does something else."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("PyTorch's layer calls no projection")


CHANGES = {
    "another projection": lambda layer: setattr(layer, "out_proj", Adapter(layer.out_proj)),
    "no bias": lambda layer: setattr(layer, "out_proj", nn.Linear(E, E, bias=False)),
    "parametrised projection": lambda layer: parametrize.register_parametrization(layer.out_proj, "weight", Scaled()),
    "parametrised inputs": lambda layer: parametrize.register_parametrization(layer, "in_proj_weight", Scaled()),
    "pruned projection": lambda layer: prune.l1_unstructured(layer.out_proj, "weight", 0.5),
    "pruned inputs": lambda layer: prune.l1_unstructured(layer, "in_proj_weight", 0.5),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("need_weights", [True, False])
def test_changed_weights_and_projections(what: str, need_weights: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = pair(batch_first=True)
    for layer in (ours, theirs):
        torch.manual_seed(1)
        CHANGES[what](layer)
    tensors = inputs(theirs)
    found, expected = (layer(*tensors, need_weights=need_weights)[0] for layer in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("length", [S, 300])
def test_an_encoder_that_makes_its_padded_input_nested(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = nn.TransformerEncoder(nn.TransformerEncoderLayer(E, H, 32, batch_first=True), 2).eval()
    ours = aigc_fast.optimize(copy.deepcopy(stock))
    nested, forward = [], TransformerEncoderLayer.forward

    def seen(layer, src, *args, **kwargs):
        nested.append(src.is_nested)
        return forward(layer, src, *args, **kwargs)

    monkeypatch.setattr(TransformerEncoderLayer, "forward", seen)
    x, padding = torch.randn(N, length, E), torch.arange(length) >= torch.tensor([[length], [30], [7]])
    with torch.no_grad():
        found, expected = (model(x, src_key_padding_mask=padding) for model in (ours, stock))
    assert nested == [True, True]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("with_gradients", [False, True])
@pytest.mark.parametrize("cls", [nn.TransformerEncoderLayer, nn.MultiheadAttention])
def test_an_export_with_dynamic_sizes(cls: type[nn.Module], with_gradients: bool) -> None:
    class SelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.MultiheadAttention(E, H, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x, x, x, need_weights=False)[0]

    is_layer = cls is nn.TransformerEncoderLayer
    model = (cls(E, H, 32, 0.0, batch_first=True) if is_layer else SelfAttention()).eval()
    stock = copy.deepcopy(model)
    sizes = {0: torch.export.Dim("batch", min=2, max=64), 1: torch.export.Dim("length", min=2, max=1000)}
    with torch.set_grad_enabled(with_gradients):
        example = (torch.randn(3, 20, E),)
        program = torch.export.export(aigc_fast.optimize(model), example, dynamic_shapes=(sizes,)).module()
        for batch, length in ((2, 7), (3, 20), (5, 400)):
            x = torch.randn(batch, length, E)
            assert relative_error(program(x), stock(x)) < 1e-5


@pytest.mark.parametrize("length", [16, 300])
def test_a_compiled_encoder_layer_at_inference(length: int) -> None:
    layer = nn.TransformerEncoderLayer(E, H, 32, 0.1, batch_first=True).eval()
    stock = copy.deepcopy(layer)
    compiled = torch.compile(aigc_fast.optimize(layer), fullgraph=True, dynamic=True, backend="aot_eager")
    x = torch.randn(N, length, E)
    with torch.no_grad():
        assert relative_error(compiled(x), stock(x)) < 1e-5


def test_optimize_times_it_both_ways() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(E, H, 32, 0.1, batch_first=True), 1).train()
    aigc_fast.optimize(model, example_inputs=torch.randn(N, L, E))
    assert any("MultiheadAttention" in str(entry) for entry in aigc_fast.report(model).layers)
