"""Every head against its formula, written out by hand."""

import doctest
import math

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import Sequential

from ppl_vae.distributions import DiscretisedLogistic, GreyBernoulli
from ppl_vae.nn import (
    MLP,
    BernoulliHead,
    CategoricalHead,
    DiscretisedLogisticHead,
    FixedNormalHead,
    Head,
    NormalHead,
    SharedNormalHead,
    heads,
)

SHAPE = (2, 3)
HEADS = {
    "normal": NormalHead(SHAPE),
    "softplus": NormalHead(SHAPE, scale="softplus"),
    "fixed": FixedNormalHead(SHAPE, variance=0.3),
    "shared": SharedNormalHead(SHAPE),
    "scalar": SharedNormalHead(SHAPE, scalar=True),
    "bernoulli": BernoulliHead(SHAPE),
    "grey": BernoulliHead(SHAPE, grey=True),
    "logistic": DiscretisedLogisticHead(SHAPE, levels=16),
    "categorical": CategoricalHead(SHAPE, levels=5),
}
every_head = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())


def normal(x: Tensor, loc: Tensor, sigma: Tensor | float) -> Tensor:
    sigma = torch.as_tensor(sigma)
    return (-0.5 * ((x - loc) / sigma) ** 2 - sigma.log() - 0.5 * math.log(2 * math.pi)).sum((-2, -1))


@every_head
@pytest.mark.parametrize("leading", [(), (4,), (5, 4)])
def test_shapes(head: Head, leading: tuple[int, ...]) -> None:
    d = head(torch.randn(*leading, *head.raw_shape))
    assert head.raw_shape == (head.num_parameters, *SHAPE)
    assert d.batch_shape == leading and d.event_shape == SHAPE
    assert d.log_prob(d.sample()).shape == leading
    wide = d.expand((7, *leading))
    assert wide.mask(True).log_prob(wide.sample()).shape == (7, *leading)


def test_normal_sigma_is_exp_of_the_second_block() -> None:
    raw, x = torch.randn(4, 2, *SHAPE), torch.randn(4, *SHAPE)
    expected = normal(x, raw[:, 0], raw[:, 1].exp())
    torch.testing.assert_close(NormalHead(SHAPE)(raw).log_prob(x), expected)
    with_floor = normal(x, raw[:, 0], raw[:, 1].exp() + 0.2)
    torch.testing.assert_close(NormalHead(SHAPE, floor=0.2)(raw).log_prob(x), with_floor)


def test_softplus_sigma_has_a_floor() -> None:
    raw, x = torch.randn(4, 2, *SHAPE), torch.randn(4, *SHAPE)
    expected = normal(x, raw[:, 0], torch.log1p(raw[:, 1].exp()) + 1e-4)
    torch.testing.assert_close(NormalHead(SHAPE, scale="softplus")(raw).log_prob(x), expected)
    sigma = NormalHead(SHAPE, scale="softplus")(torch.full((2, *SHAPE), -1e4)).stddev
    torch.testing.assert_close(sigma, torch.full(SHAPE, 1e-4))


def test_fixed_variance_is_a_variance() -> None:
    raw, x = torch.randn(4, 1, *SHAPE), torch.randn(4, *SHAPE)
    expected = normal(x, raw[:, 0], math.sqrt(0.3))
    torch.testing.assert_close(FixedNormalHead(SHAPE, variance=0.3)(raw).log_prob(x), expected)


@pytest.mark.parametrize("scalar", [False, True])
def test_shared_scale_learns_the_residual(scalar: bool) -> None:
    head, x = SharedNormalHead(SHAPE, scalar=scalar), torch.randn(50, *SHAPE)
    with torch.no_grad():
        # The maximum-likelihood scale: its gradient vanishes there.
        head.log_scale.copy_(0.5 * x.square().mean(dim=None if scalar else 0).log())
    loss = -head(torch.zeros(50, 1, *SHAPE)).log_prob(x).mean()
    (grad,) = torch.autograd.grad(loss, [head.log_scale])
    torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-5)
    expected = -normal(x, torch.tensor(0.0), head.log_scale.exp().expand(SHAPE)).mean()
    torch.testing.assert_close(loss, expected)


def test_bernoulli_takes_logits_and_grey_takes_grey() -> None:
    raw, x = torch.randn(4, 1, *SHAPE), torch.rand(4, *SHAPE)
    cross_entropy = F.binary_cross_entropy_with_logits(raw[:, 0], x, reduction="none").sum((-2, -1))
    grey = BernoulliHead(SHAPE, grey=True)(raw)
    assert isinstance(grey.base_dist, GreyBernoulli)
    torch.testing.assert_close(grey.log_prob(x), -cross_entropy)
    with pytest.raises(ValueError, match="support"):
        dist.Independent(BernoulliHead(SHAPE)(raw).base_dist, 2, validate_args=True).log_prob(x)


def test_logistic_scale_is_exp_of_the_second_block_down_to_minus_7() -> None:
    raw, x = torch.randn(4, 2, *SHAPE), torch.randint(16, (4, *SHAPE)) / 15
    raw[0, 1] = -20
    expected = DiscretisedLogistic(raw[:, 0], raw[:, 1].clamp(min=-7).exp(), 16).log_prob(x).sum((-2, -1))
    torch.testing.assert_close(DiscretisedLogisticHead(SHAPE, levels=16)(raw).log_prob(x), expected)


@every_head
def test_bias_for_mean(head: Head) -> None:
    mean = torch.rand(SHAPE)
    tolerance = 0.01 / 15 if isinstance(head, DiscretisedLogisticHead) else 1e-6
    torch.testing.assert_close(head(head.bias_for_mean(mean)).mean, mean, rtol=0, atol=tolerance)


@pytest.mark.parametrize("levels", [2, 4, 16, 256])
def test_logistic_bias_for_mean_at_the_edges(levels: int) -> None:
    head, mean = DiscretisedLogisticHead(5, levels), torch.tensor([0.0, 0.02, 0.5, 0.97, 1.0])
    got = head(head.bias_for_mean(mean)).mean
    torch.testing.assert_close(got, mean.clamp(0.001, 0.999), rtol=0, atol=0.01 / (levels - 1))


def test_bernoulli_bias_is_the_logit_of_the_clipped_mean() -> None:
    bias = BernoulliHead(3).bias_for_mean(torch.tensor([0.0, 0.25, 1.0]))
    p = torch.tensor([[0.001, 0.25, 0.999]])
    torch.testing.assert_close(bias, (p / (1 - p)).log())


@every_head
def test_wrong_shapes_are_refused(head: Head) -> None:
    for bad in [(3, *SHAPE), (head.num_parameters, 3, 2), SHAPE[1:]]:
        with pytest.raises(ValueError, match=r"got raw parameters of shape .* expected"):
            head(torch.zeros(4, *bad) if len(bad) > 1 else torch.zeros(bad))
    with pytest.raises(ValueError, match=r"got shape .* expected"):
        head.bias_for_mean(torch.zeros(3, 2))


def test_bad_arguments_are_refused() -> None:
    for variance in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="variance"):
            FixedNormalHead(3, variance)
    with pytest.raises(ValueError, match="levels"):
        DiscretisedLogisticHead(3, levels=1)
    with pytest.raises(ValueError, match="scale"):
        NormalHead(3, scale="log")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="floor"):
        NormalHead(3, floor=-1.0)
    with pytest.raises(ValueError, match="shape"):
        NormalHead((3, 0))


@every_head
def test_log_prob_is_never_in_half_precision(head: Head) -> None:
    raw = torch.randn(4, *head.raw_shape).bfloat16()
    x = head(raw.float()).sample()
    torch.testing.assert_close(head(raw).log_prob(x), head(raw.float()).log_prob(x))
    assert head(raw).log_prob(x).dtype == torch.float32


@every_head
def test_log_prob_and_its_gradient_trace_to_one_graph(head: Head) -> None:
    net = Sequential(MLP(5, head.raw_shape, hidden=(7,)), head)
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(parameters: dict[str, Tensor], z: Tensor, x: Tensor) -> list[Tensor]:
        parameters = {name: p.detach().requires_grad_() for name, p in parameters.items()}
        value = functional_call(net, parameters, (z,)).log_prob(x).sum()
        return [value, *torch.autograd.grad(value, list(parameters.values()))]

    def batch() -> tuple[Tensor, Tensor]:
        z = torch.randn(3, 4, 5)
        return z, net(z).sample()

    with dist.validation_enabled(False):
        graph = make_fx(loss, tracing_mode="fake")(parameters, *batch())
        z, x = batch()  # other numbers than those it was traced with
        torch.testing.assert_close(graph(parameters, z, x), loss(parameters, z, x))


def test_docstring_examples() -> None:
    result = doctest.testmod(heads)
    assert result.attempted > 0 and result.failed == 0
