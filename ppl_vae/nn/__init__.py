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
from ppl_vae.nn.shapes import Shape, as_shape, as_size
from ppl_vae.nn.trunks import MLP, ConvDecoder, ConvEncoder, Trunk, leaky_rectifier

__all__ = [
    "MLP",
    "BatchNorm",
    "BernoulliHead",
    "ConvDecoder",
    "ConvEncoder",
    "DiscretisedLogisticHead",
    "FixedNormalHead",
    "Head",
    "NormalHead",
    "Shape",
    "SharedNormalHead",
    "Trunk",
    "as_shape",
    "as_size",
    "glorot_",
    "leaky_rectifier",
    "merge_normals",
]
