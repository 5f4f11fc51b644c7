"""The command line `aigc-fast`: one module per command."""

from __future__ import annotations

from typing import Annotated

import typer

from aigc_fast import __version__
from aigc_fast.cli import demo, doctor, evaluate, explain, generate, provenance, train
from aigc_fast.cli.app import Group, console

app = typer.Typer(
    name="aigc-fast",
    cls=Group,
    help="Train models of images and sounds, generate with them and measure both, on kernels that make PyTorch faster.",
    epilog="Start with:  aigc-fast demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (
    demo.demo,
    train.train,
    generate.generate,
    evaluate.evaluate,
    provenance.provenance,
    doctor.doctor,
    explain.explain,
):
    app.command()(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        console.print(f"aigc-fast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the `aigc-fast` script."""
    app(prog_name="aigc-fast")
