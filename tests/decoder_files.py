"""Decoders in the files that other programs write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from aigc_fast.models import BPETokenizer, DecoderModel


def shard(folder: Path, files: int = 3) -> None:
    """Parts the weights of a folder into several files, with an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    index: dict[str, str] = {}
    for number in range(files):
        part = names[number::files]
        file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "model.safetensors").unlink()


def write_gguf(path: Path, model: DecoderModel, tokenizer: BPETokenizer | None = None, pieces: Any = None) -> None:
    """As llama.cpp's converter does it, in float32."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    writer, config = gguf.GGUFWriter(path, model.name), model.config
    writer.add_block_count(config["num_layers"])
    writer.add_context_length(config["context"])
    writer.add_embedding_length(config["hidden"])
    writer.add_head_count(config["num_heads"])
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(0)
    if model.name == "llama":
        writer.add_feed_forward_length(72)
        writer.add_head_count_kv(model.kv_heads)
        writer.add_rope_dimension_count(model.head_size)
        writer.add_rope_freq_base(10000.0)
        writer.add_layer_norm_rms_eps(config["epsilon"])
    else:
        writer.add_feed_forward_length(4 * config["hidden"])
        writer.add_layer_norm_eps(config["epsilon"])
    if tokenizer is not None:
        parts = json.loads(tokenizer.content)["model"]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(sorted(parts["vocab"], key=parts["vocab"].get))
        writer.add_token_types([3, *[1] * (tokenizer.vocab_size - 1)])
        writer.add_token_merges([" ".join(merge) for merge in parts["merges"]])
    if pieces is not None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(list(pieces))
        writer.add_token_scores(list(pieces.values()))
        writer.add_token_types([3, 3, 2, *[6] * 256, *[1] * (len(pieces) - 259)])
    kind = gguf.MODEL_ARCH.LLAMA if model.name == "llama" else gguf.MODEL_ARCH.GPT2
    names = gguf.get_tensor_name_map(kind, config["num_layers"])
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.tied:
            continue
        values = tensor.numpy()
        if model.name == "gpt2" and ".h." in name and values.ndim == 2:
            values = values.T
        for part, heads in (("q_proj", config["num_heads"]), ("k_proj", config.get("num_kv_heads"))):
            if part in name:
                halves = values.reshape(heads, 2, values.shape[0] // heads // 2, -1)
                values = halves.swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
