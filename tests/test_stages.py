"""Training in stages: one after the other, resumable in each, one learning curve."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ppl_vae import fit, fit_stages
from ppl_vae.pairs import VAE, VQVAE
from ppl_vae.stages import joined
from ppl_vae.training import Record


class Killed(Exception):
    pass


def pair() -> VQVAE:
    torch.manual_seed(0)
    return VQVAE((1, 4, 4), codes=4, code_dim=2, hidden=4, blocks=1, prior_hidden=4, prior_layers=1)


X = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0)).round()
SETTINGS: dict[str, Any] = {"batch_size": 10, "device": "cpu", "progress": False}


def test_a_pair_of_one_stage_is_fitted() -> None:
    pairs = []
    for _ in range(2):
        torch.manual_seed(0)
        pairs.append(VAE((1, 4, 4), latent_dim=2, hidden=(5,)))
    done = fit_stages(pairs[0], X, steps=5, **SETTINGS)
    history = fit(pairs[1], X, steps=5, **SETTINGS)
    assert list(done) == [""] and done[""].steps == 5
    assert joined(done).curve == history.curve
    for a, b in zip(pairs[0].parameters(), pairs[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_stages_one_by_one_are_the_same() -> None:
    together, apart = pair(), pair()
    records: list[Record] = []
    done = fit_stages(together, X, steps={"codes": 6, "prior": 4}, on_record=records.append, **SETTINGS)
    histories = [
        fit(stage, X, steps=steps, **SETTINGS) for stage, steps in zip(apart.stages().values(), (6, 4), strict=True)
    ]
    for (name, a), b in zip(together.state_dict().items(), apart.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert [h.curve for h in done.values()] == [h.curve for h in histories]
    whole = joined(done)
    assert whole.steps == 10 and [r.step for r in whole.records] == [*range(1, 11)] == [r.step for r in records]
    assert [r.bound for r in whole.records] == [r.bound for h in histories for r in h.records]
    seconds = [r.seconds for r in whole.records]
    assert seconds == sorted(seconds) and whole.seconds >= seconds[-1]


@pytest.mark.parametrize("when", [3, 8])
def test_a_run_that_was_killed_in_either_stage_ends_the_same(tmp_path: Path, when: int) -> None:
    whole, killed = pair(), pair()
    fit_stages(whole, X, steps=6, checkpoints=tmp_path / "whole", checkpoint_every=2, **SETTINGS)
    count = 0

    def kill(step: int) -> None:
        nonlocal count
        count += 1
        if count == when:
            raise Killed

    options: dict[str, Any] = {"steps": 6, "checkpoints": tmp_path / "killed", "checkpoint_every": 2, **SETTINGS}
    with pytest.raises(Killed):
        fit_stages(killed, X, on_step=kill, **options)
    again = pair()
    done = fit_stages(again, X, resume=True, **options)
    for (name, a), b in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert joined(done).resumed and [r.step for r in joined(done).records] == [*range(1, 13)]
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {"codes", "prior"}


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"steps: got those of \['codes'\], expected those of the stages"):
        fit_stages(pair(), X, steps={"codes": 2}, **SETTINGS)
    with pytest.raises(ValueError, match="for a run of several stages"):
        fit_stages(pair(), X, steps=2, resume=tmp_path / "step-1.pt", **SETTINGS)
