"""Training: one loop for every model, with checkpoints that resume bit for bit."""

from aigc_fast.training.config import GANConfig, TrainingConfig, VAEConfig, default_config
from aigc_fast.training.folder import MODEL_FILE
from aigc_fast.training.loop import TrainingInterrupted, TrainingResult, train
from aigc_fast.training.losses import LOSSES, AdversarialLoss, diversity, gradient_penalty
from aigc_fast.training.trainer import GANTrainer, Trainer, VAETrainer, make_trainer

__all__ = [
    "LOSSES",
    "MODEL_FILE",
    "AdversarialLoss",
    "GANConfig",
    "GANTrainer",
    "Trainer",
    "TrainingConfig",
    "TrainingInterrupted",
    "TrainingResult",
    "VAEConfig",
    "VAETrainer",
    "default_config",
    "diversity",
    "gradient_penalty",
    "make_trainer",
    "train",
]
