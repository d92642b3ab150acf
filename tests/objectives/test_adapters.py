"""What `TraceEnum_ELBO` and `TraceGraph_ELBO` have in common: training, errors, copies."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch

from ppl_vae import SVI, evaluation, fit
from ppl_vae.objectives.adapters import TraceEnum_ELBO, TraceGraph_ELBO
from ppl_vae.testing import LinearGaussian
from tests import helpers
from tests.helpers import (
    linear,
    seeded_loss,
    vectors,
)
from tests.objectives.discrete_pairs import Two, adam, switches, with_averages


@pytest.mark.parametrize("objective", [TraceEnum_ELBO(), TraceGraph_ELBO()])
@pytest.mark.filterwarnings("ignore:Found.*vars")
def test_sites_that_do_not_match_are_refused_by_name(objective):
    class Without(LinearGaussian):
        def guide(self, x):
            pass

    class Extra(LinearGaussian):
        def guide(self, x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", self.encode(x))
                pyro.sample("y", dist.Bernoulli(x.new_tensor(0.3)))

    for cls, message in ((Without, "the guide has no site 'z'"), (Extra, "the model has no latent site 'y'")):
        with pytest.raises(ValueError, match=message):
            seeded_loss(linear(cls), objective, vectors())


OBJECTIVES = [TraceEnum_ELBO(), TraceEnum_ELBO(2), TraceGraph_ELBO(), TraceGraph_ELBO(2)]
every = pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: f"{type(o).__name__}-{o.num_particles}")


@every
def test_training_in_our_svi_stock_svi_and_as_a_module(objective):
    x = switches().repeat(20, 1)
    for way in ("ours", "stock", "module"):
        pair = Two() if objective.num_particles > 1 else with_averages()
        before = {n: p.detach().clone() for n, p in pair.named_parameters()}
        start = seeded_loss(pair, TraceEnum_ELBO(), x)[0]
        optim = adam(pair)
        if way == "module":
            loss = objective(pair)
            for _ in range(20):
                optim.zero_grad()
                loss(x).backward()
                optim.step()
        else:
            stock = pair.pyro_svi(helpers.pyro_adam(0.05), objective)
            helpers.steps(SVI(pair, optim, objective) if way == "ours" else stock, [x], 20)
        assert seeded_loss(pair, TraceEnum_ELBO(), x)[0] < start - 1
        assert not [n for n, p in pair.named_parameters() if torch.equal(p, before[n]) and not n.startswith("net")]


@every
def test_fit_is_reproducible(objective):
    x, ends, pair = switches(100), [], with_averages()
    for _ in range(2):
        pair.load_state_dict(with_averages().state_dict())
        history = fit(pair, x, objective, steps=8, batch_size=20, progress=False)
        ends.append(torch.cat([p.detach().flatten() for p in pair.parameters()]))
        assert math.isfinite(history.records[-1].bound)
    assert torch.equal(*ends)
    got = evaluation.bound(pair, objective, x, batch_size=30, seed=0)
    assert got.shape == (100,) and bool(got.isfinite().all())


def test_copies_and_descriptions():
    objective = TraceEnum_ELBO(3, max_plate_nesting=1, strict_enumeration_warning=False)
    for fresh in (copy.deepcopy(objective), pickle.loads(pickle.dumps(objective))):
        assert vars(fresh) == vars(objective)
    assert objective.describe().items() >= {"class": "TraceEnum_ELBO", "num_particles": 3}.items()
    for cls in (TraceEnum_ELBO, TraceGraph_ELBO):
        with pytest.raises(ValueError, match="num_particles: got 0"):
            cls(0)
