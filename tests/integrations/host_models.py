"""Tiny models of transformers' architectures, with random weights, and inputs for them: what `hosts.py` compares."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto import configuration_auto, modeling_auto

# The heads in whose mappings an architecture is looked up, the first that has it; those of several parts first.
COMPOSITE = ("IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM", "TEXT_TO_WAVEFORM")
HEADS = (
    "SEQ_TO_SEQ_CAUSAL_LM",
    "SPEECH_SEQ_2_SEQ",
    "MASKED_LM",
    "CAUSAL_LM",
    "CTC",
    "TEXT_TO_SPECTROGRAM",
    "OBJECT_DETECTION",
    "ZERO_SHOT_OBJECT_DETECTION",
    "UNIVERSAL_SEGMENTATION",
    "KEYPOINT_MATCHING",
    "MASK_GENERATION",
    "TIME_SERIES_PREDICTION",
)
VOCABULARY, BATCH, LENGTH, SIZE = 99, 2, 21, 32


class NotBuiltError(Exception):
    """No tiny model of an architecture came about."""


@dataclass(frozen=True)
class Recipe:
    """What is tried, one after the other, until a model runs.

    Attributes:
        layers: at most so many; those of several kinds of layers need more to have each.
        groups: key heads; some models have as many as query heads.
        pixels: whether images go in beside ids.
        by_channel: whether features are (batch, channels, time), and sounds (batch, 1, samples).
    """

    layers: int = 2
    groups: int = 2
    pixels: bool = False
    by_channel: bool = False


SIZES = ((2, 2), (2, 4), (4, 4), (8, 4))
FORMS = ((False, False), (False, True), (True, False), (True, True))


# The first pattern that a parameter's name matches says what it becomes.
INTEGERS = (
    (r"vocab_offset|unpadded", lambda v: v),
    (r".*vocab_size(_per_layer_input)?|vocab_size_.*", lambda v: VOCABULARY if v > 16 else v),
    (r".*(num_(attention_)?heads|n_heads?|attention_heads|num_head)", lambda v: 4),
    (r"index_topk", lambda v: 4),
    (r".*(rope_head_dim|rotary_dim)", lambda v: 8),
    (r".*(head_dim|head_size|dim_head|d_kv|d_head|attention_head_dim)", lambda v: 16),
    (r".*(lora_rank)", lambda v: 16),
    (r".*moe_intermediate_size", lambda v: 32),
    (r".*(intermediate_size|ffn_dim|d_ff|dff|mlp_dim|n_inner|ffn_hidden_size|dim_feedforward)", lambda v: 64),
    (
        r".*(hidden_size|d_model|n_embd|embed_dim|emb_dim|hidden_dim|embedding_size|embedding_dim|projection_dim|width"
        r"|projector_hidden_size|output_dim|latent_dim|out_channels|base_channels|proj_size)|dim|hidden_size_.*",
        lambda v: 64 if v > 16 else v,
    ),
    (r"(num|n|moe_num)(_routed|_local)?_experts", lambda v: min(v, 4)),
    (r"(num_experts_per_tok|topk|top_k|moe_topk)", lambda v: min(v, 2)),
    (r"n_group|topk_group", lambda v: min(v, 2)),
    (r".*(max_position|max_.*positions|n_positions|n_ctx|max_seq_len|context_length).*", lambda v: min(v, 128)),
    (r".*image_size|img_size|max_image_size", lambda v: SIZE),
    (r".*patch_size", lambda v: min(v, 8)),
    (r"num_mel_bins|num_frames|num_query_tokens|num_queries", lambda v: min(v, 8)),
    (r"sliding_window(_size)?", lambda v: 7),
    (r".*chunk_size", lambda v: min(v, 8)),
)


def tiny(cls: type, given: dict[str, Any], recipe: Recipe, ids: Iterator[int] | None = None) -> dict[str, Any]:
    """Arguments of a configuration class whose sizes are small; those given stay."""
    ids = ids or iter(range(VOCABULARY - 4, 2, -1))
    parts = getattr(cls, "sub_configs", {})
    found = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        default = parameter.default
        if name in parts or name in given:
            continue
        if re.fullmatch(r".*token_(id|index)", name) and type(default) is int:
            found[name] = default if 0 <= default < 3 else next(ids)
        elif type(default) is int:
            found[name] = _small(name, default, recipe)
        elif isinstance(default, list | tuple) and default and all(type(item) is int for item in default):
            found[name] = _small_list(name, default)
        elif name == "rope_parameters":
            found[name] = _small_rope(cls)
    for name, part in parts.items():
        known = given.get(name, {})
        if isinstance(known, dict) and part is not configuration_auto.AutoConfig:
            found[name] = tiny(part, known, recipe, ids)
        elif isinstance(known, dict):
            found[name] = _tiny_default(cls, name, known, recipe, ids)
    found = {key: value for key, value in found.items() if value is not None}
    return {**found, **{key: value for key, value in given.items() if key not in found}}


def _tiny_default(
    cls: type, name: str, given: dict[str, Any], recipe: Recipe, ids: Iterator[int]
) -> dict[str, Any] | None:
    """A part of any class: the one that the default configuration has."""
    kind = given.get("model_type") or getattr(getattr(cls(), name, None), "model_type", None)
    if kind is None:
        return None
    return {**tiny(configuration_auto.CONFIG_MAPPING[kind], given, recipe, ids), "model_type": kind}


def _small_rope(cls: type) -> dict[str, Any] | None:
    """Sections of a rotary embedding that fit into the small head."""
    with contextlib.suppress(Exception):
        rope = cls().rope_parameters
        if "mrope_section" in rope:
            half = int(8 * rope.get("partial_rotary_factor", 1))
            return {**rope, "mrope_section": [half - 2 * (half // 3), half // 3, half // 3]}
    return None


def _small(name: str, value: int, recipe: Recipe) -> int:
    if re.fullmatch(r"(.*num_key_value_heads|num_kv_heads|.*num_(key_value|kv)_heads)", name):
        return recipe.groups
    if re.fullmatch(r"(.*(num_.*layers|_layers|n_layers?|layers|depth|num_blocks))", name):
        return min(value, recipe.layers)
    for pattern, small in INTEGERS:
        if re.fullmatch(pattern, name):
            return small(value)
    return value


def _small_list(name: str, value: list[int] | tuple[int, ...]) -> Any:
    if re.fullmatch(r"depths|num_block_repeats|.*num_blocks|layers", name):
        return type(value)(1 for _ in value)
    if re.fullmatch(r".*(hidden_sizes|embed_dims?|channels|conv_dim|tdnn_dim|stem_channels|dims)", name):
        least = max(min(value), 1)
        return type(value)(16 * max(item // least, 1) if item > 16 else item for item in value)
    if re.fullmatch(r".*(image_size|img_size)", name):
        return type(value)(SIZE for _ in value)
    return value


# What the patterns do not get right, by model type.
OVERRIDES: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("hosts_overrides.json").read_text())


@functools.cache
def architectures() -> dict[str, str]:
    """The class of each model type that transformers can build by itself."""
    found = {}
    for kind, cls in configuration_auto.CONFIG_MAPPING.items():
        composite = bool(getattr(cls, "sub_configs", {}))
        for head in (*COMPOSITE, "", *HEADS) if composite else (*HEADS, *COMPOSITE, ""):
            mapping = getattr(modeling_auto, f"MODEL_FOR_{head}_MAPPING_NAMES" if head else "MODEL_MAPPING_NAMES", {})
            if (name := mapping.get(kind)) is not None:
                found[kind] = name if isinstance(name, str) else name[0]
                break
    return found


def configuration(kind: str, recipe: Recipe) -> transformers.PretrainedConfig:
    cls = configuration_auto.CONFIG_MAPPING[kind]
    config = cls(**tiny(cls, copy.deepcopy(OVERRIDES.get(kind, {})), recipe))
    for part in _parts(config):
        if not 0 <= (getattr(part, "pad_token_id", None) or -1) < VOCABULARY:
            with contextlib.suppress(Exception):
                part.pad_token_id = 0
    return config


def _parts(config: transformers.PretrainedConfig) -> list[transformers.PretrainedConfig]:
    parts = (getattr(config, name, None) for name in getattr(config, "sub_configs", {}))
    return [config, *(found for part in parts if part is not None for found in _parts(part))]


def build(kind: str, recipe: Recipe, implementation: str) -> nn.Module:
    cls = getattr(transformers, architectures()[kind])
    torch.manual_seed(0)
    return cls._from_config(configuration(kind, recipe), attn_implementation=implementation).eval()


@torch.no_grad()
def draw_weights(model: nn.Module) -> None:
    """Weights with which attention is neither uniform nor one-hot, and no branch is scaled to nothing."""
    torch.manual_seed(1)
    for parameter in (found for found in model.parameters() if found.is_floating_point()):
        noise = torch.randn(parameter.shape, dtype=torch.float32).to(parameter.dtype)
        if parameter.dim() < 2:
            parameter.add_(0.1 * noise)
        else:  # what a convolution says must not drown what attention adds
            parameter.copy_(noise * (0.2 if parameter.dim() == 2 else parameter[0].numel() ** -0.5))


Inputs = dict[str, Tensor]


def inputs(model: nn.Module, recipe: Recipe) -> Inputs:
    """What the model's forward takes at least."""
    torch.manual_seed(2)
    config, names, main = model.config, inspect.signature(model.forward).parameters, model.main_input_name
    found: Inputs = {}
    text = "input_ids" in names
    if text:
        found["input_ids"] = ids(config)
    if "pixel_values" in names and (not text or recipe.pixels):
        found["pixel_values"] = pixels(config, main)
    if "input_features" in names and not text:
        found["input_features"] = features(config, recipe)
        if "input_features_mask" in names:
            found["input_features_mask"] = torch.ones(BATCH, 2 * LENGTH, dtype=torch.int64)
    if "input_values" in names and (not text or recipe.pixels):
        found["input_values"] = torch.randn(BATCH, 1, 2000) if recipe.by_channel else torch.randn(BATCH, 2000)
    if "grid_thw" in names:
        found["grid_thw"] = torch.tensor([[1, 4, 4]] * BATCH)
        found[main if main in names else "hidden_states"] = torch.randn(16 * BATCH, patch_length(config))
    if "decoder_input_ids" in names and getattr(config, "is_encoder_decoder", False):
        found["decoder_input_ids"] = ids(config)[:, :9]
    if "past_values" in names:
        found["past_values"] = torch.randn(BATCH, config.context_length, _of(config, "num_input_channels") or 1)
    if "bbox" in names and text:
        found["bbox"] = torch.tensor([1, 2, 5, 7]).expand(BATCH, LENGTH, 4).clone()
    for name in (name for name in names if name not in found and names[name].default is inspect.Parameter.empty):
        if name == "query_embeds":
            found[name] = torch.randn(BATCH, LENGTH, config.hidden_size)
        elif name.endswith("input_ids"):
            found[name] = ids(config)
    if not found:
        raise ValueError(f"no input is known for {main}")
    return found


def patch_length(config: transformers.PretrainedConfig) -> int:
    channels = _of(config, "in_channels", "in_chans", "num_channels") or 3
    return channels * (_of(config, "temporal_patch_size") or 1) * _of(config, "patch_size") ** 2


def ids(config: transformers.PretrainedConfig) -> Tensor:
    """Ids that are nobody's special ones."""
    text = config.get_text_config()
    special = {
        value
        for part in _parts(config)
        for key, value in part.to_dict().items()
        if isinstance(value, int) and re.fullmatch(r".*(token_(id|index)|_id|_index)", key)
    }
    size = min(_of(text, "vocab_size", "text_vocab_size") or VOCABULARY, VOCABULARY)
    allowed = torch.tensor([token for token in range(3, size) if token not in special])
    return allowed[torch.randint(len(allowed), (BATCH, LENGTH))]


def _of(config: transformers.PretrainedConfig, *names: str) -> Any:
    for part in _parts(config):
        for name in names:
            if getattr(part, name, None) is not None:
                return getattr(part, name)
    return None


def pixels(config: transformers.PretrainedConfig, main: str) -> Tensor:
    size = _of(config, "image_size", "img_size") or SIZE
    height, width = size[:2] if isinstance(size, list | tuple) else (size, size)
    channels = _of(config, "num_channels", "in_channels", "num_image_channels")
    channels = channels if isinstance(channels, int) else 3
    frames = _of(config, "num_frames", "frames_per_clip")
    if frames and main in ("pixel_values", "pixel_values_videos"):
        return torch.randn(BATCH, frames, channels, height, width)
    return torch.randn(BATCH, channels, height, width)


def features(config: transformers.PretrainedConfig, recipe: Recipe) -> Tensor:
    bins = _of(config, "num_mel_bins", "feature_size", "input_feat_per_channel", "input_size", "feat_dim", "input_dim")
    if not recipe.by_channel:
        return torch.randn(BATCH, 2 * LENGTH, bins or 8)
    return torch.randn(BATCH, bins or 8, 2 * (_of(config, "max_source_positions") or LENGTH))
