"""The guide trained to convergence first: who moves when, until when, and what a stopped run goes on from."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vae import SVI, fit
from ppl_vae.data import Minibatches
from ppl_vae.lagging import MOST, WINDOW, AggressiveGuide, guide_parameters
from ppl_vae.objectives import FreeBits, Trace_ELBO, TraceMeanField_ELBO
from ppl_vae.pair import Pair
from ppl_vae.pairs import VAE, LadderVAE, PixelCNN
from ppl_vae.signals import Stopped
from ppl_vae.stages import PRETRAINING, fit_stages, pretrain
from ppl_vae.training import Record

X = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0)).round()
OPTIONS = {"batch_size": 20, "device": "cpu", "progress": False}


def vae() -> VAE:
    torch.manual_seed(0)
    return VAE((1, 8, 8), latent_dim=2, hidden=(5,))


def state(module: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


def lead(pair: Pair) -> AggressiveGuide:
    svi = SVI(pair, torch.optim.Adam(pair.parameters()), TraceMeanField_ELBO(), compile="off")
    return AggressiveGuide(svi, Minibatches((X,), 20))


def test_the_guides_parameters_are_those_that_its_draws_depend_on():
    pair = vae()
    assert {id(p) for p in guide_parameters(pair, X)} == {id(p) for p in pair.encoder.parameters()}
    # A ladder's guide looks at the model's laws too.
    ladder = LadderVAE((1, 8, 8), latent_dims=(3, 2), hidden=((8,), (8,)))
    shared = {id(p) for p in guide_parameters(ladder, X)}
    assert 0 < len(shared) < len(list(ladder.parameters()))
    with pytest.raises(ValueError, match="got a guide without parameters"):
        guide_parameters(PixelCNN((1, 8, 8), 2, 1), X)


def test_guides_of_discrete_sites_are_found_by_their_laws():
    class Switch(Pair):
        """p(k) = Bernoulli(1/2), p(x | k) = N(k, 1), q(k | x) = Bernoulli(sigmoid(a x))."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Parameter(torch.ones(())), torch.nn.Parameter(torch.ones(()))

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-1):
                k = pyro.sample("k", dist.Bernoulli(x.new_full((), 0.5)))
                pyro.sample("x", dist.Normal(self.b * k, 1.0), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("k", dist.Bernoulli(logits=self.a * x))

    pair = Switch()
    assert guide_parameters(pair, torch.ones(3)) == [pair.a]


def test_the_guide_moves_alone_and_then_the_model_alone():
    pair = vae()
    first = lead(pair)
    decoder, encoder = state(pair.decoder), state(pair.encoder)
    with first.before_step():
        assert torch.equal(state(pair.decoder), decoder) and not torch.equal(state(pair.encoder), encoder)
        encoder = state(pair.encoder)
        first.svi.update(X[:20])
        assert torch.equal(state(pair.encoder), encoder) and not torch.equal(state(pair.decoder), decoder)
    assert all(p.requires_grad for p in pair.parameters())
    assert first.svi.objective.step == 1, "steps of the guide alone do not count"


def test_the_guide_is_trained_until_its_loss_no_longer_falls():
    pair = vae()
    first, losses = lead(pair), []
    given = iter([3.0] * WINDOW + [2.0] * WINDOW + [2.5] * WINDOW + [0.0] * MOST)

    def advance(*batch: Tensor) -> Tensor:
        losses.append(next(given))
        return torch.tensor(losses[-1])

    first.svi.advance = advance
    with first.before_step():
        pass
    assert len(losses) == 3 * WINDOW, "the third window was worse"
    given = iter(torch.arange(2.0 * MOST, 0.0, -1.0).tolist())
    losses.clear()
    with first.before_step():
        pass
    assert len(losses) == MOST


def test_it_ends_when_the_mutual_information_falls():
    pair = vae()
    first = lead(pair)
    for information, on in ((0.5, True), (0.7, True), (0.6, False), (2.0, False)):
        first.observe(information)
        assert first.is_on == on
    decoder, encoder = state(pair.decoder), state(pair.encoder)
    with first.before_step():
        assert torch.equal(state(pair.encoder), encoder) and all(p.requires_grad for p in pair.parameters())
        first.svi.update(X[:20])
    assert not torch.equal(state(pair.encoder), encoder) and not torch.equal(state(pair.decoder), decoder)


def test_fit_shows_what_the_guide_tells():
    history = fit(vae(), X, Trace_ELBO(), steps=3, valid=X[:30], aggressive=True, **OPTIONS)
    for record in history.records:
        assert record.kl is not None and record.mutual_information is not None and record.active_units in (0, 1, 2)
        assert record.mutual_information <= math.log(30) + 1e-6
    plain = fit(vae(), X, Trace_ELBO(), steps=3, **OPTIONS)
    assert all(record.kl is None for record in plain.records)


def test_a_run_that_was_stopped_goes_on_exactly(tmp_path):
    def run(name: str, stop: int | None, resume: bool = False) -> tuple[Tensor, list[Record]]:
        pair = vae()

        def on_step(step: int) -> None:
            if step == stop:
                signal.raise_signal(signal.SIGTERM)

        place = {"checkpoints": tmp_path / name, "on_step": on_step, "resume": resume}
        history = fit(pair, X, Trace_ELBO(), steps=8, valid=X[:30], aggressive=True, **OPTIONS, **place)
        return state(pair), history.records

    import signal

    whole, records = run("whole", None)
    with pytest.raises(Stopped):
        run("cut", 3)
    again, resumed = run("cut", None, resume=True)
    assert torch.equal(again, whole)
    assert [(r.bound, r.mutual_information) for r in resumed] == [(r.bound, r.mutual_information) for r in records]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "aggressive: got True without data held out"),
        ({"valid": X[:30], "compile": "inductor"}, "aggressive: got compile='inductor', expected 'off'"),
    ],
)
def test_what_it_needs_is_asked_for(options, message):
    with pytest.raises(ValueError, match=message):
        fit(vae(), X, steps=1, aggressive=True, **OPTIONS, **options)


def test_after_pretraining_the_model_has_its_first_weights():
    pair = vae()
    decoder, encoder = state(pair.decoder), state(pair.encoder)
    pretrain(pair, X, steps=5, **OPTIONS)
    assert torch.equal(state(pair.decoder), decoder) and not torch.equal(state(pair.encoder), encoder)


def test_pretraining_has_no_kl_term():
    """The encoder ends where the gradient of -E log p(x | z) alone leads."""
    pair, by_hand = vae(), vae()
    pretrain(pair, X, steps=1, seed=3, **OPTIONS)
    kl = Trace_ELBO(kl_weight=0.0)
    fit(by_hand, X, kl, steps=1, seed=3, **OPTIONS)
    assert torch.equal(state(pair.encoder), state(by_hand.encoder))


def test_stages_begin_with_it_and_go_on_exactly(tmp_path):
    def run(name: str, stop: int | None, resume: bool = False) -> tuple[Tensor, list[str]]:
        import signal

        pair, count = vae(), 0

        def on_step(step: int) -> None:
            nonlocal count
            count += 1
            if count == stop:
                signal.raise_signal(signal.SIGTERM)

        options = {**OPTIONS, "checkpoints": tmp_path / name, "resume": resume, "on_step": on_step}
        done = fit_stages(pair, X, FreeBits(0.1), steps=4, pretrain_steps=4, **options)
        assert [history.steps for history in done.values()] == [4, 4]
        return state(pair), list(done)

    whole, names = run("whole", None)
    assert names == [PRETRAINING, ""]
    for stop in (2, 6):
        with pytest.raises(Stopped):
            run(f"cut{stop}", stop)
        assert torch.equal(run(f"cut{stop}", None, resume=True)[0], whole)
