"""Models in GGUF files, by the `gguf` package's reader: dequantised, with transformers' names and order of weights."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aigc_fast.errors import UserError
from aigc_fast.models.text.pretrained import Facts, Source
from aigc_fast.models.text.subwords import BPETokenizer, byte_level, library
from aigc_fast.models.text.tokenizers import Tokenizer

log = logging.getLogger("aigc_fast")

_NAMES = {
    "llama": {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "output": "lm_head",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    },
    "gpt2": {
        "token_embd": "transformer.wte",
        "position_embd": "transformer.wpe",
        "output_norm": "transformer.ln_f",
        "output": "lm_head",
        "attn_norm": "ln_1",
        "ffn_norm": "ln_2",
        "attn_qkv": "attn.c_attn",
        "attn_output": "attn.c_proj",
        "ffn_up": "mlp.c_fc",
        "ffn_down": "mlp.c_proj",
    },
}
_LAYERS = {"llama": "model.layers", "gpt2": "transformer.h"}
_OF_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
_HEAD = "output.weight"
# Whose digits are pieces each; what other models' text is split by first.
_DIGITS_ALONE = ("smollm",)
_PLAIN = ("gpt-2", "default", *_DIGITS_ALONE)
_CONTROL, _GIVEN = 3, 4
# What SentencePiece writes for a space.
_SPACE = "\u2581"


def _library() -> Any:
    try:
        import gguf
    except ImportError:
        raise UserError("GGUF files are read by the gguf package: pip install 'aigc-fast[text]'") from None
    return gguf


def gguf_source(path: Path) -> Source:
    """The model of a GGUF file.

    Raises:
        UserError: for a file that is missing or damaged, or a model of another kind.
    """
    reader = _reader(path)
    facts = Facts({name: _contents(field, path) for name, field in reader.fields.items()}, path)
    name = facts.get("general.architecture", None, str, f"one of {', '.join(_NAMES)}")
    if name not in _NAMES:
        raise facts.wrong("general.architecture", f"one of {', '.join(_NAMES)}")
    parts = {part.name: part for part in reader.tensors}
    if "rope_freqs.weight" in parts:
        raise UserError(f"{path}: rope_freqs.weight: rotations by given factors are not supported")
    names = {raw: _name_of(name, raw) for raw in parts}
    config = _READING[name](facts, parts)
    if config["num_layers"] > len(parts):
        raise UserError(f"{path}: says {config['num_layers']} layers, and there are {len(parts)} tensors in all")
    special = {
        "bos_token_id": facts.facts.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": facts.facts.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": facts.facts.get("tokenizer.ggml.padding_token_id"),
    }
    special = {key: value for key, value in special.items() if value is not None}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for raw, part in parts.items():
            yield names[raw], _tensor(part, name, config, path)

    return Source(
        path=path,
        name=name,
        config=config | {"generation": {"eos_token_id": [], **special}},
        special=special,
        shapes={names[raw]: _shape(part, name) for raw, part in parts.items()},
        tensors=tensors,
        dtype=torch.float32,
        tokenizer=lambda size, boundary, start: _tokenizer(facts, boundary, start),
    )


def _reader(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    reader = _bounded_reader(_library().GGUFReader)
    try:
        return reader(path)
    except Exception as error:  # whatever NumPy says of what is not there
        raise UserError(f"{path}: the file is damaged or no GGUF file: {error}") from None


def _bounded_reader(reader: Any) -> Any:
    """The reader, which would else look for as many numbers as a file says that it has, where it has ended."""

    class Bounded(reader):
        def _get(self, offset: int, dtype: Any, count: int = 1, **order: Any) -> Any:
            found = super()._get(offset, dtype, count, **order)
            if len(found) < count:
                raise ValueError(f"it ends before its byte {offset + int(count) * found.itemsize}")
            return found

    return Bounded


def _contents(field: Any, path: Path) -> Any:
    try:
        return field.contents()
    except Exception as error:
        raise UserError(f"{path}: {field.name} is damaged: {error}") from None


def _name_of(model: str, raw: str) -> str:
    """Our name of a tensor; the file's own of one that is not known, which is refused as such."""
    stem, _, end = raw.rpartition(".")
    found = _OF_LAYER.fullmatch(stem)
    known = _NAMES[model]
    if found is None:
        return f"{known[stem]}.{end}" if stem in known else raw
    return f"{_LAYERS[model]}.{found[1]}.{known[found[2]]}.{end}" if found[2] in known else raw


def _is_turned(name: str, model: str) -> bool:
    """Whether transformers' weight is the transpose."""
    return model == "gpt2" and name.startswith("blk.") and name.endswith(".weight") and "norm" not in name


def _shape(part: Any, model: str) -> tuple[int, ...]:
    shape = tuple(int(size) for size in part.shape)
    return shape if _is_turned(part.name, model) else shape[::-1]


def _tensor(part: Any, model: str, config: dict[str, Any], path: Path) -> Tensor:
    try:
        values = _library().quants.dequantize(part.data, part.tensor_type)
        values = np.asarray(values, np.float32).reshape(tuple(int(size) for size in part.shape)[::-1])
    except Exception as error:
        raise UserError(f"{path}: {part.name} cannot be read: {error}") from None
    if _is_turned(part.name, model):
        values = values.T
    if model == "llama" and ".attn_q." in part.name:
        values = _halves(values, config["num_heads"])
    if model == "llama" and ".attn_k." in part.name:
        values = _halves(values, config["num_kv_heads"])
    return torch.from_numpy(np.array(values, order="C"))


def _halves(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of heads in the order of a rotation by halves, of those by pairs."""
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _vocabulary(facts: Facts, parts: dict[str, Any]) -> int:
    if "token_embd.weight" not in parts:
        raise UserError(f"{facts.path}: lacks the tensors token_embd.weight")
    return int(parts["token_embd.weight"].shape[-1])


def _required(facts: Facts, name: str) -> int:
    if (found := facts.integer(name, None)) is None:
        raise facts.wrong(name, "an integer of 1 or more")
    return found


def _llama(facts: Facts, parts: dict[str, Any]) -> dict[str, Any]:
    scaling = facts.get("llama.rope.scaling.type", "none", str, "none or linear")
    if scaling not in ("none", "linear"):
        raise facts.wrong("llama.rope.scaling.type", "none or linear")
    rope = {"rope_type": "default", "rope_theta": facts.number("llama.rope.freq_base", 10000.0)}
    if scaling == "linear":
        rope |= {"rope_type": "linear", "factor": facts.number("llama.rope.scaling.factor", 1.0)}
    heads = _required(facts, "llama.attention.head_count")
    hidden = _required(facts, "llama.embedding_length")
    size = facts.integer("llama.attention.key_length", facts.integer("llama.rope.dimension_count", None))
    return {
        "hidden": hidden,
        "num_layers": _required(facts, "llama.block_count"),
        "num_heads": heads,
        "num_kv_heads": facts.integer("llama.attention.head_count_kv", heads),
        "head_size": size,
        "context": _required(facts, "llama.context_length"),
        "units": _required(facts, "llama.feed_forward_length"),
        "vocab_size": _vocabulary(facts, parts),
        "tied": _HEAD not in parts,
        "activation": "silu",
        "epsilon": facts.number("llama.attention.layer_norm_rms_epsilon", 1e-6),
        "rope": rope,
        "attention_bias": "blk.0.attn_q.bias" in parts,
        "units_bias": "blk.0.ffn_up.bias" in parts,
        "dropout": 0.0,
    }


def _gpt2(facts: Facts, parts: dict[str, Any]) -> dict[str, Any]:
    return {
        "hidden": _required(facts, "gpt2.embedding_length"),
        "num_layers": _required(facts, "gpt2.block_count"),
        "num_heads": _required(facts, "gpt2.attention.head_count"),
        "context": _required(facts, "gpt2.context_length"),
        "units": _required(facts, "gpt2.feed_forward_length"),
        "vocab_size": _vocabulary(facts, parts),
        # llama.cpp writes the embedding a second time where the head has no weight of its own.
        "tied": _HEAD not in parts,
        "activation": "gelu_new",
        "epsilon": facts.number("gpt2.attention.layer_norm_epsilon", 1e-5),
        "dropout": 0.1,
    }


_READING: dict[str, Callable[[Facts, dict[str, Any]], dict[str, Any]]] = {"llama": _llama, "gpt2": _gpt2}


def _tokenizer(facts: Facts, boundary: int, start: int | None) -> Tokenizer | None:
    """Of bytes, as GPT-2's, or of SentencePiece's byte pairs; None where the file has none that is known."""
    kind = facts.get("tokenizer.ggml.model", None, str, " or ".join(_KINDS))
    if kind not in _KINDS:
        if kind is not None:
            log.warning("%s: its tokenizer, a %s, is not read: give from_pretrained one", facts.path, kind)
        return None
    tokens = facts.get("tokenizer.ggml.tokens", [], list, "a list of tokens")
    kinds = facts.get("tokenizer.ggml.token_type", [], list, "a list of numbers")
    try:
        found = _KINDS[kind](facts, {token: number for number, token in enumerate(tokens)})
        added = library().AddedToken
        special = [token for token, kind in zip(tokens, kinds, strict=False) if kind == _CONTROL]
        found.add_special_tokens([added(token, special=True, normalized=False) for token in special])
        given = [token for token, kind in zip(tokens, kinds, strict=False) if kind == _GIVEN]
        found.add_tokens([added(token, normalized=False) for token in given])
        if facts.flag("tokenizer.ggml.add_bos_token", kind == "llama") and start is not None:
            first = tokens[start]
            found.post_processor = library().processors.TemplateProcessing(
                single=f"{first} $A", special_tokens=[(first, start)]
            )
        return BPETokenizer(found.to_str(), boundary, start)
    except UserError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{facts.path}: no tokenizer: {error}") from None


def _of_bytes(facts: Facts, vocabulary: dict[str, int]) -> Any:
    before = facts.get("tokenizer.ggml.pre", "default", str, f"one of {', '.join(_PLAIN)}")
    if before not in _PLAIN:
        log.warning("%s: text is split as GPT-2 does, not as %s: tokens may be others", facts.path, before)
    merges = [tuple(merge.split(" ", 1)) for merge in facts.get("tokenizer.ggml.merges", [], list, "a list")]
    return byte_level(library().models.BPE(vocabulary, merges), before in _DIGITS_ALONE)


def _of_pieces(facts: Facts, vocabulary: dict[str, int]) -> Any:
    """SentencePiece's byte pairs: of all pairs that make a piece, those of the greatest score go first."""
    scores = facts.get("tokenizer.ggml.scores", [], list, "a list of numbers")
    merges = []
    for piece, score in zip(vocabulary, scores, strict=True):
        pairs = [(piece[:place], piece[place:]) for place in range(1, len(piece))]
        known = [(left, right) for left, right in pairs if left in vocabulary and right in vocabulary]
        known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        merges += [(score, pair) for pair in known]
    merges.sort(key=lambda merge: -merge[0])
    parts = library()
    unknown = next(iter(vocabulary)) if "<unk>" not in vocabulary else "<unk>"
    model = parts.models.BPE(
        vocabulary, [pair for _, pair in merges], unk_token=unknown, fuse_unk=True, byte_fallback=True
    )
    found = parts.Tokenizer(model)
    is_prefixed = facts.flag("tokenizer.ggml.add_space_prefix", True)
    spaces = [parts.normalizers.Prepend(_SPACE)] * is_prefixed + [parts.normalizers.Replace(" ", _SPACE)]
    found.normalizer = parts.normalizers.Sequence(spaces)
    steps = [parts.decoders.Replace(_SPACE, " "), parts.decoders.ByteFallback(), parts.decoders.Fuse()]
    steps += [parts.decoders.Strip(content=" ", left=1)] * is_prefixed
    found.decoder = parts.decoders.Sequence(steps)
    return found


_KINDS: dict[str, Callable[[Facts, dict[str, int]], Any]] = {"gpt2": _of_bytes, "llama": _of_pieces}
