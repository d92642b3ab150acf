"""CategoricalVAE against sums over all states of z, hand-written gradients on shared noise, and its temperature."""

import copy
import io
import itertools
import math

import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from torch import Tensor, nn
from torch.distributions.utils import clamp_probs

from ppl_vae import SVI, evaluation, fit, specs
from ppl_vae.compile import loss_state, record
from ppl_vae.objectives import (
    IWAE,
    STL,
    VIMCO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
)
from ppl_vae.pairs import CategoricalVAE
from ppl_vae.pairs.categorical import Guide, RelaxedOneHot, Temperature
from ppl_vae.terms import draw
from ppl_vae.testing import check_pair
from tests.helpers import (
    Z_LIMIT,
    assert_same,
    chunk_gradients,
    farthest,
    generate,
    gradients_of,
    pixels,
    pyro_adam,
    seeded_bound,
    seeded_loss,
    z_score,
)

GUIDES = ("score", "straight-through", "gumbel-softmax")
RELAXED = GUIDES[1:]
N, K = 2, 3


def small(guide: Guide = "score", **options) -> CategoricalVAE:
    """N = 2 variables of K = 3 categories: 9 states. The decoder's weights are large, so that the states differ."""
    pair = CategoricalVAE((1, 3, 4), N, K, (6,), guide=guide, **options).double()
    for parameter in pair.decoder.parameters():
        parameter.data.mul_(2)
    return pair


def tables(pair: CategoricalVAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x, z) and log q(z | x) of all states of z, each (9, B); by hand."""
    corners = torch.eye(K, dtype=x.dtype)
    z = torch.stack([torch.stack(vectors) for vectors in itertools.product(corners, repeat=N)])
    logits = pair.decoder[0](z.flatten(1)).flatten(1).unsqueeze(1)
    bits = x.flatten(1)
    log_likelihood = (bits * logits - nn.functional.softplus(logits)).sum(-1)
    log_pi = pair.encoder[0](x).view(len(x), N, K).log_softmax(-1)
    return log_likelihood - N * math.log(K), torch.einsum("snk,bnk->sb", z, log_pi)


def exact_elbo(pair: CategoricalVAE, x: Tensor) -> Tensor:
    """(B,), differentiable."""
    log_p, log_q = tables(pair, x)
    return (log_q.exp() * (log_p - log_q)).sum(0)


def gumbel_softmax(logits: Tensor, tau: float) -> Tensor:
    """The relaxed sample of the next noise: Jang et al., eq. 2."""
    noise = -torch.log(-torch.log(clamp_probs(torch.rand(logits.shape, dtype=logits.dtype))))
    return ((logits + noise) / tau).softmax(-1)


@pytest.mark.parametrize("guide", GUIDES)
def test_discrete_terms_by_hand(guide):
    """For every guide, in eval mode: one-hot values, scored by the discrete probabilities."""
    pair, x = small(guide).eval(), pixels()
    terms = draw(pair.model, pair.guide, x, num_particles=4)
    assert list(terms.log_p) == ["z", "x"] and list(terms.log_q) == ["z"]
    z = terms.draws[0].guide["z"].value
    assert z.shape == (4, 5, N, K) and set(z.unique().tolist()) == {0.0, 1.0} and bool((z.sum(-1) == 1).all())
    state = (z.argmax(-1) * torch.tensor([K, 1])).sum(-1)
    log_p, log_q = (table.gather(0, state) for table in tables(pair, x))
    torch.testing.assert_close(terms.log_p["z"] + terms.log_p["x"], log_p)
    torch.testing.assert_close(terms.log_q["z"], log_q)


def test_enumeration_is_the_exact_elbo_and_its_gradient():
    pair, x = small(), pixels()
    elbo = exact_elbo(pair, x)
    expected = -elbo.sum().item(), gradients_of(pair, -elbo.sum())
    assert_same(seeded_loss(pair, TraceEnum_ELBO(), x), expected)
    torch.testing.assert_close(seeded_bound(pair, TraceEnum_ELBO(), x), elbo.detach(), rtol=1e-10, atol=1e-10)


def test_more_states_than_can_be_summed_are_refused():
    pair = CategoricalVAE((1, 3, 4), 20, 10, (6,)).double()
    with pytest.raises(ValueError, match=r"site 'z': got 20 dimensions of 10 states each"):
        seeded_loss(pair, TraceEnum_ELBO(), pixels())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("guide", GUIDES)
def test_sampled_bounds_are_those_of_the_discrete_model(guide, training):
    """In training mode too, as long as no gradient is recorded: the means of 4,000 estimates of the ELBO and of L_2
    are the sums over 9 and 81 outcomes. Fails by chance with probability 2e-5."""
    pair, x = small(guide).train(training), pixels(1)
    log_p, log_q = (table.detach().squeeze(1) for table in tables(pair, x))
    log_w, outcomes = log_p - log_q, torch.cartesian_prod(torch.arange(9), torch.arange(9))
    two = log_w[outcomes].logsumexp(1) - math.log(2)
    expected = (log_q.exp() @ log_w, log_q[outcomes].sum(1).exp() @ two)
    assert expected[0] < expected[1] < log_p.logsumexp(0)
    for objective, exact in zip((Trace_ELBO(), VIMCO(2)), expected, strict=True):
        sampled = seeded_bound(pair, objective, x.expand(4_000, -1, -1, -1))
        assert z_score(sampled, exact).abs() < Z_LIMIT


@pytest.mark.parametrize("guide", GUIDES)
def test_log_likelihood_is_the_sum_over_all_states(guide):
    """By importance sampling with 20,000 particles. Fails by chance with probability 1e-5 (5 data, each 2e-6)."""
    pair, x = small(guide), pixels()
    log_p, log_q = (table.detach() for table in tables(pair, x))
    total = log_p.logsumexp(0)
    # Of the estimated log p(x): the standard deviation of w / p(x), which is its error, over sqrt(20,000).
    error = ((2 * (log_p - total) - log_q).exp().sum(0) - 1).sqrt() / 20_000**0.5
    got = evaluation.log_likelihood(pair, x, num_particles=20_000, seed=0)
    assert ((got - total) / error).abs().max() < 4.76 and error.max() < 0.1
    assert pair.training


@pytest.mark.parametrize(("guide", "objective"), [("score", Trace_ELBO()), *((guide, VIMCO(2)) for guide in GUIDES)])
def test_score_functions_have_the_exact_gradient_in_the_mean(guide, objective):
    """Those of the ELBO, and of E[L_2] by VIMCO, which samples without gradient, so that every guide is discrete.

    Fails by chance with probability 1e-5.
    """
    pair, x = small(guide), pixels(1)
    bound = exact_bounds(pair, x)[objective.num_particles - 1]
    expected = torch.cat([g.flatten() for g in gradients_of(pair, bound).values()])
    many = x.expand(1_000, -1, -1, -1)
    assert farthest(chunk_gradients(pair, objective, many, chunks=50), expected) < 1


def exact_bounds(pair: CategoricalVAE, x: Tensor) -> list[Tensor]:
    """The ELBO and E[L_2] of one datum."""
    log_p, log_q = (table.squeeze(1) for table in tables(pair, x))
    outcomes = torch.cartesian_prod(torch.arange(9), torch.arange(9))
    two = (log_p - log_q)[outcomes].logsumexp(1) - math.log(2)
    return [exact_elbo(pair, x).sum(), log_q[outcomes].sum(1).exp() @ two]


def test_straight_through_gradient_by_hand():
    """d z_k / d logits_j = y_k (1[j = k] - y_j) / tau at a one-hot z, on the noise of the guide."""
    pair, x, tau = small("straight-through", temperature=0.7), pixels(), 0.7
    torch.manual_seed(0)
    logits = pair.encoder(x).base_dist.logits
    y = gumbel_softmax(logits.detach(), tau)
    z = nn.functional.one_hot(y.argmax(-1), K).double().requires_grad_()
    fixed = logits.detach().requires_grad_()
    elbo = pair.decoder(z.flatten(1)).log_prob(x) - N * math.log(K) - (z * fixed).sum((1, 2))
    # The decoder's parameters, the logits where they score z, and z have gradients of their own.
    to_z, to_logits = torch.autograd.grad(elbo.sum(), [z, fixed], retain_graph=True)
    through = y * (to_z - (to_z * y).sum(-1, keepdim=True)) / tau
    loss = -(elbo.sum() + (logits * (through + to_logits)).sum())
    expected = gradients_of(pair, loss)
    assert_same(seeded_loss(pair, Trace_ELBO(), x), (-elbo.sum().item(), expected))


@pytest.mark.parametrize("guide", RELAXED)
def test_kl_term_in_closed_form(guide):
    """Jang et al.'s objective: the relaxed sample in the decoder, the KL term of the categorical laws."""
    pair, x = small(guide), pixels()
    log_pi = pair.encoder(x).base_dist.logits
    kl = (log_pi.exp() * (log_pi + math.log(K))).sum((1, 2))
    torch.manual_seed(0)
    elbo = draw(pair.model, pair.guide, x).log_p["x"].squeeze(0) - kl
    assert pair.temperature is not None
    pair.temperature.step.zero_()
    expected = -elbo.sum().item(), gradients_of(pair, -elbo.sum())
    assert_same(seeded_loss(pair, TraceMeanField_ELBO(), x), expected)
    # Reported is the discrete one.
    log_p, log_q = (table.detach() for table in tables(pair, x[:1]))
    exact = (log_q.exp() * (log_p - log_q)).sum()
    sampled = seeded_bound(pair, TraceMeanField_ELBO(), x[:1].expand(4_000, -1, -1, -1))
    assert z_score(sampled, exact).abs() < Z_LIMIT


@pytest.mark.parametrize("hard", [True, False])
def test_values_may_be_detached_and_scored_again(hard):
    """Pyro's class keeps the relaxed sample as an attribute of the value, which that loses."""
    law = RelaxedOneHot(torch.tensor(0.5), torch.randn(4, K), hard)
    z = law.rsample(torch.Size([6]))
    torch.testing.assert_close(law.log_prob(z.detach().clone()), law.log_prob(z))
    assert law.expand(torch.Size([5, 4])).rsample().shape == (5, 4, K)


def test_hard_samples_are_corners_with_the_categorical_law():
    """Fails by chance with probability 1e-5 (3 categories)."""
    logits = torch.randn(K, dtype=torch.float64)
    z = RelaxedOneHot(torch.tensor(0.5).double(), logits, hard=True).rsample(torch.Size([40_000]))
    assert torch.equal(z, z.round()) and bool((z.sum(-1) == 1).all())
    assert z_score(z, logits.softmax(-1)).abs().max() < 4.66


def test_log_probability_is_exact_at_corners_and_linear_between_them():
    logits = torch.randn(4, K, dtype=torch.float64)
    law, corners = RelaxedOneHot(torch.tensor(0.5).double(), logits), torch.eye(K, dtype=torch.float64).unsqueeze(1)
    at_corners = law.log_prob(corners)
    torch.testing.assert_close(at_corners, dist.OneHotCategorical(logits=logits).log_prob(corners))
    y = law.rsample()
    torch.testing.assert_close(law.log_prob(y), (y.T * at_corners).sum(0))
    with pytest.raises(ValueError, match="support"):
        law.log_prob(2 * y)


def test_low_temperatures_are_finite():
    logits = torch.tensor([30.0, 0.0, -30.0]).expand(100, 3).clone().requires_grad_()
    law = RelaxedOneHot(torch.tensor(0.01), logits)
    (gradient,) = torch.autograd.grad(law.log_prob(law.rsample()).sum(), logits)
    assert gradient.isfinite().all()


def test_relaxed_loss_by_hand():
    pair, x, tau = small("gumbel-softmax", temperature=0.6), pixels(), 0.6
    torch.manual_seed(0)
    logits = pair.encoder(x).base_dist.logits
    z = gumbel_softmax(logits, tau)

    elbo = pair.decoder(z.flatten(1)).log_prob(x) - N * math.log(K) - (z * logits).sum((1, 2))
    expected = -elbo.sum().item(), gradients_of(pair, -elbo.sum())
    assert_same(seeded_loss(pair, Trace_ELBO(), x), expected)


@pytest.mark.parametrize("objective", [ReweightedWakeSleep(2), ReweightedWakeSleep(2, insomnia=0.0), STL(2), IWAE(2)])
@pytest.mark.parametrize("guide", RELAXED)
def test_relaxed_guides_under_other_objectives(guide, objective):
    pair = small(guide)
    loss, gradients = seeded_loss(pair, objective, pixels())
    assert math.isfinite(loss) and all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients.values())
    assert math.isfinite(objective.loss(pair.model, pair.guide, pixels()))


def test_relaxed_guides_are_not_enumerated():
    """Not even where Pyro would, without the probabilities of the states."""
    pair, x = small("straight-through", temperature=0.5), pixels()
    with pytest.warns(UserWarning, match="the loss is that of Trace_ELBO"):
        assert_same(seeded_loss(pair, TraceEnum_ELBO(), x), seeded_loss(pair, Trace_ELBO(), x))


def test_score_guide_is_refused_where_gradients_pass_z():
    with pytest.raises(ValueError, match=r"guide site 'z'.*not reparameterised.*Use VIMCO"):
        seeded_loss(small(), IWAE(2), pixels())


@pytest.mark.parametrize("guide", GUIDES)
def test_pair_passes_the_checks(guide):
    report = check_pair(CategoricalVAE((1, 3, 4), N, K, (6,), guide=guide), pixels().float())
    assert report.ok, str(report)


@pytest.mark.parametrize("guide", GUIDES)
def test_samples_are_discrete_in_training_mode_too(guide):
    nodes = generate(small(guide).train(), pixels(50))
    z = nodes["z"]["value"]
    assert z.shape == (50, N, K) and set(z.unique().tolist()) == {0.0, 1.0}
    assert nodes["x"]["value"].shape == (50, 1, 3, 4)


@pytest.mark.parametrize("options", [{}, {"trunk": "conv", "hidden": (3, 4)}, {"likelihood": "normal"}])
def test_output_starts_at_the_pixel_means(options):
    pair = CategoricalVAE((1, 3, 4), N, K, **{"hidden": (6,), **options}).double()
    mean = 0.2 + 0.6 * torch.rand(1, 3, 4).double()
    for parameter in pair.decoder.parameters():
        parameter.detach().zero_()
    pair.set_output_mean(mean)
    torch.testing.assert_close(pair.decoder(torch.randn(4, N * K).double()).mean, mean.expand(4, 1, 3, 4))
    assert seeded_bound(pair, IWAE(2), pixels()).shape == (5,)


def test_temperature_by_steps():
    temperature, taus = Temperature(2.0, 0.5, 0.1), []
    for _ in range(30):
        taus.append(temperature(torch.zeros((), dtype=torch.float64)).item())
        temperature.advance()
    assert taus[:2] == pytest.approx([2.0, 2 * math.exp(-0.1)]) and taus[13] == pytest.approx(2 * math.exp(-1.3))
    assert taus[14:] == [0.5] * 16  # 2 exp(-1.4) < 0.5
    assert Temperature.of(0.7)(torch.zeros(())).item() == pytest.approx(0.7)
    default = Temperature.of(None)
    assert (default.start, default.end, default.rate) == (1.0, 0.5, 1e-4)


@pytest.mark.parametrize("guide", RELAXED)
def test_step_moves_in_training_with_gradient_alone(guide):
    pair, x = small(guide), pixels()
    temperature = pair.temperature
    assert temperature is not None

    def moved(run) -> int:
        before = temperature.step.item()
        run()
        return int(temperature.step.item() - before)

    for objective in (Trace_ELBO(), IWAE(3), STL(3)):  # the last runs the guide twice
        objective.max_plate_nesting = math.inf  # found by a run of the pair
        assert moved(lambda o=objective: seeded_loss(pair, o, x)) == 1
        assert moved(lambda o=objective: o.bound(pair.model, pair.guide, x)) == 0
        assert moved(lambda o=objective: o.loss(pair.model, pair.guide, x)) == 0
    assert moved(lambda: evaluation.log_likelihood(pair, x, num_particles=5)) == 0
    assert moved(lambda: pair.generate(x)) == 0
    pair.eval()
    assert moved(lambda: seeded_loss(pair, Trace_ELBO(), x)) == 0


@pytest.mark.parametrize("guide", RELAXED)
def test_temperature_follows_the_step(guide):
    """The site's law of a step has the temperature of that step, in guide and model."""
    pair, x = small(guide, temperature=(1.0, 0.2, 0.5)), pixels()
    for step in range(4):
        sites = draw(pair.model, pair.guide, x).draws[0]
        for site in (sites.model["z"], sites.guide["z"]):
            assert site.fn.base_dist.temperature.item() == pytest.approx(max(0.2, math.exp(-0.5 * step)))


def test_state_keeps_the_step():
    pair, file = small("gumbel-softmax"), io.BytesIO()
    for seed in range(3):
        seeded_loss(pair, Trace_ELBO(), pixels(), seed=seed)
    torch.save(pair.state_dict(), file)
    file.seek(0)
    other = small("gumbel-softmax")
    other.load_state_dict(torch.load(file, weights_only=True))
    assert pair.temperature is not None and other.temperature is not None
    assert other.temperature.step.item() == pair.temperature.step.item() == 3
    assert "temperature.step" not in small().state_dict()


class Crash(Exception):
    """What ends a run."""


def test_a_resumed_run_ends_with_the_same_weights_and_step(tmp_path):
    x, pairs = pixels(40).float(), []

    def run(folder=None, crash=None) -> None:
        def on_step(step: int) -> None:
            if step == crash:
                raise Crash

        torch.manual_seed(0)
        pairs.append(CategoricalVAE((1, 3, 4), N, K, (6,), guide="gumbel-softmax", temperature=(1.0, 0.5, 0.05)))
        folders = {"checkpoints": folder, "checkpoint_every": 4, "resume": True} if folder else {}
        options = {"batch_size": 8, "seed": 3, "device": "cpu", "compile": "off", "on_step": on_step}
        fit(pairs[-1], x, Trace_ELBO(), steps=12, **options, **folders)

    run()
    with pytest.raises(Crash):
        run(tmp_path, crash=6)
    run(tmp_path)
    whole, _, again = (pair.state_dict() for pair in pairs)
    assert all(torch.equal(a, b) for a, b in zip(whole.values(), again.values(), strict=True))
    assert again["temperature.step"].item() == 12


@pytest.mark.parametrize(("guide", "objective"), [("score", VIMCO(3)), ("straight-through", IWAE(3))])
def test_recorded_equals_eager_on_shared_noise(guide, objective):
    pair, x = CategoricalVAE((1, 3, 4), N, K, (6,), guide=guide), pixels(6).float()
    loss = objective(pair)
    recorded, state = record(loss, x), {n: v.clone() for n, v in loss_state(loss).items()}
    torch.manual_seed(1)
    eager = loss(x)
    torch.manual_seed(1)
    again, *gradients = recorded.graph(*state.values(), torch.ones(()), x, *recorded.noise())
    torch.testing.assert_close(again, eager.detach(), rtol=1e-6, atol=0)
    for a, b in zip(gradients, torch.autograd.grad(eager, list(pair.parameters())), strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm() + 1e-7


def test_compiled_training_is_eager_training():
    """On a shared seed, with the temperature's steps."""
    x, trained = pixels(6).float(), {}
    for how in ("off", "inductor"):
        torch.manual_seed(0)
        pair = CategoricalVAE((1, 3, 4), N, K, (6,), guide="gumbel-softmax", temperature=(1.0, 0.5, 0.1))
        svi = SVI(pair, torch.optim.Adam(pair.parameters(), 1e-2), Trace_ELBO(), compile=how)
        torch.manual_seed(1)
        for _ in range(4):
            svi.step(x)
        trained[how] = pair.state_dict()
    assert not svi.compiled.failed
    torch.testing.assert_close(trained["inductor"], trained["off"], rtol=0, atol=1e-5)
    assert trained["inductor"]["temperature.step"].item() == 4


def test_stock_pyro_trains_it():
    pair = small("straight-through").float()
    svi = pair.pyro_svi(pyro_adam(1e-2), pyro.infer.Trace_ELBO())
    before = copy.deepcopy(pair.state_dict())
    svi.step(pixels().float())
    assert all(not torch.equal(a, b) for a, b in zip(before.values(), pair.state_dict().values(), strict=True))


def test_by_text():
    text = "CategoricalVAE(variables=4, categories=5, guide='gumbel-softmax', temperature=(1.0, 0.4, 3e-5))"
    pair = specs.pair_factory(text)((1, 4, 4))
    assert isinstance(pair, CategoricalVAE) and pair.temperature is not None
    assert (pair.variables, pair.categories, pair.temperature.end) == (4, 5, 0.4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guide": "gumbel"}, "guide: got 'gumbel', expected one of score, gumbel-softmax, straight-through"),
        ({"temperature": 0.5}, "temperature: got 0.5 with guide 'score'"),
        ({"guide": "gumbel-softmax", "temperature": 0.0}, "expected a positive number"),
        ({"guide": "gumbel-softmax", "temperature": (0.5, 1.0, 0.1)}, "start >= end > 0"),
        ({"guide": "gumbel-softmax", "temperature": (1.0, 0.5, -0.1)}, "a rate of at least 0"),
        ({"guide": "gumbel-softmax", "temperature": (1.0, 0.5)}, r"temperature: got \(1.0, 0.5\), expected a pos"),
        ({"guide": "gumbel-softmax", "temperature": "hot"}, "temperature: got 'hot'"),
        ({"guide": "gumbel-softmax", "temperature": True}, "temperature: got True"),
        ({"guide": "straight-through", "temperature": math.nan}, "temperature: got nan"),
        ({"categories": 1}, "categories: got 1, expected at least 2"),
        ({"variables": 0}, "variables: got 0, expected a whole number"),
        ({"trunk": "resnet"}, "trunk: got 'resnet', expected one of mlp, conv"),
        ({"likelihood": "mse"}, "likelihood: got 'mse', expected one of bernoulli"),
        ({"variance": 0.1}, "variance: got 0.1 with likelihood 'bernoulli'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        CategoricalVAE((1, 3, 4), **options)
