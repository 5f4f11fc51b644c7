"""diffusers' models with our attention processor against its own: random weights, no download."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from parity import relative_error
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


def test_a_scale_of_the_layers_own(backend: str) -> None:
    layer = theirs.Attention(**LAYERS["self"], scale_qk=False, qk_norm="layer_norm")
    x, mask = torch.randn(2, 35, 24), torch.randn(2, 1, 35)
    expected = layer(x, attention_mask=mask)
    assert integration.use(layer) == [""]
    assert relative_error(layer(x, attention_mask=mask), expected) < 1e-5


class Recorder(theirs.AttnProcessor2_0):
    """A processor that says what it was called with."""

    def __call__(self, attn: nn.Module, hidden_states: Tensor, *args: object, **kwargs: object) -> tuple:
        return hidden_states, args, kwargs


def test_unknown_arguments_go_to_the_processor_that_was_replaced() -> None:
    layer, x = theirs.Attention(**LAYERS["self"]), torch.randn(2, 5, 24)
    ours = integration.AttnProcessor(Recorder())
    assert isinstance(ours(layer, x), Tensor)
    assert isinstance(ours(layer, x, image_rotary_emb=None), Tensor)
    _, args, kwargs = ours(layer, x, temb=x, image_rotary_emb=x)
    assert args == (None, None, x)
    assert kwargs == {"image_rotary_emb": x}
    assert ours(layer, x, None, None, None, 0.5)[1] == (None, None, None, 0.5)
    with pytest.warns(FutureWarning, match="`scale` argument is deprecated"):
        found = integration.AttnProcessor()(layer, x, scale=0.5)
    assert torch.equal(found, theirs.AttnProcessor2_0()(layer, x))


def test_pipelines_ask_for_the_class() -> None:
    layer = theirs.Attention(**LAYERS["self"])
    integration.use(layer)
    assert isinstance(layer.processor, theirs.AttnProcessor2_0)


class Attention(theirs.Attention):
    """Somebody's layer, with scores of its own."""

    def get_attention_scores(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return 0.5 * super().get_attention_scores(*args, **kwargs)


def test_what_somebody_changed_stays(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    patched = theirs.Attention(**LAYERS["self"])
    patched.forward = lambda x: x
    model = nn.ModuleList(
        [Attention(**LAYERS["self"]), patched, theirs.Attention(**LAYERS["self"], processor=Recorder())]
    )
    assert integration.use(model) == []
    assert caplog.messages == [
        "1 of Attention with AttnProcessor2_0: its get_attention_scores may compute something else",
        "1 of Attention with AttnProcessor2_0: its forward may compute something else",
        "1 of Attention with Recorder: computes something else",
    ]
    monkeypatch.setattr(theirs.AttnProcessor2_0, "__call__", Recorder.__call__)
    assert integration.use(theirs.Attention(**LAYERS["self"])) == []


OTHERS = {  # processors, further settings of their layers, and inputs
    "added keys": (
        lambda: theirs.AttnAddedKVProcessor2_0(),
        {"added_kv_proj_dim": 24, "norm_num_groups": 4},
        lambda: (torch.randn(2, 24, 3, 3), torch.randn(2, 7, 24)),
    ),
    "joint": (
        lambda: theirs.JointAttnProcessor2_0(),
        {"added_kv_proj_dim": 24, "context_pre_only": False, "out_dim": 24},
        lambda: (torch.randn(2, 9, 24), torch.randn(2, 7, 24)),
    ),
    "IP adapter": (
        lambda: theirs.IPAdapterAttnProcessor2_0(hidden_size=24, cross_attention_dim=24, num_tokens=(4,), scale=0.5),
        {"cross_attention_dim": 24},
        lambda: (torch.randn(2, 9, 24), (torch.randn(2, 7, 24), [torch.randn(2, 1, 4, 24)])),
    ),
    "custom diffusion": (
        lambda: theirs.CustomDiffusionAttnProcessor2_0(hidden_size=24, cross_attention_dim=24),
        {"cross_attention_dim": 24},
        lambda: (torch.randn(2, 9, 24), torch.randn(2, 7, 24)),
    ),
    "sliced": (
        lambda: theirs.SlicedAttnProcessor(1),
        {},
        lambda: (torch.randn(2, 9, 24),),
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_processors_compute_the_same(name: str) -> None:
    make, settings, given = OTHERS[name]
    layer = theirs.Attention(**{**LAYERS["self"], **settings}, processor=make())
    args = given()
    before, changed, after = layer(*args), integration.use(layer), layer(*args)
    assert changed == []
    pairs = zip(before, after, strict=True) if isinstance(before, tuple) else [(before, after)]
    assert all(torch.equal(*pair) for pair in pairs)


def test_fused_projections(backend: str) -> None:
    unet = small_unet()
    given = torch.randn(2, 4, 8, 8), torch.tensor([3, 500]), torch.randn(2, 7, 12)
    with torch.no_grad():
        expected = unet(*given).sample
        names = integration.use(unet)
        unet.fuse_qkv_projections()
        assert integration.use(unet) == integration.restore(unet) == []
        assert relative_error(unet(*given).sample, expected) < 1e-5
        unet.unfuse_qkv_projections()
        assert relative_error(unet(*given).sample, expected) < 1e-5
    assert integration.restore(unet) == names


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
