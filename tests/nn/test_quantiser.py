"""Quantiser: moving averages against k-means by hand, gradients against formulas, codes that begin anew."""

import pytest
import torch

from ppl_vae.nn import Quantiser, k_means, straight_through


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def set_to(quantiser: Quantiser, codes: torch.Tensor, counts: torch.Tensor) -> None:
    quantiser.counts.copy_(counts)
    quantiser.sums.copy_(codes * counts.unsqueeze(1))


def test_averages_are_minibatch_k_means_by_hand() -> None:
    """Three batches in a row, code by code and vector by vector, in float64."""
    quantiser = Quantiser(4, 2, decay=0.9, smoothing=0.01, revive=0.0).double()
    codes = torch.randn(4, 2, dtype=torch.float64)
    n, m = torch.full((4,), 3.0, dtype=torch.float64), 3.0 * codes
    set_to(quantiser, codes, n)
    for _ in range(3):
        z = torch.randn(5, 2, 3, dtype=torch.float64)
        smooth = (n + 0.01) / (n.sum() + 4 * 0.01) * n.sum()
        e = m / smooth[:, None]
        rows = [z[b, :, s] for b in range(5) for s in range(3)]
        assigned = [min(range(4), key=lambda k, r=r, e=e: float(((r - e[k]) ** 2).sum())) for r in rows]
        n, m = n.clone(), m.clone()
        for k in range(4):
            mine = [r for r, a in zip(rows, assigned, strict=True) if a == k]
            n[k] = 0.9 * n[k] + 0.1 * len(mine)
            m[k] = 0.9 * m[k] + 0.1 * sum(mine, torch.zeros(2, dtype=torch.float64))
        quantiser(z)
        torch.testing.assert_close(quantiser.counts, n)
        torch.testing.assert_close(quantiser.sums, m)
    smooth = (n + 0.01) / (n.sum() + 4 * 0.01) * n.sum()
    torch.testing.assert_close(quantiser.current(), m / smooth[:, None])


def test_averages_move_in_training_with_gradient_alone() -> None:
    quantiser, z = Quantiser(4, 2), torch.randn(5, 2, 3)
    before = quantiser.current().clone()
    with torch.no_grad():
        quantiser(z)
    quantiser.eval()
    quantiser(z)
    assert torch.equal(quantiser.current(), before) and not quantiser.started
    quantiser.train()
    quantiser(z)
    assert not torch.equal(quantiser.current(), before) and quantiser.started


def test_a_code_that_is_not_used_begins_anew_at_a_vector_of_the_batch() -> None:
    quantiser = Quantiser(3, 2, decay=0.5, revive=0.1)
    far, near = torch.tensor([[100.0, 100.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    set_to(quantiser, torch.cat([near, far]), torch.tensor([10.0, 10.0, 0.1]))
    z = torch.rand(10, 2, 3)
    quantiser(z)
    rows = z.movedim(1, -1).flatten(0, 1)
    # 30 vectors, 3 codes: even use is 10, and a code begins anew below 1.
    assert quantiser.counts[2] == 10.0 and (quantiser.counts[:2] > 1).all()
    new = quantiser.sums[2] / 10.0
    assert ((rows - new).abs().amax(1) < 1e-6).any()
    kept = Quantiser(3, 2, decay=0.5, revive=0.0)
    set_to(kept, torch.cat([near, far]), torch.tensor([10.0, 10.0, 0.1]))
    kept(z)
    torch.testing.assert_close(kept.sums[2] / kept.counts[2], far[0])


def test_codes_that_were_never_used_all_begin_at_the_first_batch() -> None:
    quantiser, z = Quantiser(8, 2), 5 + torch.rand(50, 2, 3)
    quantiser(z)
    assert (quantiser.current() > 4.9).all()


def test_the_gradient_passes_straight_through() -> None:
    z = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    e = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    value, weight = straight_through(z, e), torch.randn(3, 2, 4, dtype=torch.float64)
    assert torch.equal(value, e)
    gradients = torch.autograd.grad((weight * value).sum(), [z, e], allow_unused=True)
    assert torch.equal(gradients[0], weight) and gradients[1] is None


@pytest.mark.parametrize("decay", [None, 0.99])
def test_the_gradients_of_the_loss_by_hand(decay: float | None) -> None:
    """d/dz beta ||z - sg e||^2 = 2 beta (z - e); of codes by gradient d/de_k = 2 sum of (e_k - z) over their z."""
    quantiser = Quantiser(4, 2, decay=decay, commitment=0.3).double()
    z = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    quantiser.eval()
    index = quantiser(z)
    e = quantiser.vectors(index)
    loss = quantiser.loss(z, e)
    assert loss.shape == (5,)
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), z, retain_graph=True)[0], 0.6 * (z - e).detach())
    squared = (z - e).square().sum((1, 2))
    torch.testing.assert_close(loss, squared * (0.3 if decay else 1.3))
    if decay is None:
        (found,) = torch.autograd.grad(loss.sum(), quantiser.weight)
        expected = torch.zeros_like(found)
        for b in range(5):
            for s in range(3):
                k = index[b, s]
                expected[k] += 2 * (quantiser.weight[k] - z[b, :, s]).detach()
        torch.testing.assert_close(found, expected)


def test_k_means_finds_clusters_and_the_codes_start_there() -> None:
    """Five far clusters: k-means++ and Lloyd's rounds end at their means, whatever the seed."""
    means = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0], [50.0, 50.0], [100.0, 100.0]])
    rows = (means.repeat(20, 1) + 0.1 * torch.randn(100, 2)).contiguous()
    expected = rows.view(20, 5, 2).mean(0)
    found = k_means(rows, 5)
    found = found[torch.cdist(expected, found).argmin(1)]
    torch.testing.assert_close(found, expected)
    quantiser = Quantiser(5, 2)
    quantiser.start(rows.view(20, 5, 2).movedim(2, 1))
    codes = quantiser.current()
    torch.testing.assert_close(codes[torch.cdist(expected, codes).argmin(1)], expected)
    assert (quantiser.counts == 20).all()
    quantiser.start(torch.randn(9, 2, 4))  # it has begun: nothing happens
    assert torch.equal(quantiser.current(), codes)


def test_k_means_of_fewer_vectors_than_centres() -> None:
    assert k_means(torch.ones(3, 2), 5).shape == (5, 2)


def test_the_state_has_the_codes() -> None:
    quantiser, other = Quantiser(4, 2), Quantiser(4, 2)
    quantiser(torch.randn(5, 2, 3))
    other.load_state_dict(quantiser.state_dict())
    assert torch.equal(other.current(), quantiser.current()) and other.started


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"codes": 0}, "codes: got 0"),
        ({"dim": 0}, "dim: got 0"),
        ({"decay": 1.0}, "decay: got 1.0"),
        ({"commitment": -1.0}, "commitment: got -1.0"),
        ({"revive": -0.1}, "revive: got -0.1"),
    ],
)
def test_errors(options: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Quantiser(**{"codes": 4, "dim": 2, **options})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"got vectors of shape \(5, 3, 4\), expected \(B, 2, ...\)"):
        Quantiser(4, 2)(torch.zeros(5, 3, 4))
