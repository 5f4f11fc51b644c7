"""Files that lie, made by a seed from valid ones that the package wrote: each is read, or refused in one line.

`READERS` holds for each kind of file how a valid one is made and how it is read; tests/test_hostile.py reads a fixed
number of each, and `python tests/hostile.py MINUTES` goes on with other ones until the time is up or something is
found. What is found is left in the working folder, to be looked at.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import shutil
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decoder_files import shard, write_gguf
from memory import forget_peak, peak
from PIL import Image

from aigc_fast.bench.comparison import compare
from aigc_fast.bench.page import page_of
from aigc_fast.bench.runner import Result
from aigc_fast.bench.summary import by_op
from aigc_fast.data import load, load_pairs, load_sounds, load_text, load_videos
from aigc_fast.data.audio import read_wav
from aigc_fast.errors import UserError
from aigc_fast.generation.provenance import Provenance, read_provenance, write_png
from aigc_fast.generation.text import read_text_provenance, write_text
from aigc_fast.generation.video import read_video_provenance, write_video
from aigc_fast.generation.wav import read_wav_provenance, write_wav
from aigc_fast.media import medium_of
from aigc_fast.media.shards import Order, Shards
from aigc_fast.models import GPT2, BPETokenizer, CharTokenizer, DecoderModel, IdTokenizer, NGram, create
from aigc_fast.models import load as load_model
from aigc_fast.models import save as save_model
from aigc_fast.models.storage import read_tensors, write_tensors
from aigc_fast.models.text.arpa import read_arpa
from aigc_fast.training.checkpoints import read_newest_checkpoint

# What reading a file of some kilobytes may take.
MOST_BYTES = 400_000_000
TEXTS = ["The cat sat on the mat. The dog sat on the log.\n" * 5, "Ein Bär, 熊 🐻 und 12 Hunde.\n" * 3]
GREAT = (0, 1, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
NUMBERS = (b"0", b"-1", b"1e999", b"2147483648", b"9223372036854775808", b"1" + b"0" * 400, b"nan", b"0.5", b"1e-320")
VALUES = (b"null", b"[]", b"{}", b'""', b"true", b"[" * 50_000, b'"\\ud800"', b"{" * 3, *NUMBERS)
Random = random.Random


def _bits(content: bytearray, source: Random) -> None:
    for _ in range(source.choice([1, 1, 2, 8])):
        content[source.randrange(len(content))] ^= 1 << source.randrange(8)


def _bits_of_head(content: bytearray, source: Random) -> None:
    content[source.randrange(min(len(content), 64))] ^= 1 << source.randrange(8)


def _cut(content: bytearray, source: Random) -> None:
    del content[source.randrange(len(content)) :]


def _removed(content: bytearray, source: Random) -> None:
    begin = source.randrange(len(content))
    del content[begin : begin + source.choice([1, 2, 4, 50])]


def _doubled(content: bytearray, source: Random) -> None:
    begin, length = source.randrange(len(content)), source.choice([1, 4, 100])
    content[begin:begin] = content[begin : begin + length]


def _noise(content: bytearray, source: Random) -> None:
    begin = source.randrange(len(content))
    content[begin : begin + 16] = source.randbytes(source.choice([1, 16, 40]))


def _great(content: bytearray, source: Random) -> None:
    """A count, a size or an offset of binary formats."""
    width, order = source.choice([1, 2, 4, 8]), source.choice(["little", "big"])
    if len(content) < width:
        return
    begin = source.randrange(min(len(content), source.choice([64, 1 << 20])) - width + 1)
    content[begin : begin + width] = (source.choice(GREAT) % (1 << 8 * width)).to_bytes(width, order)


def _replaced(pattern: bytes, others: tuple[bytes, ...], content: bytearray, source: Random) -> None:
    found = [match.span(1) for match in re.finditer(pattern, content)]
    if found:
        begin, end = source.choice(found)
        content[begin:end] = source.choice(others)


def _digit(content: bytearray, source: Random) -> None:
    """A number of as many digits: whatever says how long the text is stays right."""
    found = [match.start() for match in re.finditer(rb"\d", content)]
    if found:
        content[source.choice(found)] = source.choice(b"0123456789-")


CHANGES: tuple[Callable[[bytearray, Random], None], ...] = (
    *(_bits, _bits_of_head, _cut, _removed, _doubled, _noise, _great, _great, _digit),
    partial(_replaced, rb"(-?\d+(?:\.\d+)?)", NUMBERS),
    partial(_replaced, rb":\s*(\"[^\"]*\"|-?[\d.eE+-]+|true|false|null)", VALUES),
    partial(_replaced, rb"(\n)", (b"", b"\n\n", b"\r", b"\0\n", b"\t\n")),
)


def changed(content: bytes, source: Random) -> bytes:
    """A few changes of a file's content."""
    new = bytearray(content)
    for _ in range(source.choice([1, 1, 1, 2, 3])):
        if new:
            source.choice(CHANGES)(new, source)
    return bytes(new)


def _of_bytes(path: Path, source: Random) -> None:
    path.write_bytes(changed(path.read_bytes(), source))


def _with_right_checksums(path: Path, source: Random) -> None:
    """A PNG whose chunks' checksums are right, so that what they hold is believed."""
    if path.suffix not in (".png", ".apng"):
        return _of_bytes(path, source)
    content, at, chunks = path.read_bytes(), 8, []
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    which = source.randrange(len(chunks))
    kind, body = chunks[which]
    if kind == b"IDAT" and source.random() < 0.5:
        body = zlib.compress(changed(zlib.decompress(body), source))
    else:
        body = changed(body, source)
    chunks[which] = kind, body
    if source.random() < 0.2:
        source.shuffle(chunks)
    path.write_bytes(
        content[:8]
        + b"".join(struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    )
    return None


def _with_right_digest(path: Path, source: Random) -> None:
    """A file of tensors whose metadata lies, under a checksum that is right."""
    tensors, metadata = read_tensors(path)
    try:
        told = json.loads(changed(json.dumps(metadata).encode(), source))
    except (ValueError, RecursionError):
        return _of_bytes(path, source)
    if isinstance(told, dict):
        path.unlink()
        try:
            write_tensors(path, tensors, told)
        except (ValueError, UnicodeError):  # no such text
            path.write_bytes(b"")
    return None


def _zipped(path: Path, source: Random) -> None:
    if path.suffix == ".gz" and source.random() < 0.7:
        path.write_bytes(gzip.compress(changed(gzip.decompress(path.read_bytes()), source)))
    else:
        _of_bytes(path, source)


@dataclass(frozen=True)
class Reader:
    """A kind of file.

    Attributes:
        make: writes valid files into a folder.
        read: reads them; None for what it does not need.
        change: changes one of them.
        writes: whether to read is to write beside them too.
    """

    make: Callable[[Path], object]
    read: Callable[[Path], object]
    change: Callable[[Path, Random], None] = _of_bytes
    writes: bool = False


RECORD = Provenance("vae", 3, {"count": 2, "command": "aigc-fast generate images"})


def _vae() -> Any:
    return create("vae", image_shape=(1, 4, 4), hidden=3, latent_dim=2, num_classes=3)


def _checkpoints(folder: Path) -> None:
    for step in (1, 2):
        record = {"step": step, "config": {"a": 1}, "data": {}, "training": {}, "averages": {"loss": [0.5, 1]}}
        tensors = {"random.cpu": torch.get_rng_state(), "model.weight": torch.zeros(3, 2)}
        write_tensors(folder / f"step-{step:08d}.safetensors", tensors, record)


def _decoder() -> GPT2:
    tokenizer = BPETokenizer.train(TEXTS, 280)
    return GPT2(tokenizer=tokenizer, hidden=12, num_layers=2, num_heads=2, context=16)


def _split_decoder(folder: Path) -> None:
    _decoder().save_pretrained(folder)
    shard(folder)


def _llama() -> Any:
    from aigc_fast.models import Llama

    sizes = {"hidden": 12, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "context": 16, "units": 72}
    return Llama(tokenizer=IdTokenizer(262, 1, 0), **sizes)


def _gguf(folder: Path) -> None:
    model = _decoder()
    write_gguf(folder / "a.gguf", model, model.tokenizer)


def _gguf_of_pieces(folder: Path) -> None:
    pieces = {"<s>": 0.0, "</s>": 0.0, "<unk>": 0.0}
    pieces |= {f"<0x{byte:02X}>": 0.0 for byte in range(256)}
    pieces |= {"▁a": -1.0, "▁": -2.0, "a": -3.0}
    write_gguf(folder / "a.gguf", _llama(), pieces=pieces)


def _pictures(folder: Path) -> None:
    pixels = np.arange(3 * 12 * 10, dtype=np.uint8).reshape(12, 10, 3)
    Image.fromarray(pixels).save(folder / "a.jpg")
    Image.fromarray(pixels).save(folder / "b.png")
    Image.fromarray(pixels[..., 0]).save(folder / "c.png", transparency=4)
    Image.fromarray(pixels).convert("P").save(folder / "d.gif")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 256).save(folder / "e.png")
    Image.fromarray(pixels).save(folder / "f.tiff")


def _one(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def _clip(name: str, folder: Path) -> None:
    write_video(folder / name, torch.rand(4, 3, 8, 8) * 2 - 1, 10, RECORD)


def _read_clip(folder: Path) -> None:
    _each(
        lambda: load_videos(_one(folder), size=8, frames=2),
        lambda: read_video_provenance(_one(folder)),
    )


def _each(*reads: Callable[[], object]) -> None:
    """Every one, whatever the others say."""
    refused = None
    for read in reads:
        try:
            read()
        except UserError as error:
            check_message(error)
            refused = error
    if refused is not None:
        raise refused


def _sounds(folder: Path) -> None:
    write_wav(folder / "a.wav", torch.rand(1, 900) - 0.5, 8000, RECORD)


def _read_sounds(folder: Path) -> None:
    path = folder / "a.wav"
    _each(
        lambda: read_wav(path),
        lambda: read_wav_provenance(path),
        lambda: load_sounds(folder, seconds=0.05, sample_rate=8000),
    )


def _arrays(folder: Path) -> None:
    np.savez_compressed(folder / "a.npz", images=np.zeros((5, 6, 6), np.uint8), labels=np.arange(5))


def _idx(folder: Path) -> None:
    for name, shape in (("train-images-idx3-ubyte.gz", (5, 6, 6)), ("train-labels-idx1-ubyte.gz", (5,))):
        header = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
        (folder / name).write_bytes(gzip.compress(header + bytes(int(np.prod(shape)))))


def _columns(folder: Path) -> None:
    (folder / "a.tsv").write_text("source\ttarget\n" + "".join(f"word {i}\tWort {i}\n" for i in range(9)), "utf-8")


def _lines_of_json(folder: Path) -> None:
    lines = [json.dumps({"source": f"word {i}", "target": f"Wort {i}"}) for i in range(9)]
    (folder / "a.jsonl").write_text("\n".join(lines), "utf-8")


def _list_of_json(folder: Path) -> None:
    pairs = [{"source": f"word {i}", "target": f"Wort {i}"} for i in range(9)]
    (folder / "a.json").write_text(json.dumps(pairs), "utf-8")


def _documents(folder: Path) -> None:
    for index, text in enumerate(TEXTS):
        (folder / f"{index}.txt").write_text(text, "utf-8")


def _shards(folder: Path) -> Shards:
    torch.manual_seed(0)
    model = _vae()
    return Shards(folder, model, medium_of(model), Order(6, size=50))


def _write_shards(folder: Path) -> None:
    shards = _shards(folder)
    shards.write(shards.missing())
    shards.write_index()


def _read_shards(folder: Path) -> None:
    shards = _shards(folder)
    if not shards.missing():
        shards.write_index()


def _bench(folder: Path) -> None:
    source = Path(__file__).parent.parent / "bench" / "results"
    smallest = min(source.glob("*.json"), key=lambda path: path.stat().st_size)
    found = json.loads(smallest.read_text("utf-8"))
    (folder / "a.json").write_text(json.dumps({**found, "rows": found["rows"][:3]}), "utf-8")


def _read_bench(folder: Path) -> None:
    result = Result.read(folder / "a.json")
    page_of(result, compare(result, result))
    by_op(result)


def _picture_of_ours(folder: Path) -> None:
    write_png(folder / "a.png", torch.zeros(1, 5, 5), RECORD)


def _text_of_ours(folder: Path) -> None:
    write_text(folder / "a.txt", TEXTS[0], RECORD)


READERS: dict[str, Reader] = {
    "model": Reader(lambda folder: save_model(_vae(), folder / "a"), lambda folder: load_model(folder / "a")),
    "model, signed": Reader(
        lambda folder: save_model(_vae(), folder / "a"), lambda folder: load_model(folder / "a"), _with_right_digest
    ),
    "n-grams, signed": Reader(
        lambda folder: save_model(NGram(tokenizer=CharTokenizer.of(TEXTS), order=3).fit(TEXTS), folder / "a"),
        lambda folder: load_model(folder / "a"),
        _with_right_digest,
    ),
    "checkpoints": Reader(_checkpoints, read_newest_checkpoint),
    "checkpoints, signed": Reader(_checkpoints, read_newest_checkpoint, _with_right_digest),
    "Hugging Face": Reader(lambda folder: _decoder().save_pretrained(folder), DecoderModel.from_pretrained),
    "Hugging Face, parts": Reader(_split_decoder, DecoderModel.from_pretrained),
    "GGUF": Reader(_gguf, lambda folder: DecoderModel.from_pretrained(folder / "a.gguf")),
    "GGUF of pieces": Reader(_gguf_of_pieces, lambda folder: DecoderModel.from_pretrained(folder / "a.gguf")),
    "ARPA": Reader(
        lambda folder: NGram(tokenizer=CharTokenizer.of(TEXTS), order=3).fit(TEXTS).to_arpa(folder / "a.arpa"),
        lambda folder: read_arpa(folder / "a.arpa"),
    ),
    "pictures": Reader(_pictures, lambda folder: load(folder, size=8), _with_right_checksums),
    "picture of ours": Reader(
        _picture_of_ours, lambda folder: read_provenance(folder / "a.png"), _with_right_checksums
    ),
    "text of ours": Reader(_text_of_ours, lambda folder: read_text_provenance(folder / "a.txt")),
    "WAV": Reader(_sounds, _read_sounds),
    "GIF": Reader(partial(_clip, "a.gif"), _read_clip),
    "APNG": Reader(partial(_clip, "a.apng"), _read_clip, _with_right_checksums),
    "NumPy": Reader(_arrays, lambda folder: load(folder / "a.npz")),
    "IDX": Reader(_idx, load, _zipped),
    "TSV": Reader(_columns, lambda folder: load_pairs(folder / "a.tsv")),
    "JSONL": Reader(_lines_of_json, lambda folder: load_pairs(folder / "a.jsonl")),
    "JSON": Reader(_list_of_json, lambda folder: load_pairs(folder / "a.json")),
    "text": Reader(_documents, load_text),
    "shards": Reader(_write_shards, _read_shards, writes=True),
    "bench": Reader(_bench, _read_bench),
}


def check_message(error: UserError) -> None:
    text = str(error)
    assert text.strip(), "an error that says nothing"
    assert len(text.splitlines()) == 1, f"an error of several lines: {text!r}"
    assert len(text) < 2000, f"an error of {len(text)} characters: {text[:300]}"


def check(name: str, valid: Path, place: Path, seed: int) -> bool:
    """Whether a changed file is read; fails where it is neither read nor refused.

    Args:
        name: of `READERS`.
        valid: the folder that its `make` filled.
        place: where to work; nothing is there yet.
        seed: of the change.
    """
    reader, source = READERS[name], Random(f"{name} {seed}")
    shutil.copytree(valid, place)
    reader.change(source.choice(sorted(path for path in place.iterdir() if path.is_file())), source)
    before = {path: path.stat().st_size for path in place.rglob("*")}
    forget_peak()
    began = peak()
    try:
        reader.read(place)
        done = True
    except UserError as error:
        check_message(error)
        done = False
    assert peak() - began < MOST_BYTES, f"{name} {seed}: {(peak() - began) / 1e6:.0f} MB"
    if not reader.writes:
        assert {path: path.stat().st_size for path in place.rglob("*")} == before, f"{name} {seed}: wrote beside"
    return done


def main(minutes: float) -> None:
    """Reads until the time is up."""
    end, tried, read = time.monotonic() + 60 * minutes, 0, 0
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as place:
        valid = Path(place) / "valid"
        for index, reader in enumerate(READERS.values()):
            (valid / str(index)).mkdir(parents=True)
            reader.make(valid / str(index))
        for seed in count(time.time_ns()):
            for index, name in enumerate(READERS):
                work = Path(place) / "changed"
                try:
                    read += check(name, valid / str(index), work, seed)
                except BaseException:
                    kept = Path("out") / "hostile"
                    shutil.copytree(work, kept, dirs_exist_ok=True)
                    print(f"{name}, seed {seed}: left in {kept}")
                    raise
                shutil.rmtree(work)
                tried += 1
            if time.monotonic() > end:
                print(f"{tried} files of {len(READERS)} kinds, {read} read and {tried - read} refused: nothing found")
                return


if __name__ == "__main__":
    main(float(sys.argv[1]))
