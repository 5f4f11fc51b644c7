"""Tiny diffusers models of every sort before and after `use`: random weights, no download."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from parity import relative_error
from torch import Tensor, nn, randn, tensor

import aigc_fast
from aigc_fast.runtime import native

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
integration = importlib.import_module("aigc_fast.integrations.diffusers")

BACKEND = "cpu" if native.cpu_reason() is None else "reference"
UNET = {"sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4}
CROSS = {**UNET, "cross_attention_dim": 12, "attention_head_dim": 4}
CROSS_2D = {
    **CROSS,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
VAE = {
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
BLOCKS = {"num_attention_heads": 2, "attention_head_dim": 8}
VISIBLE = [[1] * 7, [1] * 4 + [0] * 3]


def steps(*sample: int, batch: int = 2, context: int = 12, **given: Any) -> dict[str, Any]:
    """A batch of samples, the steps they are at and a text."""
    name = "sample" if not given.pop("hidden", False) else "hidden_states"
    text = randn(given.pop("texts", batch), 7, context)
    return {name: randn(batch, *sample), "timestep": tensor([3.0, 9.0][:batch]), "encoder_hidden_states": text, **given}


def masked(*sample: int, **given: Any) -> dict[str, Any]:
    return {**steps(*sample, **given), "encoder_attention_mask": tensor(VISIBLE)}


# Settings, inputs, and whether there are layers with diffusers' default processors.
MODELS: dict[str, tuple[dict[str, Any], Callable[[], dict[str, Any]], bool]] = {
    "UNet2DModel": (
        {
            **UNET,
            "attention_head_dim": 4,
            "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
        },
        lambda: {"sample": randn(2, 3, 8, 8), "timestep": tensor([3, 9])},
        True,
    ),
    "UNet2DConditionModel": (CROSS_2D, lambda: masked(4, 8, 8), True),
    "UNet2DConditionModel, only cross": ({**CROSS_2D, "only_cross_attention": True}, lambda: masked(4, 8, 8), True),
    "UNet2DConditionModel, added keys": (
        {
            **CROSS,
            "down_block_types": ("SimpleCrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "SimpleCrossAttnUpBlock2D"),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        },
        lambda: masked(4, 8, 8),
        False,
    ),
    "UNetMotionModel": (
        {
            **UNET,
            "cross_attention_dim": 12,
            "num_attention_heads": 2,
            "motion_num_attention_heads": 2,
            "motion_max_seq_length": 8,
            "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
            "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
        },
        lambda: steps(4, 3, 8, 8, batch=1, texts=3),
        True,
    ),
    "UNet3DConditionModel": (
        {
            **CROSS,
            "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        },
        lambda: steps(4, 3, 8, 8, batch=1),
        True,
    ),
    "UNetSpatioTemporalConditionModel": (
        {
            "sample_size": 8,
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "cross_attention_dim": 12,
            "num_attention_heads": (2, 4),
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 12,
            "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        },
        lambda: steps(3, 8, 8, 8, batch=1, added_time_ids=randn(1, 3)),
        True,
    ),
    "ControlNetModel": (
        {
            **{name: value for name, value in CROSS.items() if name != "sample_size"},
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "conditioning_embedding_out_channels": (16, 32),
        },
        lambda: steps(4, 8, 8, batch=1, controlnet_cond=randn(1, 3, 16, 16)),
        True,
    ),
    "AutoencoderKL": (VAE, lambda: {"sample": randn(1, 3, 16, 16)}, True),
    "AsymmetricAutoencoderKL": (
        {
            "norm_num_groups": 4,
            "down_block_types": VAE["down_block_types"],
            "down_block_out_channels": (8, 16),
            "up_block_types": VAE["up_block_types"],
            "up_block_out_channels": (8, 16),
        },
        lambda: {"sample": randn(1, 3, 16, 16)},
        True,
    ),
    "AutoencoderKLTemporalDecoder": (
        {"block_out_channels": (32, 32), "down_block_types": VAE["down_block_types"]},
        lambda: {"sample": randn(1, 3, 16, 16), "num_frames": 1},
        True,
    ),
    "VQModel": (
        {
            **VAE,
            "block_out_channels": (32, 32),
            "norm_num_groups": 32,
            "norm_type": "spatial",
            "num_vq_embeddings": 16,
        },
        lambda: {"sample": randn(1, 3, 16, 16)},
        True,
    ),
    "Transformer2DModel": (
        {**BLOCKS, "in_channels": 16, "norm_num_groups": 4, "num_layers": 1, "cross_attention_dim": 12},
        lambda: {name: value for name, value in masked(16, 4, 4, hidden=True).items() if name != "timestep"},
        True,
    ),
    "DiTTransformer2DModel": (
        {**BLOCKS, "in_channels": 4, "num_layers": 2, "sample_size": 8, "num_embeds_ada_norm": 10},
        lambda: {"hidden_states": randn(2, 4, 8, 8), "timestep": tensor([3, 9]), "class_labels": tensor([1, 2])},
        True,
    ),
    "PixArtTransformer2DModel": (
        {
            **BLOCKS,
            "in_channels": 4,
            "num_layers": 2,
            "sample_size": 8,
            "cross_attention_dim": 16,
            "caption_channels": 12,
            "use_additional_conditions": False,
        },
        lambda: masked(4, 8, 8, hidden=True, added_cond_kwargs={"resolution": None, "aspect_ratio": None}),
        True,
    ),
    "SD3Transformer2DModel": (
        {
            **BLOCKS,
            "sample_size": 8,
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "joint_attention_dim": 12,
            "caption_projection_dim": 16,
            "pooled_projection_dim": 10,
        },
        lambda: steps(4, 8, 8, hidden=True, pooled_projections=randn(2, 10)),
        False,
    ),
    "FluxTransformer2DModel": (
        {
            "patch_size": 1,
            "in_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 12,
            "pooled_projection_dim": 10,
            "axes_dims_rope": (4, 4, 8),
        },
        lambda: steps(
            *(16, 4),
            hidden=True,
            pooled_projections=randn(2, 10),
            img_ids=torch.zeros(16, 3),
            txt_ids=torch.zeros(7, 3),
        ),
        False,
    ),
    "HunyuanDiT2DModel": (
        {
            **BLOCKS,
            "in_channels": 4,
            "num_layers": 2,
            "sample_size": 8,
            "patch_size": 2,
            "hidden_size": 16,
            "mlp_ratio": 2.0,
            "cross_attention_dim": 16,
            "cross_attention_dim_t5": 16,
            "pooled_projection_dim": 8,
            "text_len": 7,
            "text_len_t5": 6,
            "use_style_cond_and_image_meta_size": False,
        },
        lambda: steps(
            *(4, 8, 8),
            batch=1,
            context=16,
            hidden=True,
            text_embedding_mask=torch.ones(1, 7),
            encoder_hidden_states_t5=randn(1, 6, 16),
            text_embedding_mask_t5=torch.ones(1, 6),
            image_rotary_emb=(randn(16, 8), randn(16, 8)),
        ),
        False,
    ),
    "LatteTransformer3DModel": (
        {
            **BLOCKS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "sample_size": 8,
            "cross_attention_dim": 16,
            "caption_channels": 12,
            "video_length": 3,
            "patch_size": 2,
            "attention_bias": True,
            "norm_elementwise_affine": False,
        },
        lambda: steps(4, 3, 8, 8, batch=1, hidden=True),
        True,
    ),
    "PriorTransformer": (
        {**BLOCKS, "num_layers": 2, "embedding_dim": 12, "num_embeddings": 7, "additional_embeddings": 4},
        lambda: steps(12, hidden=True, proj_embedding=randn(2, 12), attention_mask=tensor(VISIBLE).bool()),
        True,
    ),
    "StableAudioDiTModel": (
        {
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "num_key_value_attention_heads": 1,
            "cross_attention_dim": 16,
            "time_proj_dim": 8,
            "global_states_input_dim": 12,
            "cross_attention_input_dim": 12,
        },
        lambda: steps(
            *(4, 8), hidden=True, global_hidden_states=randn(2, 1, 12), rotary_embedding=(randn(9, 8), randn(9, 8))
        ),
        False,
    ),
    "CogVideoXTransformer3DModel": (
        {
            **BLOCKS,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 4,
            "text_embed_dim": 12,
            "num_layers": 1,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 9,
            "patch_size": 2,
            "max_text_seq_length": 7,
        },
        lambda: steps(3, 4, 8, 8, batch=1, hidden=True),
        False,
    ),
    "UVit2DModel": (
        {
            "hidden_size": 32,
            "cond_embed_dim": 16,
            "encoder_hidden_size": 12,
            "micro_cond_encode_dim": 4,
            "micro_cond_embed_dim": 20,
            "block_out_channels": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "vocab_size": 20,
            "codebook_size": 16,
            "block_num_heads": 2,
            "sample_size": 4,
            "in_channels": 32,
        },
        lambda: {
            "input_ids": torch.arange(16).view(1, 4, 4),
            "encoder_hidden_states": randn(1, 7, 12),
            "pooled_text_emb": randn(1, 16),
            "micro_conds": randn(1, 5),
        },
        True,
    ),
}


@torch.no_grad()
def outputs(model: nn.Module, given: dict[str, Any]) -> list[Tensor]:
    torch.manual_seed(1)
    with aigc_fast.backend(BACKEND):
        found = model(**given)
    found = [found] if isinstance(found, Tensor) else found.to_tuple()
    parts = (part for item in found for part in (item if isinstance(item, list | tuple) else [item]))
    return [part for part in parts if isinstance(part, Tensor)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_before_and_after(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = getattr(diffusers, name.split(",")[0], None)
    if cls is None:
        pytest.skip(f"this diffusers has no {name}")
    settings, make, default = MODELS[name]
    model, given = cls(**settings).eval(), make()
    with torch.no_grad():
        for parameter in model.parameters():  # none that scales a branch to nothing
            noise = torch.randn_like(parameter)
            parameter.copy_(0.2 * noise if parameter.dim() > 1 else parameter + 0.1 * noise)
    expected = outputs(model, given)
    changed = integration.use(model)
    assert bool(changed) is default
    found = outputs(model, given)
    assert len(found) == len(expected)
    assert max(map(relative_error, found, expected)) < 1e-5
    attend = integration.scaled_dot_product_attention
    monkeypatch.setattr(integration, attend.__name__, lambda *args, **kwargs: 0 * attend(*args, **kwargs))
    assert (max(map(relative_error, outputs(model, given), expected)) > 1e-2) is default
    assert integration.restore(model) == changed
    assert all(map(torch.equal, outputs(model, given), expected))
