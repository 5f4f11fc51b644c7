"""`aigc-fast tune`: measure which way is faster on this machine, and remember it."""

from __future__ import annotations

from typing import Annotated

import torch
import typer
from rich.table import Table

from aigc_fast import functional
from aigc_fast.cli.app import console
from aigc_fast.cli.options import with_default
from aigc_fast.cli.running import Stepping, run_script, script_of
from aigc_fast.ops.examples import examples
from aigc_fast.runtime import tuning
from aigc_fast.wording import counted

_EXAMPLES = ("conv", "scaled_dot_product_attention")


def _tune_examples() -> None:
    """Runs the typical calls, and their gradients."""
    for name, call in examples().items():
        if not name.startswith(_EXAMPLES):
            continue
        for trained in (False, True):
            args, kwargs = call()
            args = [arg.requires_grad_(trained) if isinstance(arg, torch.Tensor) else arg for arg in args]
            output = getattr(functional, name)(*args, **kwargs)
            if trained:
                output.sum().backward()


def _tell(before: dict[str, tuning.Measured]) -> None:
    found = {call: times for call, times in tuning.measurements().items() if call not in before}
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("ours, ms", "PyTorch's, ms", "kept", "call"):
        table.add_column(title, justify="right" if "ms" in title else "left", overflow="fold")
    for call, times in sorted(found.items()):
        table.add_row(f"{times.ours:.3g}", f"{times.pytorchs:.3g}", "ours" if times.is_ours else "PyTorch's", call)
    if found:
        console.print(table)
    kept = sum(times.is_ours for times in found.values())
    console.print(
        f"{counted(len(found), 'calls')} measured, {kept} of them ours; {len(before)} known before. {tuning.path()}",
        soft_wrap=True,
    )


def tune(
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL|SCRIPT]",
            help=with_default("A model's name, or a Python script to run.", "typical calls"),
            show_default=False,
        ),
    ] = None,
    arguments: Annotated[
        list[str] | None, typer.Argument(help="What the script is called with.", show_default=False)
    ] = None,
    forget: Annotated[bool, typer.Option("--forget", help="First drop what was measured on this machine.")] = False,
) -> None:
    """Measure convolutions and attention by our kernels and by PyTorch's, and keep the faster way for each call.

    What is found goes into a small file in your cache folder, and holds for this processor, number of threads, and
    versions. AIGC_FAST_TUNE=1 does the same in any program.

    Example:  aigc-fast tune dcgan
    """
    script = script_of(subject) if subject else None
    if forget:
        tuning.forget()
    before = tuning.measurements()
    with tuning.tuning():
        if script is not None:
            run_script(script, arguments or [])
        elif subject is not None:
            stepping = Stepping(subject)
            stepping.step()
            stepping.draw()
        else:
            _tune_examples()
    _tell(before)
