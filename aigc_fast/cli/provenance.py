"""`aigc-fast provenance`: what a generated PNG or WAV file says of itself."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from aigc_fast.errors import UserError
from aigc_fast.generation import read_provenance
from aigc_fast.media import provenance_readers


def provenance(file: Annotated[Path, typer.Argument(help="A PNG or WAV file that aigc-fast wrote.")]) -> None:
    """Show which model, version, seed and command made a PNG or a WAV file."""
    read = provenance_readers().get(file.suffix.lower(), read_provenance)
    try:
        text = json.dumps(asdict(read(file)), indent=2, ensure_ascii=False)
    except RecursionError:
        raise UserError(f"{file}: the record of aigc_fast is nested too deep to be shown") from None
    typer.echo(text)
