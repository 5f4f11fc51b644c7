"""Models in Hugging Face folders: what stands in them is checked before any of it is used, and none of it executed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from aigc_fast.errors import UserError
from aigc_fast.models.base import MOST_LAYERS
from aigc_fast.models.storage import MappedFile, contiguous, opened
from aigc_fast.models.text.subwords import BPETokenizer, IdTokenizer, byte_level, library
from aigc_fast.models.text.tokenizers import Tokenizer, tokenizer_from
from aigc_fast.ops.decode.reading import ACTIVATIONS
from aigc_fast.wording import listed

if TYPE_CHECKING:
    from aigc_fast.models.text.decoder import DecoderModel

CONFIG, GENERATION, WEIGHTS = "config.json", "generation_config.json", "model.safetensors"
_INDEX = "model.safetensors.index.json"
_TOKENIZER, _TOKENIZER_CONFIG, _OWN_TOKENIZER = "tokenizer.json", "tokenizer_config.json", "aigc_fast_tokenizer.json"
_WRITTEN = {CONFIG, GENERATION, WEIGHTS, _TOKENIZER, _TOKENIZER_CONFIG, _OWN_TOKENIZER}
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_HEAD = "lm_head.weight"
_GREATEST = 1e300
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


class Facts:
    """What a JSON object says, checked as it is asked for.

    Args:
        facts: the object.
        path: of its file, for errors.
    """

    def __init__(self, facts: Mapping[str, Any], path: Path) -> None:
        self.facts, self.path = facts, path

    @classmethod
    def read(cls, path: Path) -> Facts:
        """Those of a file.

        Raises:
            UserError: if it is missing, or holds no JSON object.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: no JSON: {error}") from None
        if not isinstance(found, dict):
            raise UserError(f"{path}: expected a JSON object, got a {type(found).__name__}")
        return cls(found, path)

    def wrong(self, name: str, expected: str) -> UserError:
        """The error of a fact that is not as expected."""
        return UserError(f"{self.path}: {name} is {self.facts.get(name)!r:.80}: expected {expected}")

    def get(self, name: str, default: Any, kinds: type | tuple[type, ...], expected: str) -> Any:
        """A fact of some kind; the default where there is none, or null."""
        value = self.facts.get(name)
        value = default if value is None else value
        if value is None:
            return None
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            raise self.wrong(name, expected)
        return value

    def integer(self, name: str, default: int | None) -> int | None:
        """A number of things."""
        found = self.get(name, default, int, "an integer of 1 or more")
        if found is not None and found < 1:
            raise self.wrong(name, "an integer of 1 or more")
        return found

    def number(self, name: str, default: float) -> float:
        """A number that is not negative."""
        found = self.get(name, default, (int, float), "a number of 0 or more")
        if not 0 <= found <= _GREATEST:
            raise self.wrong(name, "a number of 0 or more")
        return float(found)

    def share(self, name: str, default: float) -> float:
        """A number in [0, 1)."""
        if (found := self.number(name, default)) >= 1:
            raise self.wrong(name, "a share of 0 to below 1")
        return found

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        return self.get(name, default, bool, "true or false")

    def activation(self, name: str, default: str) -> str:
        """One of `ACTIVATIONS`."""
        found = self.get(name, default, str, f"one of {', '.join(ACTIVATIONS)}")
        if found not in ACTIVATIONS:
            raise self.wrong(name, f"one of {', '.join(ACTIVATIONS)}")
        return found

    def never(self, **values: Any) -> None:
        """Refuses facts that are other than these: models with them compute something else."""
        for name, value in values.items():
            if self.facts.get(name, value) not in (value, None):
                raise self.wrong(name, repr(value))


@dataclass
class Source:
    """A model in files: what it is, and its tensors by the names of our modules.

    Attributes:
        path: of the folder or file.
        name: of the model's class.
        config: its arguments, `tokenizer` apart.
        special: "bos_token_id", "eos_token_id" and "pad_token_id", as the files have them.
        shapes: of the tensors.
        tensors: reads them, one at a time.
        dtype: of the parameters as they are there.
        tokenizer: takes the size of the vocabulary and gives the tokenizer that is there, or None.
        release: gives back the memory of a tensor that nobody wrote to, where it can be read again.
    """

    path: Path
    name: str
    config: dict[str, Any]
    special: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    tensors: Callable[[], Iterator[tuple[str, Tensor]]]
    dtype: torch.dtype
    tokenizer: Callable[[int, int, int | None], Tokenizer | None]
    release: Callable[[Tensor], None] = lambda tensor: None


def classes() -> dict[str, type[DecoderModel]]:
    """The models that can be read, by transformers' names of their types."""
    from aigc_fast.models.text.gpt2 import GPT2
    from aigc_fast.models.text.llama import Llama

    return {"gpt2": GPT2, "llama": Llama}


def is_pretrained(path: Path) -> bool:
    """Whether a path is one of a Hugging Face folder or a GGUF file."""
    return (path / CONFIG).is_file() or path.suffix.lower() == ".gguf"


def read_pretrained(
    path: str | os.PathLike[str],
    cls: type[DecoderModel],
    dtype: torch.dtype | None = None,
    tokenizer: Tokenizer | None = None,
    weights: str | None = None,
) -> DecoderModel:
    """See `DecoderModel.from_pretrained`.

    Args:
        path: the folder or file.
        cls: what is expected: one of `classes`, or what they have in common.
        dtype: of the parameters; None for the file's.
        tokenizer: instead of the one that is there.
        weights: how the engine keeps them, which packs them at once; None for later, and as they are.

    Raises:
        UserError: for files that are missing, damaged, pickled, or not what they say.
    """
    path = Path(path)
    if path.is_dir():
        source = _folder(path)
    elif path.suffix.lower() == ".gguf":
        from aigc_fast.models.text.gguf import gguf_source

        source = gguf_source(path)
    else:
        there = "no safetensors folder or GGUF file" if path.exists() else "no such folder or file"
        raise UserError(f"{path}: {there}")
    kind = classes()[source.name]
    if not issubclass(kind, cls):
        raise UserError(f"{path}: holds a {kind.__name__}: expected a {cls.__name__}")
    model = _built(source, kind, dtype or source.dtype, tokenizer, copies=weights is None)
    if weights is not None:
        model.weights = weights
        model.pack(source.release)
    return model


def _built(
    source: Source, kind: type[DecoderModel], dtype: torch.dtype, tokenizer: Tokenizer | None, copies: bool
) -> DecoderModel:
    size = source.config["vocab_size"]
    ends = _listed(source, "eos_token_id", size)
    begins = _listed(source, "bos_token_id", size)
    boundary = (ends or begins or [0])[0]
    start = begins[0] if begins else None
    tokenizer = tokenizer or source.tokenizer(size, boundary, start) or IdTokenizer(size, boundary, start)
    try:
        # On the meta device a hostile size in the configuration costs no memory.
        with torch.device("meta"):
            model = kind(tokenizer=tokenizer, **source.config)
    except UserError:
        raise
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        # PyTorch tells where in its own code, too.
        raise UserError(f"{source.path}: {str(error).partition(chr(10))[0]:.300}") from None
    _check_shapes(source, model)
    checksum = _fill(source, model, dtype, copies)
    model.metadata = {"source": source.path.name, "checksum": f"{checksum:08x}"}
    return model.eval()


def _listed(source: Source, name: str, size: int) -> list[int]:
    value = source.special.get(name)
    found = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(token) is int and 0 <= token < size for token in found):
        raise UserError(f"{source.path}: {name} is {value!r:.80}: expected tokens of 0 to {size - 1}")
    return found


def _check_shapes(source: Source, model: DecoderModel) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    optional = {_HEAD} if model.tied else set()
    if missing := sorted(expected.keys() - source.shapes.keys() - optional):
        raise UserError(f"{source.path}: lacks the tensors {listed(missing, 3)}")
    if extra := sorted(source.shapes.keys() - expected.keys()):
        raise UserError(f"{source.path}: has tensors that a {model.name} has not: {listed(extra, 3)}")
    for name, shape in source.shapes.items():
        if shape != expected[name]:
            raise UserError(f"{source.path}: {name} is {shape}: expected {expected[name]}, as its configuration says")


def _fill(source: Source, model: DecoderModel, dtype: torch.dtype, copies: bool) -> int:
    """Puts the tensors into the model, read one after the other, or copies of them; a checksum of them."""
    found, checksum = {}, 0
    for name, tensor in source.tensors():
        if not tensor.is_floating_point():
            raise UserError(f"{source.path}: {name} is {tensor.dtype}: expected floating-point numbers")
        found[name] = kept = tensor.to(dtype, copy=copies, memory_format=torch.contiguous_format)
        checksum = zlib.crc32(kept.view(-1).view(torch.uint8).numpy(), zlib.crc32(name.encode(), checksum))
        source.release(tensor)
    if model.tied:
        embedding = found[_name_of_embedding(model)]
        if not torch.equal(found.setdefault(_HEAD, embedding), embedding):
            raise UserError(f"{source.path}: {_HEAD} is not the embedding: expected tie_word_embeddings to be false")
        found[_HEAD] = embedding
    model.load_state_dict(found, assign=True)
    return checksum


def _name_of_embedding(model: DecoderModel) -> str:
    return next(name for name, module in model.named_modules() if module is model.embedding) + ".weight"


def _folder(path: Path) -> Source:
    facts = Facts.read(path / CONFIG)
    name = facts.get("model_type", None, str, f"one of {', '.join(classes())}")
    if name not in classes():
        raise facts.wrong("model_type", f"one of {', '.join(classes())}")
    files = _files(path)
    headers = {file: _header(file) for file in dict.fromkeys(files.values())}
    _check_index(path, files, headers)
    renamed = {raw: _RENAMING[name](raw) for raw in files}
    kept = {raw: ours for raw, ours in renamed.items() if ours is not None}
    shapes = {ours: headers[files[raw]][raw][0] for raw, ours in kept.items()}
    generation = _generation(path, facts)
    config = _READING[name](facts) | {"generation": generation}
    layers = config["num_layers"]
    if layers > min(len(files), MOST_LAYERS):
        raise UserError(f"{path / CONFIG}: says {layers} layers, and there are {len(files)} tensors in all")

    mapped = {file: MappedFile(file) for file in headers}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for file in headers:
            for raw in headers[file]:
                if raw in kept:
                    yield kept[raw], mapped[file].tensor(raw)

    def release(tensor: Tensor) -> None:
        for file in mapped.values():
            file.release(tensor)

    return Source(
        path=path,
        name=name,
        config=config,
        special=generation,
        shapes=shapes,
        tensors=tensors,
        dtype=_dtype_of(path, headers),
        tokenizer=lambda size, boundary, start: _tokenizer_of(path, size, boundary, start),
        release=release,
    )


def _generation(path: Path, facts: Facts) -> dict[str, Any]:
    """Defaults of generation; as transformers has them, those of the configuration only where there is no file."""
    if (path / GENERATION).exists():
        found = dict(Facts.read(path / GENERATION).facts)
    else:
        defaults = _SPECIAL_DEFAULTS[facts.facts["model_type"]]
        found = {name: facts.facts.get(name, defaults.get(name)) for name in _SPECIAL}
    # Old files call it -1 where there is none.
    if found.get("pad_token_id") == -1:
        del found["pad_token_id"]
    return {"eos_token_id": [], **{name: value for name, value in found.items() if value is not None}}


def _files(path: Path) -> dict[str, Path]:
    """The file of each tensor."""
    if (path / WEIGHTS).is_file():
        return dict.fromkeys(_header(path / WEIGHTS), path / WEIGHTS)
    if not (path / _INDEX).is_file():
        pickled = [file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in sorted(path.glob(pattern))]
        if pickled:
            raise UserError(
                f"{path}: its weights are pickled ({listed(pickled, 2)}), and could run any program: expected "
                f"{WEIGHTS}: convert them where you trust them"
            )
        raise UserError(f"{path}: holds no {WEIGHTS}")
    index = Facts.read(path / _INDEX)
    files = index.get("weight_map", {}, dict, "the file of each tensor")
    # Of a name from a file the system may refuse to tell whether it is there.
    there = {file.name for file in path.iterdir() if file.is_file()}
    for name in dict.fromkeys(map(str, files.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{index.path}: names the file {name!r:.80}: expected a safetensors file of the folder")
        if name not in there:
            raise UserError(f"{index.path}: names the file {name:.80}, which is not there")
    return {tensor: path / str(name) for tensor, name in files.items()}


def _header(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each tensor."""
    with opened(path) as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}


def _check_index(path: Path, files: Mapping[str, Path], headers: Mapping[Path, Mapping[str, Any]]) -> None:
    there = {(name, file) for file, names in headers.items() for name in names}
    if missing := sorted(name for name, file in files.items() if (name, file) not in there):
        raise UserError(f"{path}: lacks the tensors {listed(missing, 3)}, which its index names")
    if extra := sorted(name for name, file in there if files.get(name) != file):
        raise UserError(f"{path}: has tensors that its index does not name: {listed(extra, 3)}")


def _dtype_of(path: Path, headers: Mapping[Path, Mapping[str, tuple[tuple[int, ...], str]]]) -> torch.dtype:
    """What the matrices are."""
    found = {kind for names in headers.values() for shape, kind in names.values() if len(shape) == 2}
    if unknown := found - _DTYPES.keys():
        raise UserError(f"{path}: weights are {', '.join(sorted(unknown))}: expected {', '.join(_DTYPES)}")
    return next((_DTYPES[kind] for kind in _DTYPES if kind in found), torch.float32)


def _gpt2_name(raw: str) -> str | None:
    """Our name of a tensor; None for masks, which old files have."""
    name = raw if raw.startswith(("transformer.", "lm_head.")) else f"transformer.{raw}"
    return None if name.endswith((".attn.bias", ".attn.masked_bias")) else name


def _llama_name(raw: str) -> str | None:
    return None if raw.endswith("rotary_emb.inv_freq") else raw


def _gpt2_config(facts: Facts) -> dict[str, Any]:
    facts.never(add_cross_attention=False)
    hidden = facts.integer("n_embd", 768)
    return {
        "hidden": hidden,
        "num_layers": facts.integer("n_layer", 12),
        "num_heads": facts.integer("n_head", 12),
        "context": facts.integer("n_positions", 1024),
        "units": facts.integer("n_inner", None),
        "vocab_size": facts.integer("vocab_size", 50257),
        "tied": facts.flag("tie_word_embeddings", True),
        "activation": facts.activation("activation_function", "gelu_new"),
        "epsilon": facts.number("layer_norm_epsilon", 1e-5),
        "scale_scores": facts.flag("scale_attn_weights", True),
        "scale_by_layer": facts.flag("scale_attn_by_inverse_layer_idx", False),
        "dropout": facts.share("resid_pdrop", 0.1),
        "attention_dropout": facts.share("attn_pdrop", 0.1),
        "embedding_dropout": facts.share("embd_pdrop", 0.1),
    }


def _llama_config(facts: Facts) -> dict[str, Any]:
    facts.never(pretraining_tp=1, sliding_window=None)
    old = facts.get("rope_scaling", {}, dict, "an object")
    rope = facts.get("rope_parameters", old, dict, "an object")
    rope = {"rope_type": rope.get("type", "default"), "rope_theta": facts.number("rope_theta", 10000.0), **rope}
    rope.pop("type", None)
    return {
        "hidden": facts.integer("hidden_size", 4096),
        "num_layers": facts.integer("num_hidden_layers", 32),
        "num_heads": facts.integer("num_attention_heads", 32),
        "num_kv_heads": facts.integer("num_key_value_heads", None),
        "head_size": facts.integer("head_dim", None),
        "context": facts.integer("max_position_embeddings", 2048),
        "units": facts.integer("intermediate_size", 11008),
        "vocab_size": facts.integer("vocab_size", 32000),
        "tied": facts.flag("tie_word_embeddings", False),
        "activation": facts.activation("hidden_act", "silu"),
        "epsilon": facts.number("rms_norm_eps", 1e-6),
        "rope": rope,
        "attention_bias": facts.flag("attention_bias", False),
        "units_bias": facts.flag("mlp_bias", False),
        "dropout": facts.share("attention_dropout", 0.0),
    }


def _gpt2_facts(model: DecoderModel) -> dict[str, Any]:
    config = model.config
    shares = {name: config[name] for name in ("attention_dropout", "embedding_dropout")}
    attention, embedding = (config["dropout"] if share is None else share for share in shares.values())
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": config["hidden"],
        "n_layer": config["num_layers"],
        "n_head": config["num_heads"],
        "n_positions": config["context"],
        "n_inner": config["units"],
        "activation_function": config["activation"],
        "layer_norm_epsilon": config["epsilon"],
        "scale_attn_weights": config["scale_scores"],
        "scale_attn_by_inverse_layer_idx": config["scale_by_layer"],
        "resid_pdrop": config["dropout"],
        "attn_pdrop": attention,
        "embd_pdrop": embedding,
    }


def _llama_facts(model: DecoderModel) -> dict[str, Any]:
    config = model.config
    rope = dict(config["rope"] or {"rope_theta": 10000.0})
    theta = rope.pop("rope_theta")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config["hidden"],
        "num_hidden_layers": config["num_layers"],
        "num_attention_heads": config["num_heads"],
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_size,
        "max_position_embeddings": config["context"],
        "intermediate_size": model.model["layers"][0].mlp.up_proj.out_features,
        "hidden_act": config["activation"],
        "rms_norm_eps": config["epsilon"],
        "rope_theta": theta,
        "rope_scaling": rope if rope.get("rope_type", "default") != "default" else None,
        "attention_bias": config["attention_bias"],
        "mlp_bias": config["units_bias"],
        "attention_dropout": config["dropout"],
    }


_RENAMING: dict[str, Callable[[str], str | None]] = {"gpt2": _gpt2_name, "llama": _llama_name}
_READING: dict[str, Callable[[Facts], dict[str, Any]]] = {"gpt2": _gpt2_config, "llama": _llama_config}
_WRITING: dict[str, Callable[[Any], dict[str, Any]]] = {"gpt2": _gpt2_facts, "llama": _llama_facts}
_SPECIAL_DEFAULTS = {
    "gpt2": {"bos_token_id": 50256, "eos_token_id": 50256},
    "llama": {"bos_token_id": 1, "eos_token_id": 2},
}


def _tokenizer_of(path: Path, size: int, boundary: int, start: int | None) -> Tokenizer | None:
    if (path / _OWN_TOKENIZER).is_file():
        return tokenizer_from(Facts.read(path / _OWN_TOKENIZER).facts)
    if (path / _TOKENIZER).is_file():
        content = _text(path / _TOKENIZER)
        where = path / _TOKENIZER
    elif (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        where = path / "merges.txt"
        try:
            model = library().models.BPE.from_file(str(path / "vocab.json"), str(where))
            content = byte_level(model).to_str()
        except UserError:
            raise
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"{where}: no tokenizer: {error}") from None
    else:
        return None
    try:
        return BPETokenizer(content, boundary, start)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except ValueError:
        # What ends documents is none of its tokens: the model's numbers are others.
        raise UserError(f"{where}: has no token {boundary if start is None else max(boundary, start)}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def write_pretrained(model: DecoderModel, path: str | os.PathLike[str]) -> None:
    """See `DecoderModel.save_pretrained`."""
    target = Path(path).absolute()
    others = sorted(file.name for file in target.iterdir() if file.name not in _WRITTEN) if target.is_dir() else []
    if others or (target.exists() and not target.is_dir()):
        what = f"holds files of others ({listed(others, 3)})" if others else "is a file"
        raise UserError(f"{target}: {what}: expected a new folder, or one that was written here before")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
            new, old = Path(scratch) / "new", Path(scratch) / "old"
            new.mkdir()
            _write_files(model, new)
            if target.exists():
                os.replace(target, old)
            try:
                os.replace(new, target)
            except OSError:
                if old.exists():
                    os.replace(old, target)
                raise
            shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {target}: {getattr(error, 'strerror', None) or error}") from None


def _write_files(model: DecoderModel, folder: Path) -> None:
    tokenizer, generation = model.tokenizer, model.config["generation"] or {}
    special = {
        "bos_token_id": generation.get("bos_token_id", tokenizer.start),
        "eos_token_id": generation.get("eos_token_id", tokenizer.boundary) or None,
        "pad_token_id": generation.get("pad_token_id"),
    }
    dtype = str(model.dtype).removeprefix("torch.")
    facts = {"vocab_size": model.vocab_size, "tie_word_embeddings": model.tied, "torch_dtype": dtype}
    _write_json(folder / CONFIG, _WRITING[model.name](model) | facts | special)
    _write_json(folder / GENERATION, {**generation, **special})
    names = model.state_dict()
    if model.tied:
        del names[_HEAD]
    save_file(contiguous(names), folder / WEIGHTS, {"format": "pt"})
    if isinstance(tokenizer, BPETokenizer):
        (folder / _TOKENIZER).write_text(tokenizer.content, encoding="utf-8")
        texts = {"bos_token": tokenizer.text_of(tokenizer.start), "eos_token": tokenizer.text_of(tokenizer.boundary)}
        facts = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": model.context, **texts}
        _write_json(folder / _TOKENIZER_CONFIG, facts)
    elif not isinstance(tokenizer, IdTokenizer):
        _write_json(folder / _OWN_TOKENIZER, tokenizer.config())


def _write_json(path: Path, facts: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
