"""The record of what was generated, by what and how to generate it again; and PNG files that carry it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

import aigc_fast
from aigc_fast.data.pictures import MAX_PIXELS
from aigc_fast.data.pillow import DAMAGED, decode, opened, reading
from aigc_fast.errors import UserError
from aigc_fast.files import atomic
from aigc_fast.generation.grid import to_uint8

LABEL = "AI-generated image"
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
RECORD = "aigc_fast"

_XMP_KEY = "XML:com.adobe.xmp"
_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{DIGITAL_SOURCE_TYPE}"/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)


class Describable(Protocol):
    """A model that can be named and built again."""

    name: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Provenance:
    """How an image, a sound, a text or a clip was generated.

    Attributes:
        model: the model's registered name.
        seed: the seed of the draw; None if nothing was random.
        settings: everything else that is needed to generate it again (command, class, count, model file, its digest).
        version: the package's version.
        torch: PyTorch's version.
    """

    model: str
    seed: int | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    version: str = aigc_fast.__version__
    torch: str = field(default_factory=lambda: str(torch.__version__))


def provenance_of(model: Describable, seed: int | None, **settings: Any) -> Provenance:
    """The provenance of what a model generates.

    Args:
        model: the model, whose name and configuration are recorded.
        seed: the seed of the draw; None if nothing was random.
        **settings: what else to record, JSON-able.

    Returns:
        The record, for functions such as `write_png`.
    """
    return Provenance(model.name, seed, {"config": getattr(model, "brief_config", model.config), **settings})


def to_record(provenance: Provenance) -> str:
    """One line of ASCII JSON; `from_record` reads it."""
    return json.dumps(asdict(provenance), sort_keys=True)


def from_record(text: str | None, path: str | os.PathLike[str]) -> Provenance:
    """What `to_record` wrote.

    Args:
        text: the record; None where the file has none.
        path: the file that it comes from, for the error.

    Raises:
        UserError: when there is no record, or none that is whole.
    """
    if text is None:
        raise UserError(f"{path} carries no record of aigc_fast: it was made by something else, or edited")
    try:
        record = json.loads(text)
        return Provenance(**{name: record[name] for name in ("model", "seed", "settings", "version", "torch")})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: the record of aigc_fast is damaged ({error})") from None


def software_of(provenance: Provenance) -> str:
    """What a file names as the software that made it."""
    return f"{RECORD} {provenance.version}"


def png_chunks(provenance: Provenance, label: str = LABEL) -> PngImagePlugin.PngInfo:
    """The metadata of a PNG file that was generated; `label` says what it shows."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Description", label)
    chunks.add_text("Software", software_of(provenance))
    chunks.add_text("Source", f"{provenance.model}, seed {provenance.seed}")
    chunks.add_text(RECORD, to_record(provenance))
    chunks.add_itxt(_XMP_KEY, _XMP)
    return chunks


def write_png(path: str | os.PathLike[str], image: Tensor, provenance: Provenance, *, scale: int = 1) -> Path:
    """Writes one image with its provenance in the file's own metadata; whole, or not at all.

    The file carries PNG text chunks (`Description`, `Software`, `Source` and a JSON record under `aigc_fast`) and
    IPTC's digital source type "trained algorithmic media" as XMP, which image viewers and platforms look for.

    Args:
        path: the file to write; its folder must exist.
        image: (C, H, W) in [-1, 1], C = 1 or 3.
        provenance: what to record.
        scale: each pixel becomes a square of this side.

    Returns:
        The path of the file.

    Raises:
        UserError: if the file can't be written.
        ValueError: for an image of another shape.
    """
    picture = Image.fromarray(to_uint8(image))
    if scale != 1:
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    with atomic(path) as temporary:
        picture.save(temporary, "PNG", pnginfo=png_chunks(provenance))
    return Path(path)


def read_provenance(path: str | os.PathLike[str]) -> Provenance:
    """Reads what `write_png` recorded.

    Args:
        path: an image file.

    Returns:
        The record.

    Raises:
        UserError: if the file is not an image or has no record of this package.
    """
    try:
        with reading(MAX_PIXELS) as said, opened(path) as picture:
            decode(picture, said)
            text = getattr(picture, "text", {}).get(RECORD)
    except DAMAGED as error:
        raise UserError(f"cannot read image {path}: {getattr(error, 'strerror', None) or error}") from None
    return from_record(text, path)
