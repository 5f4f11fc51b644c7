"""One room per hot path."""

ROOMS = ("attention", "conv_transpose", "random", "recurrent", "recursion", "reparameterize")
