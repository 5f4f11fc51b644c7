"""Blocks of diffusers and transformers with fewer passes over memory: the same layers, hooks and numbers.

A block of a known class whose forward is known by its source becomes one of a class derived from it. Layers that nobody
watches run together, if no gradient is wanted: norms with the activation that follows, convolutions with the activation
and the mirrored border before them, and with what is added to them. Whatever else the block is asked for, its own
forward does.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import math
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aigc_fast.nn.matching import chain_at, convolve, run_together, writes_anew
from aigc_fast.nn.overrides import calls_are_observed, is_unwatched
from aigc_fast.ops.conv_transpose.surrounded import Before
from aigc_fast.runtime.operator import plain_eager

Reason = str | None

# The library computes lengths in float32.
_EXACT_LENGTH = 1 << 24
_ENCODEC_PADDING = {"66f1e031cd65c26a", "d93b35e167377908"}


def _added(output: Tensor, is_own: bool, other: Tensor) -> Tensor:
    """The sum of two tensors, in place of the first if nobody else has it and no gradient is wanted."""
    alike = type(output) is type(other) is Tensor and output.shape == other.shape and output.dtype == other.dtype
    return output.add_(other) if is_own and alike and not torch.is_grad_enabled() else output + other


def _is_unseen(module: nn.Module) -> bool:
    """Whether nobody sees when the module, or a part of it, is called."""
    return all(map(is_unwatched, module.modules()))


def _convolved_and_added(conv: nn.Module, input: Tensor, other: Callable[[], Tensor]) -> Tensor:
    """The sum of a convolution of the input and of another tensor, which is asked for when nobody sees how early."""
    if not _is_unseen(conv):
        return _added(conv(input), writes_anew(conv), other())
    added = other()
    found = convolve(conv, input, added=added)
    return _added(conv(input), writes_anew(conv), added) if found is None else found


@functools.cache
def _leaky_relu(slope: float) -> nn.LeakyReLU:
    return nn.LeakyReLU(slope)


def _resnet_block_2d(block: Any, input_tensor: Tensor, temb: Tensor | None, *args: Any, **kwargs: Any) -> Any:
    resized = block.upsample is not None or block.downsample is not None
    if args or kwargs or resized or block.time_embedding_norm == "scale_shift":
        return NotImplemented
    x = block.conv1(run_together([block.norm1, block.nonlinearity], input_tensor))
    if block.time_emb_proj is not None:
        temb = temb if block.skip_time_act else block.nonlinearity(temb)
        temb = block.time_emb_proj(temb)[:, :, None, None]
    if temb is not None and block.time_embedding_norm == "default":
        x = x + temb
    x = block.dropout(run_together([block.norm2, block.nonlinearity], x))
    output = _convolved_and_added(block.conv2, x, lambda: _shortcut(block, input_tensor))
    return output if block.output_scale_factor == 1 else output / block.output_scale_factor


def _shortcut(block: Any, input: Tensor) -> Tensor:
    if block.conv_shortcut is None:
        return input
    return block.conv_shortcut(input.contiguous() if block.training else input)


def _resnet_block_2d_refusal(block: Any) -> Reason:
    if chain_at([block.norm1, block.nonlinearity], 0) or chain_at([block.norm2, block.nonlinearity], 0):
        return None
    return "its norms and its nonlinearity are none that run as one call"


@functools.cache
def _doubling() -> nn.Upsample:
    return nn.Upsample(scale_factor=2)


def _convolution_of(block: Any) -> nn.Module:
    return block.conv if block.name == "conv" else block.Conv2d_0


def _upsample_2d(block: Any, hidden_states: Tensor, output_size: Any = None, *args: Any, **kwargs: Any) -> Any:
    if args or kwargs or output_size is not None or hidden_states.shape[1] != block.channels:
        return NotImplemented
    chain = chain_at([_doubling(), _convolution_of(block)], 0)
    if _upsample_2d_refusal(block) or not chain.takes(hidden_states, hidden=True):
        return NotImplemented
    return chain.run(hidden_states, channels_last=False)


def _upsample_2d_refusal(block: Any) -> Reason:
    plain = block.use_conv and block.interpolate and not block.use_conv_transpose and block.norm is None
    if plain and chain_at([_doubling(), _convolution_of(block)], 0):
        return None
    return "it does not double and convolve alone, with a kernel of 3"


def _tiny_block(block: Any, x: Tensor) -> Any:
    conv, fuse = block.conv, block.fuse
    output = _added(conv(x), is_unwatched(conv) and len(conv) > 0 and writes_anew(conv[-1]), block.skip(x))
    in_place = type(fuse) is nn.ReLU and is_unwatched(fuse) and type(output) is Tensor and not torch.is_grad_enabled()
    return torch.relu_(output) if in_place else fuse(output)


def _tiny_block_refusal(block: Any) -> Reason:
    fits = isinstance(block.conv, nn.Sequential) and len(block.conv) > 0 and isinstance(block.conv[-1], nn.Conv2d)
    return None if fits else "its conv is no Sequential that ends in a convolution"


def _hifigan_block(block: Any, hidden_states: Tensor) -> Any:
    slope = block.leaky_relu_slope
    before = Before("leaky_relu", slope)
    for conv1, conv2 in zip(block.convs1, block.convs2, strict=False):
        x = convolve(conv1, hidden_states, before, _leaky_relu(slope))
        if x is None:
            x = nn.functional.leaky_relu(hidden_states, slope)
            x = run_together([conv1, _leaky_relu(slope)], x, hidden=writes_anew(conv2))
        hidden_states = _convolved_and_added(conv2, x, lambda residual=hidden_states: residual)
    return hidden_states


def _hifigan_block_refusal(block: Any) -> Reason:
    if all(isinstance(conv, nn.Conv1d) for conv in (*block.convs1, *block.convs2)):
        return None
    return "its convs1 and convs2 are not convolutions alone"


def _encodec_border(layer: Any, length: int) -> tuple[int, int] | None:
    """How much of its input the library's convolution mirrors on both sides; None where it does something else."""
    kernel, stride, total = int(layer.kernel_size), int(layer.stride), int(layer.padding_total)
    extra = -(-(length - kernel + total) // stride) * stride + kernel - total - length
    right = 0 if layer.causal else total // 2
    border = total - right, right + extra
    if border == (0, 0):
        return border
    fits = layer.pad_mode == "reflect" and min(border) >= 0 and max(border) < length < _EXACT_LENGTH
    return border if fits else None


def _encodec_convolved(layer: Any, input: Tensor, entry: tuple[str, float], added: Tensor | None) -> Any:
    """What `_encodec_conv` gives for an activation of the input, plus something; NotImplemented in more calls."""
    if layer.norm_type != "weight_norm" or type(input) is not Tensor or input.dim() != 3:
        return NotImplemented
    transposed = isinstance(layer.conv, nn.ConvTranspose1d)
    border = (0, 0) if transposed else _encodec_border(layer, input.shape[-1])
    found = None if border is None else convolve(layer.conv, input, Before(*entry, border), added=added)
    if found is None:
        return NotImplemented
    return _encodec_trimmed(layer, found) if transposed else found


def _encodec_trimmed(layer: Any, output: Tensor) -> Tensor:
    total = layer.conv.kernel_size[0] - layer.conv.stride[0]
    right = math.ceil(total * layer.trim_right_ratio) if layer.causal else total // 2
    return output[..., total - right : output.shape[-1] - right]


def _encodec_conv(layer: Any, hidden_states: Tensor) -> Any:
    return _encodec_convolved(layer, hidden_states, ("none", 0.0), None)


def _encodec_conv_refusal(layer: Any) -> Reason:
    theirs = type(layer).__bases__[0] if is_swapped(layer) else type(layer)
    inner = {digest_of(getattr(theirs, name)) for name in ("_get_extra_padding_for_conv1d", "_pad1d")}
    return None if inner <= _ENCODEC_PADDING else "its padding is none that is known"


def _encodec_conv_transpose_refusal(layer: Any) -> Reason:
    return None if isinstance(layer.conv, nn.ConvTranspose1d) else "its conv is no transposed convolution"


def _is_encodec_convolution(layer: nn.Module) -> bool:
    if not is_swapped(layer) or not is_unwatched(layer):
        return False
    return type(layer).known_as.forward is _encodec_conv


def _encodec_run(layers: Any, x: Tensor, added: Tensor | None = None) -> Tensor:
    """The layers in turn, an ELU with the convolution after it; what is to be added the last one adds."""
    layers, index = list(layers), 0
    while index < len(layers):
        layer, found = layers[index], NotImplemented
        enters = type(layer) is nn.ELU and is_unwatched(layer) and not layer.inplace
        following = index + enters
        is_last = following + 1 == len(layers)
        if following < len(layers) and _is_encodec_convolution(layers[following]):
            entry = ("elu", layer.alpha) if enters else ("none", 0.0)
            found = _encodec_convolved(layers[following], x, entry, added if is_last else None)
        if found is NotImplemented:
            x, index = layer(x), index + 1
        else:
            x, index, added = found, following + 1, None if is_last else added
    return x if added is None else x + added


def _encodec_block(block: Any, hidden_states: Tensor) -> Any:
    if not _is_unseen(block.block):
        return _encodec_run(block.block, hidden_states) + block.shortcut(hidden_states)
    return _encodec_run(block.block, hidden_states, block.shortcut(hidden_states))


def _encodec_block_refusal(block: Any) -> Reason:
    fits = any(isinstance(getattr(layer, "conv", None), nn.Conv1d) for layer in block.block)
    return None if fits else "its block has no convolution"


# transformers.activations' forwards, of the modules that keep a function of PyTorch's and of SiLU.
_KEPT_FUNCTION, _SILU = "9c258caf0e3d0746", "1aa9b3bd1fb68ef4"


@functools.cache
def _gelu(approximate: str) -> nn.GELU:
    return nn.GELU(approximate)


@functools.cache
def _silu() -> nn.SiLU:
    return nn.SiLU()


def _as_pytorchs(activation: nn.Module) -> nn.Module:
    """PyTorch's module for one of transformers' that does the same; any other as it is."""
    if type(activation).__module__ != "transformers.activations" or not is_unwatched(activation):
        return activation
    written = _known_digest(type(activation).forward)
    if written == _SILU:
        return _silu()
    function = getattr(activation, "act", None) if written == _KEPT_FUNCTION else None
    if function is nn.functional.gelu:
        return _gelu("none")
    is_partial = isinstance(function, functools.partial) and function.func is nn.functional.gelu
    return _gelu("tanh") if is_partial and function.keywords == {"approximate": "tanh"} else activation


def _mlp(block: Any, hidden_states: Tensor) -> Any:
    return block.fc2(run_together([block.fc1, _as_pytorchs(block.activation_fn)], hidden_states))


def _mlp_refusal(block: Any) -> Reason:
    if chain_at([block.fc1, _as_pytorchs(block.activation_fn)], 0):
        return None
    return "its fc1 and its activation_fn are none that run as one call"


def _encodec_stack(stack: Any, hidden_states: Tensor) -> Any:
    return _encodec_run(stack.layers, hidden_states)


def _encodec_stack_refusal(stack: Any) -> Reason:
    return None if any(type(layer) is nn.ELU for layer in stack.layers) else "it has no ELU"


@dataclass(frozen=True)
class Block:
    """A class of another library's, and what its forward is known to be.

    Attributes:
        home: the module that it is written in.
        name: its name there.
        written: the digests of its forward's source, of each known version; see `digest_of`.
        forward: the same with fewer passes; NotImplemented where the block's own is asked for.
        misfit: why a block of the class, its attributes changed, had better be left alone, or None.
    """

    home: str
    name: str
    written: frozenset[str]
    forward: Callable[..., Any]
    misfit: Callable[[Any], Reason]

    @property
    def library(self) -> str:
        """The library that it is from."""
        return self.home.partition(".")[0]

    @property
    def key(self) -> str:
        """Its name here."""
        return f"{self.home.rpartition('.')[2]}_{self.name}"


_HIFIGAN_FAMILIES = "fastspeech2_conformer", "seamless_m4t", "seamless_m4t_v2", "speecht5", "vits"
_MLPS = {
    "audio_spectrogram_transformer": "ASTMLP",
    "beit": "BeitMLP",
    "blip": "BlipMLP",
    "blip_2": "Blip2MLP",
    "clip": "CLIPMLP",
    "clipseg": "CLIPSegMLP",
    "deit": "DeiTMLP",
    "dinov2": "Dinov2MLP",
    "dinov2_with_registers": "Dinov2WithRegistersMLP",
    "florence2": "Florence2VisionMLP",
    "hiera": "HieraMlp",
    "idefics2": "Idefics2VisionMLP",
    "idefics3": "Idefics3VisionMLP",
    "ijepa": "IJepaMLP",
    "metaclip_2": "MetaClip2MLP",
    "phi": "PhiMLP",
    "phi4_multimodal": "Phi4MultimodalVisionMLP",
    "siglip": "SiglipMLP",
    "siglip2": "Siglip2MLP",
    "smolvlm": "SmolVLMVisionMLP",
    "swin": "SwinMLP",
    "vit": "ViTMLP",
}
BLOCKS = (
    Block(
        "diffusers.models.resnet",
        "ResnetBlock2D",
        frozenset({"09614de2c837ddb5"}),
        _resnet_block_2d,
        _resnet_block_2d_refusal,
    ),
    Block(
        "diffusers.models.upsampling",
        "Upsample2D",
        frozenset({"104b2a8bff44ad67"}),
        _upsample_2d,
        _upsample_2d_refusal,
    ),
    Block(
        "diffusers.models.unets.unet_2d_blocks",
        "AutoencoderTinyBlock",
        frozenset({"500f170d5673db95"}),
        _tiny_block,
        _tiny_block_refusal,
    ),
    Block(
        "transformers.models.encodec.modeling_encodec",
        "EncodecResnetBlock",
        frozenset({"950105a69fdf144c"}),
        _encodec_block,
        _encodec_block_refusal,
    ),
    Block(
        "transformers.models.encodec.modeling_encodec",
        "EncodecConv1d",
        frozenset({"5adcabe00cb08ad4"}),
        _encodec_conv,
        _encodec_conv_refusal,
    ),
    Block(
        "transformers.models.encodec.modeling_encodec",
        "EncodecConvTranspose1d",
        frozenset({"e63806d73da24794"}),
        _encodec_conv,
        _encodec_conv_transpose_refusal,
    ),
    *(
        Block(
            "transformers.models.encodec.modeling_encodec",
            name,
            frozenset({"ed61b6297f030805"}),
            _encodec_stack,
            _encodec_stack_refusal,
        )
        for name in ("EncodecEncoder", "EncodecDecoder")
    ),
    *(
        Block(
            f"transformers.models.{family}.modeling_{family}",
            "HifiGanResidualBlock",
            frozenset({"4bfbe3cf9d247068"}),
            _hifigan_block,
            _hifigan_block_refusal,
        )
        for family in _HIFIGAN_FAMILIES
    ),
    *(
        Block(
            f"transformers.models.{family}.modeling_{family}",
            name,
            frozenset({"2097f227af29a742"}),
            _mlp,
            _mlp_refusal,
        )
        for family, name in _MLPS.items()
    ),
)


def digest_of(function: Callable[..., Any]) -> str | None:
    """What tells the source of a function from others', comments and blank lines apart; None where it has none."""
    try:
        lines = textwrap.dedent(inspect.getsource(function)).splitlines()
    except (OSError, TypeError):
        return None
    kept = [line.rstrip() for line in lines if line.strip() and not line.strip().startswith("#")]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:16]


_known_digest = functools.cache(digest_of)


def _theirs(block: Block) -> type[nn.Module] | None:
    """The class, if anybody has imported it."""
    return getattr(sys.modules.get(block.home), block.name, None)


@functools.cache
def _ours(block: Block, theirs: type[nn.Module]) -> type[nn.Module]:
    own = theirs.forward

    @functools.wraps(own)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if theirs.forward is own and plain_eager() and not calls_are_observed():
            found = block.forward(self, *args, **kwargs)
            if found is not NotImplemented:
                return found
        return theirs.forward(self, *args, **kwargs)

    members = {"forward": forward, "known_as": block, "__module__": __name__, "__qualname__": block.key}
    return type(theirs.__name__, (theirs,), {**members, "__doc__": theirs.__doc__})


def __getattr__(name: str) -> type[nn.Module]:
    """The derived classes, by which pickle finds them."""
    for block in BLOCKS:
        if block.key == name:
            return _ours(block, getattr(importlib.import_module(block.home), block.name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def known_in(module: nn.Module) -> Block | None:
    """The entry of `BLOCKS` that the module, or a class that it derives from, belongs to."""
    for block in BLOCKS:
        theirs = _theirs(block)
        if theirs is not None and isinstance(module, theirs):
            return block
    return None


def is_swapped(module: nn.Module) -> bool:
    """Whether the module is of a derived class."""
    return type(module).__module__ == __name__


def refusal(module: nn.Module) -> Reason:
    """Why a block that `known_in` knows is left alone, or None."""
    block = known_in(module)
    theirs = _theirs(block)
    if type(module) is not theirs and not is_swapped(module):
        return f"{type(module).__name__} is a subclass: its forward may differ"
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    if digest_of(theirs.forward) not in block.written:
        version = getattr(sys.modules.get(block.library), "__version__", "of a version that is not told")
        return f"its forward is none that is known: {block.library} {version}'s, or somebody's in its place"
    try:
        return block.misfit(module)
    except AttributeError as error:
        return f"an attribute was taken away: {error}"


def swap(module: nn.Module) -> None:
    """Makes the block one of the derived class: nothing else of it changes."""
    if not is_swapped(module):
        block = known_in(module)
        module.__class__ = _ours(block, _theirs(block))


def put_back(module: nn.Module) -> None:
    """Makes the block its library's again."""
    if is_swapped(module):
        module.__class__ = type(module).__bases__[0]
