"""PixelCNN++: exact Jacobians over two and three sizes, probabilities of all images, draws."""

import itertools

import pytest
import torch

from ppl_vae.nn import CausalNetwork, LogisticMixtureHead, PixelCNNPlus
from tests.nn.test_causal import influence


@pytest.mark.parametrize(("shape", "scales"), [((2, 4, 4), 1), ((2, 4, 6), 2), ((1, 8, 4), 3)])
def test_nothing_of_a_pixel_or_after_it_moves_its_parameters(shape: tuple[int, int, int], scales: int) -> None:
    trunk = PixelCNNPlus((3, *shape), hidden=6, blocks=2, scales=scales, context_dim=2).double().eval()
    moves = influence(trunk, torch.randn(2, dtype=torch.float64), inputs=2)
    pixels, channels = shape[1] * shape[2], shape[0]
    by_pixel = moves.view(pixels, channels, pixels, channels).any(3).any(1)
    assert not by_pixel.triu().any()
    if scales > 1:  # enough layers to see all
        assert torch.equal(by_pixel, torch.ones_like(by_pixel).tril(-1))


def test_probabilities_of_all_images_sum_to_one_and_draws_are_images() -> None:
    head = LogisticMixtureHead((1, 2, 4), levels=2, components=2)
    network = CausalNetwork(PixelCNNPlus(head.raw_shape, hidden=4, blocks=1, scales=2), head).double().eval()
    images = torch.tensor(list(itertools.product((0.0, 1.0), repeat=8)), dtype=torch.float64).view(-1, 1, 2, 4)
    assert network(images).log_prob(images).exp().sum().item() == pytest.approx(1.0, abs=1e-10)
    drawn = network.draw(5)
    assert drawn.shape == (5, 1, 2, 4) and set(drawn.unique().tolist()) <= {0.0, 1.0}


def test_dropout_is_off_in_evaluation() -> None:
    trunk, x = PixelCNNPlus((3, 1, 4, 4), hidden=4, blocks=1, scales=1), torch.rand(2, 1, 4, 4)
    assert not torch.equal(trunk(x), trunk(x))
    trunk.eval()
    assert torch.equal(trunk(x), trunk(x))


def test_sizes_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(ValueError, match="got images of 6 by 8, expected multiples of 4, since they are"):
        PixelCNNPlus((3, 1, 6, 8))
