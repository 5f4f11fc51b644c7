"""What is measured, as data: layers and sequences that models have, what nobody tunes for, and whole models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from aigc_fast.bench.calls import (
    BFLOAT16,
    FLOAT32,
    FLOAT64,
    FORWARD,
    INT4,
    INT8,
    TRAINING,
    Answering,
    Attention,
    Call,
    Case,
    Convolution,
    Decoded,
    Decoder,
    Linear,
    Norm,
    Recursion,
    Sampled,
    Sequences,
    Shape,
    WholeModel,
)
from aigc_fast.ops.examples import examples


def _all(op: str, calls: Mapping[str, Call], *ways: tuple[str, str]) -> list[Case]:
    return [
        Case(op, name, call, dtype, mode, op in _OPS_IN_README or name in IN_README)
        for dtype, mode in ways
        for name, call in calls.items()
    ]


def _chosen(op: str, calls: Mapping[str, Call], names: tuple[str, ...], dtype: str, mode: str) -> list[Case]:
    return _all(op, {name: calls[name] for name in names}, (dtype, mode))


_DCGAN = {
    "DCGAN 100→512, 1×1, batch 16": Convolution(16, 100, 512, (1, 1), 4),
    "DCGAN 512→256, 4×4, batch 1": Convolution(1, 512, 256, (4, 4), 4, 2, 1),
    "DCGAN 512→256, 4×4, batch 16": Convolution(16, 512, 256, (4, 4), 4, 2, 1),
    "DCGAN 256→128, 8×8, batch 1": Convolution(1, 256, 128, (8, 8), 4, 2, 1),
    "DCGAN 256→128, 8×8, batch 16": Convolution(16, 256, 128, (8, 8), 4, 2, 1),
    "DCGAN 256→128, 8×8, batch 64": Convolution(64, 256, 128, (8, 8), 4, 2, 1),
    "DCGAN 128→64, 16×16, batch 16": Convolution(16, 128, 64, (16, 16), 4, 2, 1),
    "DCGAN 128→64, 16×16, batch 64": Convolution(64, 128, 64, (16, 16), 4, 2, 1),
    "DCGAN 64→3, 32×32, batch 16": Convolution(16, 64, 3, (32, 32), 4, 2, 1),
    "DCGAN 64→3, 32×32, batch 64": Convolution(64, 64, 3, (32, 32), 4, 2, 1),
}
_LAYERS = {
    **_DCGAN,
    "5×5 stride 2, 128→64, 7×7, batch 64": Convolution(64, 128, 64, (7, 7), 5, 2, 2, 1),
    "5×5 stride 2, 64→1, 14×14, batch 64": Convolution(64, 64, 1, (14, 14), 5, 2, 2, 1),
    "HiFi-GAN 512→256, length 80": Convolution(1, 512, 256, (80,), 16, 8, 4),
    "HiFi-GAN 128→64, length 5120": Convolution(1, 128, 64, (5120,), 4, 2, 1),
    "HiFi-GAN 64→32, length 10240": Convolution(1, 64, 32, (10240,), 4, 2, 1),
    "U-Net 256→128, 64×64, 2×2 stride 2": Convolution(1, 256, 128, (64, 64), 2, 2),
    "3×3 stride 2, 256→128, 4×4, batch 64": Convolution(64, 256, 128, (4, 4), 3, 2, 1, 1),
    "3d 64→32, 8×16×16": Convolution(1, 64, 32, (8, 16, 16), 4, 2, 1),
    "4→4, 4×4, batch 1": Convolution(1, 4, 4, (4, 4), 4, 2, 1),
}
_ALSO_BFLOAT16 = (
    "DCGAN 512→256, 4×4, batch 1",
    "DCGAN 512→256, 4×4, batch 16",
    "DCGAN 256→128, 8×8, batch 16",
    "DCGAN 128→64, 16×16, batch 64",
    "HiFi-GAN 128→64, length 5120",
)
_ALSO_TRAINED = (
    "DCGAN 512→256, 4×4, batch 16",
    "DCGAN 256→128, 8×8, batch 16",
    "DCGAN 128→64, 16×16, batch 64",
    "DCGAN 64→3, 32×32, batch 64",
    "5×5 stride 2, 128→64, 7×7, batch 64",
    "HiFi-GAN 128→64, length 5120",
    "4→4, 4×4, batch 1",
)

_ORDINARY = Convolution(1, 1, 1, (1,), 1, transposed=False)
_ADVERSARIAL = {
    "huge kernel and stride, 64×64 stride 32": Convolution(1, 21, 21, (8, 8), 64, 32, 16),
    "huge kernel, one group a channel, 16×16 stride 8": Convolution(1, 21, 21, (32, 32), 16, 8, 4, groups=21),
    "depthwise, transposed": Convolution(4, 64, 64, (32, 32), 4, 2, 1, groups=64),
    "inverse STFT 1026→1, kernel 1024, stride 256": Convolution(1, 1026, 1, (200,), 1024, 256),
    "dilated, transposed": Convolution(2, 64, 64, (32, 32), 3, 1, 4, dilation=4),
    "3d, transposed": Convolution(1, 32, 16, (8, 16, 16), 4, 2, 1),
    "odd length 1023, transposed": Convolution(1, 113, 17, (1023,), 4, 2, 1),
    "one channel, 5×5": replace(_ORDINARY, batch=64, outputs=64, spatial=(28, 28), kernel=5, padding=2),
    "stem, 7×7 stride 2": replace(
        _ORDINARY, batch=8, inputs=3, outputs=64, spatial=(112, 112), kernel=7, stride=2, padding=3
    ),
    "3×3, 64 channels, 28×28": replace(
        _ORDINARY, batch=8, inputs=64, outputs=64, spatial=(28, 28), kernel=3, padding=1
    ),
    "3×3, 64 channels, 256×256": replace(_ORDINARY, inputs=64, outputs=64, spatial=(256, 256), kernel=3, padding=1),
    "depthwise, 3×3": replace(
        _ORDINARY, batch=4, inputs=256, outputs=256, spatial=(28, 28), kernel=3, padding=1, groups=256
    ),
    "1×1": replace(_ORDINARY, batch=4, inputs=256, outputs=64, spatial=(28, 28)),
    "dilated by 3, kernel 7, length 1000": replace(
        _ORDINARY, inputs=256, outputs=256, spatial=(1000,), kernel=7, padding=9, dilation=3
    ),
    "dilated by 5, kernel 11, length 12800": replace(
        _ORDINARY, inputs=64, outputs=64, spatial=(12800,), kernel=11, padding=25, dilation=5
    ),
    "patch embedding, 16×16": replace(
        _ORDINARY, batch=2, inputs=3, outputs=384, spatial=(224, 224), kernel=16, stride=16
    ),
    "3d": replace(_ORDINARY, inputs=16, outputs=32, spatial=(16, 16, 16), kernel=3, padding=1),
    "odd sizes, 17→113, 23×31": replace(_ORDINARY, batch=3, inputs=17, outputs=113, spatial=(23, 31), kernel=3),
}

_ATTENTION = {
    "128 tokens, 12 heads of 64, causal": Attention(1, 12, 12, 128, 128, 64),
    "512 tokens, 12 heads of 64, causal": Attention(1, 12, 12, 512, 512, 64),
    "1024 tokens, 12 heads of 64, causal": Attention(1, 12, 12, 1024, 1024, 64),
    "4096 tokens, 12 heads of 64, causal": Attention(1, 12, 12, 4096, 4096, 64),
    "2048 tokens, 32 of 8 heads of 128, causal": Attention(1, 32, 8, 2048, 2048, 128),
    "256 tokens, 6 heads of 64, batch 4": Attention(4, 6, 6, 256, 256, 64, "full"),
    "1024 tokens, 12 heads of 64": Attention(1, 12, 12, 1024, 1024, 64, "full"),
    "1024 tokens, 12 heads of 64, padded, batch 4": Attention(4, 12, 12, 1024, 1024, 64, "padded"),
    "4096 tokens, 12 heads of 64, window 256": Attention(1, 12, 12, 4096, 4096, 64, "window"),
    "1 token of 128, 12 heads of 64": Attention(1, 12, 12, 1, 128, 64, "full"),
    "1 token of 1024, 12 heads of 64": Attention(1, 12, 12, 1, 1024, 64, "full"),
    "1 token of 8192, 12 heads of 64": Attention(1, 12, 12, 1, 8192, 64, "full"),
    "1 token of 8192, 32 of 8 heads of 128": Attention(1, 32, 8, 1, 8192, 128, "full"),
    "8 tokens, 2 heads of 16": Attention(1, 2, 2, 8, 8, 16, "full"),
    "113 of 1023 tokens, 3 heads of 17": Attention(1, 3, 3, 113, 1023, 17, "full"),
}
_TRAINED_ATTENTION = {
    "256 tokens, 12 heads of 64, causal, batch 8": Attention(8, 12, 12, 256, 256, 64),
    "1024 tokens, 12 heads of 64, causal": Attention(1, 12, 12, 1024, 1024, 64),
}
_DROPPED_ATTENTION = {
    "256 tokens, 12 heads of 64, dropout, batch 8": Attention(8, 12, 12, 256, 256, 64, "dropout"),
}

_RECURSION = {
    "1 of 10⁶, order 2": Recursion(1, 1_000_000, 2),
    "1 of 10⁶, order 16": Recursion(1, 1_000_000, 16),
    "64 of 16000, order 2": Recursion(64, 16_000, 2),
    "64 of 16000, order 10": Recursion(64, 16_000, 10),
    "64 of 16000, order 24": Recursion(64, 16_000, 24),
    "1024 of 1000, order 4": Recursion(1024, 1000, 4),
    "8 of 48000, order 22, of every step": Recursion(8, 48_000, 22, True),
    "3 of 1023, order 17": Recursion(3, 1023, 17),
}
_RECURRENT = {
    "LSTM 512, one step": Sequences("LSTM", 1, 1, 512),
    "GRU 256, one step": Sequences("GRU", 1, 1, 256),
    "LSTM 128, 64 steps": Sequences("LSTM", 1, 64, 128),
    "LSTM 256, 64 steps": Sequences("LSTM", 1, 64, 256),
    "LSTM 512, 64 steps": Sequences("LSTM", 1, 64, 512),
    "LSTM 512, 64 steps, batch 8": Sequences("LSTM", 8, 64, 512),
    "LSTM 512, 64 steps, batch 64": Sequences("LSTM", 64, 64, 512),
    "GRU 512, 64 steps": Sequences("GRU", 1, 64, 512),
    "GRU 512, 64 steps, batch 64": Sequences("GRU", 64, 64, 512),
    "RNN 512, 64 steps": Sequences("RNN", 1, 64, 512),
    "LSTM 64, 2 layers, 256 steps": Sequences("LSTM", 1, 256, 64, 2),
    "LSTM 256, 2 layers, 256 steps": Sequences("LSTM", 1, 256, 256, 2),
    "LSTM 256, 2 layers, both directions, 100 steps, batch 8": Sequences("LSTM", 8, 100, 256, 2, True),
    "LSTM 256, 64 packed of 1 to 256 steps": Sequences("LSTM", 64, 256, 256, packed=True),
    "LSTM 256, 64 of 256 steps": Sequences("LSTM", 64, 256, 256),
    "GRU 33, 17 steps, batch 3": Sequences("GRU", 3, 17, 33),
    "normalized LSTM 256, 16 steps": Sequences("LayerNormLSTM", 1, 16, 256),
}
_TRAINED_RECURRENT = {
    "LSTM 256, 128 steps, batch 32": Sequences("LSTM", 32, 128, 256),
    "GRU 256, 128 steps, batch 32": Sequences("GRU", 32, 128, 256),
    "RNN 256, 128 steps, batch 32": Sequences("RNN", 32, 128, 256),
    "normalized LSTM 256, 16 steps, batch 32": Sequences("LayerNormLSTM", 32, 16, 256),
    "LSTM 256, 64 packed of 1 to 256 steps": Sequences("LSTM", 64, 256, 256, packed=True),
}
_SAMPLED = {
    "LSTM 512, 1000 characters": Sampled("LSTM", 512, 1000),
    "GRU 256, 1000 characters": Sampled("GRU", 256, 1000),
}
GPT2_SMALL = Decoder("gpt2", 768, 12, 12, 12, 3072, 50257, 1024)
SMOLLM2 = Decoder("llama", 576, 30, 9, 3, 1536, 49152, 2048)
SMOLLM2_INSTRUCT = Decoder("smollm2")
_BEAMS = (("num_beams", 5), ("no_repeat_ngram_size", 2))
_DECODED = {
    "GPT-2 small, 64 tokens": Decoded(GPT2_SMALL, 32, 64),
    "GPT-2 small, 48 tokens by 5 beams": Decoded(GPT2_SMALL, 32, 48, options=_BEAMS),
    "GPT-2 small, 32 tokens drawn, batch 8": Decoded(
        GPT2_SMALL, 32, 32, 8, options=(("do_sample", True), ("top_k", 50))
    ),
    "GPT-2 small, 64 tokens with a processor": Decoded(GPT2_SMALL, 32, 64, extra="processor"),
    "GPT-2 small, 64 tokens with a streamer": Decoded(GPT2_SMALL, 32, 64, extra="streamer"),
    "GPT-2 small, a prompt of 512": Decoded(GPT2_SMALL, 512, 1),
    "SmolLM2's shape, 48 tokens": Decoded(SMOLLM2, 32, 48),
    "SmolLM2-135M-Instruct, 48 tokens": Decoded(SMOLLM2_INSTRUCT, 32, 48),
}
_COSTS = {
    "a step of 5 rows, against one": Decoded(GPT2_SMALL, 32, 1, 5, against="one row"),
    "a processor, against the native loop": Decoded(GPT2_SMALL, 32, 64, extra="processor", against="native loop"),
    "a streamer, against the native loop": Decoded(GPT2_SMALL, 32, 64, extra="streamer", against="native loop"),
    "int4, against int8": Decoded(GPT2_SMALL, 32, 64, against="int8"),
    "loading and packing": Decoded(GPT2_SMALL, 2, 1, against="loading"),
}
_LATENTS = {
    "64×2": Shape((64, 2)),
    "128×20": Shape((128, 20)),
    "64×512": Shape((64, 512)),
    "16×4×64×64": Shape((16, 4, 64, 64)),
    "64×4×128×128": Shape((64, 4, 128, 128)),
}
_DROPOUTS = {
    "64×64×28×28": Shape((64, 64, 28, 28), 0.3),
    "4×256×768": Shape((4, 256, 768), 0.1),
    "64×128": Shape((64, 128), 0.5),
}
_MODELS = {
    "DCGAN, a training step": WholeModel("dcgan", "step"),
    "DCGAN, images generated": WholeModel("dcgan", "generate"),
    "HiFi-GAN, a second of sound": WholeModel("hifigan", "decode", 1),
    "VAE decoder of latent diffusion, a 256×256 image": WholeModel("latent decoder", "decode", 1),
    "WGAN-GP, a training step of the critic": WholeModel("dcgan", "penalised step"),
    "ConvVAE, a training step": WholeModel("vae", "step"),
    "VideoRNN, ConvLSTM, a training step": WholeModel("video", "step", 16),
    "VideoRNN, latent LSTM, a training step": WholeModel("video-latent", "step", 16),
}
_ANSWERING = {
    "d 256, 4 + 4 layers, dropout, 32 pairs of 8 to 64 tokens": Answering("step", 32),
    "greedy, 16 answers of 64 tokens": Answering("greedy", 16),
    "4 beams, one answer of 64 tokens": Answering("beams", 1),
    "4 beams, 16 answers of 64 tokens": Answering("beams", 16),
}
_OF_STEPS = tuple(name for name in _MODELS if "a training step" in name)
_ALSO_INT4 = ("GPT-2 small, 64 tokens", "SmolLM2's shape, 48 tokens", "SmolLM2-135M-Instruct, 48 tokens")
# The README shows all cases of these ops, and these cases of the others.
_OPS_IN_README = ("linear", "norm", "dropout", "models", "sampling", "decode", "decode_costs", "seq2seq")
IN_README = {
    "DCGAN 512→256, 4×4, batch 16",
    "DCGAN 256→128, 8×8, batch 16",
    "DCGAN 64→3, 32×32, batch 64",
    "HiFi-GAN 128→64, length 5120",
    "U-Net 256→128, 64×64, 2×2 stride 2",
    "3d 64→32, 8×16×16",
    "4→4, 4×4, batch 1",
    "1024 tokens, 12 heads of 64, causal",
    "2048 tokens, 32 of 8 heads of 128, causal",
    "4096 tokens, 12 heads of 64, window 256",
    "1 token of 1024, 12 heads of 64",
    "1 token of 8192, 12 heads of 64",
    "256 tokens, 12 heads of 64, dropout, batch 8",
    "1 of 10⁶, order 16",
    "64 of 16000, order 10",
    "1024 of 1000, order 4",
    "8 of 48000, order 22, of every step",
    "LSTM 512, one step",
    "LSTM 512, 64 steps",
    "LSTM 512, 64 steps, batch 64",
    "GRU 512, 64 steps",
    "LSTM 256, 128 steps, batch 32",
    "GRU 256, 128 steps, batch 32",
    "LSTM 256, 64 packed of 1 to 256 steps",
    "64×2",
    "64×512",
    "64×4×128×128",
    "huge kernel and stride, 64×64 stride 32",
    "depthwise, transposed",
    "inverse STFT 1026→1, kernel 1024, stride 256",
    "one channel, 5×5",
    "depthwise, 3×3",
    "1×1",
    "dilated by 3, kernel 7, length 1000",
    "patch embedding, 16×16",
    "odd sizes, 17→113, 23×31",
}
# Of a ViT with two images, of prompts and of single tokens.
_LINEARS = {
    "394 rows, 768→3072, GELU": Linear(394, 768, 3072, "gelu"),
    "394 rows, 3072→768": Linear(394, 3072, 768),
    "2048 rows, 256→1024, ReLU": Linear(2048, 256, 1024, "relu"),
    "16 rows, 768→3072": Linear(16, 768, 3072),
    "8 rows, 768→3072": Linear(8, 768, 3072),
    "one row, 4096→4096": Linear(1, 4096, 4096),
}
# Of a variational auto-encoder's decoder, a CycleGAN's generator and a Transformer.
_NORMS = {
    "group 32 of 512, SiLU, 64×64": Norm("group_norm", (1, 512, 64, 64), 32, "silu"),
    "group 32 of 128, SiLU, 256×256": Norm("group_norm", (1, 128, 256, 256), 32, "silu"),
    "instance of 256, ReLU, 64×64": Norm("instance_norm", (1, 256, 64, 64), 1, "relu"),
    "instance of 64, ReLU, 256×256": Norm("instance_norm", (1, 64, 256, 256), 1, "relu"),
    "layer of 768, 8×197": Norm("layer_norm", (8, 197, 768)),
}
_NOT_TRAINED = ("randn", "rand")

CASES: tuple[Case, ...] = (
    *_all(
        "conv_transpose", {n: c for n, c in _LAYERS.items() if n != "DCGAN 128→64, 16×16, batch 64"}, (FLOAT32, FORWARD)
    ),
    *_chosen("conv_transpose", _LAYERS, _ALSO_BFLOAT16, BFLOAT16, FORWARD),
    *_chosen("conv_transpose", _LAYERS, _ALSO_TRAINED, FLOAT32, TRAINING),
    *_chosen("conv_transpose", _LAYERS, ("DCGAN 256→128, 8×8, batch 16",), BFLOAT16, TRAINING),
    *_all("adversarial", _ADVERSARIAL, (FLOAT32, FORWARD), (FLOAT32, TRAINING)),
    *_all("attention", _ATTENTION, (FLOAT32, FORWARD), (BFLOAT16, FORWARD)),
    *_all("attention", _TRAINED_ATTENTION, (FLOAT32, TRAINING), (BFLOAT16, TRAINING)),
    *_all("attention", _DROPPED_ATTENTION, (FLOAT32, TRAINING)),
    *_all("linear", _LINEARS, (FLOAT32, FORWARD), (BFLOAT16, FORWARD)),
    *_all("norm", _NORMS, (FLOAT32, FORWARD), (FLOAT32, TRAINING)),
    *_chosen("norm", _NORMS, ("group 32 of 512, SiLU, 64×64",), BFLOAT16, FORWARD),
    *_all("recursion", _RECURSION, (FLOAT32, FORWARD)),
    *_chosen("recursion", _RECURSION, ("1 of 10⁶, order 16", "64 of 16000, order 10"), FLOAT64, FORWARD),
    *_chosen(
        "recursion",
        _RECURSION,
        ("1 of 10⁶, order 16", "64 of 16000, order 10", "8 of 48000, order 22, of every step"),
        FLOAT32,
        TRAINING,
    ),
    *_all("recurrent", _RECURRENT, (FLOAT32, FORWARD)),
    *_chosen("recurrent", _RECURRENT, ("LSTM 256, 64 steps", "GRU 512, 64 steps"), BFLOAT16, FORWARD),
    *_all("recurrent", _TRAINED_RECURRENT, (FLOAT32, TRAINING)),
    *_chosen("recurrent", _TRAINED_RECURRENT, ("LSTM 256, 128 steps, batch 32",), BFLOAT16, TRAINING),
    *_all("sampling", _SAMPLED, (FLOAT32, FORWARD)),
    *_chosen("decode", _DECODED, tuple(_DECODED)[:-1], FLOAT32, FORWARD),
    *_chosen("decode", _DECODED, ("GPT-2 small, 64 tokens", "GPT-2 small, a prompt of 512"), BFLOAT16, FORWARD),
    *_chosen("decode", _DECODED, ("GPT-2 small, 64 tokens", "GPT-2 small, 48 tokens by 5 beams"), INT8, FORWARD),
    *_chosen("decode", _DECODED, _ALSO_INT4, INT4, FORWARD),
    *_chosen("decode_costs", _COSTS, tuple(_COSTS)[:3], FLOAT32, FORWARD),
    *_chosen("decode_costs", _COSTS, ("a step of 5 rows, against one", "loading and packing"), INT8, FORWARD),
    *_chosen("decode_costs", _COSTS, ("int4, against int8",), INT4, FORWARD),
    *_all("reparameterize", _LATENTS, (FLOAT32, FORWARD), (FLOAT32, TRAINING)),
    *_chosen("reparameterize", _LATENTS, ("64×4×128×128",), BFLOAT16, FORWARD),
    *_all("dropout", _DROPOUTS, (FLOAT32, TRAINING)),
    *_chosen("dropout", _DROPOUTS, ("4×256×768",), BFLOAT16, TRAINING),
    *_all("examples", examples(), (FLOAT32, FORWARD)),
    *_all("examples", {n: c for n, c in examples().items() if n not in _NOT_TRAINED}, (FLOAT32, TRAINING)),
    *_chosen("models", _MODELS, _OF_STEPS, FLOAT32, TRAINING),
    *_all("seq2seq", {n: c for n, c in _ANSWERING.items() if c.work == "step"}, (FLOAT32, TRAINING)),
    *_all("seq2seq", {n: c for n, c in _ANSWERING.items() if c.work != "step"}, (FLOAT32, FORWARD)),
    *_all("models", {n: c for n, c in _MODELS.items() if c.work in ("generate", "decode")}, (FLOAT32, FORWARD)),
)
OPS = tuple(dict.fromkeys(case.op for case in CASES))
# The ops whose cases are whole models.
WHOLE = ("models", "seq2seq", "decode", "decode_costs", "sampling")
