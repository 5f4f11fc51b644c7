"""Models as a PyTorch user writes them, and loops that decode: nothing here comes from aigc_fast."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LATENT = 100
BATCH = 64
HEAD = 32
"""Size of a head of attention."""
MOST_POSITIONS = 256

SampleAndKl = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class StockDCGAN(nn.Module):
    """The DCGAN for 28×28 digits."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(LATENT, 128 * 7 * 7, bias=False),
            nn.BatchNorm1d(128 * 7 * 7),
            nn.LeakyReLU(0.2),
            nn.Unflatten(1, (128, 7, 7)),
            nn.ConvTranspose2d(128, 64, 5, 2, 2, 1, bias=False),
            nn.BatchNorm2d(64),
            nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(64, 1, 5, 2, 2, 1, bias=False),
            nn.Tanh(),
        )
        self.discriminator = nn.Sequential(
            nn.Conv2d(1, 64, 5, 1, 2),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.3),
            nn.Conv2d(64, 128, 5, 2, 2),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.Linear(128 * 14 * 14, 1),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Latents (N, 100) to the discriminator's logits (N, 1) of the images."""
        return self.discriminator(self.generator(z))


class StockConvVAE(nn.Module):
    """The convolutional VAE with a 2-d latent."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 4),
        )
        self.decoder = nn.Sequential(
            nn.Linear(2, 64 * 7 * 7),
            nn.ReLU(),
            nn.Unflatten(1, (64, 7, 7)),
            nn.ConvTranspose2d(64, 64, 3, 2, 1, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 3, 2, 1, 1),
            nn.ReLU(),
            nn.Conv2d(32, 1, 3, 1, 1),
        )

    def forward(self, images: Tensor, sample_and_kl: SampleAndKl) -> Tensor:
        """The negative evidence lower bound of images (N, 1, 28, 28) in [-1, 1], summed."""
        mu, logvar = self.encoder(images).chunk(2, dim=1)
        z, kl = sample_and_kl(mu, logvar)
        return F.binary_cross_entropy_with_logits(self.decoder(z), (images + 1) / 2, reduction="sum") + kl.sum()


def sample_and_kl(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """z = μ + σ·ε, and KL(N(μ, σ²) ‖ N(0, I)) per row, in plain PyTorch."""
    z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
    return z, -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(dim=1)


def gan_losses(model: StockDCGAN, images: Tensor, z: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    """The discriminator's loss, and what computes the generator's (non-saturating)."""
    fake = model.generator(z)
    real_logits, fake_logits = model.discriminator(images), model.discriminator(fake.detach())
    loss = F.binary_cross_entropy_with_logits(real_logits, torch.ones_like(real_logits))
    loss = loss + F.binary_cross_entropy_with_logits(fake_logits, torch.zeros_like(fake_logits))

    def generator_loss() -> Tensor:
        logits = model.discriminator(fake)
        return F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))

    return loss, generator_loss


def gan_step(model: StockDCGAN, optimiser: torch.optim.Optimizer, images: Tensor) -> None:
    """One training step of both networks."""
    optimiser.zero_grad()
    loss, generator_loss = gan_losses(model, images, torch.randn(len(images), LATENT, device=images.device))
    loss.backward()
    optimiser.step()
    optimiser.zero_grad()
    generator_loss().backward()
    optimiser.step()


def vae_step(
    model: StockConvVAE, optimiser: torch.optim.Optimizer, images: Tensor, sampler: SampleAndKl = sample_and_kl
) -> None:
    """One training step."""
    optimiser.zero_grad()
    model(images, sampler).backward()
    optimiser.step()


class StockTransformer(nn.Module):
    """The encoder-decoder of "Attention is all you need" over `nn.Transformer`, on padded batches.

    Args:
        vocabulary: tokens, of which 0 is padding.
        size: of a token's vector.
        layers: of the encoder, and of the decoder.
        dropout: the share of elements to drop.
        activation: of the inner layer.
    """

    def __init__(self, vocabulary: int, size: int, layers: int, dropout: float, activation: str = "relu") -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, size)
        nn.init.normal_(self.embedding.weight, std=size**-0.5)
        self.transformer = nn.Transformer(
            size, size // HEAD, layers, layers, 4 * size, dropout, activation, batch_first=True
        )
        self.dropout = nn.Dropout(dropout)
        frequencies = torch.exp(torch.arange(0, size, 2) * (-math.log(10000.0) / size))
        angles = torch.arange(MOST_POSITIONS)[:, None] * frequencies
        self.register_buffer("positions", torch.stack([angles.sin(), angles.cos()], 2).flatten(1))

    def embedded(self, tokens: Tensor, first: int = 0) -> Tensor:
        """(N, T) to vectors (N, T, size), the first of which stand at a position."""
        x = self.embedding(tokens) * math.sqrt(self.embedding.embedding_dim)
        return self.dropout(x + self.positions[first : first + tokens.shape[1]])

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., size) to logits (..., vocabulary)."""
        return F.linear(hidden, self.embedding.weight)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        """Sources (N, S) and inputs (N, T), 0 for padding, to logits (N, T, vocabulary)."""
        length = tgt.shape[1]
        causal = torch.triu(torch.ones(length, length, dtype=torch.bool, device=tgt.device), 1)
        hidden = self.transformer(
            self.embedded(src),
            self.embedded(tgt),
            tgt_mask=causal,
            src_key_padding_mask=src == 0,
            tgt_key_padding_mask=tgt == 0,
            memory_key_padding_mask=src == 0,
            tgt_is_causal=True,
        )
        return self.logits(hidden)


def transformer_loss(model: StockTransformer, src: Tensor, tgt: Tensor, answers: Tensor) -> Tensor:
    """The mean cross-entropy with smoothed labels; answers (N, T) are 0 for padding."""
    logits = model(src, tgt)
    return F.cross_entropy(logits.flatten(0, 1), answers.flatten(), ignore_index=0, label_smoothing=0.1)


def transformer_step(
    model: StockTransformer, optimiser: torch.optim.Optimizer, src: Tensor, tgt: Tensor, answers: Tensor
) -> None:
    """One training step."""
    optimiser.zero_grad()
    transformer_loss(model, src, tgt, answers).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()


class CachedSteps:
    """Decoding step by step with keys and values that are kept, over the weights of `nn.TransformerDecoderLayer`.

    Args:
        model: in eval mode.
        src: (N, S), 0 for padding.
        copies: sequences for each source, in succession.
    """

    def __init__(self, model: StockTransformer, src: Tensor, copies: int = 1) -> None:
        self.model, self.layers, self.length = model, model.transformer.decoder.layers, 0
        with warnings.catch_warnings():
            # Without gradients it leaves padding out by nested tensors, and says that these will change.
            warnings.simplefilter("ignore", UserWarning)
            memory = model.transformer.encoder(model.embedded(src), src_key_padding_mask=src == 0)
        self.seen = (src != 0).repeat_interleave(copies, 0)[:, None, None, :]
        self.memories = [
            [part.repeat_interleave(copies, 0) for part in self._projected(layer.multihead_attn, memory, 1, 3)]
            for layer in self.layers
        ]
        self.past: list[list[Tensor]] = [[] for _ in self.layers]

    @staticmethod
    def _projected(attention: nn.MultiheadAttention, x: Tensor, first: int, last: int) -> Sequence[Tensor]:
        """Some of queries, keys and values, each (N, heads, T, size)."""
        rows = slice(first * attention.embed_dim, last * attention.embed_dim)
        found = F.linear(x, attention.in_proj_weight[rows], attention.in_proj_bias[rows])
        return found.unflatten(-1, (last - first, attention.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()

    def step(self, ids: Tensor) -> Tensor:
        """The logits (N, vocabulary) after one more token (N,) of each sequence."""
        x = self.model.embedded(ids[:, None], self.length)
        for layer, memory, past in zip(self.layers, self.memories, self.past, strict=True):
            query, *new = self._projected(layer.self_attn, x, 0, 3)
            past[:] = [torch.cat([old, part], 2) for old, part in zip(past, new, strict=True)] if past else new
            found = F.scaled_dot_product_attention(query, *past)
            x = layer.norm1(x + layer.self_attn.out_proj(found.transpose(1, 2).flatten(2)))
            (query,) = self._projected(layer.multihead_attn, x, 0, 1)
            found = F.scaled_dot_product_attention(query, *memory, attn_mask=self.seen)
            x = layer.norm2(x + layer.multihead_attn.out_proj(found.transpose(1, 2).flatten(2)))
            x = layer.norm3(x + layer.linear2(layer.activation(layer.linear1(x))))
        self.length += 1
        return self.model.logits(self.model.transformer.decoder.norm(x))[:, 0]

    def reorder(self, parents: Tensor) -> None:
        """Lets every sequence go on from what another one has seen."""
        self.past = [[part[parents] for part in past] for past in self.past]


@torch.no_grad()
def greedy_loop(model: StockTransformer, src: Tensor, start: int, length: int) -> Tensor:
    """(N, length), the most probable token each time."""
    steps = CachedSteps(model, src)
    ids, found = torch.full((len(src),), start), []
    for _ in range(length):
        ids = steps.step(ids).argmax(-1)
        found.append(ids)
    return torch.stack(found, 1)


@torch.no_grad()
def beam_loop(model: StockTransformer, src: Tensor, start: int, length: int, beams: int) -> Tensor:
    """(N, length), the best of several hypotheses that are followed side by side."""
    steps, rows = CachedSteps(model, src, beams), len(src)
    first = torch.arange(rows)[:, None] * beams
    ids, sums = torch.full((rows * beams,), start), torch.zeros(rows, beams)
    sums[:, 1:] = -1e9
    found = torch.empty(rows * beams, 0, dtype=torch.int64)
    for _ in range(length):
        scores = steps.step(ids).log_softmax(-1).view(rows, beams, -1) + sums[:, :, None]
        sums, places = scores.flatten(1).topk(beams)
        parents = (places // scores.shape[-1] + first).flatten()
        ids = (places % scores.shape[-1]).flatten()
        found = torch.cat([found[parents], ids[:, None]], 1)
        steps.reorder(parents)
    return found.view(rows, beams, -1)[:, 0]
