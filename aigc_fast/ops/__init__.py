"""One room per hot path."""

ROOMS = ("attention", "conv_transpose", "linear", "norm", "random", "recurrent", "recursion", "reparameterize")
