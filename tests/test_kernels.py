"""Replaced products and convolutions compute what they replace; the oracle is torch in float64."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vae.compile import record
from ppl_vae.kernels import FASTER, FEW
from ppl_vae.objectives import Trace_ELBO
from ppl_vae.pairs import VAE

aten = torch.ops.aten
onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The value, and gradients of a sum with unequal weights for every input."""
    inputs = tuple(i.detach().requires_grad_() for i in inputs)
    y = function(*inputs)
    weights = 1.5 + torch.arange(y.numel(), dtype=y.dtype).reshape(y.shape).cos()  # positive: no sum cancels
    return [y.detach(), *torch.autograd.grad((weights * y).sum(), inputs)]


def check_equal(function: Callable[..., Tensor], *inputs: Tensor) -> set[Any]:
    """Compare the replaced record in float32 with torch in float64; the operations of the record."""
    run = partial(gradients, function)
    graph = make_fx(run, decomposition_table=FASTER, tracing_mode="fake")(*inputs)
    expected = run(*(i.double() for i in inputs))
    for got, right in zip(graph(*inputs), expected, strict=True):
        assert got.shape == right.shape
        assert (got - right).norm() <= 1e-5 * right.norm()
    return {node.target for node in graph.graph.nodes}


@onednn
@pytest.mark.parametrize("channels", [1, 3, FEW, FEW + 1])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "extra"),
    [
        ((7, 5), (3, 3), 2, 1, 1),
        ((7, 5), (3, 3), 2, 1, (0, 1)),
        ((4, 6), (5, 4), 3, 2, 2),
        ((4, 6), (1, 2), 3, 0, 0),
        ((5, 5), (3, 3), 1, 1, 0),
        ((1, 1), (7, 7), 1, 0, 0),
        ((6, 3), (4, 2), (2, 4), (3, 0), (1, 0)),
    ],
)
def test_transposed_convolutions(
    channels: int, size: tuple[int, int], kernel: tuple[int, int], stride: Any, padding: Any, extra: Any
) -> None:
    x, weight, bias = torch.randn(3, 8, *size), torch.randn(8, channels, *kernel), torch.randn(channels)
    where = {"stride": stride, "padding": padding, "output_padding": extra}
    targets = check_equal(lambda *i: F.conv_transpose2d(*i, **where), x, weight, bias)
    shifted = aten.stack.default in targets
    assert shifted == (channels <= FEW)


@onednn
@pytest.mark.parametrize(("rows", "number"), [(3, 0), (300, 5)])
def test_large_products_go_through_onednn(rows: int, number: int) -> None:
    pair, x = VAE((1, 28, 28), 20, (60,)), torch.bernoulli(torch.full((rows, 1, 28, 28), 0.3))
    graph = record(Trace_ELBO()(pair), x).graph
    # 784 x 60 x 300 multiplications, four times: in the encoder and the decoder, forward and (for the weights) back,
    # and once more for the gradient of the decoder's input.
    assert sum(n.target is torch.ops.ppl_vae.linear.default for n in graph.graph.nodes) == number


@onednn
def test_products_of_any_order_are_the_same() -> None:
    x, y, bias = torch.randn(120, 110), torch.randn(110, 130), torch.randn(130)
    for first in (lambda a: a, lambda a: a.t().contiguous().t()):
        assert torch.ops.ppl_vae.linear.default in check_equal(torch.addmm, bias, first(x), first(y))
        assert torch.ops.ppl_vae.linear.default in check_equal(torch.mm, first(x), first(y))
    assert torch.ops.ppl_vae.linear.default in check_equal(partial(torch.addmm, beta=2.0), bias, x, y), "going back"


def test_other_dtypes_stay_as_they_are() -> None:
    inputs = torch.randn(3, 8, 7, 7).double(), torch.randn(8, 1, 3, 3).double()
    targets = check_equal(partial(F.conv_transpose2d, stride=2), *inputs)
    assert aten.stack.default not in targets and aten.convolution.default in targets


@onednn
@pytest.mark.parametrize("weight", ["dense", "transposed", "expanded", "part", "part, transposed"])
def test_a_weight_is_dense_in_one_order_or_the_other(weight: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN multiplies by an expanded weight (the gradient of a learned first state) a thousand times slower.

    Without AVX-512 also by a part of a matrix, such as the two inputs of a `JoinedMLP` have.
    """
    from ppl_vae import kernels

    seen: list[Tensor] = []

    def plain(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        seen.append(weight)
        return F.linear(x, weight, bias)

    monkeypatch.setattr(torch.ops.mkldnn._linear_pointwise, "default", plain, raising=False)
    matrix, state = torch.randn(5, 4), torch.randn(4)
    given = {
        "dense": matrix,
        "transposed": matrix.t().contiguous().t(),
        "expanded": state.expand(5, 4),
        "part": torch.cat([matrix, matrix], 1)[:, :4],
        "part, transposed": torch.cat([matrix.t(), matrix.t()], 1)[:, :5].t(),
    }[weight]
    x = torch.randn(3, 4)
    torch.testing.assert_close(kernels._linear(x, given, None), x @ given.t())
    (used,) = seen
    assert used.stride() in ((4, 1), (1, 5))
    assert (used is given) == (weight in ("dense", "transposed")), "no copy that is not needed"


@onednn
@pytest.mark.parametrize("part", [slice(0, 300), slice(300, None)])
def test_no_product_by_the_reference_implementation(part: slice, capfd: pytest.CaptureFixture[str]) -> None:
    weight, x = torch.randn(200, 700)[:, part], torch.randn(50, 700)[:, part].contiguous()
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        torch.ops.ppl_vae.linear(x, weight, None)
        torch.ops.ppl_vae.linear(torch.randn(50, 200), weight.t(), None)
    done = [line for line in capfd.readouterr().out.splitlines() if ",exec," in line and ",reorder," not in line]
    assert len(done) == 2 and not [line for line in done if "ref" in line.split(",")[6]], done
