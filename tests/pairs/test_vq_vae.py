"""VQ-VAEs: the two-part code by hand, straight-through gradients against formulas, stages, all grids of codes."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ppl_vae import evaluation, fit, generation
from ppl_vae.compile import eager_backward, loss_state, record
from ppl_vae.distributions import vectors_of
from ppl_vae.evaluation import TWO_PART
from ppl_vae.objectives import IWAE, Trace_ELBO, TraceMeanField_ELBO
from ppl_vae.pairs import VQVAE, VQVAE2, VQVAE1d
from ppl_vae.pairs.quantised import PriorsAlone, QuantisedPair
from ppl_vae.testing import check_pair
from tests.helpers import generate, gradients_of

SHAPE = (1, 8, 8)


def small(classes: int | None = None, decay: float | None = 0.9, **options: int) -> VQVAE:
    sizes: dict[str, Any] = {
        "codes": 5,
        "code_dim": 3,
        "hidden": 6,
        "blocks": 1,
        "prior_hidden": 6,
        "prior_layers": 2,
        **options,
    }
    return VQVAE(SHAPE, **sizes, decay=decay, classes=classes)


def two_levels(classes: int | None = None, **options: int) -> VQVAE2:
    sizes: dict[str, Any] = {"codes": 5, "code_dim": 4, "hidden": 6, "blocks": 1, "prior_hidden": 8, "prior_layers": 2}
    return VQVAE2((1, 4, 4), **{**sizes, **options}, decay=0.9, classes=classes)


def sequences() -> VQVAE1d:
    sizes: dict[str, Any] = {"codes": 5, "code_dim": 4, "hidden": 6, "blocks": 1, "prior_hidden": 8, "prior_layers": 2}
    return VQVAE1d((2, 16), **sizes, halvings=2)


PAIRS: dict[str, Callable[[], QuantisedPair]] = {
    "averages": small,
    "by gradient": lambda: small(decay=None),
    "classes": lambda: small(classes=3),
    "uniform": lambda: small(prior_layers=0),
    "two levels": two_levels,
    "sequences": sequences,
    "two levels, classes, attention": lambda: two_levels(classes=3, attention=1),
}


def batch_of(pair: QuantisedPair, rows: int = 6) -> tuple[torch.Tensor, ...]:
    x = torch.rand(rows, *pair.data_shape).round()
    return (x,) if pair.classes is None else (x, torch.arange(rows) % pair.classes)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", PAIRS)
def test_contract(name: str) -> None:
    pair = PAIRS[name]()
    check_pair(pair, *batch_of(pair)).raise_if_failed()
    for stage in pair.stages().values():
        report = check_pair(stage, *batch_of(pair))
        # A stage leaves the parameters of the other one alone.
        assert {check.name for check in report.checks if not check.ok} <= {"gradients"}, report


@pytest.mark.parametrize("name", PAIRS)
def test_the_bound_is_the_two_part_code_under_every_objective(name: str) -> None:
    """log p(x | nearest codes) + log p(codes); an untrained prior is uniform: 5 codes at 4 places, or 4 + 1."""
    pair = PAIRS[name]().eval()
    batch = batch_of(pair)
    z = pair.codes(batch[0])
    places = sum(found.flatten(2).shape[2] for found in z.values())
    expected = pair.decode(z).log_prob(batch[0]) - places * torch.tensor(5.0).log()
    for objective in (Trace_ELBO(), TraceMeanField_ELBO(), IWAE(4)):
        torch.testing.assert_close(objective.bound(pair.model, pair.guide, *batch), expected)


def test_the_bound_is_below_log_p_of_all_codes() -> None:
    pair = small(codes=3).double().eval()
    for parameter in pair.priors.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.rand(1, *SHAPE, dtype=torch.float64).round()
    index = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 2, 2)
    z = vectors_of(index, pair.quantiser("z").current(), 2)
    log_prior = pair.prior("z", {}, x.expand(81, *SHAPE), None).log_prob(z)
    assert log_prior.exp().sum().item() == pytest.approx(1.0, abs=1e-10)
    log_p = (log_prior + pair.decode({"z": z}).log_prob(x)).logsumexp(0)
    bound = Trace_ELBO().bound(pair.model, pair.guide, x)
    assert bound < log_p
    mine = int((z == pair.codes(x)["z"]).flatten(1).all(1).nonzero())
    torch.testing.assert_close(bound, log_prior[mine, None] + pair.decode({"z": z[mine, None]}).log_prob(x))


@pytest.mark.parametrize("decay", [None, 0.9])
def test_gradients_by_hand(decay: float | None) -> None:
    """Straight through: the encoder gets the decoder's gradient at the codes, and 2 beta (z - e) of the commitment."""
    pair, beta = small(decay=decay, prior_layers=0).double().eval(), 0.25
    x = torch.rand(6, *SHAPE, dtype=torch.float64).round()
    quantiser = pair.quantiser("z")
    found = gradients_of(pair, Trace_ELBO().differentiable_loss(pair.model, pair.guide, x))
    pair.zero_grad()
    z = pair.encoder(x)
    index = quantiser(z)
    e = quantiser.vectors(index).detach().requires_grad_()
    loss = -pair.decode({"z": e}).log_prob(x).sum()
    (at_codes,) = torch.autograd.grad(loss, e, retain_graph=True)
    loss.backward()
    z.backward(at_codes + 2 * beta * (z - e).detach())
    expected = {n: p.grad for n, p in pair.named_parameters() if p.grad is not None}
    if decay is None:
        pull = torch.zeros_like(quantiser.weight)
        pull.index_add_(0, index.flatten(), 2 * (e - z).detach().movedim(1, -1).reshape(-1, 3))
        expected["quantisers.z.weight"] = pull
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=lambda text, name=name: f"{name}: {text}")


def test_the_prior_gives_the_encoder_no_gradient() -> None:
    pair = small(decay=None)
    (x,) = batch_of(pair)
    prior = pair.prior("z", {}, x, None)
    torch.nn.init.normal_(pair.priors["z"].trunk.last[-1].weight)  # pyright: ignore
    z = pair.encoder(x)
    index = pair.quantiser("z")(z)
    log_p = prior.log_prob(z + (pair.quantiser("z").vectors(index) - z).detach()).sum()
    assert torch.autograd.grad(log_p, z, allow_unused=True) == (None,)


@pytest.mark.parametrize("name", PAIRS)
def test_each_stage_trains_its_own(name: str) -> None:
    pair = PAIRS[name]()
    batch = batch_of(pair, 20)
    pair.begin(*batch)
    for number, (stage_name, stage) in enumerate(pair.stages().items()):
        before = {n: t.clone() for n, t in pair.state_dict().items()}
        fit(stage, batch, steps=3, batch_size=10, device="cpu", progress=False)
        moved = {n for n, t in pair.state_dict().items() if not torch.equal(t, before[n])}
        is_prior = {n: n.startswith("priors.") for n in before}
        assert moved and all(is_prior[n] == (number == 1) for n in moved), (stage_name, moved)
    assert ("prior" in pair.stages()) == (name != "uniform")


def test_the_prior_alone_scores_codes() -> None:
    pair = small(classes=3)
    torch.nn.init.normal_(pair.priors["z"].trunk.last[-1].weight)  # pyright: ignore
    x, c = batch_of(pair)
    alone = PriorsAlone(pair)
    got = Trace_ELBO().bound(alone.model, alone.guide, x, c)
    torch.testing.assert_close(got, pair.prior("z", {}, x, c).log_prob(pair.codes(x)["z"]))
    whole, decoded = Trace_ELBO().bound(pair.model, pair.guide, x, c), pair.decode(pair.codes(x)).log_prob(x)
    torch.testing.assert_close(whole, got + decoded)
    assert not torch.allclose(got, Trace_ELBO().bound(alone.model, alone.guide, x, (c + 1) % 3))


def test_given_each_class_all_codes_sum_to_one() -> None:
    pair = small(classes=2, codes=3).double()
    for parameter in pair.priors.parameters():
        torch.nn.init.normal_(parameter)
    index = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 2, 2)
    z = vectors_of(index, pair.quantiser("z").current(), 2)
    totals = []
    for label in range(2):
        law = pair.prior("z", {}, torch.zeros(81, *SHAPE), torch.full((81,), label))
        totals.append(law.log_prob(z).exp())
        assert totals[-1].sum().item() == pytest.approx(1.0, abs=1e-10)
    assert not torch.allclose(*totals)


def test_a_recorded_step_is_the_eager_one() -> None:
    """Loss, gradients and the codes' averages, code revival too, of three steps on shared noise."""
    (x,) = batch_of(small(), 10)
    pairs = [small(), small()]
    pairs[1].load_state_dict(pairs[0].state_dict())
    recorded = record(Trace_ELBO()(pairs[1]), x)
    names = list(loss_state(Trace_ELBO()(pairs[1])))
    for step in range(3):
        losses = [Trace_ELBO()(pair) for pair in pairs]
        losses[0].zero_grad()
        torch.manual_seed(step)
        value = eager_backward(losses[0], x)
        state = loss_state(losses[1])
        torch.manual_seed(step)
        with torch.no_grad():
            got, *gradients = recorded.graph(
                *(t.detach() for t in state.values()), torch.ones(()), x, *recorded.noise()
            )
        torch.testing.assert_close(got, value)
        for name, gradient in zip(recorded.trained, gradients, strict=True):
            torch.testing.assert_close(gradient, losses[0].get_parameter(name).grad)
        for name in names:
            torch.testing.assert_close(state[name], loss_state(losses[0])[name])
        assert pairs[1].quantiser("z").started


def test_codes_begin_by_k_means_and_once() -> None:
    """Two kinds of images: two codes suffice, and a second `fit` does not begin anew."""
    pair = small(codes=2, prior_layers=0)
    (x,) = batch_of(pair, 20)
    fit(pair, x, steps=0, batch_size=20, device="cpu", progress=False)
    codes = pair.quantiser("z").current().clone()
    rows = pair.encoder(x).movedim(1, -1).flatten(0, 2).detach()
    assert (rows.amin(0) <= codes).all() and (codes <= rows.amax(0)).all()
    fit(pair, x, steps=0, batch_size=20, device="cpu", progress=False)
    assert torch.equal(pair.quantiser("z").current(), codes)


def test_evaluation_says_that_it_is_a_two_part_code() -> None:
    pair = small(classes=3).eval()
    batch = batch_of(pair, 9)
    result = evaluation.evaluate(pair, *batch, num_particles=5000)
    expected = Trace_ELBO().bound(pair.model, pair.guide, *batch).double()
    assert result.label == TWO_PART and result.num_particles == 1 and result.bits_per_dim is not None
    assert result.nll == pytest.approx(-expected.mean().item(), rel=1e-6)
    torch.testing.assert_close(evaluation.log_likelihood(pair, *batch), expected)
    assert result.kl["z"] == pytest.approx(4 * torch.tensor(5.0).log().item(), rel=1e-5)


def test_draws_are_codes_and_pictures_follow() -> None:
    pair = small(classes=3).eval()
    batch = batch_of(pair, 4)
    z = generate(pair, *batch)["z"]["value"]
    assert torch.equal(pair.quantiser("z").nearest(z), z)
    assert generation.samples(pair, *batch).shape == (4, *SHAPE)
    torch.testing.assert_close(generation.reconstructions(pair, *batch), pair.decode(pair.codes(batch[0])).mean)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"got \(x, c\), expected x alone: the pair was made with classes=None"):
        pair = small()
        Trace_ELBO().bound(pair.model, pair.guide, torch.zeros(2, *SHAPE), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"got x alone, expected \(x, c\)"):
        pair = small(classes=3)
        Trace_ELBO().bound(pair.model, pair.guide, torch.zeros(2, *SHAPE))
    with pytest.raises(ValueError, match=r"data_shape: got \(1, 8, 8\), expected \(C, L\)"):
        VQVAE1d(SHAPE)
    with pytest.raises(ValueError, match="halvings: got 4"):
        small(halvings=4)


def test_of_two_levels_all_codes_sum_to_one_and_the_bottom_hears_the_top() -> None:
    pair = two_levels(classes=2, codes=2).double()
    for parameter in pair.priors.parameters():
        torch.nn.init.normal_(parameter)
    top = vectors_of(torch.arange(2).view(2, 1, 1), pair.quantiser("top").current(), 2)
    index = torch.tensor(list(itertools.product(range(2), repeat=4))).view(-1, 2, 2)
    bottom = vectors_of(index, pair.quantiser("bottom").current(), 2)
    x, c = torch.zeros(16, 1, 4, 4), torch.ones(16, dtype=torch.int64)
    laws = [pair.prior("bottom", {"top": t.expand(16, -1, -1, -1)}, x, c) for t in top]
    below = torch.stack([law.log_prob(bottom) for law in laws])  # (2, 16)
    above = pair.prior("top", {}, x[:2], c[:2]).log_prob(top)
    assert (above[:, None] + below).exp().sum().item() == pytest.approx(1.0, abs=1e-10)
    assert not torch.allclose(below[0], below[1])
    other = pair.prior("bottom", {"top": top[:1].expand(16, -1, -1, -1)}, x, 0 * c).log_prob(bottom)
    assert not torch.allclose(below[0], other)


def test_priors_are_recorded_as_they_run() -> None:
    """The second stage, with attention, and a gradient for the priors alone."""
    pair = two_levels(classes=3, attention=1)
    x, c = batch_of(pair)
    loss = Trace_ELBO()(PriorsAlone(pair))
    value = eager_backward(loss, x, c)
    recorded = record(loss, x, c)
    assert recorded.trained and all(".priors." in name for name in recorded.trained)
    with torch.no_grad():
        got, *gradients = recorded.graph(*loss_state(loss).values(), torch.ones(()), x, c)
    torch.testing.assert_close(got, value)
    for name, gradient in zip(recorded.trained, gradients, strict=True):
        torch.testing.assert_close(gradient, loss.get_parameter(name).grad)
