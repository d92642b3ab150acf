"""Encoders and decoders of the shipped pairs, chosen by name: MLP or convolutional, one of four likelihoods."""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from ppl_vae.nn import (
    MLP,
    BernoulliHead,
    CategoricalHead,
    ConvDecoder,
    ConvEncoder,
    DiscretisedLogisticHead,
    FixedNormalHead,
    Head,
    LogisticMixtureHead,
    NormalHead,
    Trunk,
)

__all__ = [
    "Activation",
    "Likelihood",
    "Scale",
    "TrunkName",
    "conditional_normal",
    "decoder",
    "encoder",
    "likelihood_head",
    "set_output_mean",
]

Activation = Callable[[], nn.Module]
Likelihood = Literal["bernoulli", "grey-bernoulli", "normal", "discretised-logistic", "categorical", "logistic-mixture"]
TrunkName = Literal["mlp", "conv"]
Scale = Literal["exp", "softplus"]


def likelihood_head(
    name: Likelihood | Head, shape: tuple[int, ...], variance: float | None = None, levels: int = 256
) -> Head:
    """The head of p(x | z).

    Args:
        name: "bernoulli"; "grey-bernoulli" (cross-entropy of grey pixels, not a log-likelihood);
            "normal" (variance learned for each pixel, or constant where `variance` is given);
            "discretised-logistic", "categorical" or "logistic-mixture" (grey levels); or a head of one's own.
        shape: shape of one datum.
        variance: the constant c of N(f(z), c I).
        levels: number of grey levels of the data.

    Raises:
        ValueError: an unknown name, or a variance for a likelihood that has none.
    """
    if variance is not None and name != "normal":
        raise ValueError(f"variance: got {variance} with likelihood {name!r}, expected it with 'normal' alone")
    match name:
        case Head():
            return name
        case "bernoulli" | "grey-bernoulli":
            return BernoulliHead(shape, grey=name == "grey-bernoulli")
        case "normal":
            return NormalHead(shape) if variance is None else FixedNormalHead(shape, variance)
        case "discretised-logistic":
            return DiscretisedLogisticHead(shape, levels)
        case "categorical":
            return CategoricalHead(shape, levels)
        case "logistic-mixture":
            return LogisticMixtureHead(shape, levels)
    raise ValueError(f"likelihood: got {name!r}, expected one of {', '.join(get_args(Likelihood))}, or a Head")


def encoder(
    trunk: TrunkName,
    data_shape: tuple[int, ...],
    latent_dim: int,
    hidden: Sequence[int],
    activation: Activation,
    batch_norm: bool = False,
    scale: Scale = "exp",
) -> nn.Sequential:
    """q(z | x): (..., *data_shape) -> a diagonal Normal over `latent_dim` values; `hidden` are units or channels."""
    head = NormalHead(latent_dim, scale)
    if _is_conv(trunk, data_shape, batch_norm):
        return nn.Sequential(ConvEncoder(data_shape, head.raw_shape, hidden, activation), head)
    return nn.Sequential(MLP(data_shape, head.raw_shape, hidden, activation, batch_norm), head)


def decoder(
    trunk: TrunkName,
    latent_dim: int,
    head: Head,
    hidden: Sequence[int],
    activation: Activation,
    batch_norm: bool = False,
) -> nn.Sequential:
    """p(x | z): (..., latent_dim) -> the head's distribution."""
    if _is_conv(trunk, head.shape, batch_norm):
        return nn.Sequential(ConvDecoder(latent_dim, head.raw_shape, hidden, activation), head)
    return nn.Sequential(MLP(latent_dim, head.raw_shape, hidden, activation, batch_norm), head)


def conditional_normal(
    in_dim: int,
    out_dim: int,
    hidden: Sequence[int],
    activation: Activation,
    batch_norm: bool = False,
    scale: Scale = "exp",
) -> nn.Sequential:
    """A diagonal Normal over `out_dim` values whose mean and sigma are an MLP of `in_dim` values."""
    head = NormalHead(out_dim, scale)
    return nn.Sequential(MLP(in_dim, head.raw_shape, hidden, activation, batch_norm), head)


def set_output_mean(decoder: nn.Sequential, mean: Tensor) -> None:
    """Set a decoder's output bias so that p(x | z) starts at this mean, as in Burda et al. 2015."""
    trunk, head = decoder
    assert isinstance(trunk, Trunk) and isinstance(head, Head)
    trunk.set_output_bias(head.bias_for_mean(mean))


def _is_conv(trunk: str, shape: tuple[int, ...], batch_norm: bool = False) -> bool:
    if trunk not in get_args(TrunkName):
        raise ValueError(f"trunk: got {trunk!r}, expected one of {', '.join(get_args(TrunkName))}")
    if trunk == "conv" and len(shape) != 3:
        raise ValueError(f"trunk 'conv': got data of shape {shape}, expected (channels, height, width)")
    if trunk == "conv" and batch_norm:
        raise ValueError("batch_norm: got True with trunk 'conv', expected it with 'mlp' alone; leave it out")
    return trunk == "conv"
