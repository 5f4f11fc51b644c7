"""Forty architectures of transformers, of every sort, of those that `make hosts` walks over: `hosts.py` says how."""

from __future__ import annotations

import importlib
import json

import pytest

transformers = pytest.importorskip("transformers", minversion="5.0", reason="transformers 5 is not installed")
hosts = importlib.import_module("hosts")

FORTY = (
    *("llama", "gpt2", "gpt_oss", "mistral", "mixtral", "qwen3", "qwen3_next", "gemma3_text", "gemma4_text", "falcon"),
    *("phi", "olmo2", "cohere2", "deepseek_v3", "deepseek_v32", "glm_moe_dsa", "granitemoehybrid", "jamba", "bloom"),
    *("opt", "bert", "roberta", "deberta-v2", "modernbert", "longformer", "t5", "bart", "pegasus_x", "led", "moshi"),
    *("vit", "swin", "dinov2", "siglip", "clip", "segformer", "wav2vec2", "whisper", "hubert", "qwen2_vl"),
)


def test_the_table_has_no_difference() -> None:
    rows = json.loads(hosts.TABLE.read_text())
    assert [name for name, result in rows.items() if "differs" in result] == []
    assert len(rows) > 400


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FORTY)
def test_host(kind: str) -> None:
    if kind not in hosts.architectures():
        pytest.skip(f"this transformers has no {kind}")
    found = hosts.verdict(kind)
    assert found.startswith(("same", "refused: ValueError"))
    rows = json.loads(hosts.TABLE.read_text())
    if rows["transformers"] == transformers.__version__:
        assert found == rows[f"{kind} {hosts.architectures()[kind]}"]
