"""`aigc-fast provenance`: what a generated PNG says of itself."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from aigc_fast.generation import read_provenance


def provenance(file: Annotated[Path, typer.Argument(help="A PNG that aigc-fast wrote.")]) -> None:
    """Show which model, version, seed and command made a PNG."""
    typer.echo(json.dumps(asdict(read_provenance(file)), indent=2, ensure_ascii=False))
