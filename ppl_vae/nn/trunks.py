"""Trunks: networks from a tensor to the raw parameters of a distribution."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ppl_vae.nn.batch_norm import BatchNorm
from ppl_vae.nn.init import glorot_
from ppl_vae.nn.shapes import Shape, as_shape

Activation = Callable[[], nn.Module]


class Trunk(nn.Module, ABC):
    """(..., *in_shape) -> (..., *out_shape), any number of leading dims; out_shape is a head's (P, *shape).

    Args:
        in_shape: shape of one input; an int n means (n,).
        out_shape: shape of one output, usually `head.raw_shape`.
    """

    def __init__(self, in_shape: Shape, out_shape: Shape) -> None:
        super().__init__()
        self.in_shape = as_shape(in_shape)
        self.out_shape = as_shape(out_shape)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., *in_shape) to (..., *out_shape)."""

    @abstractmethod
    def _output_bias(self) -> Tensor:
        """Return the parameter that is added last; it has as many entries as out_shape."""

    @torch.no_grad()
    def set_output_bias(self, raw: Tensor) -> None:
        """Write the output bias, so that an untrained network starts near `raw`.

        Args:
            raw: raw parameters, shape out_shape; usually `head.bias_for_mean(pixel_means)`.

        Raises:
            ValueError: for another shape.
        """
        if tuple(raw.shape) != self.out_shape:
            raise ValueError(
                f"{type(self).__name__}.set_output_bias: got shape {tuple(raw.shape)}, expected "
                f"out_shape={self.out_shape}; pass head.bias_for_mean(mean) of the head that follows"
            )
        self._output_bias().view(self.out_shape).copy_(raw)

    @property
    def _blocks(self) -> int:
        # One dimension alone is read as n features, not as n blocks of one number.
        return self.out_shape[0] if len(self.out_shape) > 1 else 1

    def _leading(self, x: Tensor) -> tuple[int, ...]:
        """Return the leading dims of x, after a check of the others."""
        n = x.dim() - len(self.in_shape)
        if n < 0 or tuple(x.shape[n:]) != self.in_shape:
            wanted = ", ".join(["...", *map(str, self.in_shape)])
            raise ValueError(
                f"{type(self).__name__}: got an input of shape {tuple(x.shape)}, expected ({wanted}); "
                f"reshape the input or build the trunk with its in_shape"
            )
        return tuple(x.shape[:n])


def leaky_rectifier() -> nn.Module:
    """max(x, 0.1 x), the activation of Sønderby et al. 2016."""
    return nn.LeakyReLU(0.1)


class MLP(Trunk):
    """Linear maps with an activation between them, from flattened inputs to outputs of shape out_shape.

    Weights start from Glorot's uniform distribution and biases at zero, each of the out_shape[0] blocks of
    outputs as if it had a Linear of its own.

    Args:
        in_shape: shape of one input; an int n means (n,).
        out_shape: shape of one output, usually `head.raw_shape`; an int n means n features.
        hidden: sizes of the hidden layers; () gives one linear map.
        activation: makes the activation after each hidden layer (a class, or any callable without arguments).
        batch_norm: normalise before each activation, see `BatchNorm`; the hidden layers then have no bias of theirs.

    Raises:
        ValueError: in the forward pass, for inputs that do not end with in_shape.

    References:
        Burda, Grosse and Salakhutdinov, Importance weighted autoencoders, 2015, section 5: two
        layers of 200 tanh units.

    Example:
        >>> MLP((28, 28), (2, 50))(torch.zeros(5, 7, 28, 28)).shape
        torch.Size([5, 7, 2, 50])
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        hidden: Sequence[int] = (200, 200),
        activation: Activation = nn.Tanh,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(in_shape, out_shape)
        sizes = [math.prod(self.in_shape), *as_shape(hidden, "hidden")]
        _check_activation(activation, (2, 2))
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes):
            norm = [BatchNorm(n_out)] if batch_norm else []
            layers += [nn.Linear(n_in, n_out, bias=not batch_norm), *norm, activation()]
        self.hidden = nn.Sequential(*layers)
        self.output = nn.Linear(sizes[-1], math.prod(self.out_shape))
        glorot_(self, self._blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., *in_shape) to (..., *out_shape)."""
        return self.read_out(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer of x (..., *in_shape): (..., hidden[-1]), or x flattened where there is none."""
        return self.hidden(x.reshape(*self._leading(x), math.prod(self.in_shape)))

    def read_out(self, features: Tensor) -> Tensor:
        """Map features (..., hidden[-1]) to (..., *out_shape)."""
        return self.output(features).reshape(*features.shape[:-1], *self.out_shape)

    def _output_bias(self) -> Tensor:
        return self.output.bias


class ConvEncoder(Trunk):
    """Convolutions of stride 2, each followed by an activation, then one linear map to out_shape.

    Each convolution takes a size n to ceil(n / 2), so any height and width will do.

    Args:
        in_shape: (C, H, W).
        out_shape: shape of one output, usually `head.raw_shape`.
        channels: output channels of each convolution.
        activation: makes the activation after each convolution.
        kernel: odd size of the kernels.

    Raises:
        ValueError: in_shape is not (C, H, W), or kernel is even; in the forward pass, inputs that do not end
            with it.

    Example:
        >>> ConvEncoder((1, 28, 20), (2, 10))(torch.zeros(3, 1, 28, 20)).shape
        torch.Size([3, 2, 10])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Shape,
        channels: Sequence[int] = (32, 64),
        activation: Activation = nn.ReLU,
        kernel: int = 3,
    ) -> None:
        super().__init__(in_shape, out_shape)
        if len(self.in_shape) != 3:
            raise ValueError(f"ConvEncoder: got in_shape={self.in_shape}, expected (C, H, W)")
        _check_kernel(kernel, "ConvEncoder")
        channels = as_shape(channels, "channels")
        _check_activation(activation, (2, 2, 4, 4))
        c, *size = self.in_shape
        layers: list[nn.Module] = []
        for c_in, c_out in pairwise([c, *channels]):
            layers += [nn.Conv2d(c_in, c_out, kernel, stride=2, padding=kernel // 2), activation()]
        self.hidden = nn.Sequential(*layers)
        h, w = _halvings(size, len(channels))[-1]
        self.output = nn.Linear([c, *channels][-1] * h * w, math.prod(self.out_shape))
        glorot_(self, self._blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., C, H, W) to (..., *out_shape)."""
        leading = self._leading(x)
        images = x.reshape(math.prod(leading), *self.in_shape)
        return self.output(self.hidden(images).flatten(1)).reshape(*leading, *self.out_shape)

    def _output_bias(self) -> Tensor:
        return self.output.bias


class ConvDecoder(Trunk):
    """The mirror of ConvEncoder: one linear map, then transposed convolutions of stride 2, to exactly H x W.

    The output bias has an entry for every pixel, not only for every channel, so that it can hold pixel means.

    Args:
        in_shape: shape of one input (the latent); an int n means (n,).
        out_shape: (P, C, H, W), usually `head.raw_shape`.
        channels: input channels of each transposed convolution, at least one.
        activation: makes the activation before each transposed convolution.
        kernel: odd size of the kernels.

    Raises:
        ValueError: out_shape is not (P, C, H, W), no channels, or kernel is even; in the forward pass, inputs
            that do not end with in_shape.

    Example:
        >>> ConvDecoder(10, (2, 1, 28, 20))(torch.zeros(5, 3, 10)).shape
        torch.Size([5, 3, 2, 1, 28, 20])
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Sequence[int],
        channels: Sequence[int] = (64, 32),
        activation: Activation = nn.ReLU,
        kernel: int = 3,
    ) -> None:
        super().__init__(in_shape, out_shape)
        channels = as_shape(channels, "channels")
        if len(self.out_shape) != 4 or not channels:
            raise ValueError(
                f"ConvDecoder: got out_shape={self.out_shape} and channels={channels}, expected "
                f"(P, C, H, W) and at least one channel count"
            )
        _check_kernel(kernel, "ConvDecoder")
        _check_activation(activation, (2, 2, 4, 4))
        p, c, *size = self.out_shape
        sizes = _halvings(size, len(channels))[::-1]
        start = (channels[0], *sizes[0])
        layers = [nn.Linear(math.prod(self.in_shape), math.prod(start)), nn.Unflatten(1, start), activation()]
        for (c_in, c_out), size in zip(pairwise(channels), sizes[1:-1], strict=True):
            layers += [_upsample(c_in, c_out, kernel, size), activation()]
        self.hidden = nn.Sequential(*layers)
        self.output = _upsample(channels[-1], p * c, kernel, sizes[-1], bias=False)
        self.output_bias = nn.Parameter(torch.zeros(self.out_shape))
        glorot_(self, self._blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., *in_shape) to (..., P, C, H, W)."""
        leading = self._leading(x)
        images = self.output(self.hidden(x.reshape(math.prod(leading), math.prod(self.in_shape))))
        return images.reshape(*leading, *self.out_shape) + self.output_bias

    def _output_bias(self) -> Tensor:
        return self.output_bias


def _check_activation(activation: Activation, shape: tuple[int, ...]) -> None:
    """Refuse what does not make a module that keeps shapes, by one try on zeros of this shape."""
    error = None
    try:
        # An activation may draw random numbers; the initial weights must not depend on that.
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            got = f"one that makes {shape} {tuple(activation()(torch.zeros(shape)).shape)}"
    except Exception as failure:  # of any user's class
        error, got = failure, f"{type(failure).__name__}: {failure}"
    if got != f"one that makes {shape} {shape}":
        raise ValueError(
            f"activation: got {getattr(activation, '__name__', activation)!r} ({got}), expected what makes a module "
            "that keeps shapes, such as nn.Tanh"
        ) from error


def _check_kernel(kernel: int, name: str) -> None:
    if kernel % 2 == 0:
        raise ValueError(f"{name}: got kernel={kernel}, expected an odd size (padding kernel // 2 centres it)")


def _upsample(c_in: int, c_out: int, kernel: int, size: tuple[int, int], bias: bool = True) -> nn.ConvTranspose2d:
    """Return a transposed convolution of stride 2 from (ceil(H / 2), ceil(W / 2)) to size = (H, W)."""
    h, w = size
    extra = (1 - h % 2, 1 - w % 2)  # 2 ceil(n / 2) - 1 + extra = n: one row or column more where n is even
    return nn.ConvTranspose2d(c_in, c_out, kernel, stride=2, padding=kernel // 2, output_padding=extra, bias=bias)


def _halvings(size: Sequence[int], times: int) -> list[tuple[int, int]]:
    """Return [(H, W), (ceil(H / 2), ceil(W / 2)), ...], times + 1 entries."""
    h, w = size
    sizes = [(h, w)]
    for _ in range(times):
        h, w = -(-h // 2), -(-w // 2)
        sizes.append((h, w))
    return sizes
