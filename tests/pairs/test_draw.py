"""DRAW and alignDRAW: the papers' equations by hand, what is shared, what must not leak, stock Pyro."""

import copy
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vae import Pair, fit, generation
from ppl_vae.compile import loss_state, record
from ppl_vae.objectives import IWAE, STL, DReG, Objective, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO, VRMax
from ppl_vae.pairs import DRAW, AlignDRAW
from ppl_vae.terms import draw
from ppl_vae.testing import check_pair
from tests.helpers import Never, assert_same, seeded_bound, seeded_loss

SHAPE = (1, 6, 5)
CAPTIONS = torch.tensor([[3, 1, 2, 4], [5, 2, 0, 0], [1, 4, 4, 0]])


def images(shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.rand(3, *shape, dtype=torch.float64).round()


def plain(read: int | None = 2, write: int | None = 3, steps: int = 3, **options: Any) -> DRAW:
    return DRAW(SHAPE, 4, 7, steps, read=read, write=write, **options).double()


def aligned(align: int | None = 6, steps: int = 3, shape: tuple[int, ...] = SHAPE, **options: Any) -> AlignDRAW:
    return AlignDRAW(shape, 6, 4, 7, steps, words=3, align=align, read=2, write=3, **options).double()


PAIRS: list[Callable[[], tuple[Pair, tuple[Tensor, ...]]]] = [
    lambda: (plain(), (images(),)),
    lambda: (plain(read=None, write=None), (images(),)),
    lambda: (aligned(), (images(), CAPTIONS)),
    lambda: (aligned(align=None), (images(), CAPTIONS)),
    lambda: (
        aligned(shape=(3, 6, 5), likelihood="discretised-logistic"),
        (images((3, 6, 5)), CAPTIONS),
    ),
]


@pytest.mark.parametrize("attention", [True, False])
def test_draw_by_hand(attention):
    """Gregor et al. 2015, equations 3 to 8, with the latents that the guide drew."""
    pair, x = plain() if attention else plain(None, None), images()
    for parameter in pair.parameters():  # first states too
        torch.nn.init.normal_(parameter, std=0.3)
    terms = draw(pair.model, pair.guide, x, num_particles=2)
    log_p, log_q = torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)
    painter, onlooker = pair.painter, pair.onlooker
    h, g, c = painter.lstm.start(), onlooker.lstm.start(), painter.canvas.expand(2, 3, 1, *SHAPE)
    for t in range(1, 4):
        error = x - c.squeeze(2).sigmoid()
        both = [x.expand_as(error), error]
        if onlooker.window is not None:
            both = [onlooker.window(h.h).read(image) for image in both]
        seen = [*(image.flatten(2) for image in both), h.h.expand(2, 3, -1)]
        g = onlooker.lstm(torch.cat(seen, -1), g)
        mu, s = pair.posterior[0](g.h).unbind(-2)
        z = terms.draws[0].guide[f"z{t}"].value
        log_q += dist.Normal(mu, s.exp()).log_prob(z).sum(-1)
        log_p += dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
        h = painter.lstm(z, h)
        patch = painter.patch(h.h)
        c = c + (patch if painter.window is None else painter.window(h.h).write(patch)).unsqueeze(2)
    log_p += dist.Bernoulli(logits=c.squeeze(2)).log_prob(x).sum((-3, -2, -1))
    torch.testing.assert_close(terms.log_weight(), log_p - log_q)


def test_align_draw_by_hand():
    """Mansimov et al. 2016: the prior follows h_{t-1}, the words are weighted by it, the guide sees them through h."""
    pair, x = aligned(), images()
    for parameter in pair.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    terms = draw(pair.model, pair.guide, x, CAPTIONS)
    values = {n: site.value for n, site in terms.draws[0].guide.items()}
    words = pair.reader(CAPTIONS)
    assert pair.alignment is not None
    keys, h, c = pair.alignment.keys(words), pair.painter.lstm.start(), pair.painter.canvas
    log_p = torch.zeros(3, dtype=torch.float64)
    for t in range(1, 4):
        if t == 1:
            prior = dist.Normal(torch.zeros(4, dtype=torch.float64), 1.0)
        else:
            mu, s = pair.prior[0](h.h).unbind(-2)
            prior = dist.Normal(mu.tanh(), s.tanh().exp())
        log_p += prior.log_prob(values[f"z{t}"]).sum(-1)
        _, s = pair.alignment(words, keys, h.h)
        h = pair.painter.lstm(torch.cat([values[f"z{t}"], s], -1), h)
        assert pair.painter.window is not None
        c = c + pair.painter.window(h.h).write(pair.painter.patch(h.h)).unsqueeze(1)
    log_p += dist.Bernoulli(logits=c.squeeze(1)).log_prob(x).sum((-3, -2, -1))
    total = torch.stack(list(terms.log_p.values())).sum(0).squeeze(0)
    torch.testing.assert_close(total, log_p)


@pytest.mark.parametrize("make", PAIRS)
def test_contract(make):
    pair, batch = make()
    report = check_pair(pair, *batch)
    assert report.ok, str(report)


OBJECTIVES = [
    Trace_ELBO(),
    Trace_ELBO(2),
    TraceMeanField_ELBO(),
    IWAE(3),
    RenyiELBO(alpha=0.5, num_particles=2),
    DReG(3),
    STL(2),
    VRMax(2),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("make", PAIRS[:3])
def test_handing_over_changes_neither_loss_nor_gradient(make, objective: Objective):
    pair, batch = make()
    twin = copy.deepcopy(pair)
    twin.rollout = Never()
    assert_same(seeded_loss(pair, objective, *batch), seeded_loss(twin, objective, *batch))
    torch.testing.assert_close(seeded_bound(pair, objective, *batch), seeded_bound(twin, objective, *batch))


def strokes(pair: Any, objective: Objective, *batch: Tensor) -> int:
    """How often the painter runs for one loss."""
    count = 0

    def seen(*_: Any) -> None:
        nonlocal count
        count += 1

    handle = pair.painter.register_forward_hook(seen)
    objective(pair)(*batch).backward()
    handle.remove()
    return count


@pytest.mark.parametrize("make", PAIRS)
def test_the_painter_runs_once_for_guide_and_model(make):
    pair, batch = make()
    Trace_ELBO().prepare(pair.model, pair.guide, *batch)  # the plates' nesting is found by a run of its own
    objective = Trace_ELBO(2, max_plate_nesting=1)
    assert strokes(pair, objective, *batch) == 3
    pair.rollout = Never()
    assert strokes(pair, objective, *batch) == 6


@pytest.mark.parametrize("make", PAIRS[:3])
def test_what_the_guide_saw_of_another_caption_is_not_taken(make):
    """z of one batch decoded under another: as by a pair that hands nothing over."""
    pair, batch = make()
    latents = generation.posterior(pair, *batch)
    given = (batch[0].flip(0), *(c.flip(0) for c in batch[1:]))
    got = generation.decode(pair, latents, *given).mean
    pair.rollout = Never()
    torch.testing.assert_close(got, generation.decode(pair, latents, *given).mean)


def test_padding_and_other_captions_leave_an_image_alone():
    """The bound of a row is that of its caption alone, cut where it ends."""
    pair, x = aligned(), images()
    together = draw(pair.model, pair.guide, x, CAPTIONS)
    values = {n: site.value for n, site in together.draws[0].guide.items()}
    weight = together.log_weight()
    for row, length in enumerate((4, 2, 3)):
        given = {n: v[row : row + 1] for n, v in values.items()}
        alone = draw(*replayed(pair, given), x[row : row + 1], CAPTIONS[row : row + 1, :length])
        torch.testing.assert_close(alone.log_weight()[0], weight[0, row : row + 1])


def replayed(pair: Pair, values: dict[str, Tensor]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The programs with latent values given; the guide's still scored."""
    from pyro import poutine
    from pyro.poutine.trace_struct import Trace

    trace = Trace()
    for name, value in values.items():
        trace.add_node(name, name=name, type="sample", value=value, is_observed=False, infer={})
    return pair.model, poutine.replay(pair.guide, trace=trace)


def test_the_caption_reaches_the_image():
    pair = aligned()
    x = torch.zeros(3, *SHAPE, dtype=torch.float64)
    own, other = (generation.samples(pair, x, caption, seed=1) for caption in (CAPTIONS, CAPTIONS.flip(0)))
    assert not torch.allclose(own, other)
    torch.testing.assert_close(generation.samples(pair, x, CAPTIONS, seed=1), own, rtol=0, atol=0)


def test_the_canvas_starts_at_the_pixel_means():
    pair, mean = plain(), torch.rand(SHAPE, dtype=torch.float64).clamp(0.1, 0.9)
    pair.set_output_mean(mean)
    torch.testing.assert_close(pair.painter.head(pair.painter.canvas).mean, mean)


def test_learns_two_images():
    """From log 2 a pixel to a bound near -log 2 for the choice of one of two."""
    torch.manual_seed(0)
    pair = DRAW((1, 6, 6), 2, 16, 3, read=3, write=3)
    both = torch.rand(2, 1, 6, 6).round()
    x = both.repeat(50, 1, 1, 1)
    before = Trace_ELBO().bound(pair.model, pair.guide, x).mean()
    fit(pair, x, steps=400, batch_size=50, learning_rate=1e-2, progress=False)
    after = Trace_ELBO(10).bound(pair.model, pair.guide, x).mean()
    assert before < -20 and after > -4


@pytest.mark.parametrize("make", PAIRS[:3])
def test_recorded_loss_and_gradients_are_the_eager_ones(make):
    """The record of `compile="inductor"`, which takes minutes to compile: LSTMs, windows, what is shared."""
    pair, batch = make()
    loss = Trace_ELBO()(pair)
    recorded = record(loss, *batch)
    torch.manual_seed(0)
    noise = recorded.noise()
    with torch.no_grad():
        value, *gradients = recorded.graph(*loss_state(loss).values(), torch.ones(()), *batch, *noise)
    torch.manual_seed(0)
    eager = loss(*batch)
    eager.backward()
    torch.testing.assert_close(value, eager.detach())
    parameters = dict(loss.named_parameters())
    assert set(recorded.trained) == set(parameters)
    for name, gradient in zip(recorded.trained, gradients, strict=True):
        torch.testing.assert_close(gradient, parameters[name].grad)


@pytest.mark.parametrize("make", [lambda: DRAW((784,)), lambda: AlignDRAW((28, 28))])
def test_data_that_are_no_images_are_refused(make):
    with pytest.raises(ValueError, match=r"data_shape: got \(.*\), expected \(channels, height, width\)"):
        make()
