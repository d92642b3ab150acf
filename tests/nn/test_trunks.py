"""Trunks: shapes, leading dims, the initial weights and the output bias."""

import doctest
import math
from typing import Any

import pytest
import torch
from torch import nn

from ppl_vae.nn import MLP, ConvDecoder, ConvEncoder, Trunk, glorot_, init, trunks

SIZES = [(8, 8), (28, 28), (28, 20), (32, 32), (7, 5), (1, 3), (12, 9), (9, 6)]


def every_trunk() -> list[Trunk]:
    return [
        MLP((2, 3), (2, 5)),
        MLP(6, 4, hidden=()),
        ConvEncoder((1, 8, 7), (2, 5), channels=(3, 4)),
        ConvDecoder((2, 3), (2, 1, 8, 7), channels=(4, 3)),
    ]


def test_mlp_equals_plain_torch() -> None:
    trunk = MLP((2, 3), (2, 5), hidden=(7, 9), activation=nn.Softplus)
    first, _, second, _ = trunk.hidden
    softplus, x = nn.functional.softplus, torch.randn(4, 2, 3)
    assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
    h = softplus(x.reshape(4, 6) @ first.weight.T + first.bias)
    h = softplus(h @ second.weight.T + second.bias)
    expected = (h @ trunk.output.weight.T + trunk.output.bias).reshape(4, 2, 5)
    torch.testing.assert_close(trunk(x), expected)


def test_mlp_without_hidden_layers_is_linear() -> None:
    trunk, x, y = MLP(3, (2, 4), hidden=()), torch.randn(3), torch.randn(3)
    torch.testing.assert_close(trunk(x + 2 * y), trunk(x) + 2 * trunk(y))
    assert [tuple(p.shape) for p in trunk.parameters()] == [(8, 3), (8,)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("kernel", [3, 5])
def test_convolutions_fit_any_size(size: tuple[int, int], depth: int, kernel: int) -> None:
    channels = (4, 6, 5)[:depth]
    encoder = ConvEncoder((2, *size), (2, 3), channels=channels, kernel=kernel)
    decoder = ConvDecoder(3, (2, 2, *size), channels=channels[::-1], kernel=kernel)
    assert encoder(torch.randn(2, 2, *size)).shape == (2, 2, 3)
    assert decoder(torch.randn(2, 3)).shape == (2, 2, 2, *size)


@pytest.mark.parametrize("trunk", every_trunk(), ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("leading", [(), (4,), (3, 4), (2, 1, 3), (0,)])
def test_leading_dims_are_independent_rows(trunk: Trunk, leading: tuple[int, ...]) -> None:
    x = torch.randn(*leading, *trunk.in_shape)
    y = trunk(x)
    assert y.shape == (*leading, *trunk.out_shape)
    rows = [trunk(row) for row in x.reshape(-1, *trunk.in_shape)] if x.numel() else []
    if rows:
        torch.testing.assert_close(y, torch.stack(rows).reshape(y.shape))


@pytest.mark.parametrize("trunk", every_trunk(), ids=lambda t: type(t).__name__)
def test_wrong_inputs_are_refused(trunk: Trunk) -> None:
    for bad in [torch.zeros(4, *trunk.in_shape[:-1], trunk.in_shape[-1] + 1), torch.zeros(())]:
        with pytest.raises(ValueError, match=r"got an input of shape .* expected \(\.\.\., "):
            trunk(bad)
    with pytest.raises(ValueError, match="set_output_bias: got shape"):
        trunk.set_output_bias(torch.zeros(99))


@pytest.mark.parametrize("trunk", every_trunk(), ids=lambda t: type(t).__name__)
def test_set_output_bias_adds_to_every_output(trunk: Trunk) -> None:
    x, raw = torch.randn(4, *trunk.in_shape), torch.randn(trunk.out_shape)
    before = trunk(x)  # the bias starts at zero
    trunk.set_output_bias(raw)
    torch.testing.assert_close(trunk(x), before + raw)
    # Still learned: d sum(y) / d bias is the batch size.
    bias = trunk._output_bias()
    (grad,) = torch.autograd.grad(trunk(x).sum(), [bias])
    torch.testing.assert_close(grad, torch.full_like(bias, 4.0))
    assert any(bias is p for p in trunk.parameters())


def uniform_bound_is(weight: torch.Tensor, bound: float) -> bool:
    # The largest of n uniform draws is below 1 - t of the bound with probability (1 - t)^n = 1e-5.
    slack = 1 - 1e-5 ** (1 / weight.numel())
    return (1 - slack) * bound <= float(weight.detach().abs().max()) <= bound


def test_mlp_starts_from_glorot_per_block() -> None:
    trunk = MLP((4, 25), (2, 50), hidden=(80,))
    first = trunk.hidden[0]
    assert isinstance(first, nn.Linear)
    assert uniform_bound_is(first.weight, math.sqrt(6 / (100 + 80)))
    assert uniform_bound_is(trunk.output.weight, math.sqrt(6 / (80 + 50)))
    assert uniform_bound_is(MLP(100, 50, hidden=()).output.weight, math.sqrt(6 / (100 + 50)))
    assert all(not b.any() for name, b in trunk.named_parameters() if name.endswith("bias"))


def test_convolutions_start_from_glorot_per_block() -> None:
    encoder, decoder = ConvEncoder((3, 8, 8), (2, 50), channels=(40,)), ConvDecoder(10, (2, 3, 8, 8), (40,))
    first, start = encoder.hidden[0], decoder.hidden[0]
    assert isinstance(first, nn.Conv2d) and isinstance(start, nn.Linear)
    assert uniform_bound_is(first.weight, math.sqrt(6 / (9 * 3 + 9 * 40)))
    assert uniform_bound_is(encoder.output.weight, math.sqrt(6 / (40 * 16 + 50)))
    assert uniform_bound_is(start.weight, math.sqrt(6 / (10 + 40 * 16)))
    assert uniform_bound_is(decoder.output.weight, math.sqrt(6 / (9 * 40 + 9 * 3)))


def test_glorot_equals_torch_for_one_block() -> None:
    for layer in (nn.Linear(5, 7), nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(3, 4, 5, bias=False)):
        torch.manual_seed(0)
        expected = nn.init.xavier_uniform_(torch.empty_like(layer.weight))
        torch.manual_seed(0)
        torch.testing.assert_close(glorot_(layer).weight.detach(), expected)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="in_shape"):
        ConvEncoder((8, 8), 3)
    with pytest.raises(ValueError, match="out_shape"):
        ConvDecoder(3, (1, 8, 8))
    with pytest.raises(ValueError, match="channels"):
        ConvDecoder(3, (1, 1, 8, 8), channels=())
    for build in (lambda: ConvEncoder((1, 8, 8), 3, kernel=4), lambda: ConvDecoder(3, (1, 1, 8, 8), kernel=4)):
        with pytest.raises(ValueError, match="kernel=4"):
            build()
    for size in (0, True, 1.5, "", "ab", (2, -1), (1.0,), None):
        with pytest.raises(ValueError, match="sizes of at least 1"):
            MLP(size, 3)  # pyright: ignore[reportArgumentType]


def _raises() -> nn.Module:
    raise KeyError("width")


@pytest.mark.parametrize("activation", [nn.Module, nn.GLU, nn.Linear, _raises, torch.tanh, "tanh", None])
def test_an_activation_that_does_not_keep_shapes_is_refused(activation: Any) -> None:
    for build in (
        lambda: MLP(3, 3, (4,), activation),
        lambda: ConvEncoder((1, 8, 8), 3, (4,), activation),
        lambda: ConvDecoder(3, (1, 1, 8, 8), (4,), activation),
    ):
        with pytest.raises(ValueError, match="activation: got"):
            build()


def test_trying_an_activation_draws_nothing_from_the_global_stream() -> None:
    torch.manual_seed(0)
    plain = MLP(3, 3, (4,), nn.Identity)
    torch.manual_seed(0)
    random = MLP(3, 3, (4,), nn.RReLU)  # draws in training mode
    assert torch.equal(plain.output.weight, random.output.weight)


def test_docstring_examples() -> None:
    for module in (init, trunks):
        result = doctest.testmod(module)
        assert result.attempted > 0 and result.failed == 0
