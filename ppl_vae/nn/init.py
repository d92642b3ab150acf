"""Initial weights."""

import math
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


def glorot_(module: M, blocks: int = 1) -> M:
    """Draw Linear and convolution weights from U(-b, b), b = sqrt(6 / (fan_in + fan_out)), and zero biases.

    Args:
        module: the module to initialise in place.
        blocks: how many blocks of parameters (mean and log-scale, say) the last layer makes at once. Its
            fan_out is that of one block, as if each block had a layer of its own.

    References:
        Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010,
        eq. 16.
        Burda, Grosse and Salakhutdinov, Importance weighted autoencoders, 2015, section 5.

    Example:
        >>> layer = glorot_(nn.Linear(3, 6), blocks=2)
        >>> bool(layer.weight.abs().max() <= 1.0), bool(layer.bias.any())
        (True, False)
    """
    layers = [m for m in module.modules() if isinstance(m, _LAYERS)]
    for layer in layers:
        _glorot_layer_(layer, blocks if layer is layers[-1] else 1)
    return module


def _glorot_layer_(layer: nn.Module, blocks: int) -> None:
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, nn.Parameter)
    field = math.prod(weight.shape[2:])
    fan_out, fan_in = weight.shape[0] * field, weight.shape[1] * field
    if isinstance(layer, _TRANSPOSED):  # their weights are stored (in, out, ...)
        fan_out, fan_in = fan_in, fan_out
    bound = math.sqrt(6 / (fan_in + fan_out / blocks))
    nn.init.uniform_(weight, -bound, bound)
    if isinstance(bias, nn.Parameter):
        nn.init.zeros_(bias)
