"""Causal networks: exact Jacobians, probabilities of all images, draws pixel by pixel against the plain way."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppl_vae.nn import (
    BernoulliHead,
    CategoricalHead,
    CausalNetwork,
    CausalTrunk,
    DiagonalBiLSTM,
    DiscretisedLogisticHead,
    GatedPixelCNN,
    ImageTrunk,
    LogisticMixtureHead,
    PixelCNN,
    RowLSTM,
    causal_mask,
)
from ppl_vae.nn.causal import indices

Make = Callable[..., ImageTrunk]


def gated_with_options(shape: tuple[int, ...], context_dim: int | None = None, joint: bool = False) -> GatedPixelCNN:
    """Told a map of the context; attention after each layer, unless channels are apart."""
    options: dict[str, Any] = {}
    if context_dim is not None:
        numbers = nn.Linear(context_dim, 2 * shape[2] * shape[3])
        options = {"reader": nn.Sequential(numbers, nn.Unflatten(1, (2, *shape[2:]))), "reader_dim": 2}
    if joint or shape[1] == 1:
        options |= {"attention": 1, "heads": 3}
    return GatedPixelCNN(shape, hidden=12, layers=2, features=24, context_dim=context_dim, joint=joint, **options)


CACHED: dict[str, Make] = {
    "plain": lambda shape, **options: PixelCNN(shape, hidden=12, blocks=3, features=12, **options),
    "gated": lambda shape, **options: GatedPixelCNN(shape, hidden=12, layers=3, features=24, **options),
    "gated, wide": lambda shape, **options: GatedPixelCNN(shape, hidden=6, layers=2, kernel=5, features=24, **options),
    "gated, with options": gated_with_options,
}
TRUNKS: dict[str, Make] = {
    **CACHED,
    "row": lambda shape, **options: RowLSTM(shape, hidden=6, layers=2, features=24, **options),
    "diagonal": lambda shape, **options: DiagonalBiLSTM(shape, hidden=6, layers=2, features=24, **options),
}
every_trunk = pytest.mark.parametrize("make", TRUNKS.values(), ids=list(TRUNKS))


@torch.no_grad()
def enliven(trunk: CausalTrunk) -> None:
    """Weights with which few units are dead."""
    for number, parameter in enumerate(trunk.parameters()):
        parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(number))


def influence(trunk: CausalTrunk, context: Tensor | None = None, inputs: int = 4) -> Tensor:
    """Whether the raw parameters at i (rows) move with x at j (columns), in order; at any of some inputs."""
    order = torch.tensor(list(indices(torch.Size(trunk.in_shape))))
    flat = (order * torch.tensor(torch.empty(trunk.in_shape).stride())).sum(1)
    enliven(trunk)
    moves = torch.zeros(len(flat), len(flat), dtype=torch.bool)
    for seed in range(inputs):
        x = torch.rand(trunk.in_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        jacobian = torch.autograd.functional.jacobian(lambda t: trunk(t, context).flatten(1), x)
        assert isinstance(jacobian, Tensor)
        by_element = (jacobian.flatten(2) != 0).any(0)
        moves |= by_element[flat][:, flat]
    return moves


@every_trunk
@pytest.mark.parametrize("shape", [(1, 5, 6), (3, 4, 4)], ids=["grey", "colour"])
def test_nothing_at_or_after_an_element_moves_its_parameters(make: Make, shape: tuple[int, ...]) -> None:
    trunk = make((2, *shape), context_dim=3).double()
    moves = influence(trunk, torch.randn(3, dtype=torch.float64))
    assert not moves.triu().any() and moves.any(1)[1:].all()


def test_of_a_map_a_pixel_is_told_what_is_at_its_place_and_next_to_it() -> None:
    """One layer: its own place. Two: those around it in the same row and above, by both stacks, and none below."""
    shape, places = (1, 4, 5), list(itertools.product(range(4), range(5)))
    for layers, attention in ((1, None), (2, None), (1, 1)):
        options: dict[str, Any] = {"context_dim": 40, "reader": nn.Unflatten(1, (2, 4, 5)), "reader_dim": 2}
        trunk = GatedPixelCNN((3, *shape), 8, layers, features=8, attention=attention, **options).double()
        enliven(trunk)
        x, context = torch.rand(shape, dtype=torch.float64), torch.randn(40, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(lambda c, t=trunk, x=x: t(x, c), context)
        assert isinstance(jacobian, Tensor)
        moves = jacobian.view(3, 20, 2, 20) != 0
        near = torch.tensor([[r - layers < s <= r and abs(c - d) < layers for s, d in places] for r, c in places])
        expected = near if attention is None else torch.ones(20, 20, dtype=torch.bool).tril()
        assert torch.equal(moves.any(2).any(0), expected) and torch.equal(moves.all(2).all(0), expected)


def test_attention_sees_far_away_pixels() -> None:
    """One layer sees four rows above; with attention all that comes before."""
    shape, all_before = (1, 9, 4), torch.ones(36, 36, dtype=torch.bool).tril(-1)
    alone = influence(GatedPixelCNN((1, *shape), hidden=8, layers=1, features=12).double())
    assert not alone[35, :16].any() and alone[35, 16:35].all()
    attentive = GatedPixelCNN((1, *shape), hidden=8, layers=1, features=12, attention=1).double()
    assert torch.equal(influence(attentive), all_before)
    joint = GatedPixelCNN((1, 2, 9, 2), hidden=8, layers=1, features=12, attention=1, joint=True).double()
    moves = influence(joint).view(18, 2, 18, 2)
    for some in (moves.any(3).any(1), moves.all(3).all(1)):
        assert torch.equal(some, all_before[:18, :18])


def test_gated_stacks_have_no_blind_spot_and_plain_ones_do() -> None:
    shape = (1, 7, 7)
    gated = influence(GatedPixelCNN((1, *shape), hidden=12, layers=5, features=12).double())
    assert torch.equal(gated, torch.ones(49, 49, dtype=torch.bool).tril(-1))
    diagonal = influence(DiagonalBiLSTM((1, *shape), hidden=6, layers=1, features=12).double())
    expected = gated.clone()
    for row in range(1, 7):
        expected[7 * row : 7 * row + 3, 7 * row - 1] = False  # the end of the row above, beyond the first layer's reach
    assert torch.equal(diagonal, expected)
    plain = influence(PixelCNN((1, 1, 7, 7), hidden=8, blocks=0).double())
    assert not plain[7 * 6 + 0, 7 * 2 + 6], "beyond the kernel"
    blind = influence(PixelCNN((1, 1, 9, 9), hidden=8, blocks=3).double())
    assert not blind[9 * 4 + 1, 9 * 3 + 8], "on the right above, outside the cone"


@every_trunk
@pytest.mark.parametrize(("head", "levels"), [(BernoulliHead((1, 3, 3)), 2), (CategoricalHead((3, 1, 2), 3), 3)])
def test_probabilities_of_all_images_sum_to_one(make: Make, head: BernoulliHead | CategoricalHead, levels: int) -> None:
    network = CausalNetwork(make(head.raw_shape, context_dim=2), head).double()
    values = [i / (levels - 1) for i in range(levels)]
    images = torch.tensor(list(itertools.product(values, repeat=head.shape[0] * head.shape[1] * head.shape[2])))
    images = images.view(-1, *head.shape).double()
    for context in torch.randn(2, 2, dtype=torch.float64):
        total = network(images, context).log_prob(images).exp().sum().item()
        assert total == pytest.approx(1.0, abs=1e-10)


HEADS = [
    BernoulliHead((1, 7, 6)),
    BernoulliHead((1, 4, 1)),
    CategoricalHead((1, 4, 5), 17),
    DiscretisedLogisticHead((3, 4, 5), 8),
]


@pytest.mark.parametrize("make", CACHED.values(), ids=list(CACHED))
@pytest.mark.parametrize("head", HEADS, ids=lambda head: f"{type(head).__name__}, {head.shape}")
@pytest.mark.parametrize("context_dim", [None, 4])
def test_draws_pixel_by_pixel_are_those_of_the_plain_way(
    make: Make, head: BernoulliHead, context_dim: int | None
) -> None:
    """Bit for bit, as equal probabilities up to rounding give equal values: at odds of about 1e-4 they don't."""
    network = CausalNetwork(make(head.raw_shape, context_dim=context_dim), head)
    context = None if context_dim is None else torch.randn(5, context_dim)
    known, given = torch.ones(5, *head.shape), torch.rand(head.shape) < 0.3
    for options in ({}, {"known": known, "given": given}):
        draws: list[Tensor] = []
        for cached in (True, False):
            torch.manual_seed(1)
            draws.append(network.draw(5, context, cached=cached, **options))  # pyright: ignore[reportArgumentType]
        assert torch.equal(*draws) and draws[0].std() > 0
    assert draws[0][:, given].eq(1).all()
    assert network(draws[0], context).log_prob(draws[0]).shape == (5,), "the network is as it was"


def test_colours_together_are_drawn_alike_given_a_map() -> None:
    """Of both ways, with attention; the map is made once for a draw pixel by pixel, and not held after it."""
    head = LogisticMixtureHead((3, 4, 5), levels=8, components=2)
    trunk = gated_with_options(head.raw_shape, context_dim=4, joint=True)
    network, context, calls, draws = CausalNetwork(trunk, head), torch.randn(5, 4), [], []
    assert trunk.reader is not None
    trunk.reader.register_forward_hook(lambda *_: calls.append(1))
    for cached, times in ((True, 1), (False, 20)):
        torch.manual_seed(1)
        calls.clear()
        draws.append(network.draw(5, context, cached=cached))
        assert len(calls) == times
    assert torch.equal(*draws) and draws[0].std() > 0
    assert trunk._context is None and not trunk._above


@every_trunk
def test_of_a_joint_trunk_nothing_of_a_pixel_moves_its_parameters(make: Make) -> None:
    moves = influence(make((2, 3, 3, 4), joint=True).double()).view(12, 3, 12, 3).any(3).any(1)
    assert not moves.triu().any() and moves.any(1)[1:].all()


@every_trunk
def test_colours_drawn_together(make: Make) -> None:
    """Probabilities of all images of two pixels of two colours; draws of both ways; a head that does not fit."""
    head = LogisticMixtureHead((2, 1, 2), levels=3, components=2)
    network = CausalNetwork(make(head.raw_shape, joint=True), head).double()
    images = torch.tensor(list(itertools.product((0.0, 0.5, 1.0), repeat=4)), dtype=torch.float64).view(-1, 2, 1, 2)
    assert network(images).log_prob(images).exp().sum().item() == pytest.approx(1.0, abs=1e-10)
    draws: list[Tensor] = []
    for cached in (True, False):
        torch.manual_seed(1)
        draws.append(network.draw(50, cached=cached))
    assert torch.equal(*draws) and set(draws[0].unique().tolist()) == {0.0, 0.5, 1.0}
    with pytest.raises(ValueError, match=r"LogisticMixtureHead with joint=True and a .* with joint=False"):
        CausalNetwork(make(head.raw_shape), head)


def test_a_mixture_begins_about_the_mean() -> None:
    """The mean of draws within 0.05 of it, where no tail is cut."""
    torch.manual_seed(0)
    head, mean = LogisticMixtureHead((3, 2, 2)), torch.full((3, 2, 2), 0.45)
    drawn = head(head.bias_for_mean(mean)).sample((4000,))
    assert (drawn.mean(0) - mean).abs().max() < 0.05


@every_trunk
def test_upper_rows_alone_are_those_of_the_image(make: Make) -> None:
    x, context = torch.rand(2, 3, 5, 4, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    for joint, told in ((False, None), (True, context)):
        trunk = make((2, 3, 5, 4), context_dim=None if told is None else 2, joint=joint).double()
        torch.testing.assert_close(trunk.raw(x[:, :, :3], told), trunk.raw(x, told)[..., :3, :])
    head = BernoulliHead((1, 3, 4))
    network = CausalNetwork(make(head.raw_shape, context_dim=2), head)
    drawn = network.draw(3, torch.randn(3, 2))
    assert drawn.shape == (3, 1, 3, 4) and set(drawn.unique().tolist()) == {0.0, 1.0}


@every_trunk
def test_leading_dims_and_contexts_are_broadcast(make: Make) -> None:
    trunk = make((2, 1, 4, 4), context_dim=3).double()
    x, context = torch.rand(5, 1, 4, 4, dtype=torch.float64), torch.randn(6, 5, 3, dtype=torch.float64)
    together = trunk(x, context)
    assert together.shape == (6, 5, 2, 1, 4, 4)
    torch.testing.assert_close(together[2, 3], trunk(x[3], context[2, 3]))


def test_weights_of_a_seed_are_those_without_options() -> None:
    made: list[dict[str, Tensor]] = []
    for options in ({}, {"attention": 2, "heads": 2}, {"reader": nn.Unflatten(1, (3, 4, 4)), "reader_dim": 3}):
        torch.manual_seed(0)
        context_dim = 48 if "reader" in options else 3
        trunk = GatedPixelCNN((1, 1, 4, 4), 4, layers=3, features=4, context_dim=context_dim, **options)  # pyright: ignore
        made.append(trunk.state_dict())
    plain, attentive, told = made
    assert set(attentive) - set(plain) == {name for name in attentive if name.startswith("attention.0.")}
    assert list(told) == list(plain)
    for name, weight in plain.items():
        assert torch.equal(weight, attentive[name]) and torch.equal(weight, told[name])


def test_masks_by_hand() -> None:
    mask = causal_mask(3, 3, above=1, left=1, right=2, kind="A", channels=3)
    assert mask[:, :, 0].all() and mask[:, :, 1, 0].all() and not mask[:, :, 1, 2:].any()
    assert mask[:, :, 1, 1].tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]
    assert causal_mask(6, 3, 0, 0, 0, channels=3)[:, :, 0, 0].tolist() == [
        [1, 0, 0],
        [1, 0, 0],
        [1, 1, 0],
        [1, 1, 0],
        [1, 1, 1],
        [1, 1, 1],
    ]
    assert causal_mask(1, 1, 2, 2, 2, kind="rows").all()


def test_bad_sizes_and_contexts() -> None:
    with pytest.raises(ValueError, match="n_out: got 4 features, expected a multiple of the 3 channels"):
        causal_mask(4, 3, 0, 0, 0, channels=3)
    with pytest.raises(ValueError, match="kernel: got 4, expected an odd number"):
        GatedPixelCNN((1, 1, 4, 4), kernel=4)
    with pytest.raises(ValueError, match=r"context: got None, expected \(..., 3\)"):
        TRUNKS["plain"]((1, 1, 4, 4), context_dim=3)(torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match=r"context: got \(2, 3\), expected None"):
        TRUNKS["gated"]((1, 1, 4, 4))(torch.zeros(2, 1, 4, 4), torch.zeros(2, 3))


def test_bad_readers_and_attention() -> None:
    reader, zeros = nn.Unflatten(1, (2, 4, 4)), torch.zeros(3, 1, 4, 4)
    with pytest.raises(ValueError, match="got reader=Unflatten, reader_dim=2, context_dim=None, expected all of them"):
        GatedPixelCNN((1, 1, 4, 4), reader=reader, reader_dim=2)
    with pytest.raises(ValueError, match="got reader=Unflatten, reader_dim=None, context_dim=32, expected all of them"):
        GatedPixelCNN((1, 1, 4, 4), reader=reader, context_dim=32)
    with pytest.raises(ValueError, match="got reader=None, reader_dim=2"):
        GatedPixelCNN((1, 1, 4, 4), reader_dim=2, context_dim=32)
    trunk = GatedPixelCNN((1, 1, 4, 4), 4, 1, features=4, context_dim=32, reader=reader, reader_dim=3)
    with pytest.raises(ValueError, match=r"reader: got a map of shape \(3, 2, 4, 4\) .* expected \(3, 3, 4, 4\)"):
        trunk(zeros, torch.zeros(3, 32))
    with pytest.raises(ValueError, match="attention: got 2 with the 3 channels of a pixel one after another"):
        GatedPixelCNN((1, 3, 4, 4), attention=2)
    with pytest.raises(ValueError, match="attention: got 3, expected at most the 2 layers"):
        GatedPixelCNN((1, 1, 4, 4), layers=2, attention=3)
    with pytest.raises(ValueError, match="attention: got 0, expected a whole number"):
        GatedPixelCNN((1, 1, 4, 4), layers=2, attention=0)
    with pytest.raises(ValueError, match="hidden: got 6 features, expected a multiple of the 4 heads"):
        GatedPixelCNN((1, 1, 4, 4), hidden=6, layers=2, attention=1)
