"""The models of the benchmark in NumPyro: plain functions of its parameters, the jitted update of its SVI.

The layers are translated from the hand-written ones, weights and all. Images are channels last, which XLA is
faster with; `RenyiELBO` maps over its particles' random keys, so that the encoder runs once here too.
"""
# pyright: reportMissingImports=false

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import rivals
import torch
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO
from torch import nn
from workloads import Task, UnavailableError

Layer = Callable[[dict[str, Any], Any], Any]
Program = Callable[[Any], None]


class Net:
    """A `torch.nn.Sequential` as a NumPyro network: its parameters are `name.0.w`, `name.0.b`, and so on."""

    def __init__(self, name: str, modules: nn.Sequential) -> None:
        self.weights: dict[str, np.ndarray] = {}
        layers = list(modules)
        self.layers = [self._translate(f"{name}.{i}", layers, i) for i in range(len(layers))]

    def register(self) -> Callable[[Any], Any]:
        """Register the parameters, outside of the plate; the network as a function."""
        values = {key: numpyro.param(key, jnp.asarray(value)) for key, value in self.weights.items()}

        def apply(h: Any) -> Any:
            for layer in self.layers:
                h = layer(values, h)
            return h

        return apply

    def _translate(self, key: str, layers: list[nn.Module], i: int) -> Layer:
        match layer := layers[i]:
            case nn.Linear():
                return self._linear(key, layer, layers, i)
            case nn.Conv2d():
                return self._conv(key, layer)
            case nn.ConvTranspose2d():
                return self._conv_transpose(key, layer)
            case nn.Tanh():
                return lambda _, h: jnp.tanh(h)
            case nn.ReLU():
                return lambda _, h: jax.nn.relu(h)
            case nn.Flatten():
                return lambda _, h: h.reshape(len(h), -1)
            case nn.Unflatten():
                c, height, width = layer.unflattened_size
                return lambda _, h: h.reshape(len(h), height, width, c)
            case rivals.PixelBias():
                self.weights[f"{key}.b"] = _array(layer.bias)[0].transpose(1, 2, 0)
                return lambda v, h: h + v[f"{key}.b"]
        raise TypeError(f"no translation of {type(layer).__name__}")

    def _linear(self, key: str, layer: nn.Linear, layers: list[nn.Module], i: int) -> Layer:
        w, b = _array(layer.weight), _array(layer.bias)
        convolutions = [m for m in layers[:i] if isinstance(m, nn.Conv2d)]
        if convolutions:  # its inputs are (C, H, W) there and (H, W, C) here
            c = convolutions[-1].out_channels
            side = math.isqrt(layer.in_features // c)
            w = w.reshape(-1, c, side, side).transpose(0, 2, 3, 1).reshape(w.shape)
        if i + 1 < len(layers) and isinstance(after := layers[i + 1], nn.Unflatten):
            shape = tuple(after.unflattened_size)
            w = w.reshape(*shape, -1).transpose(1, 2, 0, 3).reshape(w.shape)
            b = b.reshape(shape).transpose(1, 2, 0).reshape(b.shape)
        self.weights |= {f"{key}.w": w.T, f"{key}.b": b}
        return lambda v, h: h @ v[f"{key}.w"] + v[f"{key}.b"]

    def _conv(self, key: str, layer: nn.Conv2d) -> Layer:
        assert layer.bias is not None
        self.weights |= {f"{key}.w": _array(layer.weight).transpose(2, 3, 1, 0), f"{key}.b": _array(layer.bias)}
        return lambda v, h: _convolve(h, v[f"{key}.w"], strides=(2, 2), padding=((1, 1), (1, 1))) + v[f"{key}.b"]

    def _conv_transpose(self, key: str, layer: nn.ConvTranspose2d) -> Layer:
        """A convolution of the input with zeros put between its pixels, with the kernel turned round."""
        self.weights[f"{key}.w"] = _array(layer.weight).transpose(2, 3, 0, 1)[::-1, ::-1]
        if layer.bias is not None:
            self.weights[f"{key}.b"] = _array(layer.bias)

        def apply(v: dict[str, Any], h: Any) -> Any:
            h = _convolve(h, v[f"{key}.w"], strides=(1, 1), padding=((1, 2), (1, 2)), lhs_dilation=(2, 2))
            return h + v[f"{key}.b"] if f"{key}.b" in v else h

        return apply


def _convolve(h: Any, w: Any, strides: Any, padding: Any, lhs_dilation: Any = None) -> Any:
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(h, w, strides, padding, lhs_dilation, dimension_numbers=numbers)


def _array(parameter: Any) -> np.ndarray:
    return parameter.detach().cpu().numpy()


def _normal(raw: Any) -> Any:
    loc, log_scale = jnp.split(raw, 2, -1)
    return dist.Normal(loc, jnp.exp(log_scale)).to_event(1)


def _prior(like: int) -> Any:
    return dist.Normal(jnp.zeros(like), 1.0).to_event(1)


def _observe(logits: Any, x: Any) -> None:
    numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x.reshape(len(x), -1))


def one_layer(hand: rivals.OneLayer, latent: int) -> tuple[Program, Program]:
    """Model and guide of `rivals.OneLayer`."""
    encoder, decoder = Net("encoder", hand.encoder), Net("decoder", hand.decoder)

    def model(x: Any) -> None:
        decode = decoder.register()
        with numpyro.plate("data", len(x)):
            _observe(decode(numpyro.sample("z", _prior(latent))), x)

    def guide(x: Any) -> None:
        encode = encoder.register()
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", _normal(encode(x)))

    return model, guide


def two_layers(hand: rivals.TwoLayers, latent: int) -> tuple[Program, Program]:
    """Model and guide of `rivals.TwoLayers`."""
    encoder, up, down, decoder = (Net(n, getattr(hand, n)) for n in ("encoder", "up", "down", "decoder"))

    def model(x: Any) -> None:
        descend, decode = down.register(), decoder.register()
        with numpyro.plate("data", len(x)):
            z2 = numpyro.sample("z2", _prior(latent))
            z1 = numpyro.sample("z1", _normal(descend(z2)))
            _observe(decode(z1), x)

    def guide(x: Any) -> None:
        encode, ascend = encoder.register(), up.register()
        with numpyro.plate("data", len(x)):
            z1 = numpyro.sample("z1", _normal(encode(x)))
            numpyro.sample("z2", _normal(ascend(z1)))

    return model, guide


def make(task: Task) -> Callable[[], Any]:
    """A step of NumPyro's SVI: `update`, jitted, on batches that lie on the device.

    Raises:
        UnavailableError: jax sees no device of this kind.
    """
    svi, batches = _svi(task)
    feed = itertools.cycle(batches)
    state, update = svi.init(jax.random.PRNGKey(0), batches[0]), jax.jit(svi.update)

    def step() -> Any:
        nonlocal state
        state, loss = update(state, next(feed))
        return loss

    return step


def losses(task: Task, number: int) -> list[float]:
    """The loss of the first batch at the starting weights, on fresh noise each time."""
    svi, batches = _svi(task)
    state = svi.init(jax.random.PRNGKey(0), batches[0])
    evaluate = jax.jit(lambda key: svi.evaluate(state._replace(rng_key=key), batches[0]))
    return [float(evaluate(key)) for key in jax.random.split(jax.random.PRNGKey(1), number)]


def matrix_product(a: torch.Tensor, b: torch.Tensor) -> Callable[[], Any]:
    """A function that multiplies these two, jitted, on the same device."""
    device = _device(a.device)
    left, right = (jax.device_put(m.cpu().numpy(), device) for m in (a, b))
    product = jax.jit(jnp.matmul)
    return lambda: product(left, right)


def _device(place: torch.device) -> Any:
    try:
        return jax.devices(place.type)[0]
    except RuntimeError as error:
        raise UnavailableError(f"jax has no {place.type} ({error})") from error


def _svi(task: Task) -> tuple[Any, list[Any]]:
    device = _device(task.device)
    jax.config.update("jax_default_device", device)
    hand, k = task.hand(), task.workload.k
    last = [m for m in (hand.up if isinstance(hand, rivals.TwoLayers) else hand.encoder) if isinstance(m, nn.Linear)]
    latent = last[-1].out_features // 2
    programs = two_layers(hand, latent) if isinstance(hand, rivals.TwoLayers) else one_layer(hand, latent)
    loss = Trace_ELBO() if k == 1 else RenyiELBO(alpha=0, num_particles=k)
    batches = [jax.device_put(x.permute(0, 2, 3, 1).cpu().numpy(), device) for x in task.batches]
    return SVI(*programs, numpyro.optim.Adam(task.learning_rate), loss), batches
