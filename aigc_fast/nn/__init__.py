"""Drop-in modules: the constructor, `state_dict` keys and `isinstance` of the torch.nn layer they stand for."""

from aigc_fast.nn.attention import MultiheadAttention, TransformerEncoderLayer
from aigc_fast.nn.conv_transpose import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from aigc_fast.nn.layer_norm_lstm import LayerNormLSTM
from aigc_fast.nn.linear import Linear
from aigc_fast.nn.norm import GroupNorm, InstanceNorm1d, InstanceNorm2d, InstanceNorm3d, LayerNorm
from aigc_fast.nn.random import Dropout
from aigc_fast.nn.recurrent import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from aigc_fast.nn.recursion import ARRecursion
from aigc_fast.nn.reparameterize import Reparameterize
from aigc_fast.nn.sequential import FusedSequential

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "ARRecursion",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Dropout",
    "FusedSequential",
    "GRUCell",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LSTMCell",
    "LayerNorm",
    "LayerNormLSTM",
    "Linear",
    "MultiheadAttention",
    "RNNCell",
    "Reparameterize",
    "TransformerEncoderLayer",
]
