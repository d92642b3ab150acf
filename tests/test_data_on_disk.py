"""Runs on data that stay on disk end as those on the same data in memory, also when they are killed or misled."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from ppl_vae import SVI, cli, fit
from ppl_vae.data import Dataset, binarise, from_tensor, load, load_folder
from ppl_vae.objectives import IWAE
from ppl_vae.pair import Pair
from ppl_vae.pairs import VAE
from ppl_vae.training import Data, steps_of

BYTES = np.random.default_rng(0).integers(0, 256, (60, 6, 6), dtype=np.uint8)
STEPS = ["--steps", "24", "--batch-size", "10", "--num-particles", "2", "--checkpoint-every", "5", "--compile", "off"]
WORDS = [*STEPS, "--pair", "VAE(latent_dim=2, hidden=(7,))", "--progress", "false", "--binarisation", "dynamic"]


def fresh() -> Pair:
    torch.manual_seed(0)
    return VAE((1, 6, 6), latent_dim=2, hidden=(7,))


def weights(data: Data, **options: Any) -> dict[str, Tensor]:
    pair = fresh()
    options = {"steps": 20, "batch_size": 8, "progress": False, "device": "cpu", **options}
    fit(pair, data, IWAE(num_particles=2), **options)
    return pair.state_dict()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "images"
    path.mkdir()
    for number, rows in enumerate((BYTES[:25], BYTES[25:50])):
        np.save(path / f"train-{number}.npy", rows)
    np.save(path / "test.npy", BYTES[50:])
    return path


def in_memory() -> Dataset[Tensor]:
    return binarise(from_tensor(BYTES[:50], test=BYTES[50:]), "dynamic")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_weights_are_those_of_data_in_memory(folder: Path, num_workers: int) -> None:
    on_disk = load(str(folder), binarisation="dynamic")
    assert steps_of(2, on_disk, 8) == steps_of(2, in_memory(), 8) == 12
    got = weights(on_disk, num_workers=num_workers)
    assert same(got, weights(in_memory()))
    assert not same(got, weights(in_memory(), seed=1))


def test_any_map_style_data_set(folder: Path) -> None:
    x = in_memory().train.round()
    assert same(weights(TensorDataset(x)), weights(x))


def test_what_is_drawn_to_check_the_first_batch_leaves_no_trace(folder: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    pair = fresh()
    torch.manual_seed(5)
    fit(pair, binarise(load_folder(folder), "dynamic"), steps=2, batch_size=8, progress=False)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        (in_memory(), {"num_workers": 2}, "num_workers: got 2 for data in memory, expected 0"),
        (in_memory().train, {"num_workers": 1}, "num_workers: got 1 for data in memory, expected 0"),
        (TensorDataset(torch.zeros(20, 1, 6, 6, dtype=torch.float64)), {}, "got torch.float64, expected torch.float32"),
        (TensorDataset(torch.full((20, 1, 6, 6), torch.nan)), {}, "non-finite values"),
        (iter([1]), {}, "expected a map-style data set"),
    ],
)
def test_what_is_refused_before_the_first_step(data: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        weights(data, **options)


class Crash(Exception):
    pass


def train(*words: str, at: int = 0, act: Callable[[], object] = lambda: None) -> int:
    """The exit status of `ppl-vae train`; something happens before a step."""

    def update(self: Any, *batch: Any) -> Tensor:
        if self.objective.step + 1 == at:
            act()
        return real(self, *batch)

    with pytest.MonkeyPatch.context() as patch:
        real = SVI.update
        patch.setattr(SVI, "update", update)
        try:
            cli.main(["train", *words])
        except SystemExit as stopped:
            return int(stopped.code or 0)
    return 0


def crash() -> None:
    raise Crash


@pytest.mark.parametrize("num_workers", ["0", "2"])
def test_unreadable_data_end_a_run_that_goes_on_exactly_once_they_are_mended(
    folder: Path, num_workers: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.parent)
    words = [*WORDS, "--data", "images", "--num-workers", num_workers]
    assert train(*words, "--out", "whole") == 0
    with pytest.raises(Crash):
        train(*words, "--out", "run", at=8, act=crash)
    capsys.readouterr()
    shard = folder / "train-1.npy"
    content = shard.read_bytes()
    assert train("--resume", "run", at=12, act=lambda: shard.write_bytes(content[:-700])) == 2
    message = capsys.readouterr().err
    assert message.startswith("ppl-vae: error: ") and message.count("\n") == 1
    assert "train-1.npy: got the end of the file in row" in message and "on fetching rows [" in message
    assert train("--resume", "run") == 2  # still cut off
    assert "train-1.npy" in capsys.readouterr().err
    shard.write_bytes(content)
    assert train("--resume", "run", "--num-workers", "1") == 0
    first, second = (torch.load(f"{name}/pair.pt", weights_only=True) for name in ("whole", "run"))
    assert same(first, second)
