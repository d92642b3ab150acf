"""Sentences of a pair whose z are the words themselves, and of the shipped pairs."""

import doctest
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_vae import Pair
from ppl_vae.language import beam, greedy, impute, path, reconstructions, sampled, samples
from ppl_vae.pairs import VAE, LanguageModel, TextVAE
from tests.language.tables import drawn, log_prob

V, L = 12, 4
PRIOR = torch.tensor([5.0, 4.0, 3.0, 1.0])
X = torch.tensor([[3, 4, 5, 1], [7, 8, 1, 0], [9, 2, 3, 4]])


class Near(nn.Module):
    """The t-th word is that whose id is nearest to the t-th number of what it is told."""

    vocabulary = V

    def __init__(self) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(10.0))
        self.dropout = nn.Dropout(0.9)

    def begin(self, number: int, context: Tensor | None = None) -> tuple[Tensor, ...]:
        assert context is not None and len(context) == number
        return context, torch.zeros(number, dtype=torch.int64)

    def step(self, words: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        context, t = state
        wanted = context.gather(1, t.unsqueeze(1)).squeeze(1)
        logits = -self.sharpness * (torch.arange(1, V) - wanted.unsqueeze(1)) ** 2
        return self.dropout(logits), (context, t + 1)

    def draw(
        self,
        number: int,
        context: Tensor | None = None,
        *,
        length: int,
        choose: Callable[[Tensor], Tensor] | None = None,
        given: Tensor | None = None,
        progress: bool = False,
    ) -> Tensor:
        return drawn(self, number, context, length, choose or sampled())


class Echo(Pair):
    """p(z) = N(PRIOR, s^2 I);  p(x_t | z) about z_t;  q(z | x) = N(x, s^2 I)."""

    data_shape = (L,)

    def __init__(self, s: float = 1e-3) -> None:
        super().__init__()
        self.network, self.s, self.guided = Near(), s, 0

    def context(self, z: Tensor) -> Tensor:
        return z

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(PRIOR, self.s).to_event(1))
            pyro.sample("x", dist.Delta(z, event_dim=1).mask(False), obs=x)

    def mean(self, x: Tensor) -> Tensor:
        return x.float()

    def guide(self, x: Tensor) -> None:
        self.guided += 1
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.mean(x), self.s).to_event(1))


class Successor(Echo):
    """q(z | x): each number is that after the word before."""

    def mean(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :1], x[:, :-1] + 1], 1).float()


class Mute(Echo):
    """No word of what its network is told."""

    context = None  # pyright: ignore[reportAssignmentType]


def test_reconstructions_say_z() -> None:
    assert reconstructions(Echo(), X).equal(X)
    assert reconstructions(Echo(), X, width=3).equal(X)
    assert reconstructions(Echo(), X, choose=sampled(1e-3)).equal(X)
    drawn = reconstructions(Echo(), X, at_means=False, num=5)
    assert drawn.shape == (5, 3, L) and drawn.eq(X).all()
    assert reconstructions(Echo(), X, at_means=False).equal(X)


def test_draws_differ_and_means_do_not() -> None:
    pair = Echo(s=2.0)
    drawn = reconstructions(pair, X, at_means=False, num=20)
    assert len({tuple(words) for words in drawn[:, 2].tolist()}) > 5
    assert reconstructions(pair, X, num=20).eq(X).all()


def test_samples_say_draws_of_the_prior() -> None:
    expected = torch.tensor([5, 4, 3, 1])
    ways: list[dict[str, Any]] = [{}, {"choose": greedy}, {"width": 2}]
    for options in ways:
        assert samples(Echo(), 6, **options).equal(expected.expand(6, -1))
    assert len({tuple(words) for words in samples(Echo(s=2.0), 50, choose=greedy).tolist()}) > 5


def test_samples_are_of_the_laws_of_words_at_temperature_one() -> None:
    """How often the likeliest first word is drawn, within five standard errors: fails once in 1e6 runs by chance."""
    pair = Echo(s=1e-9)
    pair.network.sharpness.data.fill_(1.0)
    law = (-((torch.arange(1, V) - 5.0) ** 2)).softmax(0)
    share = samples(pair, 4000)[:, 0].eq(5).double().mean()
    assert (share - law[4]).abs() < 5 * (law[4] * (1 - law[4]) / 4000).sqrt()


def test_a_path_is_a_straight_line() -> None:
    first, second = torch.tensor([3, 10, 6, 1]), torch.tensor([7, 2, 6, 1])
    expected = [[3, 10, 6, 1], [4, 8, 6, 1], [5, 6, 6, 1], [6, 4, 6, 1], [7, 2, 6, 1]]
    pair = Echo(s=5.0)
    assert path(pair, first, second, 3).tolist() == path(pair, first, second, 3, width=2).tolist() == expected
    assert path(pair, first, second).shape == (7, L)


def test_imputing_goes_by_turns_until_nothing_changes() -> None:
    """z of what is known says one number more at each turn: 3 4 END, 3 4 5 END (its z is 3 4 5 2), 3 4 5 6."""
    given = torch.tensor([[3], [8]])
    turns = [[[3, 4, 1, 0], [8, 9, 1, 0]], [[3, 4, 5, 2], [8, 9, 10, 2]], [[3, 4, 5, 6], [8, 9, 10, 11]]]
    for rounds, expected in enumerate(turns, start=1):
        assert impute(Successor(), given, rounds=rounds).tolist() == expected
    pair = Successor()
    assert impute(pair, given, rounds=50).tolist() == turns[-1] and pair.guided == 4
    ragged = impute(Successor(), torch.tensor([[3, 0, 0], [8, 3, 1], [0, 0, 0]]))
    assert ragged[:2].tolist() == [[3, 4, 5, 6], [8, 3, 1, 0]]


def test_imputing_without_z_is_one_beam_search() -> None:
    pair = LanguageModel((6,), vocabulary=9, embedding=3, hidden=4, dropout=0.5).double()
    for parameter in pair.parameters():
        nn.init.normal_(parameter, 0, 1.5)
    given = torch.tensor([[5, 3], [4, 0]])
    found = impute(pair, given, width=4)
    assert found.equal(beam(pair.eval().network, 2, length=6, width=4, given=given).best)
    assert samples(pair, 5).shape == (5, 6) and samples(pair, 3, width=2)[0].equal(samples(pair, 3, width=2)[2])


def test_shipped_pairs() -> None:
    pair = TextVAE((6,), vocabulary=9, latent_dim=2, embedding=3, hidden=4, keep=0.5, dropout=0.5).double()
    x = samples(pair, 7, seed=3)
    assert x.shape == (7, 6) and x.max() < 9 and (x[:, 0] > 0).all()
    assert reconstructions(pair, x).shape == reconstructions(pair, x, width=2).shape == (7, 6)
    assert reconstructions(pair, x, at_means=False, num=3).shape == (3, 7, 6)
    said = path(pair, x[0], x[1], 3)
    assert said[[0, -1]].equal(reconstructions(pair, x[:2]))
    assert impute(pair, x[:, :2]).shape == (7, 6) and impute(pair, x[:, :2])[:, :2].equal(x[:, :2])
    best, plain = (reconstructions(pair, x, width=width) for width in (20, 1))
    with torch.no_grad():
        z = pair.eval().encoder(x).mean
    assert (log_prob(pair.network, best, z) >= log_prob(pair.network, plain, z) - 1e-9).all()


SENTENCES: dict[str, Any] = {
    "reconstructions": lambda pair, seed: reconstructions(pair, X, at_means=False, seed=seed),
    "samples": lambda pair, seed: samples(pair, 5, seed=seed),
    "path": lambda pair, seed: path(pair, X[0], X[1], choose=sampled(50.0), seed=seed),
}


@pytest.mark.parametrize("name", SENTENCES)
def test_a_private_stream(name: str) -> None:
    said, pair = SENTENCES[name], Echo(s=3.0)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = said(pair, 1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert said(pair, 1).equal(first) and not said(pair, 2).equal(first)
    torch.manual_seed(1)
    assert said(pair, None).equal(first) and not said(pair, None).equal(first)


def test_modules_are_put_back_even_after_an_error() -> None:
    pair = Mute().train()
    pair.network.dropout.eval()
    with pytest.raises(ValueError, match="Mute: got a site 'z' and no method context"):
        samples(pair, 2)
    assert pair.training and not pair.network.dropout.training and torch.is_grad_enabled()
    state = torch.get_rng_state()
    impute(Successor().train(), X[:, :1])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pair: reconstructions(pair, X[:, :3]), r"x: got \(3, 3\) torch.int64, expected \(N, 4\)"),
        (lambda pair: reconstructions(pair, X.float()), r"x: got \(3, 4\) torch.float32"),
        (lambda pair: reconstructions(pair, X[0]), r"x: got \(4,\)"),
        (lambda pair: reconstructions(pair, X, num=0), "num: got 0"),
        (lambda pair: reconstructions(pair, X, choose=greedy, width=3), "got choose and width=3, expected one"),
        (lambda pair: samples(pair, 0), "num: got 0"),
        (lambda pair: samples(pair, 2, seed=2**64), "seed: got"),
        (lambda pair: samples(pair, 2, choose=greedy, width=3), "got choose and width=3"),
        (lambda pair: path(pair, X, X), r"first: got \(3, 4\), expected one sentence"),
        (lambda pair: path(pair, X[0], X[1][:3]), r"second: got \(1, 3\)"),
        (lambda pair: path(pair, X[0], X[1], 0), "steps: got 0"),
        (lambda pair: impute(pair, X, rounds=0), "rounds: got 0"),
        (lambda pair: impute(pair, X.float()), r"given: got \(3, 4\) torch.float32"),
        (lambda pair: impute(pair, torch.tensor([[3, 0, 4]])), "words behind padding"),
        (lambda pair: impute(pair, torch.tensor([[V]])), "ids from 12 to 12, expected 0 to 11"),
    ],
)
def test_errors_say_what_to_do(call: Callable[[Any], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(Echo())


def test_pairs_of_another_kind_are_refused() -> None:
    language: Any = LanguageModel((L,), vocabulary=V, embedding=3, hidden=4)
    with pytest.raises(ValueError, match="LanguageModel: got a guide without a site 'z'"):
        reconstructions(language, X)
    images: Any = VAE((L,), 2, (3,))
    with pytest.raises(ValueError, match="VAE: got no network of words"):
        reconstructions(images, X)
    stranger: Any = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="got Linear"):
        samples(stranger, 2)


@pytest.mark.parametrize("name", ["beam", "choices", "reading", "scores"])
def test_docstring_examples(name: str) -> None:
    result = doctest.testmod(import_module(f"ppl_vae.language.{name}"))
    assert result.attempted > 0 and result.failed == 0
