"""Residual blocks of diffusers and transformers after `optimize`: the same numbers and hooks; others are left."""

from __future__ import annotations

import copy
import importlib
import io
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from parity import relative_error
from torch import Tensor, nn
from watching import launches

import aigc_fast
from aigc_fast.integrations import blocks
from aigc_fast.optimize.reporting import Entry
from aigc_fast.runtime import native

needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))

FAMILIES = "fastspeech2_conformer", "seamless_m4t", "seamless_m4t_v2", "speecht5", "vits"


def _class(home: str, name: str) -> type[nn.Module]:
    try:
        return getattr(importlib.import_module(home), name)
    except ImportError as error:
        pytest.skip(f"{home} is not to be had: {error}")


def resnet(**options: object) -> tuple[nn.Module, tuple[Tensor | None, ...]]:
    made = _class("diffusers.models.resnet", "ResnetBlock2D")
    block = made(in_channels=32, out_channels=48, temb_channels=16, groups=8, **options)
    return block, (torch.randn(2, 32, 33, 35), torch.randn(2, 16))


def resnet_without_time(**options: object) -> tuple[nn.Module, tuple[Tensor | None, ...]]:
    made = _class("diffusers.models.resnet", "ResnetBlock2D")
    block = made(in_channels=32, temb_channels=None, groups=4, output_scale_factor=1.5, **options)
    return block, (torch.randn(1, 32, 50, 47), None)


def upsampler(**options: object) -> tuple[nn.Module, tuple[Tensor, ...]]:
    made = _class("diffusers.models.upsampling", "Upsample2D")
    return made(32, use_conv=True, **options), (torch.randn(1, 32, 25, 27),)


def tiny(activation: str = "relu", out_channels: int = 6) -> tuple[nn.Module, tuple[Tensor, ...]]:
    made = _class("diffusers.models.unets.unet_2d_blocks", "AutoencoderTinyBlock")
    return made(6, out_channels, activation), (torch.randn(2, 6, 9, 7),)


def hifigan(family: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    made = _class(f"transformers.models.{family}.modeling_{family}", "HifiGanResidualBlock")
    return made(6, 3, (1, 3)), (torch.randn(2, 6, 50),)


def encodec(**options: object) -> tuple[nn.Module, tuple[Tensor, ...]]:
    made = _class("transformers.models.encodec.modeling_encodec", "EncodecResnetBlock")
    config = importlib.import_module("transformers").EncodecConfig(**options)
    return made(config, 8, [1, 1]), (torch.randn(2, 8, 40),)


def mlp(family: str, name: str, activation: str = "gelu") -> tuple[nn.Module, tuple[Tensor, ...]]:
    made = _class(f"transformers.models.{family}.modeling_{family}", name)
    config = SimpleNamespace(hidden_size=24, intermediate_size=70, hidden_act=activation)
    return made(config), (torch.randn(2, 17, 24),)


def codec(name: str, *args: object, size: int = 40, **options: object) -> tuple[nn.Module, tuple[Tensor, ...]]:
    made = _class("transformers.models.encodec.modeling_encodec", name)
    config = importlib.import_module("transformers").EncodecConfig(**options)
    return made(config, *args), (torch.randn(2, 8, size),)


CODEC = {"hidden_size": 8, "num_filters": 4, "upsampling_ratios": [4, 2]}

MAKERS: dict[str, Callable[[], tuple[nn.Module, tuple]]] = {
    "ResnetBlock2D": resnet,
    "ResnetBlock2D without a time": resnet_without_time,
    "ResnetBlock2D of decoders": lambda: resnet_without_time(time_embedding_norm="group"),
    "ResnetBlock2D, upsampling": lambda: resnet(up=True),
    "ResnetBlock2D, downsampling": lambda: resnet(down=True),
    "ResnetBlock2D, scale and shift": lambda: resnet(time_embedding_norm="scale_shift", non_linearity="mish"),
    "Upsample2D": upsampler,
    "Upsample2D, other channels": lambda: upsampler(out_channels=48, name="Conv2d_0", bias=False),
    "AutoencoderTinyBlock": tiny,
    "AutoencoderTinyBlock, other channels": lambda: tiny("gelu", 5),
    "EncodecResnetBlock": encodec,
    "EncodecResnetBlock, norms": lambda: encodec(norm_type="time_group_norm", use_conv_shortcut=False),
    "EncodecConv1d": lambda: codec("EncodecConv1d", 8, 24, 7, dilation=2),
    "EncodecConv1d, strided": lambda: codec("EncodecConv1d", 8, 24, 8, stride=3),
    "EncodecConv1d, shorter than its border": lambda: codec("EncodecConv1d", 8, 24, 7, size=5),
    "EncodecConv1d, not causal": lambda: codec("EncodecConv1d", 8, 24, 6, use_causal_conv=False),
    "EncodecConv1d, zeros": lambda: codec("EncodecConv1d", 8, 24, 7, pad_mode="constant"),
    "EncodecConvTranspose1d": lambda: codec("EncodecConvTranspose1d", 8, 24, 8, stride=4),
    "EncodecConvTranspose1d, not causal": lambda: codec("EncodecConvTranspose1d", 8, 24, 7, 4, use_causal_conv=False),
    "EncodecDecoder": lambda: codec("EncodecDecoder", **CODEC),
    **{f"HifiGanResidualBlock, {family}": lambda family=family: hifigan(family) for family in FAMILIES},
    "ViTMLP": lambda: mlp("vit", "ViTMLP"),
    "SiglipMLP, tanh": lambda: mlp("siglip", "SiglipMLP", "gelu_pytorch_tanh"),
    "SmolVLMVisionMLP, SiLU": lambda: mlp("smolvlm", "SmolVLMVisionMLP", "silu"),
    "BeitMLP, ReLU": lambda: mlp("beit", "BeitMLP", "relu"),
    "CLIPMLP, another activation": lambda: mlp("clip", "CLIPMLP", "quick_gelu"),
    "PhiMLP, another activation": lambda: mlp("phi", "PhiMLP", "gelu_new"),
}
LEFT = ("ResnetBlock2D, scale and shift", "CLIPMLP, another activation", "PhiMLP, another activation")
PLAIN = (
    "ResnetBlock2D",
    "Upsample2D",
    "AutoencoderTinyBlock",
    "EncodecResnetBlock",
    "EncodecConv1d",
    "EncodecConvTranspose1d",
    "EncodecDecoder",
    "HifiGanResidualBlock, vits",
    "ViTMLP",
)
CONVOLUTIONS = nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d


def both(name: str) -> tuple[nn.Module, nn.Module, tuple]:
    """A block after `optimize`, the same before, and its arguments."""
    torch.manual_seed(0)
    stock, inputs = MAKERS[name]()
    return aigc_fast.optimize(copy.deepcopy(stock)), stock, inputs


def in_float64(stock: nn.Module, inputs: tuple) -> tuple[nn.Module, list[Tensor | None]]:
    return copy.deepcopy(stock).double(), [None if tensor is None else tensor.double() for tensor in inputs]


@pytest.mark.parametrize("name", MAKERS)
def test_numbers_and_gradients_are_the_librarys(name: str) -> None:
    fast, stock, inputs = both(name)
    assert blocks.is_swapped(fast) == (name not in LEFT)
    assert isinstance(fast, type(stock))
    assert list(fast.state_dict()) == list(stock.state_dict())
    exact, exact_inputs = in_float64(stock, inputs)
    kept = copy.deepcopy(inputs)
    with torch.no_grad():
        right, theirs = exact(*exact_inputs), stock(*inputs)
        for _ in range(2):
            ours = fast(*inputs)
            assert ours.stride() == theirs.stride()
            assert relative_error(ours, right) <= max(2 * relative_error(theirs, right), 2e-6)
    for before, after in zip(kept, inputs, strict=True):
        assert before is None or torch.equal(before, after)
    found = []
    for model, given in ((fast, inputs), (stock, inputs), (exact, exact_inputs)):
        given = [None if tensor is None else tensor.clone().requires_grad_() for tensor in given]
        output = model.train()(*given)
        wanted = [tensor for tensor in (*given, *model.parameters()) if tensor is not None]
        found.append(torch.autograd.grad(output.square().sum(), wanted))
    for ours, theirs, right in zip(*found, strict=True):
        assert relative_error(ours, right) <= max(2 * relative_error(theirs, right), 5e-6)


@pytest.mark.parametrize("name", PLAIN)
def test_hooks_see_what_they_saw(name: str) -> None:
    fast, stock, inputs = both(name)
    seen: dict[int, list[tuple[str, Tensor, Tensor, Tensor]]] = {}
    for number, block in enumerate((fast, stock)):
        told = seen[number] = []
        for inner, module in block.named_modules():
            ends = next(module.children(), None) is None or hasattr(module, "parametrizations")
            if ends and not isinstance(module, nn.LSTM):
                module.register_forward_hook(
                    lambda module, args, output, inner=inner, told=told: told.append(
                        (inner, args[0], output, output.clone())
                    )
                )
        with torch.no_grad():
            block(*inputs)
    assert [inner for inner, *_ in seen[0]] == [inner for inner, *_ in seen[1]]
    for (inner, ours_in, ours_kept, ours), (_, theirs_in, _, theirs) in zip(seen[0], seen[1], strict=True):
        assert relative_error(ours_in, theirs_in) < 2e-6, inner
        assert relative_error(ours, theirs) < 2e-6, inner
        inplace = "inplace=True" in repr(fast.get_submodule(inner))
        assert inplace or torch.equal(ours_kept, ours), f"{inner}: what it returned was written to"


@pytest.mark.parametrize("name", PLAIN)
def test_what_an_inner_module_does_otherwise_is_done(name: str) -> None:
    fast, stock, inputs = both(name)
    for block in (fast, stock):
        last = [module for module in block.modules() if isinstance(module, (*CONVOLUTIONS, nn.Linear))][-1]
        last.forward = lambda x, last=last: type(last).forward(last, x) * 2
    with torch.no_grad():
        assert relative_error(fast(*inputs), stock(*inputs)) < 2e-6


def whole(block: nn.Module) -> Entry:
    """What the report says of the block itself, not of those in it."""
    (entry,) = (entry for entry in aigc_fast.report(block).blocks if entry.name == "(model)")
    return entry


class TestLeft:
    @pytest.mark.parametrize("name", PLAIN)
    def test_a_subclass(self, name: str) -> None:
        block, inputs = MAKERS[name]()
        theirs = type(block)
        block.__class__ = type("Mine", (theirs,), {"forward": lambda self, *args: theirs.forward(self, *args) * 2})
        right = block(*inputs)
        aigc_fast.optimize(block)
        entry = whole(block)
        assert (entry.swapped, entry.note) == (False, "Mine is a subclass: its forward may differ")
        assert relative_error(block(*inputs), right) < 2e-6

    @pytest.mark.parametrize("name", PLAIN)
    def test_a_forward_of_the_instances(self, name: str) -> None:
        block, inputs = MAKERS[name]()
        block.forward = lambda *args: args[0] * 3
        aigc_fast.optimize(block)
        entry = whole(block)
        assert (entry.swapped, entry.note) == (False, "its forward was replaced on the instance")
        assert torch.equal(block(*inputs), inputs[0] * 3)

    @pytest.mark.parametrize("name", PLAIN)
    def test_a_forward_of_another_version(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        block, inputs = MAKERS[name]()

        def forward(self: nn.Module, *args: Tensor) -> Tensor:
            return args[0] * 3

        monkeypatch.setattr(type(block), "forward", forward)
        aigc_fast.optimize(block)
        entry = whole(block)
        assert not entry.swapped
        assert entry.note.startswith("its forward is none that is known: ")
        assert torch.equal(block(*inputs), inputs[0] * 3)

    @pytest.mark.parametrize("name", PLAIN)
    def test_a_forward_that_is_replaced_afterwards(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        fast, stock, inputs = both(name)
        monkeypatch.setattr(type(stock), "forward", lambda self, *args: args[0] * 3)
        assert torch.equal(fast(*inputs), inputs[0] * 3)

    def test_attributes_that_were_taken_away_or_changed(self) -> None:
        block, _ = resnet()
        del block.nonlinearity
        tiny_block, _ = tiny()
        tiny_block.conv = nn.Identity()
        vocoder, _ = hifigan("vits")
        vocoder.convs1[0] = nn.Identity()
        unpadded, _ = encodec()
        unpadded.block = nn.ModuleList([nn.ELU()])
        unconvolved, _ = upsampler()
        unconvolved.conv = nn.Identity()
        wide, _ = upsampler(kernel_size=5, padding=2)
        unactivated, _ = mlp("vit", "ViTMLP")
        unactivated.activation_fn = nn.Identity()
        for left, reason in (
            (unconvolved, "it does not double and convolve alone, with a kernel of 3"),
            (wide, "it does not double and convolve alone, with a kernel of 3"),
            (block, "an attribute was taken away: 'ResnetBlock2D' object has no attribute 'nonlinearity'"),
            (tiny_block, "its conv is no Sequential that ends in a convolution"),
            (vocoder, "its convs1 and convs2 are not convolutions alone"),
            (unpadded, "its block has no convolution"),
            (unactivated, "its fc1 and its activation_fn are none that run as one call"),
        ):
            entry = whole(aigc_fast.optimize(left))
            assert (entry.swapped, entry.note) == (False, reason)


@pytest.mark.parametrize("name", PLAIN)
def test_there_and_back_copies_and_pickles(name: str) -> None:
    fast, stock, inputs = both(name)
    twins = [copy.deepcopy(fast)]
    if "Encodec" not in name:  # PyTorch pickles no parametrized modules
        file = io.BytesIO()
        torch.save(fast, file)
        file.seek(0)
        twins.append(torch.load(file, weights_only=False))
    with torch.no_grad():
        right = stock(*inputs)
        for twin in twins:
            assert type(twin) is type(fast)
            assert relative_error(twin(*inputs), right) < 2e-6
    assert type(aigc_fast.restore(fast)) is type(stock)
    assert vars(fast).keys() == vars(stock).keys()


def test_a_time_that_no_norm_takes_is_ignored() -> None:
    fast, stock, (x, _) = both("ResnetBlock2D of decoders")
    time = torch.randn(1, 32, 1, 1)
    with torch.no_grad():
        assert relative_error(fast(x, time), stock(x, time)) < 2e-6


@needs_native
def test_autocast_runs_norm_and_activation_in_one_call() -> None:
    fast, stock, inputs = both("ResnetBlock2D of decoders")
    exact, exact_inputs = in_float64(stock, inputs)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        theirs = stock(*inputs)
        with launches("group_norm") as called:
            ours = fast(*inputs)
        assert len(called) == 2
        assert (ours.dtype, ours.stride()) == (theirs.dtype, theirs.stride())
    with torch.no_grad():
        right = exact(*exact_inputs)
    assert relative_error(ours, right) <= 2 * relative_error(theirs, right)


def test_upsampling_to_a_size_is_the_librarys() -> None:
    fast, stock, inputs = both("Upsample2D")
    with torch.no_grad():
        assert relative_error(fast(*inputs, output_size=(75, 80)), stock(*inputs, output_size=(75, 80))) < 2e-6
        assert relative_error(fast(*inputs), stock(*inputs)) < 2e-6


@pytest.mark.parametrize("name", PLAIN)
def test_compiles(name: str) -> None:
    fast, stock, inputs = both(name)
    torch.compiler.reset()
    # EnCodec's convolutions compute their padding with tensors.
    compiled = torch.compile(fast, fullgraph="Encodec" not in name, backend="aot_eager")
    with torch.no_grad():
        assert relative_error(compiled(*inputs), stock(*inputs)) < 2e-6


def test_the_report_tells_both_times() -> None:
    block, inputs = tiny()
    (entry,) = aigc_fast.report(aigc_fast.optimize(block, example_inputs=inputs)).blocks
    assert entry.layer == "AutoencoderTinyBlock"
    assert min(entry.torch_ms, entry.fast_ms) > 0
    assert entry.swapped == (entry.fast_ms < entry.torch_ms)
    assert "AutoencoderTinyBlock" in str(aigc_fast.report(block))
