"""Text files with their provenance beside them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

from aigc_fast.errors import UserError
from aigc_fast.files import atomic
from aigc_fast.generation.provenance import DIGITAL_SOURCE_TYPE, Provenance, from_record, software_of, to_record

LABEL = "AI-generated text"
RECORD_SUFFIX = ".txt.json"
_CHECKSUM = "sha256"


def record_path(path: str | os.PathLike[str]) -> Path:
    """Where the record of a text file is: story.txt.json of story.txt."""
    return Path(path).with_suffix(RECORD_SUFFIX)


def write_text(path: str | os.PathLike[str], text: str, provenance: Provenance) -> Path:
    """Writes a text file, in UTF-8, and its provenance beside it; whole, or not at all.

    Text files have no metadata: the record is a JSON file of the same name with .json appended. It holds the text's
    SHA-256 among the settings, the label "AI-generated text" and IPTC's digital source type.

    Args:
        path: the file to write; its folder must exist.
        text: the text.
        provenance: what to record.

    Returns:
        The path of the text file.

    Raises:
        UserError: if the files can't be written.
    """
    content = text.encode()
    settings = {**provenance.settings, _CHECKSUM: hashlib.sha256(content).hexdigest()}
    facts = json.loads(to_record(dataclasses.replace(provenance, settings=settings)))
    about = {"description": LABEL, "software": software_of(provenance), "digital_source_type": DIGITAL_SOURCE_TYPE}
    record = json.dumps({**about, **facts}, indent=2)
    # The record is there before the text is: no text stands without.
    with atomic(path) as temporary:
        temporary.write_bytes(content)
        with atomic(record_path(path)) as beside:
            beside.write_text(f"{record}\n", encoding="utf-8")
    return Path(path)


def read_text_provenance(path: str | os.PathLike[str]) -> Provenance:
    """Reads what `write_text` recorded.

    Args:
        path: the text file, or its record.

    Returns:
        The record.

    Raises:
        UserError: if there is no record, or the text has changed since.
    """
    if Path(path).name.lower().endswith(RECORD_SUFFIX):
        return from_record(_read(path).decode(errors="replace"), path)
    content, beside = _read(path), record_path(path)
    if not beside.exists():
        raise UserError(f"{path} has no record of aigc_fast beside it, {beside.name}: it was made by something else")
    found = from_record(_read(beside).decode(errors="replace"), beside)
    if not isinstance(found.settings, dict) or found.settings.get(_CHECKSUM) != hashlib.sha256(content).hexdigest():
        raise UserError(f"{path}: differs from the text that {beside.name} describes: it was edited")
    return found


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
