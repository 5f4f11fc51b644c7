"""One room per hot path."""

ROOMS = ("attention", "conv_transpose", "norm", "random", "recurrent", "recursion", "reparameterize")
