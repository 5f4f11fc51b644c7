"""Generative models that train and sample on the package's kernels."""

from aigc_fast.models.ar import ARModel
from aigc_fast.models.base import ImageModel, LatentModel, Model, SoundModel, VideoModel
from aigc_fast.models.gan import DCGAN, GAN, MLPGAN, Discriminator
from aigc_fast.models.registry import MODELS, create, describe, load, register, save
from aigc_fast.models.text import (
    GPT2,
    BPETokenizer,
    ByteTokenizer,
    CharRNN,
    CharTokenizer,
    DecoderModel,
    ElmanCell,
    IdTokenizer,
    Llama,
    NGram,
    Seq2SeqTransformer,
    TextModel,
    Tokenizer,
    WordTokenizer,
    tokenizer_from,
)
from aigc_fast.models.vae import VAE, ConvVAE, ImageAutoencoder, VariationalAutoencoder
from aigc_fast.models.video import VideoRNN
from aigc_fast.models.vocoder import SourceFilterVocoder, VocoderFrames, VocoderVAE

register(MLPGAN, DCGAN, VAE, ConvVAE, VocoderVAE, NGram, Llama, GPT2, CharRNN, Seq2SeqTransformer, VideoRNN)

__all__ = [
    "DCGAN",
    "GAN",
    "GPT2",
    "MLPGAN",
    "MODELS",
    "VAE",
    "ARModel",
    "BPETokenizer",
    "ByteTokenizer",
    "CharRNN",
    "CharTokenizer",
    "ConvVAE",
    "DecoderModel",
    "Discriminator",
    "ElmanCell",
    "IdTokenizer",
    "ImageAutoencoder",
    "ImageModel",
    "LatentModel",
    "Llama",
    "Model",
    "NGram",
    "Seq2SeqTransformer",
    "SoundModel",
    "SourceFilterVocoder",
    "TextModel",
    "Tokenizer",
    "VariationalAutoencoder",
    "VideoModel",
    "VideoRNN",
    "VocoderFrames",
    "VocoderVAE",
    "WordTokenizer",
    "create",
    "describe",
    "load",
    "register",
    "save",
    "tokenizer_from",
]
