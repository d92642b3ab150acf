"""GreyCategorical against torch's Categorical."""

import pytest
import torch

from ppl_vae.distributions import GreyCategorical


def test_it_is_a_categorical_over_grey_levels() -> None:
    logits = torch.randn(4, 3, 17)
    p, reference = GreyCategorical(logits), torch.distributions.Categorical(logits=logits)
    i = torch.randint(17, (5, 4, 3))
    torch.testing.assert_close(p.log_prob(i / 16), reference.log_prob(i))
    torch.testing.assert_close(p.mean, reference.probs @ (torch.arange(17) / 16))
    torch.manual_seed(1)
    drawn = p.sample((5,))
    assert drawn.shape == (5, 4, 3) and p.support.check(drawn).all()
    wide = p.expand((6, 4, 3))
    assert wide.log_prob(drawn[0]).shape == wide.sample().shape == (6, 4, 3)


def test_draws_have_its_probabilities() -> None:
    """Shares of 100,000 draws within 4.42 standard errors of the probabilities: fails once in 1e4 runs by chance."""
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    drawn = (3 * GreyCategorical(logits).sample((100_000,))).round().long()
    p = logits.softmax(0)
    assert ((torch.bincount(drawn) / 1e5 - p).abs() < 4.42 * (p * (1 - p) / 1e5).sqrt()).all()


def test_half_precision_is_raised_and_errors() -> None:
    assert GreyCategorical(torch.zeros(3, dtype=torch.bfloat16)).log_prob(torch.tensor(0.5)).dtype == torch.float32
    with pytest.raises(ValueError, match="support"):
        GreyCategorical(torch.zeros(3), validate_args=True).log_prob(torch.tensor(0.4))
    with pytest.raises(ValueError, match=r"logits: got shape \(2, 1\), expected \(..., L\) of at least 2"):
        GreyCategorical(torch.zeros(2, 1))
