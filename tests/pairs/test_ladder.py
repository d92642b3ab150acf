"""LadderVAE: its factorisation by hand, an exact guide, and batch normalisation."""

import copy
import math
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_vae import data, evaluation, fit, generation, specs
from ppl_vae.compile import CompiledBackward, loss_state, record
from ppl_vae.evaluation import parameter_groups
from ppl_vae.nn import MLP, BatchNorm, leaky_rectifier
from ppl_vae.objectives import (
    IWAE,
    STL,
    DReG,
    FreeBits,
    LinearWarmup,
    Objective,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceMeanField_ELBO,
)
from ppl_vae.pairs import LadderVAE
from ppl_vae.terms import draw
from ppl_vae.testing import check_pair
from tests import helpers
from tests.helpers import assert_compiled_is_eager, assert_same, pixels, seeded_loss

LAYERS = [1, 2, 3, 5]


def ladder(layers: int = 3, **options: Any) -> Any:
    dims, hidden = (4, 3, 2, 2, 1)[:layers], ((6,), (5,), (4, 3), (), (2,))[:layers]
    return LadderVAE((1, 3, 4), dims, hidden, **options)


def merged(evidence: Any, prior: Any) -> dist.Independent:
    """With precisions, as the paper writes it."""
    a, b = evidence.base_dist.scale**-2, prior.base_dist.scale**-2
    mu = (evidence.base_dist.loc * a + prior.base_dist.loc * b) / (a + b)
    return dist.Normal(mu, (a + b) ** -0.5).to_event(1)


def by_hand(pair: LadderVAE, x: Tensor, num_particles: int) -> Tensor:
    """log w, (K, B), of the terms as the paper writes them."""
    d1, e1 = pair.up[0](x)
    d2, e2 = pair.up[1](d1)
    q3 = pair.up[2](d2)[1]
    z3 = q3.expand(torch.Size((num_particles, len(x)))).rsample()
    p2 = pair.down[1](z3)
    q2 = merged(e2, p2)
    z2 = q2.rsample()
    p1 = pair.down[0](z2)
    q1 = merged(e1, p1)
    z1 = q1.rsample()
    log_p = dist.Normal(0.0, 1.0).log_prob(z3).sum(-1) + p2.log_prob(z2) + p1.log_prob(z1)
    return log_p + pair.decoder(z1).log_prob(x) - q3.log_prob(z3) - q2.log_prob(z2) - q1.log_prob(z1)


def test_terms_by_hand():
    """Top-down in both programs, on shared noise."""
    pair, x = ladder().double(), pixels()
    torch.manual_seed(0)
    terms = draw(pair.model, pair.guide, x, num_particles=4)
    assert list(terms.log_p) == ["z3", "z2", "z1", "x"] and list(terms.log_q) == ["z3", "z2", "z1"]
    torch.manual_seed(0)
    torch.testing.assert_close(terms.log_weight(), by_hand(pair, x, 4), rtol=1e-10, atol=1e-10)


def test_loss_and_gradient_by_hand():
    pair, x = ladder().double(), pixels()
    torch.manual_seed(0)
    loss = -by_hand(pair, x, 4).mean(0).sum()
    expected = loss.item(), helpers.gradients_of(pair, loss)
    assert_same(seeded_loss(pair, Trace_ELBO(4), x), expected)


def test_the_pass_upwards_is_deterministic_and_does_not_see_z():
    """d_l = leaky(W d_{l-1} + b); the evidence is read out of it linearly."""
    pair, x = ladder(2).double(), pixels()
    d = x.flatten(1)
    for rung, evidence in zip(pair.up, pair.evidence(x), strict=True):
        inner, outer = rung.trunk.hidden[0], rung.trunk.output
        d = inner(d)
        d = torch.maximum(d, 0.1 * d)
        loc, s = outer(d).unflatten(-1, (2, -1)).unbind(-2)
        torch.testing.assert_close(evidence.mean, loc)
        torch.testing.assert_close(evidence.variance.sqrt(), nn.functional.softplus(s) + 1e-4)


@torch.no_grad()
def set_linear(network: Any, weight: Tensor, bias: Tensor, sigma: Tensor | None = None) -> None:
    """N(weight v + bias, sigma^2), or what has no sigma of its own."""
    if sigma is not None:
        weight, bias = torch.cat([weight, 0 * weight]), torch.cat([bias, (sigma - 1e-4).expm1().log()])
    network.output.weight.copy_(weight)
    network.output.bias.copy_(bias)


def exact_ladder() -> tuple[Any, dist.MultivariateNormal]:
    """Linear networks, a guide that is the posterior, and p(x).

    p(z2) = N(0, I), p(z1 | z2) = N(V z2 + a, S), p(x | z1) = N(W z1 + b, c I), S diagonal. As a function of z1,
    p(x | z1) is a Normal with mean G^-1 W'(x - b) and variance c G^-1, G = W'W: the evidence, if G is diagonal.
    Given z2, x has noise of covariance W S W' + c I, and W'(W S W' + c I)^-1 W = (S + c G^-1)^-1 = P. The posterior
    precision of z2 is I + V'P V: diagonal, if the columns of P^(1/2) V are orthogonal.
    """
    c = 0.3
    pair: Any = LadderVAE((5,), (3, 2), ((), ()), likelihood="normal", variance=c).double()
    g, s, h = (0.5 + torch.rand(n, dtype=torch.float64) for n in (3, 3, 2))
    W = torch.linalg.qr(torch.randn(5, 3, dtype=torch.float64)).Q * g.sqrt()
    P = 1 / (s**2 + c / g)
    V = torch.linalg.qr(torch.randn(3, 2, dtype=torch.float64)).Q * h / P.sqrt().unsqueeze(-1)
    a, b = torch.randn(3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    noise = W * s**2 @ W.T + c * torch.eye(5, dtype=torch.float64)
    A = (V.T @ W.T @ torch.linalg.inv(noise)) / (1 + h**2).unsqueeze(-1)
    first, second = (rung.trunk for rung in pair.up)
    set_linear(first, W.T / g.unsqueeze(-1), -b @ W / g, (c / g).sqrt())
    set_linear(second, A, -A @ (W @ a + b), (1 + h**2) ** -0.5)
    set_linear(pair.down[0][0], V, a, s)
    set_linear(pair.decoder[0], W, b)
    return pair, dist.MultivariateNormal(W @ a + b, noise + W @ V @ V.T @ W.T)


def test_the_merged_guide_is_the_exact_posterior():
    pair, marginal = exact_ladder()
    x = helpers.vectors(6, 5)
    expected = marginal.log_prob(x)
    log_weight = draw(pair.model, pair.guide, x, num_particles=7).log_weight()
    torch.testing.assert_close(log_weight, expected.expand(7, 6), rtol=1e-10, atol=1e-10)
    for objective in (Trace_ELBO(), IWAE(3)):
        bound = objective.bound(pair.model, pair.guide, x)
        torch.testing.assert_close(bound, expected, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        pair.up[0].trunk.output.bias += 0.1
    assert (Trace_ELBO(100).bound(pair.model, pair.guide, x) < expected).all()


@pytest.mark.parametrize("objective", [DReG(3), STL(1)], ids=lambda o: type(o).__name__)
def test_path_gradients_of_networks_that_model_and_guide_share(objective: Objective) -> None:
    """Their mean is the bound's own gradient, also where a network scores z in the model and draws it in the guide."""
    pair, x = ladder(2).double(), pixels(1).repeat(200, 1, 1, 1)
    own = helpers.chunk_gradients(pair, IWAE(objective.num_particles), x)
    assert helpers.farthest(helpers.chunk_gradients(pair, objective, x) - own) < 1


def test_the_guide_shares_the_way_down():
    groups = parameter_groups(ladder(2), pixels().float())
    assert {name.split(".")[0] for name in groups["guide"]} == {"up", "down"}
    assert {name.split(".")[0] for name in groups["model"]} == {"down", "decoder"}


@pytest.mark.parametrize("layers", LAYERS)
def test_contract(layers: int) -> None:
    check_pair(ladder(layers), pixels().float()).raise_if_failed()


def test_contract_with_batch_norm():
    """The rows of a training batch depend on each other, and nothing else is wrong."""
    report = check_pair(ladder(batch_norm=True), pixels(8).float())
    assert [check.name for check in report.checks if not check.ok] == ["rows apart"]


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("layers", LAYERS)
def test_every_parameter_learns(layers: int, batch_norm: bool) -> None:
    pair = ladder(layers, batch_norm=batch_norm).double()
    IWAE(3)(pair)(pixels(8)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 1e-9 for p in pair.parameters())


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("layers", LAYERS)
def test_evaluation_and_generation(layers: int, batch_norm: bool) -> None:
    pair, x = ladder(layers, batch_norm=batch_norm), pixels(6).float()
    before = {name: value.clone() for name, value in pair.state_dict().items()}
    result = evaluation.evaluate(pair, x, objective=IWAE(3), num_particles=20)
    names = [f"z{layer}" for layer in range(layers, 0, -1)]
    assert list(result.kl) == list(result.active_units) == names and math.isfinite(result.nll)
    assert [result.active_units[n].total for n in names] == list(pair.latent_dims[::-1])
    assert generation.samples(pair, num=7).shape == (7, 1, 3, 4)
    assert generation.reconstructions(pair, x).shape == x.shape
    assert generation.interpolation(pair, x[:2], x[2:4], steps=3).shape == (2, 3, 1, 3, 4)
    assert generation.traversal(pair, x, latent=names[-1], steps=3).shape == (6, 4, 3, 1, 3, 4)
    shapes = {n: node["value"].shape for n, node in helpers.generate(pair.eval(), x).items() if n in names}
    assert shapes == {f"z{n}": (6, size) for n, size in enumerate(pair.latent_dims, 1)}
    torch.testing.assert_close(dict(pair.state_dict()), before, rtol=0, atol=0)


def test_kl_terms_are_not_negative_and_vanish_without_evidence():
    """Each is an expected KL divergence, as model and guide draw in the same order; at q = p it is 0."""
    pair, x = ladder(3).double(), pixels()
    kl = evaluation.kl_per_site(pair, x, num_particles=2000)
    assert all((term > -0.05).all() for term in kl.values()) and kl["z1"].max() > 0.01
    with torch.no_grad():
        for rung in pair.up[:-1]:
            rung.trunk.output.bias[rung.head.shape[0] :] += 1e9
    kl = evaluation.kl_per_site(pair, x)
    assert max(kl["z1"].abs().max(), kl["z2"].abs().max()) < 1e-8 and kl["z3"].min() > 0


OBJECTIVES: dict[str, Objective] = {
    "elbo": Trace_ELBO(),
    "mean-field": TraceMeanField_ELBO(),
    "iwae": IWAE(3, kl_weight=LinearWarmup(4, start=0.5)),
    "dreg": DReG(3),
    "free-bits": FreeBits(),
    "rws": ReweightedWakeSleep(3),
}


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_recorded_is_eager(objective: Objective, batch_norm: bool) -> None:
    """Loss and gradients of the graph that is compiled, on shared noise."""
    loss, x = objective(ladder(2, batch_norm=batch_norm).double()), pixels(8)
    recorded = record(loss, x)
    torch.manual_seed(1)
    eager = loss(x)
    expected = torch.autograd.grad(eager, list(loss.parameters()))
    torch.manual_seed(1)
    weight = torch.as_tensor(objective.current_kl_weight)
    state = [value.detach().clone() for value in loss_state(loss).values()]
    again, *gradients = recorded.graph(*state, weight, x, *recorded.noise())
    torch.testing.assert_close((again, gradients), (eager.detach(), list(expected)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("objective", "batch_norm"), [(IWAE(3), False), (Trace_ELBO(), True)])
def test_compiled_is_eager(objective: Objective, batch_norm: bool) -> None:
    assert_compiled_is_eager(objective(ladder(2, batch_norm=batch_norm)), pixels(8).float())


def tracked(pair: LadderVAE) -> dict[str, set[int]]:
    """How often the running averages have been moved, by part of the pair."""
    parts = {"up": pair.up, "down": pair.down, "decoder": pair.decoder}
    norms = {n: [m for m in part.modules() if isinstance(m, BatchNorm)] for n, part in parts.items()}
    return {n: {int(m.get_buffer("num_batches_tracked")) for m in found} for n, found in norms.items()}


def test_running_averages_move_at_each_call_of_a_training_step():
    """Twice where guide and model share a network, once more where the guide is scored anew; compiled as well."""
    x = pixels(8).float()
    pair = ladder(2, batch_norm=True)
    Trace_ELBO(2)(pair)(x)
    assert tracked(pair) == {"up": {1}, "down": {2}, "decoder": {1}}
    compiled = copy.deepcopy(pair)
    for backward in (DReG(2)(pair), CompiledBackward(DReG(2)(compiled))):
        torch.manual_seed(0)
        backward(x)
    assert tracked(pair) == tracked(compiled) == {"up": {3}, "down": {5}, "decoder": {2}}
    torch.testing.assert_close(dict(compiled.state_dict()), dict(pair.state_dict()), rtol=1e-5, atol=1e-5)


def test_eval_mode_has_a_bound_of_each_datum_and_training_mode_has_not():
    pair, x = ladder(batch_norm=True).double(), pixels(8)
    many = x.repeat(200, 1, 1, 1)
    for _ in range(100):
        IWAE(3)(pair)(many)
    apart = {}
    for training in (True, False):
        pair.train(training)
        alone = [helpers.seeded_bound(pair, IWAE(3), other) for other in (x, torch.cat([x[:1], 1 - x[1:]]))]
        apart[training] = (alone[0][0] - alone[1][0]).abs().item()
    assert apart[True] > 1e-3 and apart[False] < 1e-12
    # What training has seen is what the running averages expect: the two modes agree in the mean.
    means = [helpers.seeded_bound(pair.train(mode), IWAE(3), many).mean().item() for mode in (True, False)]
    assert means[0] == pytest.approx(means[1], abs=0.1)


class Crash(Exception):
    pass


def test_an_interrupted_run_ends_the_same(tmp_path: Path) -> None:
    """To the last bit, running averages as well; several particles, which have the pair's plates counted anew."""

    def run(crash: int | None = None, **options: Any) -> LadderVAE:
        torch.manual_seed(0)
        pair = LadderVAE((1, 8, 8), (5, 3), ((12,), (8,)), batch_norm=True)

        def on_step(step: int) -> None:
            if step == crash:
                raise Crash

        objective = IWAE(3, kl_weight=LinearWarmup(10))
        options |= {"steps": 20, "batch_size": 20, "progress": False, "on_step": on_step, "compile": "off"}
        fit(pair, data.load("digits"), objective, **options)
        return pair

    whole = run()
    folder: dict[str, Any] = {"checkpoints": tmp_path / "run", "checkpoint_every": 7}
    with pytest.raises(Crash):
        run(crash=12, **folder)
    resumed = run(resume=True, **folder)
    torch.testing.assert_close(dict(resumed.state_dict()), dict(whole.state_dict()), rtol=0, atol=0)


def test_it_trains_by_name():
    pair = specs.pair_factory("LadderVAE(latent_dims=(8, 4), hidden=((30,), (20,)), batch_norm=True)")((1, 8, 8))
    digits = data.load("digits")
    assert isinstance(pair, LadderVAE) and pair.latent_dims == (8, 4)
    pair.set_output_mean(digits.pixel_means)
    records = fit(pair, digits, Trace_ELBO(), steps=300, progress=False, compile="off").records
    assert records[-1].bound > records[0].bound + 2


def test_output_starts_at_the_pixel_means():
    pair, mean = ladder(2).double(), 0.2 + 0.6 * torch.rand(1, 3, 4).double()
    for parameter in pair.decoder.parameters():
        parameter.detach().zero_()
    pair.set_output_mean(mean)
    torch.testing.assert_close(pair.decoder(torch.randn(5, 4).double()).mean, mean.expand(5, 1, 3, 4))


def test_defaults_are_the_papers():
    pair: Any = LadderVAE((1, 28, 28))
    units = [512, 256, 128, 64, 32]
    assert pair.latent_dims == (64, 32, 16, 8, 4)
    for n, (rung, below) in enumerate(zip(pair.up, [784, *units], strict=False)):
        shapes = [tuple(p.shape) for p in rung.parameters() if p.dim() == 2]
        assert shapes == [(units[n], below), (units[n], units[n]), (2 * pair.latent_dims[n], units[n])]
    for n, network in enumerate(pair.down, start=1):
        shapes = [tuple(p.shape) for p in network.parameters() if p.dim() == 2]
        dims = pair.latent_dims
        assert shapes == [(units[n], dims[n]), (units[n], units[n]), (2 * dims[n - 1], units[n])]
    assert [m.negative_slope for m in pair.modules() if isinstance(m, nn.LeakyReLU)] == [0.1] * 20
    assert isinstance(pair.decoder[0], MLP) and leaky_rectifier()(torch.tensor(-1.0)) == -0.1


def test_what_is_refused():
    for dims, hidden in ((), ()), ((4, 2), ((6,),)), ((4,), ((6,), (5,))):
        message = f"got {len(dims)} stochastic layers and {len(hidden)} hidden blocks"
        with pytest.raises(ValueError, match=message):
            LadderVAE((1, 3, 4), dims, hidden)
    pair = ladder(2)
    with pytest.raises(ValueError, match=r"MLP: got an input of shape \(5, 12\), expected \(..., 1, 3, 4\)"):
        Trace_ELBO().bound(pair.model, pair.guide, torch.zeros(5, 12))
