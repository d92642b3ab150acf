"""Networks that give distributions: `nn.Sequential(trunk, head)`."""

from ppl_vae.nn.batch_norm import BatchNorm
from ppl_vae.nn.heads import (
    BernoulliHead,
    DiscretisedLogisticHead,
    FixedNormalHead,
    Head,
    NormalHead,
    SharedNormalHead,
)
from ppl_vae.nn.init import glorot_
from ppl_vae.nn.merge import merge_normals
from ppl_vae.nn.recurrent import LSTM, Memory
from ppl_vae.nn.rollout import Rollout
from ppl_vae.nn.sentences import Alignment, SentenceEncoder, SentenceReader, Words
from ppl_vae.nn.shapes import Shape, as_shape, as_size
from ppl_vae.nn.trunks import MLP, ConvDecoder, ConvEncoder, Trunk, leaky_rectifier
from ppl_vae.nn.windows import Window, WindowHead, filter_bank

__all__ = [
    "LSTM",
    "MLP",
    "Alignment",
    "BatchNorm",
    "BernoulliHead",
    "ConvDecoder",
    "ConvEncoder",
    "DiscretisedLogisticHead",
    "FixedNormalHead",
    "Head",
    "Memory",
    "NormalHead",
    "Rollout",
    "SentenceEncoder",
    "SentenceReader",
    "Shape",
    "SharedNormalHead",
    "Trunk",
    "Window",
    "WindowHead",
    "Words",
    "as_shape",
    "as_size",
    "filter_bank",
    "glorot_",
    "leaky_rectifier",
    "merge_normals",
]
