"""Judging: shares, a judge of scenes, flips, gains and ranks by captions."""

import math
import random
from itertools import product

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppl_vae import Pair, generation
from ppl_vae.data.dataset import Dataset
from ppl_vae.data.loaders import load
from ppl_vae.data.scene_facts import FACTS, canonical
from ppl_vae.data.scenes import Scenes, scenes
from ppl_vae.judging import (
    Judge,
    Share,
    accuracy,
    caption_gain,
    flip_accuracy,
    painted,
    retrieval_ranks,
    train_judge,
)
from ppl_vae.nn import SentenceEncoder
from ppl_vae.pairs import ConditionalVAE

RED, YELLOW, GREEN, BLUE = range(4)
NAMES = list(FACTS)
SURE = 0.999


def made(coloured: bool = False, **fields: object) -> Scenes:
    """One image of each digit, 1 to 10 in bits of its first row, and no play: an image is a function of the facts."""
    bits = (torch.arange(1, 11)[:, None] >> torch.arange(16)) & 1
    x, labels = bits.float().view(10, 1, 4, 4), torch.arange(10)
    digits = Dataset(name="bits", train=x, test=x, train_labels=labels, test_labels=labels)
    settings = {"size": 8, "coloured": coloured, "num_train": 5, "num_test": 5} | fields
    return scenes(digits, **settings)  # type: ignore[arg-type]


def all_facts(coloured: bool = False) -> Tensor:
    """Every scene there can be, by loops."""
    inks = range(4) if coloured else [-1]
    rows = [
        [place, a, b, ink, second, ground]
        for place, a, b in product(range(8), range(10), range(-1, 10))
        if (place < 4) == (b >= 0)
        for ink, second, ground in product(inks, inks if b >= 0 else [-1], inks)
        if not coloured or ground not in (ink, second)
    ]
    return torch.tensor(rows)


class Perfect(Judge):
    """Finds an image among those of all scenes."""

    def __init__(self, data: Scenes) -> None:
        super().__init__(list(data.attributes(data.train)), data.shape)
        self.facts = canonical(all_facts(data.coloured)).unique(dim=0)
        self.images = data.compose(self.facts).flatten(1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = self.facts[torch.cdist(x.flatten(1), self.images).argmin(1)].clamp(min=0)
        return {name: F.one_hot(found[:, NAMES.index(name)], len(FACTS[name])).float() for name in self.names}


class Obedient(Pair):
    """p(x | caption): each value is 1 with the probability of its grey value in the scene, within 0.001 and 0.999."""

    def __init__(self, data: Scenes) -> None:
        super().__init__()
        self.data, self.data_shape = data, data.shape

    def probabilities(self, caption: Tensor) -> Tensor:
        facts = torch.cat([self.data.facts_of(text) for text in self.data.vocabulary.decode(caption)])
        return self.data.compose(facts).clamp(1 - SURE, SURE)

    def model(self, x: Tensor, caption: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Bernoulli(self.probabilities(caption)).to_event(3), obs=x)


class Stubborn(Obedient):
    """Paints one scene whatever is asked; z, which moves all pixels, has a guide that is not the posterior."""

    def __init__(self, data: Scenes, fact: list[int]) -> None:
        super().__init__(data)
        self.one = data.captions(torch.tensor([fact]))

    def model(self, x: Tensor, caption: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1, 1, 1), 0.1).to_event(3))
            logits = torch.logit(self.probabilities(self.one)) + z
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(3), obs=x)

    def guide(self, x: Tensor, caption: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.mean((1, 2, 3), keepdim=True), 0.3).to_event(3))


class Told(Pair):
    """log p(x | caption) as a table says: x is a row of it, (B, 1), and the caption a column, (B, 1)."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def model(self, x: Tensor, caption: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            bound = self.table[x[:, 0].long(), caption[:, 0]]
            law = dist.Delta(x, bound, event_dim=1, validate_args=False)  # type: ignore[arg-type]
            pyro.sample("x", law, obs=x)


def test_a_share_and_its_standard_error() -> None:
    share = Share.of(torch.tensor([True, False, True, True]))
    assert share == Share(0.75, 4) and share.se == (0.75 * 0.25 / 4) ** 0.5
    assert str(share) == "0.750 (0.217)" and Share(1.0, 3).se == 0.0
    draws = torch.rand(4_000, 50, generator=torch.Generator().manual_seed(0)) < 0.3
    shares = [Share.of(row) for row in draws]
    spread = torch.tensor([share.value for share in shares]).std().item()
    # the spread of 4,000 shares is within 5 % of the s.e. but once in 1e5 seeds: its own s.e. is 1.1 %
    assert abs(spread / (0.3 * 0.7 / 50) ** 0.5 - 1) < 0.05


def test_the_loss_is_cross_entropy_of_what_there_is() -> None:
    data = made(True)
    judge = Judge(NAMES, data.shape)
    facts = torch.tensor([[1, 3, 7, RED, BLUE, GREEN], [6, 2, -1, BLUE, -1, YELLOW]])
    x = data.compose(facts)
    logits = {name: value.log_softmax(-1) for name, value in judge(x).items()}
    told = [[("place", 0), ("digit", 7), ("second digit", 3), ("ink", BLUE), ("second ink", RED), ("field", GREEN)]]
    told += [[("place", 6), ("digit", 2), ("ink", BLUE), ("field", YELLOW)]]
    by_hand = -sum(logits[name][i, value] for i, row in enumerate(told) for name, value in row) / 2
    torch.testing.assert_close(judge.loss(x, facts), by_hand)
    assert {name: value.shape for name, value in logits.items()} == {name: (2, len(FACTS[name])) for name in NAMES}


def test_what_no_scene_has_moves_no_head() -> None:
    data = made(True)
    judge, facts = Judge(NAMES, data.shape), torch.tensor([[6, 2, -1, BLUE, -1, YELLOW], [4, 9, -1, RED, -1, BLUE]])
    judge.loss(data.compose(facts), facts).backward()
    for name in NAMES:
        (weight, bias) = judge.heads[name.replace(" ", "_")].parameters()
        assert weight.grad is not None and bias.grad is not None
        still = not weight.grad.any() and not bias.grad.any()
        assert still == name.startswith("second")


def test_accuracy_counts_what_is_right_among_scenes_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in parts; x tells which row of logits."""
    judge = Judge(("place", "digit", "second digit"), (1, 8, 8))
    facts = torch.tensor([[0, 3, 7], [1, 3, 7], [4, 5, -1], [7, 5, -1]])
    facts = torch.cat([facts, torch.full((4, 3), -1)], 1)
    read = {"place": [0, 0, 4, 6], "digit": [3, 3, 5, 0], "second digit": [7, 7, 0, 0]}

    def forward(x: Tensor) -> dict[str, Tensor]:
        rows = x[:, 0, 0, 0].long()
        return {name: F.one_hot(torch.tensor(read[name])[rows], len(FACTS[name])).float() for name in judge.names}

    monkeypatch.setattr(judge, "forward", forward)
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 8, 8)
    for chunk in (500, 3):
        monkeypatch.setattr("ppl_vae.judging.scenes.CHUNK", chunk)
        right = {name: hits.tolist() for name, hits in judge.right(images, facts).items()}
        assert right["place"] == [True, True, True, False]
        assert right["digit"] == [True, False, True, False], "seen from the left, row 1 is seven and three"
        assert right["second digit"] == [True, False, True, True], "True where there is none"
        found = accuracy(judge, images, facts)
        assert found == {"place": Share(0.75, 4), "digit": Share(0.5, 4), "second digit": Share(0.5, 2)}
    assert set(accuracy(judge, images[2:], facts[2:])) == {"place", "digit"}, "what no scene has is left out"


@pytest.mark.parametrize("coloured", [False, True])
def test_a_perfect_judge_is_right_whichever_side_a_scene_is_told_from(coloured: bool) -> None:
    data, facts = made(coloured), all_facts(coloured)[:: 41 if coloured else 1]
    assert set(facts[:, 0].tolist()) == set(range(8))
    shares = accuracy(Perfect(data), data.compose(facts), facts)
    assert {name: share.value for name, share in shares.items()} == dict.fromkeys(data.attributes(facts), 1.0)
    assert shares["second digit"].number == int((facts[:, 0] < 4).sum()) < len(facts) == shares["place"].number


def test_painted_is_the_mean_for_each_caption_in_parts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    data, facts = made(), all_facts()[::20]
    pair, state = Obedient(data), torch.get_rng_state()
    whole = painted(pair, data, facts)
    torch.testing.assert_close(whole, data.compose(facts).clamp(1 - SURE, SURE))
    torch.set_rng_state(state)
    monkeypatch.setattr("ppl_vae.judging.scenes.CHUNK", 7)
    assert torch.equal(painted(pair, data, facts), whole)
    other = Stubborn(data, [0, 1, 2, -1, -1, -1])
    first, again = painted(other, data, facts), painted(other, data, facts)
    assert torch.equal(first, again) and not torch.equal(painted(other, data, facts, seed=1), first)
    assert len(first.unique(dim=0)) == len(facts), "the parts have noise of their own"


def test_a_pair_is_judged_by_its_own_data_site() -> None:
    """A conditional VAE's is y: its mean given the caption is painted, and read."""
    data = made()
    encoder = SentenceEncoder(len(data.vocabulary), 4)
    pair = ConditionalVAE(data.shape, (data.caption_length,), 2, (8,), condition=encoder, condition_dim=8)
    facts = all_facts()[::90]
    y, z = torch.zeros(len(facts), *data.shape), torch.zeros(len(facts), 2)
    mean = generation.decode(pair, {"z": z}, y, data.captions(facts)).mean
    pair.prior = Constant(2)  # type: ignore[assignment]  # so that z is known
    torch.testing.assert_close(painted(pair, data, facts), mean)
    assert set(flip_accuracy(pair, Perfect(data), data, facts)) == {"place", "digit", "second digit"}


class Constant(nn.Module):
    """Normal(0, 1e-6) whatever is given."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        return dist.Normal(x.new_zeros(len(x), self.size), 1e-6).to_event(1)


@pytest.mark.parametrize("coloured", [False, True])
def test_flips_are_seen_where_the_pair_paints_what_is_asked(coloured: bool) -> None:
    data = made(coloured)
    facts = all_facts(coloured)[:: 300 if coloured else 9]
    shares = flip_accuracy(Obedient(data), Perfect(data), data, facts)
    assert {name: share.value for name, share in shares.items()} == dict.fromkeys(data.attributes(facts), 1.0)
    two = int((facts[:, 0] < 4).sum())
    assert shares["second digit"].number == two < shares["digit"].number == len(facts)
    again = flip_accuracy(Obedient(data), Perfect(data), data, facts)
    assert again == shares


def test_flips_are_not_seen_where_the_pair_ignores_the_caption() -> None:
    """Though "a three on the right of a three" is painted already: such a flip asks for nothing."""
    data = made()
    for fact in ([0, 3, 7, -1, -1, -1], [0, 3, 3, -1, -1, -1]):
        facts = torch.tensor([fact]).expand(60, -1)
        shares = flip_accuracy(Stubborn(data, fact), Perfect(data), data, facts)
        assert {name: share.value for name, share in shares.items()} == dict.fromkeys(data.attributes(facts), 0.0)
        # of two threes only those count that go to top or bottom: all of 60 do so once in 1e10 seeds
        assert shares["digit"].number == 60
        assert shares["place"].number == 60 if fact[2] == 7 else 0 < shares["place"].number < 60
    corner = torch.tensor([[4, 3, -1, -1, -1, -1]])
    assert set(flip_accuracy(Obedient(data), Perfect(data), data, corner)) == {"place", "digit"}


def test_all_else_must_stay_where_one_attribute_flips() -> None:
    """A pair that paints all digits as nines shows new places, but not the digits that were said."""

    class Nines(Obedient):
        def probabilities(self, caption: Tensor) -> Tensor:
            ids = self.data.vocabulary.ids
            return super().probabilities(torch.where((caption <= 10) & (caption > 0), ids["nine"], caption))

    data = made()
    facts = torch.tensor([[0, 9, 9, -1, -1, -1]] * 30 + [[0, 9, 3, -1, -1, -1]] * 20)
    shares = flip_accuracy(Nines(data), Perfect(data), data, facts)
    assert shares["digit"] == Share(0.0, 50)
    rights = shares["place"].number - 20  # of two nines: all but those from left to right
    assert 0 < rights < 30 and shares["place"].value == pytest.approx(rights / (rights + 20))


def test_gain_is_by_the_caption_of_another_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each bound tells whose caption it was: by loops, the nearest image before with another caption."""
    for codes in ([0, 1, 2], [0, 0, 1, 1, 1, 2, 0], [3, 3, 3, 3, 1], [0, 1]):
        number = len(codes)
        table = torch.arange(number * 5.0).view(number, 5)
        captions, x = torch.tensor(codes)[:, None], torch.arange(float(number))[:, None]
        others = [next(codes[i - k] for k in range(1, number) if codes[i - k] != codes[i]) for i in range(number)]
        for chunk in (500, 2):
            monkeypatch.setattr("ppl_vae.judging.scenes.CHUNK", chunk)
            own, other = caption_gain(Told(table), x, captions)
            assert own.tolist() == [table[i, codes[i]] for i in range(number)]
            assert other.tolist() == [table[i, others[i]] for i in range(number)]
    for same in (torch.zeros(3, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64)):
        with pytest.raises(ValueError, match=f"captions: got {len(same)}, all the same, expected two or more"):
            caption_gain(Told(torch.zeros(3, 1)), torch.zeros(len(same), 1), same)


def test_gain_of_a_pair_without_latents_is_its_likelihood() -> None:
    data, facts = made(), all_facts()[[5, 130, 260, 410]]
    x, captions = data.compose(facts), data.captions(facts)
    own, other = caption_gain(Obedient(data), x, captions)
    wrong = (x != x.roll(1, 0)).flatten(1).sum(1)
    torch.testing.assert_close(own, torch.full((4,), 64 * math.log(SURE)), atol=1e-4, rtol=0)
    by_hand = (64 - wrong) * math.log(SURE) + wrong * math.log(1 - SURE)
    torch.testing.assert_close(other, by_hand, atol=1e-3, rtol=1e-5)
    own, other = caption_gain(Stubborn(data, [0, 1, 2, -1, -1, -1]), x, captions)
    assert torch.equal(own, other), "the same noise: no gain where captions say nothing"


@pytest.mark.filterwarnings("ignore")
def test_ranks_by_hand() -> None:
    """All captions are candidates: ties count half, and a bound that is no number is worse than all."""
    nan, inf = math.nan, math.inf
    table = torch.tensor(
        [
            [3.0, 2.0, 1.0, 0.0],
            [3.0, 2.0, 1.0, 0.0],
            [2.0, 2.0, 2.0, 2.0],
            [1.0, 5.0, 1.0, 1.0],
            [nan, 2.0, 1.0, 0.0],
            [0.0, nan, 1.0, nan],
            [1.0, -inf, nan, -inf],
        ]
    )
    captions = torch.tensor([0, 1, 2, 3, 0, 2, 3])[:, None]
    x = torch.arange(7.0)[:, None]
    ranks = retrieval_ranks(Told(table), x, captions, candidates=4, progress=False)
    assert ranks.tolist() == [1, 2, 2.5, 3, 4, 1, 3]
    with pytest.raises(ValueError, match="candidates: got 5, expected 2 to 4, the different captions there are"):
        retrieval_ranks(Told(table), x, captions, candidates=5)
    with pytest.raises(ValueError, match="candidates: got 1, expected 2 to 4"):
        retrieval_ranks(Told(table), x, captions, candidates=1)


def test_candidates_are_the_own_caption_and_different_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 images of a caption with 3 of 8 others each, one of these is never chosen once in 1e18 seeds."""
    captions, asked = torch.arange(9).repeat(100)[:, None], []

    def bounds(pair: Pair, objective: object, x: Tensor, captions: Tensor, seed: int) -> Tensor:
        asked.append(captions[:, 0])
        return torch.zeros(len(x))

    monkeypatch.setattr("ppl_vae.judging.scenes._bounds", bounds)
    pair, x = Told(torch.zeros(1, 9)), torch.zeros(900, 1)
    state = torch.get_rng_state()
    assert retrieval_ranks(pair, x, captions, candidates=4, progress=False).tolist() == [2.5] * 900
    assert torch.equal(torch.get_rng_state(), state)
    chosen = torch.stack(asked, 1)
    assert torch.equal(chosen[:, 0], captions[:, 0]) and all(len(set(row)) == 4 for row in chosen.tolist())
    for own in range(9):
        assert set(chosen[captions[:, 0] == own].flatten().tolist()) == set(range(9))
    for seed, same in ((0, True), (1, False)):
        asked.clear()
        retrieval_ranks(pair, x, captions, candidates=4, seed=seed, progress=False)
        assert torch.equal(torch.stack(asked, 1), chosen) == same


def test_ranks_of_a_pair_that_heeds_captions_and_of_one_that_does_not() -> None:
    data, facts = made(), canonical(all_facts()).unique(dim=0)[::8]
    x, captions = data.compose(facts), data.captions(facts)
    ranks = retrieval_ranks(Obedient(data), x, captions, candidates=9, progress=False)
    assert ranks.tolist() == [1.0] * len(facts)
    stubborn = Stubborn(data, [0, 1, 2, -1, -1, -1])
    ranks = retrieval_ranks(stubborn, x, captions, candidates=9, progress=False)
    assert ranks.tolist() == [5.0] * len(facts), "(9 + 1) / 2: the same noise for all candidates, so all are equal"


def test_two_captions_of_one_scene_cannot_be_told_apart() -> None:
    data = made()
    facts = torch.tensor([[0, 3, 7, -1, -1, -1], [1, 7, 3, -1, -1, -1], [2, 3, 7, -1, -1, -1]])
    x, captions = data.compose(facts), data.captions(facts)
    ranks = retrieval_ranks(Obedient(data), x, captions, candidates=3, progress=False)
    assert ranks.tolist() == [1.5, 1.5, 1.0]


def test_a_judge_learns_places_within_few_steps_and_disturbs_nothing() -> None:
    """Digits of the test set, by a judge that saw those of the training set; one seed, so that it always passes."""
    data = scenes(load("digits"), size=16, num_train=10, num_test=500)
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    judge = train_judge(data, steps=150, batch_size=64, learning_rate=3e-3, progress=False)
    assert torch.equal(torch.get_rng_state(), before[0]), "the global streams must not move"
    assert random.getstate() == before[1] and str(np.random.get_state()) == before[2]
    assert not judge.training and judge.names == ("place", "digit", "second digit")
    images = data.compose(data.test, torch.Generator().manual_seed(1), test=True)
    found = accuracy(judge, images, data.test)
    assert found["place"].value >= 0.95 and found["place"].number == 500


def test_a_judge_is_the_same_from_the_same_seed() -> None:
    data = made(True)

    def weights(seed: int) -> Tensor:
        judge = train_judge(data, steps=3, batch_size=8, seed=seed, progress=False)
        return torch.nn.utils.parameters_to_vector(judge.parameters())

    first = weights(0)
    torch.manual_seed(77)
    with torch.no_grad():
        assert torch.equal(weights(0), first)
    assert not torch.equal(weights(1), first)


def test_a_judge_is_trained_on_all_combinations(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few scenes a model has. Of 24,000 one is missing once in 1e10 seeds."""
    data, seen = made(num_train=2, banned=[3] * 12), []
    compose = Scenes.compose

    def watched(self: Scenes, facts: Tensor, generator: torch.Generator | None = None, test: bool = False) -> Tensor:
        assert not test, "training digits"
        seen.append(facts)
        return compose(self, facts, generator, test)

    monkeypatch.setattr(Scenes, "compose", watched)
    train_judge(data, steps=12, batch_size=2_000, progress=False)
    assert [len(facts) for facts in seen] == [2_000] * 12
    assert {tuple(row) for row in torch.cat(seen).tolist()} == {tuple(row) for row in all_facts().tolist()}


def test_images_too_small_to_be_judged_are_refused() -> None:
    with pytest.raises(ValueError, match="got images of 8 by 7 pixels, expected at least 8 by 8"):
        Judge(["place"], (1, 8, 7))
