"""diffusers' models with our attention processor against its own: random weights, no download."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from cases import relative_error
from torch import Tensor, nn

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
theirs = importlib.import_module("diffusers.models.attention_processor")
integration = importlib.import_module("aigc_fast.integrations.diffusers")

LAYERS = {
    "self": {"query_dim": 24, "heads": 3, "dim_head": 8, "bias": True},
    "cross": {"query_dim": 24, "cross_attention_dim": 20, "heads": 2, "dim_head": 10},
    "cross, normalized": {"query_dim": 24, "cross_attention_dim": 20, "cross_attention_norm": "layer_norm"},
    "normalized heads": {"query_dim": 24, "heads": 3, "dim_head": 8, "qk_norm": "layer_norm", "dropout": 0.0},
    "image": {
        "query_dim": 24,
        "heads": 1,
        "dim_head": 24,
        "norm_num_groups": 4,
        "residual_connection": True,
        "rescale_output_factor": 2.0,
        "upcast_softmax": True,
    },
    "spatial norm": {"query_dim": 32, "heads": 2, "dim_head": 16, "spatial_norm_dim": 6},
}
INPUTS = {"image": (2, 24, 5, 7), "spatial norm": (2, 32, 5, 7)}


def both(layer: nn.Module, *args: Tensor, **kwargs: Tensor) -> list[list[Tensor]]:
    """Outputs and gradients with our processor and with diffusers'."""
    results = []
    for processor in (integration.AttnProcessor(), theirs.AttnProcessor2_0()):
        layer.set_processor(processor)
        leaves = [arg.clone().requires_grad_() for arg in args]
        output = layer(*leaves, **kwargs)
        results.append([output, *torch.autograd.grad(output.sin().sum(), [*leaves, *layer.parameters()])])
    return results


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str, masked: bool, backend: str) -> None:
    layer = theirs.Attention(**LAYERS[name])
    args = [torch.randn(INPUTS.get(name, (2, 35, 24)))]
    keys, kwargs = 35, {}
    if name.startswith("cross"):
        keys = 11
        args.append(torch.randn(2, keys, 20))
    if masked:
        kwargs["attention_mask"] = torch.randn(2, 1, keys)
    if name == "spatial norm":
        kwargs["temb"] = torch.randn(2, 6, 5, 7)
    for ours, expected in zip(*both(layer, *args, **kwargs), strict=True):
        assert ours.shape == expected.shape
        assert relative_error(ours, expected) < 1e-5 or expected.norm() < 1e-4


def small_unet() -> nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()


def test_unet_and_vae(attentions: list[str]) -> None:
    unet = small_unet()
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    ).eval()
    for model, args in (
        (unet, (torch.randn(2, 4, 8, 8), torch.tensor([3, 500]), torch.randn(2, 7, 12))),
        (vae, (torch.randn(1, 3, 48, 48),)),
    ):
        ours = copy.deepcopy(model)
        names = integration.use(ours)
        assert names
        assert all("attn" in name or "attention" in name for name in names)
        assert integration.use(ours) == []
        with torch.no_grad():
            assert relative_error(ours(*args).sample, model(*args).sample) < 1e-5
        assert ours.state_dict().keys() == model.state_dict().keys()
    assert "attention" in attentions


def test_other_processors_stay() -> None:
    layer = theirs.Attention(**LAYERS["self"], added_kv_proj_dim=24, processor=theirs.AttnAddedKVProcessor2_0())
    holder = nn.Sequential(layer, theirs.Attention(**LAYERS["self"], processor=theirs.AttnProcessor()))
    assert integration.use(holder) == ["1"]
    assert isinstance(layer.processor, theirs.AttnAddedKVProcessor2_0)


def test_restore_puts_back_what_was_there() -> None:
    unet = small_unet()
    before = unet.attn_processors
    names = integration.use(unet)
    with pytest.raises(ValueError, match="set_default_attn_processor"):
        unet.set_default_attn_processor()
    assert integration.restore(unet) == names
    assert unet.attn_processors == before
    assert integration.restore(unet) == []
    unet.set_default_attn_processor()
    assert integration.use(unet) == names


def test_restore_leaves_processors_that_the_user_set() -> None:
    layer = theirs.Attention(**LAYERS["self"], processor=integration.AttnProcessor())
    assert integration.restore(layer) == []
    assert isinstance(layer.processor, integration.AttnProcessor)
