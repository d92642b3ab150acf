"""The text VAE and the language model: bounds by hand, padding, and what stock Pyro says."""

import math
from typing import Any

import pyro.infer
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from ppl_vae import data, evaluation, fit, rates
from ppl_vae.data.animals import ANIMALS
from ppl_vae.objectives import IWAE, Trace_ELBO, TraceMeanField_ELBO
from ppl_vae.pairs import LanguageModel, TextVAE
from ppl_vae.testing import check_pair
from tests.helpers import Z_LIMIT

V, L = 9, 6
WORDS = torch.tensor([[3, 4, 5, 8, 7, 1], [3, 1, 0, 0, 0, 0], [6, 6, 2, 1, 0, 0]])


def vae(**options) -> TextVAE:
    return TextVAE((L,), V, latent_dim=2, embedding=3, hidden=4, **options)


def trimmed(row: Tensor) -> Tensor:
    return row[: int((row != 0).sum())][None]


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_elbo_by_hand(cell):
    pair = vae(cell=cell, told="every", highway=1).double()
    torch.manual_seed(1)
    got = Trace_ELBO(num_particles=4).bound(pair.model, pair.guide, WORDS)
    q = pair.encoder(WORDS)
    torch.manual_seed(1)
    z = q.base_dist.loc + q.base_dist.scale * torch.randn(4, 3, 2, dtype=torch.float64)
    logits = pair.network(WORDS, z).log_softmax(-1)
    words = logits.gather(-1, (WORDS - 1).clamp(min=0).expand(4, 3, L).unsqueeze(-1)).squeeze(-1)
    log_w = (words * (WORDS != 0)).sum(-1) + Normal(0.0, 1.0).log_prob(z).sum(-1) - q.log_prob(z)
    torch.testing.assert_close(got, log_w.mean(0), rtol=1e-12, atol=1e-12)


def test_a_padded_batch_is_its_sentences_one_by_one():
    pair = vae().double()
    for objective in (TraceMeanField_ELBO(), IWAE(3)):
        for row in WORDS:
            torch.manual_seed(2)
            alone = objective.bound(pair.model, pair.guide, trimmed(row))
            torch.manual_seed(2)
            padded = objective.bound(pair.model, pair.guide, torch.cat([row[None], row.new_zeros(1, 3)], 1))
            torch.testing.assert_close(padded, alone, rtol=1e-12, atol=1e-12)
    lm = LanguageModel((L,), V, 3, 4).double()
    alone = torch.cat([Trace_ELBO().bound(lm.model, lm.guide, trimmed(row)) for row in WORDS])
    torch.testing.assert_close(Trace_ELBO().bound(lm.model, lm.guide, WORDS), alone, rtol=1e-12, atol=1e-12)


def test_padded_and_not_in_single_precision():
    pair, wide = vae(), torch.cat([WORDS, WORDS.new_zeros(3, 20)], 1)
    torch.manual_seed(0)
    narrow = IWAE(5).bound(pair.model, pair.guide, WORDS)
    torch.manual_seed(0)
    torch.testing.assert_close(IWAE(5).bound(pair.model, pair.guide, wide), narrow, rtol=1e-6, atol=0)


def test_stock_pyro_on_a_shared_seed():
    pair = vae(told="first").double()
    torch.manual_seed(3)
    expected = pyro.infer.Trace_ELBO().loss(pair.model, pair.guide, WORDS)
    torch.manual_seed(3)
    assert math.isclose(Trace_ELBO().loss(pair.model, pair.guide, WORDS), expected, rel_tol=1e-12)


def test_kl_in_closed_form():
    pair = vae().double()
    q = pair.encoder(WORDS).base_dist
    kl = kl_divergence(q, Normal(torch.zeros(2).double(), 1.0)).sum(-1)
    torch.manual_seed(0)
    terms = TraceMeanField_ELBO().terms(pair.model, pair.guide, WORDS)
    bound = TraceMeanField_ELBO().per_datum(terms)
    torch.testing.assert_close(terms.log_likelihood().mean(0) - bound, kl)


def test_the_pairs_keep_the_contract():
    check_pair(vae(), WORDS)
    check_pair(LanguageModel((L,), V, 3, 4), WORDS)


def test_the_language_model_has_nothing_to_sample():
    pair = LanguageModel((L,), V, 3, 4).double()
    nll = -evaluation.log_likelihood(pair, WORDS, num_particles=7)
    torch.testing.assert_close(nll, -Trace_ELBO().bound(pair.model, pair.guide, WORDS))


def test_it_starts_at_how_often_each_word_is_said():
    often = torch.tensor([0.0, 0.3, 0.1, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05])
    pair = vae(keep=0.0)
    pair.set_output_mean(often)
    pair.network.out.weight.data.zero_()
    law = pair.network(WORDS, torch.zeros(3, 2)).softmax(-1)
    torch.testing.assert_close(law, often[1:].expand(3, L, V - 1))


def test_generated_sentences_end():
    nodes: dict[str, Any] = dict(vae().generate(torch.zeros(50, L)).nodes)
    words = nodes["x"]["value"]
    assert words.shape == (50, L) and words.dtype == torch.int64 and (words[:, 0] > 0).all()


def test_word_dropout_is_off_in_evaluation():
    pair = vae(keep=0.5)
    x = WORDS.repeat(20, 1)
    losses = {evaluation.bound(pair.train(), TraceMeanField_ELBO(), x, seed=0).sum().item() for _ in range(3)}
    assert len(losses) == 1
    torch.manual_seed(0)
    z = pair.encoder(x).mean
    assert pair.training
    first, second = (pair.network(x, z) for _ in range(2))
    assert not torch.equal(first, second), "it is on in training"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data_shape": (1, 8, 8)}, "expected \\(L,\\), words of the longest sentence"),
        ({"latent_dim": 0}, "latent_dim: got 0"),
        ({"keep": -1.0}, "keep: got -1.0"),
    ],
)
def test_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TextVAE(**{"data_shape": (L,), "vocabulary": V, **arguments})


def test_the_language_model_reaches_the_entropy_of_a_grammar():
    """Within two percent of the closed form, on new sentences; and never below what the grammar itself says of them."""
    words = data.text("grammar", num_train=20_000, num_test=1000)
    pair = LanguageModel(words.shape, words.levels, embedding=16, hidden=64)
    pair.set_output_mean(words.output_mean)
    options: dict[str, Any] = {"learning_rate": 8e-3, "schedule": rates.Cosine(1000), "device": "cpu"}
    fit(pair, words, Trace_ELBO(), steps=1000, progress=False, **options)
    nll = -Trace_ELBO().bound(pair.eval().model, pair.guide, words.test)
    exact = -torch.tensor([ANIMALS.log_prob(sentence) for sentence in words.words(words.test)])
    excess = nll - exact
    error = excess.std().item() / math.sqrt(len(excess))
    # E[nll - exact] is a divergence: at least 0, up to noise (failure rate 1e-5), and its estimate has less noise
    # than the entropy of these sentences would have.
    assert -Z_LIMIT * error < excess.mean() < 0.02 * ANIMALS.entropy()
