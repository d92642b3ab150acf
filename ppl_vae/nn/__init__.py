"""Networks that give distributions: `nn.Sequential(trunk, head)`."""

from ppl_vae.nn.attention import CausalAttention
from ppl_vae.nn.batch_norm import BatchNorm
from ppl_vae.nn.causal import CausalNetwork, CausalTrunk, ImageTrunk, PixelTrunk
from ppl_vae.nn.causal_conv import CausalConv2d, causal_mask
from ppl_vae.nn.code_heads import CodebookHead, CodeNetwork
from ppl_vae.nn.frozen import Frozen
from ppl_vae.nn.heads import (
    BernoulliHead,
    CategoricalHead,
    DiscretisedLogisticHead,
    FixedNormalHead,
    Head,
    LogisticMixtureHead,
    NormalHead,
    SharedNormalHead,
)
from ppl_vae.nn.init import glorot_
from ppl_vae.nn.joined import JoinedMLP
from ppl_vae.nn.made import MADE
from ppl_vae.nn.merge import merge_normals
from ppl_vae.nn.one_hot import OneHot
from ppl_vae.nn.pixel_cnn import GatedPixelCNN, PixelCNN
from ppl_vae.nn.pixel_cnn_plus import PixelCNNPlus
from ppl_vae.nn.pixel_rnn import DiagonalBiLSTM, RowLSTM, skewed, unskewed
from ppl_vae.nn.quantiser import Quantiser, k_means, straight_through
from ppl_vae.nn.recurrent import LSTM, Memory
from ppl_vae.nn.residual import ResidualBlocks, ResidualDown, ResidualUp
from ppl_vae.nn.rollout import Rollout
from ppl_vae.nn.sentences import Alignment, SentenceEncoder, SentenceReader, Words
from ppl_vae.nn.shapes import Shape, as_shape, as_size
from ppl_vae.nn.trunks import MLP, ConvDecoder, ConvEncoder, Trunk, leaky_rectifier
from ppl_vae.nn.windows import Window, WindowHead, filter_bank
from ppl_vae.nn.words import END, UNKNOWN, Cell, Highway, Summary, Told, WordNetwork, WordReader, WordState

__all__ = [
    "END",
    "LSTM",
    "MADE",
    "MLP",
    "UNKNOWN",
    "Alignment",
    "BatchNorm",
    "BernoulliHead",
    "CategoricalHead",
    "CausalAttention",
    "CausalConv2d",
    "CausalNetwork",
    "CausalTrunk",
    "Cell",
    "CodeNetwork",
    "CodebookHead",
    "ConvDecoder",
    "ConvEncoder",
    "DiagonalBiLSTM",
    "DiscretisedLogisticHead",
    "FixedNormalHead",
    "Frozen",
    "GatedPixelCNN",
    "Head",
    "Highway",
    "ImageTrunk",
    "JoinedMLP",
    "LogisticMixtureHead",
    "Memory",
    "NormalHead",
    "OneHot",
    "PixelCNN",
    "PixelCNNPlus",
    "PixelTrunk",
    "Quantiser",
    "ResidualBlocks",
    "ResidualDown",
    "ResidualUp",
    "Rollout",
    "RowLSTM",
    "SentenceEncoder",
    "SentenceReader",
    "Shape",
    "SharedNormalHead",
    "Summary",
    "Told",
    "Trunk",
    "Window",
    "WindowHead",
    "WordNetwork",
    "WordReader",
    "WordState",
    "Words",
    "as_shape",
    "as_size",
    "causal_mask",
    "filter_bank",
    "glorot_",
    "k_means",
    "leaky_rectifier",
    "merge_normals",
    "skewed",
    "straight_through",
    "unskewed",
]
