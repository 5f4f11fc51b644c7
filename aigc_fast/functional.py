"""The twin of `torch.nn.functional`: the same names and signatures, on aigc_fast's kernels where they win."""

from __future__ import annotations

from aigc_fast.ops.attention.functional import scaled_dot_product_attention
from aigc_fast.ops.attention.varlen import varlen_attn
from aigc_fast.ops.conv_transpose.functional import (
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
)
from aigc_fast.ops.linear.functional import linear
from aigc_fast.ops.norm.functional import group_norm, instance_norm, layer_norm
from aigc_fast.ops.random.functional import dropout, rand, randn
from aigc_fast.ops.recurrent.functional import gru, lstm, rnn_relu, rnn_tanh
from aigc_fast.ops.recursion.functional import ar_recursion, lfilter, sample_wise_lpc
from aigc_fast.ops.reparameterize.functional import kl_standard_normal, reparameterize, reparameterize_kl

__all__ = [
    "ar_recursion",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "dropout",
    "group_norm",
    "gru",
    "instance_norm",
    "kl_standard_normal",
    "layer_norm",
    "lfilter",
    "linear",
    "lstm",
    "rand",
    "randn",
    "reparameterize",
    "reparameterize_kl",
    "rnn_relu",
    "rnn_tanh",
    "sample_wise_lpc",
    "scaled_dot_product_attention",
    "varlen_attn",
]
