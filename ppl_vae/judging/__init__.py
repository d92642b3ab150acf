"""What a model paints, read by networks trained on real data: captions of scenes, and classes."""

from ppl_vae.evaluation.share import Share
from ppl_vae.judging.classes import Classifier, class_accuracy, train_classifier
from ppl_vae.judging.scenes import (
    Judge,
    accuracy,
    caption_gain,
    flip_accuracy,
    painted,
    retrieval_ranks,
    train_judge,
)

__all__ = [
    "Classifier",
    "Judge",
    "Share",
    "accuracy",
    "caption_gain",
    "class_accuracy",
    "flip_accuracy",
    "painted",
    "retrieval_ranks",
    "train_classifier",
    "train_judge",
]
