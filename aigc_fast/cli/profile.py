"""`aigc-fast profile`: where a model's or a script's time goes, and what would be faster."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from aigc_fast.cli.app import console
from aigc_fast.cli.options import Device, Overwrite, chosen_device, new_files, with_default
from aigc_fast.cli.running import Stepping, run_script, script_of
from aigc_fast.errors import UserError
from aigc_fast.profiling import watch

_STEPS, _STEPS_OF_MODELS = 20, 5


def profile(
    subject: Annotated[
        str, typer.Argument(metavar="SCRIPT|MODEL", help="A Python script to run, as it is, or a model's name.")
    ],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="What the script is called with, after --.", show_default=False)
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=0,
            help=with_default(
                "Steps of optimizers, after a first one that warms up; then a script is left. 0 lets it end.",
                f"{_STEPS}; of a model {_STEPS_OF_MODELS}",
            ),
            show_default=False,
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write a Chrome trace, modules as spans: for ui.perfetto.dev.", show_default=False
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page.", show_default=False)] = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Show where the time goes, module by module, which have a faster twin, and what it gains, measured on the spot.

    A script is run as Python would run it, without changes; its models are watched as they are called. --device is for
    models; a script chooses its own.

    Example:  aigc-fast profile train.py -- --epochs 1
    """
    new_files(overwrite, {"--trace": trace, "--html": html})
    script = script_of(subject)
    if script is None:
        stepping = Stepping(subject, chosen_device(device))
        run, most = partial(_endless, stepping), steps or _STEPS_OF_MODELS
    else:
        run, most = partial(run_script, script, arguments or []), _STEPS if steps is None else steps or None
    try:
        found = watch(subject, run, most, trace, html)
    except ValueError as error:
        raise UserError(str(error)) from None
    console.print(found)


def _endless(stepping: Stepping) -> None:
    while True:
        stepping.step()
