"""Every architecture of transformers with attn_implementation="aigc_fast" against "eager"; `make hosts` walks over all.

Each is built from a tiny configuration, offline, with random weights; `hosts.json` keeps what came out. An architecture
is "same" where all outputs are, "refused" where transformers or we raise ValueError, "not built" where no tiny model
came about. The weights are large enough that attention decides: without it, the outputs must differ.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import multiprocessing
import re
import resource
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers
from host_models import (
    BATCH,
    FORMS,
    LENGTH,
    SIZES,
    Inputs,
    NotBuiltError,
    Recipe,
    architectures,
    build,
    draw_weights,
    inputs,
)
from torch import Tensor, nn

import aigc_fast
import aigc_fast.integrations.transformers as integration
from aigc_fast.runtime import native
from aigc_fast.runtime.backends import BackendError

TABLE = Path(__file__).with_name("hosts.json")
LIMIT, PATIENCE, PARAMETERS = 60, 900, 30_000_000
"""The processor's seconds, the clock's and the parameters that an architecture may take."""
FLOOR = 1e-5
BACKENDS = ("auto", "cpu") if native.cpu_reason() is None else ("auto",)


def tensors(value: Any) -> list[Tensor]:
    """The floating-point tensors of an output, caches apart."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        return [tensor for key, item in value.items() if "past_key" not in key for tensor in tensors(item)]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors(item)]
    return []


@torch.no_grad()
def run(model: nn.Module, given: Inputs, seen: Tensor | None = None) -> list[Tensor]:
    """Outputs; of sequences, what the mask shows."""
    torch.manual_seed(3)
    found = tensors(model(**copy.deepcopy(given)))
    return found if seen is None else [_seen(tensor, seen) for tensor in found]


def _seen(tensor: Tensor, seen: Tensor) -> Tensor:
    return tensor[seen] if tensor.shape[:2] == seen.shape else tensor


def padded(given: Inputs, left: bool) -> tuple[Inputs, Tensor]:
    mask = torch.ones(BATCH, LENGTH, dtype=torch.int64)
    (mask[0, :7] if left else mask[0, -7:]).zero_()
    return {**given, "attention_mask": mask}, mask.bool()


def shortened(given: Inputs) -> Inputs:
    """Sounds of which the first ends early."""
    sound = given.get("input_values", given.get("input_features"))
    mask = torch.ones(sound.shape[:2], dtype=torch.int64)
    mask[0, sound.shape[1] * 2 // 3 :] = 0
    return {**given, "attention_mask": mask}


@torch.no_grad()
def decoded(model: nn.Module, given: Inputs) -> list[Tensor]:
    """Logits of a prompt, padded where there is no encoder, and of steps of two ids and of one with its cache."""
    torch.manual_seed(3)
    key = "decoder_input_ids" if "decoder_input_ids" in given else "input_ids"
    if key == "input_ids":
        given, _ = padded(given, left=True)
    tokens, found, start, cache = given[key], [], 0, {}
    for stop in (tokens.shape[1] - 3, tokens.shape[1] - 1, tokens.shape[1]):
        step = {**given, key: tokens[:, start:stop], "use_cache": True}
        if key == "input_ids":
            step["attention_mask"] = given["attention_mask"][:, :stop]
        output = model(**step, **cache)
        cache, start = {"past_key_values": output.past_key_values}, stop
        found.append(output.logits[:, -1])
    return found


def differences(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative difference."""
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected]:
        return float("inf")
    worst = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        finite = theirs.isfinite()
        if not torch.equal(finite, ours.isfinite()):
            return float("inf")
        ours, theirs = ours[finite].double(), theirs[finite].double()
        if theirs.numel():
            worst = max(worst, float((ours - theirs).norm() / theirs.norm().clamp_min(1e-9)))
    return worst


Case = Callable[[nn.Module], list[Tensor]]


def cases(model: nn.Module, given: Inputs) -> dict[str, Case]:
    """What is compared, by name."""
    names = inspect.signature(model.forward).parameters
    found: dict[str, Case] = {"plain": lambda model: run(model, given)}
    text, masked = "input_ids" in given, "attention_mask" in names
    if text and masked:
        found["right-padded"] = lambda model: run(model, *padded(given, left=False))
    if text and masked and "logits_to_keep" in names:
        found["left-padded"] = lambda model: run(model, *padded(given, left=True))
        found["logits_to_keep"] = lambda model: run(model, {**given, "logits_to_keep": 2})
    if masked and {"input_values", "input_features"} & given.keys():
        found["shortened"] = lambda model: run(model, shortened(given))
    if "past_key_values" in names and ("logits_to_keep" in names or "decoder_input_ids" in given):
        found["cache"] = lambda model: decoded(model, given)
    return found


def settled(model: nn.Module, candidates: dict[str, Case]) -> dict[str, list[Tensor]]:
    """What eager says to each case that it takes; the plain one at least."""
    found = {}
    for name, case in candidates.items():
        try:
            found[name] = case(model)
        except Exception as error:
            if name == "plain":
                raise NotBuiltError(_line(error)) from error
    if not any(tensor.isfinite().any() for tensor in found["plain"]):
        raise NotBuiltError("no finite output")
    return found


@contextlib.contextmanager
def no_attention() -> Iterator[list[int]]:
    """Our attention is zeros, and counted."""
    calls, run_attention = [], integration.scaled_dot_product_attention

    def zeros(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return torch.zeros_like(run_attention(*args, **kwargs))

    integration.scaled_dot_product_attention = zeros
    try:
        yield calls
    finally:
        integration.scaled_dot_product_attention = run_attention


@torch.no_grad()
def a_rounding_away(model: nn.Module) -> nn.Module:
    """A copy whose weights are a rounding off: what that changes, another order of sums may change."""
    found = copy.deepcopy(model)
    torch.manual_seed(4)
    for parameter in found.parameters():
        parameter.mul_(1 + torch.finfo(parameter.dtype).eps * (torch.rand_like(parameter) < 0.5))
    return found


def compare(kind: str) -> str:
    """ "same", "same, by PyTorch", "refused: …" or what differs.

    Raises:
        NotBuiltError: where there is no tiny model.
    """
    recipe, eager, candidates, expected = first_built(kind)
    try:
        ours = build(kind, recipe, integration.NAME)
    except ValueError as error:
        return f"refused: {_line(error)}" + judged_when_set(eager, candidates, expected)
    ours.load_state_dict(eager.state_dict())
    sdpa = build(kind, recipe, "sdpa") if type(ours)._supports_sdpa else None
    if sdpa is not None:
        sdpa.load_state_dict(eager.state_dict())
    nearby = a_rounding_away(eager)
    for name, wanted in expected.items():
        others = (nearby,) if sdpa is None else (nearby, sdpa)
        allowed = max(FLOOR, *(2 * differences(candidates[name](other), wanted) for other in others))
        for backend in BACKENDS:
            try:
                with aigc_fast.backend(backend):
                    found = candidates[name](ours)
            except BackendError:
                continue
            except ValueError as error:
                return f"refused: {_line(error)}"
            if not (difference := differences(found, wanted)) <= allowed:
                return f"differs: {name} ({backend}) {difference:.1e}, allowed {allowed:.1e}"
    with no_attention() as calls:
        without = candidates["plain"](ours)
    if not calls:
        return "same, by PyTorch"
    if differences(without, expected["plain"]) < 1e-3:
        raise NotBuiltError("attention decides nothing")
    return "same"


def judged_when_set(eager: nn.Module, candidates: dict[str, Case], expected: dict[str, list[Tensor]]) -> str:
    """Nothing, where set_attn_implementation refuses or leaves the model right; what differs otherwise."""
    later = copy.deepcopy(eager)
    try:
        later.set_attn_implementation(integration.NAME)
        wrong = [name for name in expected if differences(candidates[name](later), expected[name]) > FLOOR]
    except ValueError:
        return ""
    return f"; differs when set: {', '.join(wrong)}" if wrong else ""


def first_built(kind: str) -> tuple[Recipe, nn.Module, dict[str, Case], dict[str, list[Tensor]]]:
    """The eager model of the first recipe that gives one, the cases and what it says to them."""
    first = None
    for sizes in SIZES:
        tried = []
        try:
            eager = drawn(kind, Recipe(*sizes))
            for form in FORMS:
                recipe = Recipe(*sizes, *form)
                given = inputs(eager, recipe)
                shapes = {name: value.shape for name, value in given.items()}
                if shapes in tried:
                    continue
                tried.append(shapes)
                try:
                    candidates = cases(eager, given)
                    return recipe, eager, candidates, settled(eager, candidates)
                except NotBuiltError as reason:
                    first = first or reason
        except NotBuiltError:
            raise
        except Exception as error:
            first = first or NotBuiltError(_line(error))
            if isinstance(error, ImportError):
                break
    raise first


def drawn(kind: str, recipe: Recipe) -> nn.Module:
    eager = build(kind, recipe, "eager")
    count = sum(parameter.numel() for parameter in eager.parameters())
    if count > PARAMETERS:
        raise NotBuiltError(f"{count} parameters")
    draw_weights(eager)
    return eager


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    text = re.sub(r" Please request the support.*", "", text)
    return f"{type(error).__name__}: {text}"[:160]


def verdict(kind: str) -> str:
    try:
        return compare(kind)
    except NotBuiltError as reason:
        return f"not built: {reason}"


def _child(kind: str, pipe: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
    torch.set_num_threads(1)
    try:
        pipe.send(verdict(kind))
    except BaseException as error:
        pipe.send(f"differs: {_line(error)}")


def apart(kind: str) -> str:
    """The verdict of a process of its own, which may die or hang."""
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_child, args=(kind, sender))
    process.start()
    sender.close()
    try:
        found = receiver.recv() if receiver.poll(PATIENCE) else f"not built: more than {PATIENCE} s"
    except EOFError:
        found = f"not built: the process died, or took more than {LIMIT} s"
    process.kill()
    process.join()
    return found


def main(kinds: list[str]) -> int:
    """Walks over all, or over those named, whose rows of the table change; 1 where something differs."""
    transformers.logging.set_verbosity_error()
    known = architectures()
    rows = json.loads(TABLE.read_text()) if kinds else {}
    kinds = kinds or sorted(known)
    with ThreadPoolExecutor(2) as pool:
        found = {}
        for kind, result in zip(kinds, pool.map(apart, kinds), strict=True):
            found[kind] = result
            print(f"{kind:32} {known[kind]:48} {result}", flush=True)
    rows.update({f"{kind} {known[kind]}": found[kind] for kind in kinds}, transformers=transformers.__version__)
    TABLE.write_text(json.dumps(rows, indent=0, ensure_ascii=False, sort_keys=True) + "\n")
    counts: dict[str, int] = {}
    for result in found.values():
        counts[re.split(r"[:,]", result)[0]] = counts.get(re.split(r"[:,]", result)[0], 0) + 1
    print(", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    return int(any("differs" in result for result in found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
