"""`aigc-fast explain`: which backend would run a call, and why not the others."""

from __future__ import annotations

import ast
import re
from typing import Annotated, Any

import torch
import typer

from aigc_fast import functional
from aigc_fast.cli.app import console
from aigc_fast.cli.options import Device, chosen_device, with_default
from aigc_fast.diagnostics import explain as explain_call
from aigc_fast.errors import UserError
from aigc_fast.models import GPT2, IdTokenizer
from aigc_fast.ops.examples import Call, examples
from aigc_fast.runtime.backends import Explanation

DECODE = "decode"
"""What `explain` tells of besides functions: how a model generates."""

_SHAPE = re.compile(r"\d+(x\d+)+|\d+x")


def typical(name: str) -> Explanation:
    """The explanation of a function's typical call, or of how a small decoder generates."""
    args, kwargs = _typical_call(name)
    return explain_call(name, *args, **kwargs)


def _typical_call(name: str) -> Call:
    return _small_decoder() if name == DECODE else examples()[name]()


def _small_decoder() -> Call:
    model = GPT2(tokenizer=IdTokenizer(16, 0, 0), hidden=8, num_layers=1, num_heads=1, context=16)
    return (model.to(torch.get_default_device()), torch.ones(1, 2, dtype=torch.int64)), {}


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _dtype(text: str) -> torch.dtype:
    found = getattr(torch, text, None)
    if not isinstance(found, torch.dtype):
        raise UserError(f"dtype={text!r}: expected a dtype of torch, as float32 or bfloat16")
    return found


def parse_call(tokens: list[str]) -> Call:
    """Turns words of the command line to a call's arguments.

    `16x64x8x8` is a tensor of that shape, `8x` one of 8 elements; `name=value` a keyword argument; anything else a
    number or a string. `dtype=bfloat16` sets the tensors' dtype.

    Raises:
        UserError: on an unknown dtype.
    """
    dtype = torch.float32
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for token in tokens:
        name, equals, text = token.partition("=")
        if equals and name == "dtype":
            dtype = _dtype(text)
        elif equals:
            kwargs[name] = _value(text)
        else:
            args.append([int(n) for n in token.split("x") if n] if _SHAPE.fullmatch(token) else _value(token))
    return tuple(torch.zeros(arg, dtype=dtype) if isinstance(arg, list) else arg for arg in args), kwargs


def explain(
    function: Annotated[
        str, typer.Argument(help="A function of aigc_fast.functional, as conv_transpose2d, or decode.")
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            help=with_default("Shapes such as 16x64x8x8, and name=value.", "a typical call"), show_default=False
        ),
    ] = None,
    device: Device = None,
) -> None:
    """Say which backend would run a call, and why the others would not.

    Example:  aigc-fast explain conv_transpose2d 16x64x8x8 64x32x4x4 stride=2 padding=1
    """
    known = sorted([*functional.__all__, DECODE])
    if function not in known:
        raise UserError(f"function {function!r} is unknown: expected one of {', '.join(known)}")
    if function == DECODE and arguments:
        raise UserError("decode takes a model, not shapes: in Python, aigc_fast.explain('decode', model, ids)")
    with chosen_device(device):
        args, kwargs = parse_call(arguments) if arguments else _typical_call(function)
    try:
        console.print(str(explain_call(function, *args, **kwargs)), soft_wrap=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{function} does not take this call: {error}") from None
