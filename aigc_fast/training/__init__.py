"""Training: one loop for every model, with checkpoints that resume bit for bit."""

from aigc_fast.training.config import TrainingConfig
from aigc_fast.training.folder import MODEL_FILE
from aigc_fast.training.gan import GANConfig, GANTrainer
from aigc_fast.training.loop import TrainingInterrupted, TrainingResult, train
from aigc_fast.training.losses import LOSSES, AdversarialLoss, diversity, gradient_penalty
from aigc_fast.training.ngram import NGramConfig, NGramTrainer
from aigc_fast.training.seq2seq import Seq2SeqConfig, Seq2SeqTrainer
from aigc_fast.training.text import CharRNNConfig, CharRNNTrainer
from aigc_fast.training.trainer import Trainer, default_config, make_trainer
from aigc_fast.training.vae import VAEConfig, VAETrainer
from aigc_fast.training.video import VideoConfig, VideoTrainer

__all__ = [
    "LOSSES",
    "MODEL_FILE",
    "AdversarialLoss",
    "CharRNNConfig",
    "CharRNNTrainer",
    "GANConfig",
    "GANTrainer",
    "NGramConfig",
    "NGramTrainer",
    "Seq2SeqConfig",
    "Seq2SeqTrainer",
    "Trainer",
    "TrainingConfig",
    "TrainingInterrupted",
    "TrainingResult",
    "VAEConfig",
    "VAETrainer",
    "VideoConfig",
    "VideoTrainer",
    "default_config",
    "diversity",
    "gradient_penalty",
    "make_trainer",
    "train",
]
