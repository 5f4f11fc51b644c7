"""The engine's keys and values in place of transformers' cache, and from one into the other."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as TF
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from aigc_fast.ops.decode.engine import State

# The name of a model's keys and values among its arguments and results changed in 5.24.
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
# Arguments of a call that change nothing, besides those that are read.
INERT = {"use_cache", "logits_to_keep", "cache_position", "return_dict", "next_sequence_length"}
READ = {"input_ids", "attention_mask", "position_ids", CACHE}


class NativeCache(DynamicCache):
    """What transformers' loops hold in place of keys and values, which the engine keeps."""

    is_compileable = False
    is_croppable = True
    is_initialized = True

    def __init__(self, state: State, keep: int | None) -> None:
        # Nothing of DynamicCache's own is used, but its type.
        self.state, self.keep, self.layers = state, keep, []
        self.is_sliding = self.is_linear = [False] * state.engine.layers

    is_sliding = is_linear = None

    def __len__(self) -> int:
        return self.state.engine.layers

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        """Tokens that each sequence has been given."""
        return self.state.length

    def get_max_cache_shape(self, *args: Any, **kwargs: Any) -> int:
        """As of a cache that grows."""
        return -1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Lets every sequence go on from another one."""
        self.state.reorder(beam_idx)

    def crop(self, max_length: int) -> None:
        """Forgets tokens: so many where the number is negative, all but so many where it is positive."""
        length = self.state.length + max_length if max_length < 0 else max_length or self.state.length
        if length < self.state.length:
            self.state.crop(length)

    def activate_past_recording(self) -> None:
        """Nothing: all of the past can be gone back to."""


def step(cache: NativeCache, kwargs: dict[str, Any]) -> CausalLMOutputWithPast:
    """What the model makes of some tokens more."""
    if unknown := [name for name, value in kwargs.items() if name not in READ | INERT and value not in (None, False)]:
        raise NotImplementedError(f"generation in place does not know the argument {unknown[0]}")
    ids, state = kwargs["input_ids"], cache.state
    rows, count = ids.shape
    positions, visible = kwargs.get("position_ids"), visible_of(kwargs.get("attention_mask"), count)
    if positions is None:
        positions = torch.arange(state.length, state.length + count, device=ids.device)[None]
    kept = kwargs.get("logits_to_keep")
    keep = cache.keep or (kept if isinstance(kept, int) and kept else count)
    logits = state.extend(ids, positions.expand(rows, count), visible, min(keep, count))
    return CausalLMOutputWithPast(logits=logits, **{CACHE: cache})


def visible_of(mask: Tensor | None, count: int) -> Tensor | None:
    """Which of the last tokens are seen; None for all."""
    if mask is None:
        return None
    if mask.dim() != 2:
        raise NotImplementedError(f"attention_mask has {mask.dim()} dimensions: expected (batch, length)")
    seen = mask[:, mask.shape[1] - count :] != 0
    return None if seen.all() else seen


def pairs_of(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer of a cache that has some."""
    if hasattr(cache, "layers"):
        return [(layer.keys, layer.values) for layer in cache.layers]
    return list(zip(cache.key_cache, cache.value_cache, strict=True))  # before 4.54


def fill_state(state: State, given: DynamicCache, mask: Tensor | None) -> None:
    """Gives the engine what transformers' own cache has; `mask` (B, T) tells which tokens are seen, None for all."""
    length = given.get_seq_length()
    # Layers with a window have forgotten the first ones, and don't look at them.
    pairs = [tuple(TF.pad(tensor, (0, 0, length - tensor.shape[2], 0)) for tensor in pair) for pair in pairs_of(given)]
    state.load(pairs, None if mask is None else mask[:, :length] != 0)


def fill_cache(state: State, given: DynamicCache, dtype: torch.dtype) -> None:
    """Fills transformers' own cache with what the engine has."""
    had = given.get_seq_length()
    for index, pair in enumerate(state.export()):
        keys, values = (tensor.to(dtype) for tensor in pair)
        if not had:
            given.update(keys, values, index)
        elif hasattr(given, "layers"):
            layer = given.layers[index]
            window = getattr(layer, "sliding_window", None)
            kept = slice(0 if window is None else max(0, state.length - window + 1), None)
            layer.keys, layer.values = keys[:, :, kept], values[:, :, kept]
            if window is not None:
                layer.cumulative_length = state.length
        else:
            given.key_cache[index], given.value_cache[index] = keys, values
            given._seen_tokens = state.length
