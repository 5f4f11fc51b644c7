"""transformers' models with attn_implementation="aigc_fast" against "eager" and "sdpa": random weights, no download."""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
from pathlib import Path

import pytest
import torch
from parity import relative_error
from watching import Dispatched

import aigc_fast

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
integration = importlib.import_module("aigc_fast.integrations.transformers")

SMALL = {"vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SMALL, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 512}
CONFIGS = {
    "gpt2": lambda: transformers.GPT2Config(vocab_size=97, n_embd=48, n_layer=2, n_head=4, n_positions=512),
    "llama": lambda: transformers.LlamaConfig(**LLAMA),
    "mistral": lambda: transformers.MistralConfig(**LLAMA, sliding_window=7),
    "gpt-oss": lambda: pytest.importorskip("transformers", minversion="4.55").GptOssConfig(
        **LLAMA, head_dim=12, num_local_experts=2, num_experts_per_tok=1, sliding_window=7, initializer_range=0.2
    ),
}


def models(name: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Two models of the same weights: ours and eager."""
    config = CONFIGS[name]()
    config.pad_token_id = 0
    eager, ours = (build(transformers.AutoModelForCausalLM, config, named) for named in ("eager", "aigc_fast"))
    ours.load_state_dict(eager.state_dict())
    return ours, eager


def build(auto: type, config: transformers.PretrainedConfig, named: str) -> torch.nn.Module:
    return auto.from_config(copy.deepcopy(config), attn_implementation=named).eval()


settable = pytest.mark.skipif(
    not hasattr(transformers.PreTrainedModel, "set_attn_implementation"), reason="models cannot be set"
)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits(name: str, padded: bool, backend: str) -> None:
    ours, eager = models(name)
    ids, mask = torch.randint(1, 97, (3, 70)), torch.ones(3, 70, dtype=torch.int64)
    if padded:
        mask[0, :30] = mask[1, :11] = 0
    with torch.no_grad():
        found, expected = (model(ids, attention_mask=mask).logits for model in (ours, eager))
    seen = mask.bool()
    assert relative_error(found[seen], expected[seen]) < 5e-6
    with torch.no_grad(), Dispatched() as dispatched:
        ours(ids, attention_mask=mask)
    assert backend == "auto" or dispatched.names == ["attention"] * 2


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", CONFIGS)
def test_generated_ids(name: str, cache: str, backend: str) -> None:
    ids, mask = torch.randint(1, 97, (2, 20)), torch.ones(2, 20, dtype=torch.int64)
    mask[0, :6] = 0
    settings = {
        "max_new_tokens": 30,
        "min_new_tokens": 30,
        "do_sample": False,
        "cache_implementation": cache,
        "disable_compile": True,
    }
    found, expected = (model.generate(ids, attention_mask=mask, **settings) for model in models(name))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients(name: str, backend: str) -> None:
    ids = torch.randint(1, 97, (2, 50))
    grads = []
    for model in models(name):
        model(ids, labels=ids).loss.backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    for found, expected in zip(*grads, strict=True):
        assert relative_error(found, expected) < 2e-5


def test_a_vision_transformer(backend: str) -> None:
    config = transformers.ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=64, patch_size=8
    )
    eager, ours = (build(transformers.AutoModel, config, named) for named in ("eager", "aigc_fast"))
    ours.load_state_dict(eager.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(ours(images).last_hidden_state, eager(images).last_hidden_state) < 5e-6


def test_a_position_bias_and_a_mask() -> None:
    q, k, v, bias = torch.randn(1, 4, 9, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 4, 9, 9)
    layer = torch.nn.Module()
    layer.num_key_value_groups, layer.is_causal = 2, True
    sdpa = transformers.integrations.sdpa_attention.sdpa_attention_forward
    if "position_bias" not in inspect.signature(sdpa).parameters:
        pytest.skip("this transformers has no bias")
    for mask in (None, torch.rand(1, 1, 9, 9).tril() < 0.7, torch.randn(1, 1, 9, 9)):
        found, weights = integration.attention(layer, q, k, v, mask, position_bias=bias)
        assert weights is None
        torch.testing.assert_close(found, sdpa(layer, q, k, v, mask, position_bias=bias)[0])


SINK_MASKS = {
    "causal": lambda: None,
    "full": lambda: None,
    "bool": lambda: torch.rand(2, 1, 9, 11) < 0.6,
    "float": lambda: torch.randn(2, 4, 9, 11),
    "of keys": lambda: torch.rand(2, 1, 1, 11) < 0.6,
    "of queries": lambda: torch.rand(2, 1, 9, 1) < 0.6,
}


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("kind", SINK_MASKS)
def test_sinks(kind: str, biased: bool, scaling: float | None, backend: str) -> None:
    mask, causal = SINK_MASKS[kind](), kind == "causal"
    q, k, v, sinks = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 11, 8), torch.randn(2, 2, 11, 6), 3 * torch.randn(4)
    bias = torch.randn(1, 4, 9, 11) if biased else None
    inputs = [tensor.requires_grad_() for tensor in (q, k, v, sinks)]

    scores = q @ k.repeat_interleave(2, 1).transpose(2, 3) * (8**-0.5 if scaling is None else scaling)
    scores = scores + (0 if bias is None else bias)
    if causal:
        mask = torch.ones(9, 11, dtype=torch.bool).tril()
    if mask is not None:
        scores = scores + mask if mask.is_floating_point() else scores.masked_fill(~mask, -torch.inf)
    weights = torch.cat([scores, sinks.view(1, 4, 1, 1).expand(2, 4, 9, 1)], -1).softmax(-1)[..., :-1]
    expected = (weights @ v.repeat_interleave(2, 1)).transpose(1, 2)

    given = {"is_causal": causal, "position_bias": bias, "scaling": scaling, "s_aux": sinks}
    found, _ = integration.attention(torch.nn.Module(), q, k, v, None if causal else mask, **given)
    torch.testing.assert_close(found, expected)
    grads = (torch.autograd.grad(output.sin().sum(), inputs) for output in (found, expected))
    for ours, theirs in zip(*grads, strict=True):
        assert relative_error(ours, theirs) < 1e-5


def test_a_single_query_with_sinks_sees_all_keys() -> None:
    q, k, sinks = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 7, 8), torch.randn(2)
    found, _ = integration.attention(torch.nn.Module(), q, k, k, None, is_causal=True, s_aux=sinks)
    full, _ = integration.attention(torch.nn.Module(), q, k, k, None, is_causal=False, s_aux=sinks)
    torch.testing.assert_close(found, full)
    assert not torch.allclose(found, integration.attention(torch.nn.Module(), q, k, k, None)[0])


@pytest.mark.parametrize("name", ["softcap", "indices", "block_indices", "sinks", "what_comes"])
def test_arguments_that_are_not_known_are_refused(name: str) -> None:
    q = torch.randn(1, 2, 5, 8)
    with pytest.raises(ValueError, match=rf"does not know {name}=30\.0"):
        integration.attention(torch.nn.Module(), q, q, q, None, **{name: 30.0})
    with pytest.raises(ValueError, match=f"does not know {name}: use"):
        integration.attention(torch.nn.Module(), q, q, q, None, **{name: torch.zeros(2)})


def test_arguments_that_change_nothing() -> None:
    q = torch.randn(1, 2, 5, 8)
    given = {"sliding_window": 3, "position_ids": torch.arange(5), "indices": None, "output_attentions": False}
    found, expected = (integration.attention(torch.nn.Module(), q, q, q, None, **kwargs)[0] for kwargs in ({}, given))
    assert torch.equal(found, expected)


def test_what_a_model_passes_on_and_is_not_known_goes_to_sdpa(caplog: pytest.LogCaptureFixture) -> None:
    ours, eager = models("llama")
    ids = torch.randint(1, 97, (2, 9))
    sdpa = build(transformers.AutoModelForCausalLM, eager.config, "sdpa")
    sdpa.load_state_dict(eager.state_dict())
    with torch.no_grad():
        found, expected = (model(ids, what_comes=torch.ones(2)).logits for model in (ours, sdpa))
    assert torch.equal(found, expected)
    assert caplog.messages == ["LlamaAttention has what_comes, which 'aigc_fast' does not know: 'sdpa' runs"]


NO_SDPA = {
    "bloom": lambda: transformers.BloomConfig(
        vocab_size=97, hidden_size=48, n_layer=2, n_head=4, initializer_range=0.2
    ),
    "gpt-neo": lambda: transformers.GPTNeoConfig(
        vocab_size=97, hidden_size=48, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]
    ),
    "gemma2": lambda: transformers.Gemma2Config(**LLAMA, head_dim=12),
}


@pytest.mark.parametrize("name", NO_SDPA)
def test_what_transformers_refuses(name: str, tmp_path: Path) -> None:
    config = NO_SDPA[name]()
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, 1, 2
    auto, ids = transformers.AutoModelForCausalLM, torch.randint(3, 97, (2, 21))
    eager = build(auto, config, "eager")
    with pytest.raises(ValueError, match=r"does not (support|know softcap)"):
        build(auto, config, "aigc_fast")(ids)
    eager.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"does not (support|know softcap)"):
        auto.from_pretrained(tmp_path, attn_implementation="aigc_fast")(ids)


@settable
@pytest.mark.parametrize("name", NO_SDPA)
def test_what_transformers_refuses_to_set(name: str) -> None:
    config = NO_SDPA[name]()
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, 1, 2
    model, ids = build(transformers.AutoModelForCausalLM, config, "eager"), torch.randint(3, 97, (2, 21))
    with torch.no_grad():
        expected = model(ids).logits
        with contextlib.suppress(ValueError):
            model.set_attn_implementation("aigc_fast")
            assert torch.equal(model(ids).logits, expected)


MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
NAMED = {  # models that ask for the name, and arguments of theirs
    "DeepseekV32Config": (
        {
            **LLAMA,
            **MLA,
            "num_key_value_heads": 4,
            "index_topk": 4,
            "index_n_heads": 2,
            "index_head_dim": 16,
            "first_k_dense_replace": 2,
        },
        {},
    ),
    "Gemma4TextConfig": (
        {
            **LLAMA,
            "head_dim": 12,
            "global_head_dim": 12,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 97,
            "num_kv_shared_layers": 0,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        {"logits_to_keep": 2},
    ),
    "FalconConfig": ({**SMALL}, {}),
}


@pytest.mark.parametrize("name", NAMED)
def test_models_that_ask_for_the_name(name: str) -> None:
    if not hasattr(transformers, name):
        pytest.skip(f"this transformers has no {name}")
    settings, given = NAMED[name]
    config = getattr(transformers, name)(**settings, initializer_range=0.2, pad_token_id=0)
    auto = transformers.AutoModelForCausalLM
    sdpa, ours = (build(auto, config, named) for named in ("sdpa", "aigc_fast"))
    ours.load_state_dict(sdpa.state_dict())
    ids, mask = torch.randint(1, 97, (2, 21)), torch.ones(2, 21, dtype=torch.int64)
    mask[0, :7] = 0
    for hidden in (None, mask):
        with torch.no_grad():
            found, expected = (model(ids, attention_mask=hidden, **given).logits[1] for model in (ours, sdpa))
        assert relative_error(found, expected) < 1e-5


def chosen(model: torch.nn.Module) -> list[bool]:
    """Which configurations of a model have our attention."""
    return [
        part.config._attn_implementation_internal == "aigc_fast"
        for part in model.modules()
        if isinstance(part, transformers.PreTrainedModel)
    ]


@settable
def test_models_read_sdpa_and_can_leave(tmp_path: Path) -> None:
    ours, _ = models("llama")
    assert all(chosen(ours))
    assert ours.config._attn_implementation == "sdpa"
    assert all(chosen(copy.deepcopy(ours)))
    ours.save_pretrained(tmp_path)
    assert "aigc_fast" not in (tmp_path / "config.json").read_text()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="aigc_fast")
    assert all(chosen(again))
    for name in ("sdpa", "eager"):
        again.set_attn_implementation("aigc_fast")
        assert all(chosen(again))
        again.set_attn_implementation(name)
        assert not any(chosen(again))


@settable
def test_parts_of_a_model_have_names_of_their_own() -> None:
    tower = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.CLIPConfig(
        text_config={**tower, "vocab_size": 97}, vision_config={**tower, "image_size": 32, "patch_size": 8}
    )
    model = transformers.CLIPModel._from_config(config, attn_implementation="aigc_fast")
    assert all(chosen(model))
    model.set_attn_implementation({"text_config": "sdpa"})
    configs = model.config, model.config.text_config, model.config.vision_config
    names = [part._attn_implementation_internal for part in configs]
    assert names == ["aigc_fast", "sdpa", "aigc_fast"]


def test_compiled(attentions: list[str]) -> None:
    ours, _ = models("llama")
    ids = torch.randint(1, 97, (2, 21))
    with torch.no_grad(), aigc_fast.backend("cpu"):
        expected = ours(ids, use_cache=False).logits
        before = len(attentions)
        compiled = torch.compile(ours, backend="eager", fullgraph=True)(ids, use_cache=False).logits
    torch.testing.assert_close(compiled, expected)
    assert before == 2
