"""How good, how varied and how original generated images and texts are, how near generated sounds, how clips move."""

from aigc_fast.metrics.classifier import ImageClassifier, load_classifier, train_classifier
from aigc_fast.metrics.copies import Passage, copied_share, longest_copied
from aigc_fast.metrics.diversity import ClassSpread, class_spread
from aigc_fast.metrics.frechet import frechet_distance
from aigc_fast.metrics.images import ImageReport, evaluate_images
from aigc_fast.metrics.neighbours import (
    DensityCoverage,
    Neighbours,
    PrecisionRecall,
    density_coverage,
    nearest_neighbours,
    pairing_grid,
    precision_recall,
)
from aigc_fast.metrics.pairs import PairReport, evaluate_pairs
from aigc_fast.metrics.sounds import SoundReport, evaluate_sounds, pairwise_spectral_distance
from aigc_fast.metrics.text import (
    Perplexity,
    TextReport,
    WeightsChange,
    distinct_n,
    evaluate_text,
    perplexity,
    weights_change,
)
from aigc_fast.metrics.video import VideoReport, evaluate_videos, psnr, ssim
from aigc_fast.metrics.video_classifier import VideoClassifier, load_video_classifier, train_video_classifier
from aigc_fast.models.vocoder.spectral import multi_resolution_spectral_distance

__all__ = [
    "ClassSpread",
    "DensityCoverage",
    "ImageClassifier",
    "ImageReport",
    "Neighbours",
    "PairReport",
    "Passage",
    "Perplexity",
    "PrecisionRecall",
    "SoundReport",
    "TextReport",
    "VideoClassifier",
    "VideoReport",
    "WeightsChange",
    "class_spread",
    "copied_share",
    "density_coverage",
    "distinct_n",
    "evaluate_images",
    "evaluate_pairs",
    "evaluate_sounds",
    "evaluate_text",
    "evaluate_videos",
    "frechet_distance",
    "load_classifier",
    "load_video_classifier",
    "longest_copied",
    "multi_resolution_spectral_distance",
    "nearest_neighbours",
    "pairing_grid",
    "pairwise_spectral_distance",
    "perplexity",
    "precision_recall",
    "psnr",
    "ssim",
    "train_classifier",
    "train_video_classifier",
    "weights_change",
]
