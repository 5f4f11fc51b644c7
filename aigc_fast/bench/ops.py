"""From a case of an op to its contest: tensors, our call and the peers'."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_fast import functional
from aigc_fast.bench import peers
from aigc_fast.bench.calls import FORWARD, TRAINING, Attention, Case, Convolution, Linear, Norm, Recursion, Shape
from aigc_fast.bench.contest import CHANNELS_LAST, OURS, PYTORCH, Call, Contest, against_float64, derivatives, leaves
from aigc_fast.bench.machine import Work, products, traffic
from aigc_fast.bench.parity import ParityError, relative_error
from aigc_fast.bench.typical import followed

Function = Any

_FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}
_SIGMAS = 6
_CHECKED = 500


def _called(function: Function, tensors: Sequence[Tensor], options: dict[str, Any], gradient: Tensor | None) -> Any:
    """The result, or where there is a gradient, the tensors' gradients."""
    if gradient is None:
        with torch.no_grad():
            return (function(*tensors, **options),)
    asked = leaves(*tensors)
    return derivatives(function(*asked, **options), asked, gradient)


def convolution(case: Case) -> Contest:
    """A layer in both of PyTorch's layouts."""
    call: Convolution = case.call
    dtype, dimensions = getattr(torch, case.dtype), len(call.spatial)
    name = f"conv{'_transpose' * call.transposed}{dimensions}d"
    ours, theirs = getattr(functional, name), getattr(F, name)
    options = {name: getattr(call, name) for name in ("stride", "padding", "groups", "dilation")}
    options |= {"output_padding": call.output_padding} if call.transposed else {}
    pair = (call.inputs, call.outputs // call.groups) if call.transposed else (call.outputs, call.inputs // call.groups)
    fan = call.inputs * call.kernel**dimensions / call.groups
    x = torch.randn(call.batch, call.inputs, *call.spatial).to(dtype)
    weight = (torch.randn(*pair, *[call.kernel] * dimensions) / math.sqrt(fan)).to(dtype)
    tensors = (x, weight, torch.randn(call.outputs).to(dtype))
    gradient = None
    if case.mode == TRAINING:
        gradient = torch.randn(call.batch, call.outputs, *map(call.outer, call.spatial)).to(dtype)

    layouts = {"": (tensors, gradient)}
    if dimensions in _FORMATS:
        like = partial(torch.Tensor.to, memory_format=_FORMATS[dimensions])
        layouts[CHANNELS_LAST] = (
            (like(x), like(weight), tensors[2]),
            None if gradient is None else like(gradient),
        )
    mine = {OURS + layout: partial(_called, ours, at, options, back) for layout, (at, back) in layouts.items()}
    stock = {PYTORCH + layout: partial(_called, theirs, at, options, back) for layout, (at, back) in layouts.items()}
    exact = partial(
        _called, theirs, [t.double() for t in tensors], options, None if gradient is None else gradient.double()
    )
    others, absent = {}, ()
    if case.mode == FORWARD:
        others = peers.present({"torch.compile": peers.compiled(partial(_called, theirs, tensors, options, None))})
    if case.mode == FORWARD and dtype == torch.float32:
        runtime = {"ONNX Runtime": _in_onnx(call, tensors)}
        others, absent = others | peers.present(runtime), peers.absent(runtime)
    return Contest(
        mine,
        stock | others,
        against_float64(mine, stock, exact, dtype, others),
        products(dtype, case.operations),
        absent,
    )


def _in_onnx(call: Convolution, tensors: Sequence[Tensor]) -> Call | None:
    """ONNX Runtime's layer."""
    dimensions = len(call.spatial)
    kind, more = "Conv", {}
    if call.transposed:
        kind, more = "ConvTranspose", {"output_padding": [call.output_padding] * dimensions}
    return peers.onnx_runtime(
        kind,
        {"x": tensors[0]},
        {"weight": tensors[1], "bias": tensors[2]},
        (call.batch, call.outputs, *map(call.outer, call.spatial)),
        opset=17,
        strides=[call.stride] * dimensions,
        pads=[call.padding] * 2 * dimensions,
        dilations=[call.dilation] * dimensions,
        group=call.groups,
        **more,
    )


def attention(case: Case) -> Contest:
    """`scaled_dot_product_attention`; a window is a mask to PyTorch."""
    call: Attention = case.call
    dtype = getattr(torch, case.dtype)
    shapes = ((call.heads, call.queries), (call.shared, call.keys), (call.shared, call.keys))
    tensors = [torch.randn(call.batch, *shape, call.size).to(dtype) for shape in shapes]
    gradient = torch.randn_like(tensors[0]) if case.mode == TRAINING else None
    theirs, mine = _masks(call)
    ours = {OURS: partial(_called, functional.scaled_dot_product_attention, tensors, mine, gradient)}
    stock = {PYTORCH: partial(_called, F.scaled_dot_product_attention, tensors, theirs, gradient)}
    doubled = [tensor.double() for tensor in tensors], None if gradient is None else gradient.double()
    exact = partial(_called, F.scaled_dot_product_attention, doubled[0], theirs, doubled[1])
    gate = against_float64(ours, stock, exact, dtype)
    if call.kind == "dropout":
        gate = partial(_gate_of_dropped_attention, tensors, mine)
    return Contest(ours, stock, gate, _work_of_attention(case, dtype))


def _work_of_attention(case: Case, dtype: torch.dtype) -> Work | None:
    call: Attention = case.call
    if call.queries == 1:
        return traffic("read", 2 * call.batch * call.shared * call.keys * call.size * dtype.itemsize)
    return products(dtype, case.operations)


def _masks(call: Attention) -> tuple[dict[str, Any], dict[str, Any]]:
    """PyTorch's options, and ours."""
    options: dict[str, Any] = {"enable_gqa": call.heads != call.shared}
    if call.kind in ("causal", "dropout"):
        options["is_causal"] = True
    if call.kind == "dropout":
        options["dropout_p"] = 0.1
    if call.kind == "padded":
        ends = torch.arange(call.batch, 0, -1) * call.keys // call.batch
        seen = (torch.arange(call.keys) < ends[:, None])[:, None, None]
        options["attn_mask"] = seen.expand(call.batch, 1, call.queries, call.keys)
    if call.kind == "window":
        apart = torch.arange(call.queries)[:, None] - torch.arange(call.keys)
        width = int(call.seen())
        return {**options, "attn_mask": (apart >= 0) & (apart < width)}, {**options, "window": (width - 1, 0)}
    return options, options


def _gate_of_dropped_attention(tensors: Sequence[Tensor], options: dict[str, Any]) -> tuple[float, float]:
    """Without its random part, which no two packages share, it must be PyTorch's."""
    kept = {**options, "dropout_p": 0.0}
    calls = [
        partial(_called, function, tensors, kept, None)
        for function in (functional.scaled_dot_product_attention, F.scaled_dot_product_attention)
    ]
    exact = partial(_called, F.scaled_dot_product_attention, [t.double() for t in tensors], kept, None)
    return against_float64({OURS: calls[0]}, {PYTORCH: calls[1]}, exact, tensors[0].dtype)()


def linear(case: Case) -> Contest:
    """A linear layer and the activation that follows."""
    call: Linear = case.call
    dtype, options = getattr(torch, case.dtype), {"activation": call.activation}
    shapes = (call.rows, call.inputs), (call.outputs, call.inputs), (call.outputs,)
    x, weight, bias = (torch.randn(shape) for shape in shapes)
    tensors = [tensor.to(dtype) for tensor in (x, weight / math.sqrt(call.inputs), bias)]
    theirs = followed(F.linear)
    pairs = (OURS, functional.linear), (PYTORCH, theirs)
    ways = [{name: partial(_called, function, tensors, options, None)} for name, function in pairs]
    exact = partial(_called, theirs, [tensor.double() for tensor in tensors], options, None)
    return Contest(*ways, against_float64(*ways, exact, dtype), products(dtype, call.operations()))


def norm(case: Case) -> Contest:
    """A norm and the activation that follows, in both of PyTorch's layouts where there are two."""
    call: Norm = case.call
    dtype, trains = getattr(torch, case.dtype), case.mode == TRAINING
    ours = partial(_normalized, call, getattr(functional, call.function))
    theirs = partial(_normalized, call, followed(getattr(F, call.function)))
    tensors = [torch.randn(call.sizes), *(torch.randn(_affine_shape(call)) for _ in range(2))]
    x, *affine = (tensor.to(dtype) for tensor in tensors)
    layouts = {"": x}
    if call.function == "group_norm":
        layouts[CHANNELS_LAST] = x.to(memory_format=torch.channels_last)
    gradient = torch.randn_like(x) if trains else None
    gradients = dict.fromkeys(layouts, gradient)
    if trains and CHANNELS_LAST in layouts:
        gradients[CHANNELS_LAST] = gradient.to(memory_format=torch.channels_last)
    ways = [
        {name + layout: partial(_called, f, (at, *affine), {}, gradients[layout]) for layout, at in layouts.items()}
        for name, f in ((OURS, ours), (PYTORCH, theirs))
    ]
    doubled = [tensor.double() for tensor in (x, *affine)], {}, None if gradient is None else gradient.double()
    gate = against_float64(*ways, partial(_called, theirs, *doubled), dtype)
    return Contest(*ways, gate, traffic("copy", (5 if trains else 2) * x.numel() * dtype.itemsize))


def _affine_shape(call: Norm) -> tuple[int, ...]:
    return call.sizes[-1:] if call.function == "layer_norm" else call.sizes[1:2]


def _normalized(call: Norm, function: Function, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    sizes = {"group_norm": (call.groups,), "layer_norm": (_affine_shape(call),)}.get(call.function, ())
    return function(x, *sizes, weight=weight, bias=bias, activation=call.activation)


def recursion(case: Case) -> Contest:
    """`ar_recursion` against scipy and torchlpc; where each step has its own coefficients, `sample_wise_lpc`."""
    call: Recursion = case.call
    dtype, trains = getattr(torch, case.dtype), case.mode == TRAINING
    x = torch.randn(call.batch, call.length, dtype=dtype)
    coeffs = _stable(call.order).to(dtype)
    if call.varying:
        coeffs = coeffs.expand(*x.shape, call.order).contiguous()
    ours = functional.ar_recursion
    if call.varying:
        ours, coeffs = functional.sample_wise_lpc, -coeffs
    gradient = torch.randn_like(x) if trains else None
    others = {"torchlpc": peers.torchlpc(call.varying)}
    if not (trains or call.varying):
        others |= {"scipy": peers.scipy_lfilter(), "numba": peers.numba_loop()}
    there = peers.present(others)
    checked = x[:, :_CHECKED], coeffs[:, :_CHECKED] if call.varying else coeffs
    return Contest(
        {OURS: partial(_called, ours, (x, coeffs), {}, gradient)},
        {name: partial(_called, peer, (x, coeffs), {}, gradient) for name, peer in there.items()},
        partial(_gate_of_recursion, ours, peers.sample_wise(call.varying), checked, there, trains),
        absent=peers.absent(others),
    )


def _gate_of_recursion(
    ours: Function, stock: Function, tensors: tuple[Tensor, Tensor], others: dict[str, Function], trained: bool
) -> tuple[float, float]:
    """Results and gradients on the first steps, against a loop over PyTorch's operators."""
    x = tensors[0]
    errors = []
    for gradient in (None, torch.ones_like(x)):
        doubled = None if gradient is None else gradient.double()
        exact = partial(_called, stock, [tensor.double() for tensor in tensors], {}, doubled)
        ways = ({name: partial(_called, f, tensors, {}, gradient)} for name, f in ((OURS, ours), (PYTORCH, stock)))
        asked = others if trained or gradient is None else {}
        peers_here = {name: partial(_called, peer, tensors, {}, gradient) for name, peer in asked.items()}
        errors.append(against_float64(*ways, exact, x.dtype, peers_here)())
    return max(error for error, _ in errors), max(own for _, own in errors)


def _stable(order: int) -> Tensor:
    """(order,) coefficients whose poles lie within 0.95, from reflection coefficients that shrink."""
    coeffs = torch.zeros(0, dtype=torch.float64)
    for index in range(order):
        reflection = 0.5 * (-1) ** index / (index + 1)
        coeffs = torch.cat([coeffs - reflection * coeffs.flip(0), torch.tensor([reflection], dtype=torch.float64)])
    return coeffs * 0.95 ** torch.arange(1, order + 1)


def reparameterize(case: Case) -> Contest:
    """z and its KL, against the formula as PyTorch's users write it."""
    call: Shape = case.call
    dtype, trains = getattr(torch, case.dtype), case.mode == TRAINING
    mu = torch.randn(call.sizes).to(dtype)
    logvar = (torch.randn(call.sizes) / 2 - 1).to(dtype)
    gradient = torch.randn(call.sizes).to(dtype)

    def run(function: Function) -> Sequence[Tensor]:
        if not trains:
            with torch.no_grad():
                return function(mu, logvar)
        asked = leaves(mu, logvar)
        z, kl = function(*asked)
        return torch.autograd.grad((z * gradient).sum() + kl.float().mean(), asked)

    def gate() -> tuple[float, float]:
        z, kl = functional.reparameterize_kl(mu, logvar)
        wanted = _kl(mu.double(), logvar.double())
        errors = relative_error(kl, wanted), relative_error(_kl(mu, logvar), wanted)
        if not errors[0] <= max(2 * errors[1], 1e-5 if dtype == torch.float32 else 2e-2):
            raise ParityError(f"kl: error {errors[0]:.1e} against float64, PyTorch's own is {errors[1]:.1e}")
        _check_normal((z.double() - mu.double()) / (logvar.double() / 2).exp())
        return errors

    streams = 8 if trains else 3
    ways = {OURS: partial(run, functional.reparameterize_kl)}, {PYTORCH: partial(run, _sample_and_kl)}
    return Contest(*ways, gate, traffic("copy", streams * call.count * dtype.itemsize))


def _kl(mu: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * (1 + logvar - mu * mu - logvar.exp()).flatten(1).sum(1)


def _sample_and_kl(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    return mu + torch.randn_like(mu) * torch.exp(0.5 * logvar), _kl(mu, logvar)


def _check_normal(noise: Tensor) -> None:
    within = _SIGMAS / math.sqrt(noise.numel()) + 0.01
    if not (abs(noise.mean()) < within and abs(noise.std() - 1) < within):
        raise ParityError(f"noise: mean {noise.mean():.2g} and deviation {noise.std():.2g}, expected 0 and 1")


def dropout(case: Case) -> Contest:
    """Dropout and its gradient."""
    call: Shape = case.call
    dtype, probability = getattr(torch, case.dtype), call.probability
    x, gradient = torch.randn(call.sizes).to(dtype), torch.randn(call.sizes).to(dtype)
    options = {"p": probability, "training": True}

    def gate() -> tuple[float, float]:
        (asked,) = leaves(x)
        y = functional.dropout(asked, **options)
        kept = y != 0
        (back,) = derivatives(y, (asked,), gradient)
        share = kept.double().mean()
        if not abs(share - (1 - probability)) < _SIGMAS * math.sqrt(probability * (1 - probability) / x.numel()):
            raise ParityError(f"dropout: keeps {share:.4f} of its input, expected {1 - probability}")
        scale = kept.double() / (1 - probability)
        errors = [relative_error(found, wanted.double() * scale) for found, wanted in ((y, x), (back, gradient))]
        if not max(errors) <= (6e-3 if dtype == torch.bfloat16 else 2e-6):
            raise ParityError(f"dropout: error {max(errors):.1e} against float64")
        return max(errors), 0.0

    return Contest(
        {OURS: partial(_called, functional.dropout, (x,), options, gradient)},
        {PYTORCH: partial(_called, F.dropout, (x,), options, gradient)},
        gate,
        traffic("copy", 4 * x.numel() * dtype.itemsize),
    )
