"""Recurrent networks over whole sequences: tanh, relu, LSTM and GRU cells."""
