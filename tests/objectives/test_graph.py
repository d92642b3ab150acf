"""`TraceGraph_ELBO` against sums over all states, and against Pyro's own on a shared seed."""

import copy
import math
import pickle
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from torch import Tensor

from ppl_vae import SVI, Pair
from ppl_vae.objectives import Objective, Trace_ELBO
from ppl_vae.objectives.adapters import TraceEnum_ELBO, TraceGraph_ELBO
from ppl_vae.sites import GivenValues
from tests import helpers
from tests.helpers import (
    DiscreteGuide,
    Switches,
    assert_same,
    expected_gradients,
    farthest,
    gradients_of,
    linear,
    seeded_bound,
    seeded_loss,
    states,
    vectors,
)
from tests.objectives.discrete_pairs import (
    AVERAGE,
    Two,
    X,
    adam,
    by_pyro,
    exact_elbo,
    switches,
    weights_after,
    with_averages,
)


@pytest.mark.parametrize(("K", "vectorised"), [(1, True), (3, True), (3, False)])
@pytest.mark.parametrize("make", [Two, lambda: linear(DiscreteGuide), lambda: linear(helpers.GlobalSite)])
def test_graph_value_and_gradient_are_pyros(make, K, vectorised):
    pair, x = make(), switches() if make is Two else vectors()
    stock = pyro.infer.TraceGraph_ELBO(K, max_plate_nesting=1, vectorize_particles=vectorised)
    ours = TraceGraph_ELBO(K, vectorize_particles=vectorised)
    assert_same(seeded_loss(pair, ours, x), by_pyro(pair, stock, x))
    torch.manual_seed(0)
    assert ours.loss(pair.model, pair.guide, x) == pytest.approx(seeded_loss(pair, ours, x)[0], rel=1e-12)


BASELINES = {
    "average": (AVERAGE, {}),
    "network": ({"network": True}, {}),
    "value": ({"value": True}, AVERAGE),
    "both": (AVERAGE | {"network": True}, AVERAGE),
}


@pytest.mark.parametrize("baselines", BASELINES.values(), ids=BASELINES)
@pytest.mark.parametrize(("K", "vectorised"), [(1, True), (3, True), (3, False)])
def test_baselines_and_their_gradients_are_pyros_step_after_step(baselines, K, vectorised):
    if K > 1 and vectorised and baselines != BASELINES["average"]:
        baselines = ({"network": True, "particles": K}, AVERAGE)
    pair, x, ours = Two(), switches(), TraceGraph_ELBO(K, vectorize_particles=vectorised)
    pair.baselines = baselines
    stock = pyro.infer.TraceGraph_ELBO(K, max_plate_nesting=1, vectorize_particles=vectorised)
    for seed in range(4):
        expected = by_pyro(pair, stock, x, seed)
        assert_same(seeded_loss(pair, ours, x, seed=seed), expected)
        trained = any(g.abs().max() > 0 for name, g in expected[1].items() if name.startswith("net"))
        assert trained == (baselines != BASELINES["average"])


def test_graph_is_exact_in_expectation():
    """No noise: the mean over all that the particle can be."""
    pair = Switches().double()
    loss = -exact_elbo(pair, X)
    assert_same(expected_gradients(pair, TraceGraph_ELBO(), X), (loss.item(), gradients_of(pair, loss)))


class Fixed(Two):
    """Baselines that are given, (2,), for a batch of one: Pyro's cost has the shape () then."""

    given: Any = None

    def infer(self, i: int, x: Tensor) -> Any:
        return {} if self.given is None else {"baseline": {"baseline_value": self.given[i]}}


def guide_moments(pair: Two, objective: Objective) -> tuple[Tensor, Tensor]:
    """The exact mean and total variance of the gradient of the guide's parameters for X: a sum over the 4 states."""
    q = dist.Bernoulli(logits=(X @ pair.A + pair.c).detach()).to_event(1)
    mean, square = torch.zeros(8).double(), torch.zeros(()).double()
    for z in states(2):
        guide = GivenValues({"y": z[:1], "z": z[1:]})(pair.guide)
        grads = gradients_of(pair, objective.differentiable_loss(pair.model, guide, X.unsqueeze(0)))
        flat, chance = torch.cat([grads["A"].flatten(), grads["c"]]), q.log_prob(z).exp()
        mean, square = mean + chance * flat, square + chance * flat.square().sum()
    return mean, square - mean.square().sum()


def test_dependencies_and_baselines_take_variance_off_and_nothing_else():
    """Sums over all states: nothing here is left to chance. Each switch is spared the other's pixel and prior."""
    pair = Fixed()
    with torch.no_grad():
        pair.w[3] = 0.0  # otherwise the second switch is upstream of all
    grads = seeded_loss(pair, TraceEnum_ELBO(), X.unsqueeze(0))[1]
    mean = torch.cat([grads["A"].flatten(), grads["c"]])
    plain_mean, plain = guide_moments(pair, Trace_ELBO())
    graph_mean, graph = guide_moments(pair, TraceGraph_ELBO())
    pair.given = mean_costs(pair)
    less_mean, less = guide_moments(pair, TraceGraph_ELBO())
    for other in (plain_mean, graph_mean, less_mean):
        torch.testing.assert_close(other, mean, rtol=1e-10, atol=1e-10)
    assert less < 0.9 * graph < 0.81 * plain


def mean_costs(pair: Fixed) -> Tensor:
    """The means of what the averages follow: the cost downstream of each switch, (2,)."""
    objective, costs = TraceGraph_ELBO(), torch.zeros(2).double()
    logits = (X @ pair.A + pair.c).detach()
    options, pair.given = {"use_decaying_avg_baseline": True, "baseline_beta": 0.0}, None
    pair.infer = lambda i, x: {"baseline": options}
    for z in states(2):
        guide = GivenValues({"y": z[:1], "z": z[1:]})(pair.guide)
        objective.differentiable_loss(pair.model, guide, X.unsqueeze(0))
        (averages,) = objective._averages[guide].values()
        chance = dist.Bernoulli(logits=logits).log_prob(z).sum().exp()
        costs += chance * torch.stack([averages[f"__baseline_avg_downstream_cost_{n}"] for n in "yz"])
    del pair.infer
    return costs


def test_graph_of_a_normal_and_a_discrete_site_is_unbiased():
    """Against the gradient with the switch summed out. Fails by chance with probability 1e-5."""
    pair, x = linear(DiscreteGuide), vectors(1).expand(2_000, -1)
    graph = helpers.chunk_gradients(pair, TraceGraph_ELBO(), x, 60)
    assert farthest(graph - helpers.chunk_gradients(pair, TraceEnum_ELBO(), x, 60)) < 1
    assert farthest(1.3 * graph - helpers.chunk_gradients(pair, TraceEnum_ELBO(), x, 60)) > 3


def test_graph_bound_is_that_of_samples():
    pair, x = linear(DiscreteGuide), vectors()
    bound = seeded_bound(pair, TraceGraph_ELBO(3), x)
    torch.testing.assert_close(bound, seeded_bound(pair, Trace_ELBO(3), x))
    assert bound.sum().item() == pytest.approx(-seeded_loss(pair, TraceGraph_ELBO(3), x)[0], rel=1e-12)


@pytest.mark.parametrize("stock", [False, True])
def test_two_pairs_in_one_process_do_not_know_of_each_other(stock):
    def runs(pair: Pair, objective: Objective) -> Any:
        if stock:
            return pair.pyro_svi(helpers.pyro_adam(0.05), objective)
        return SVI(pair, adam(pair), objective)

    x, y = switches(), 1 - switches()
    alone = []
    for seed, batch in ((0, x), (1, y)):
        pair = with_averages(seed)
        alone.append(weights_after(pair, runs(pair, TraceGraph_ELBO()), batch, 6))
    shared = TraceGraph_ELBO()
    pairs = [with_averages(seed) for seed in (0, 1)]
    svis = [runs(pair, shared) for pair in pairs]
    streams = [torch.manual_seed(0).get_state()] * 2
    for _ in range(6):
        for i, batch in enumerate((x, y)):
            torch.set_rng_state(streams[i])
            svis[i].step(batch)
            streams[i] = torch.get_rng_state()
    for pair, expected in zip(pairs, alone, strict=True):
        assert torch.equal(torch.cat([p.detach().flatten() for p in pair.parameters()]), expected)
    assert not [name for name in pyro.get_param_store() if "baseline" in name]
    if stock:  # and the averages are nothing to optimise
        assert all(len(svi.optim.optim_objs) == len(list(pairs[0].parameters())) for svi in svis)


def test_pyros_store_does_share_the_averages():
    """What the test above guards against."""
    pair, other, x = with_averages(0), with_averages(1), switches()
    stock = pyro.infer.TraceGraph_ELBO()
    first = by_pyro(pair, stock, x)[1]
    pyro.clear_param_store()
    by_pyro(other, stock, x)
    assert not torch.allclose(by_pyro(pair, stock, x)[1]["c"], first["c"])
    pyro.clear_param_store()
    ours = TraceGraph_ELBO()
    seeded_loss(other, ours, x)
    torch.testing.assert_close(seeded_loss(pair, ours, x)[1]["c"], first["c"])


def test_averages_begin_anew_with_each_module_and_each_copy():
    pair, x, objective = with_averages(), switches(), TraceGraph_ELBO()
    first, second = seeded_loss(pair, objective, x)[1], seeded_loss(pair, objective, x)[1]
    assert not torch.equal(first["c"], second["c"])
    for fresh in (copy.deepcopy(objective), pickle.loads(pickle.dumps(objective))):
        assert fresh.describe() == objective.describe()
        torch.testing.assert_close(seeded_loss(pair, fresh, x)[1], first)
    objective(pair)
    torch.testing.assert_close(seeded_loss(pair, objective, x)[1], first)


def test_looking_at_the_loss_leaves_the_averages_alone():
    pair, x, objective = with_averages(), switches(), TraceGraph_ELBO()
    seeded_loss(pair, objective, x)
    before = copy.deepcopy(objective._averages[pair])
    objective.loss(pair.model, pair.guide, x)
    objective.bound(pair.model, pair.guide, x)
    torch.testing.assert_close(objective._averages[pair], before)


def test_batches_of_different_sizes_have_averages_of_their_own():
    pair, objective = with_averages(), TraceGraph_ELBO()
    for rows in (5, 3, 1, 5):
        assert math.isfinite(seeded_loss(pair, objective, switches(rows))[0])
    assert len(objective._averages[pair]) == 3


def test_a_baseline_of_the_wrong_shape_is_refused():
    pair = Fixed()
    pair.infer = lambda i, x: {"baseline": {"baseline_value": torch.zeros(5, 1).double()}}
    with pytest.raises(ValueError, match="Expected baseline at site"):
        seeded_loss(pair, TraceGraph_ELBO(), switches())
    assert not pyro.get_param_store()


def test_a_compiled_svi_goes_on_eagerly_with_sampled_switches():
    pair, again, x = with_averages(), with_averages(), switches()
    svi = SVI(pair, adam(pair), TraceGraph_ELBO(), compile="inductor")
    with pytest.warns(UserWarning, match="can't be compiled and goes on eagerly .*ProvenanceTensor"):
        got = weights_after(pair, svi, x, 4)
    assert torch.equal(got, weights_after(again, SVI(again, adam(again), TraceGraph_ELBO()), x, 4))
