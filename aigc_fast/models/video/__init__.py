"""Video: what reads frames, remembers them and foretells the next ones."""

from aigc_fast.models.video.cores import ConvLSTM
from aigc_fast.models.video.rnn import VideoRNN

__all__ = ["ConvLSTM", "VideoRNN"]
