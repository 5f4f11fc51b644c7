"""`aigc-fast provenance`: what a generated file says of itself, or a record beside it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from aigc_fast.errors import UserError
from aigc_fast.media import read_provenance

File = Annotated[Path, typer.Argument(help="A PNG, WAV, text, APNG, GIF or MP4 file that aigc-fast wrote.")]


def provenance(file: File) -> None:
    """Show which model, version, seed and command made a PNG, a WAV, a text or a video file."""
    try:
        text = json.dumps(asdict(read_provenance(file)), indent=2, ensure_ascii=False)
    except RecursionError:
        raise UserError(f"{file}: the record of aigc_fast is nested too deep to be shown") from None
    typer.echo(text)
