"""`ppl-vae` on data with classes: training, samples of one class, completions, and what is refused."""

import json
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from torch import Tensor

from ppl_vae import Pair, generation, runs
from tests.command_line import refused, run

DATA = "labelled(digits)"
TINY = ["--steps", "3", "--batch_size", "10", "--num_particles", "2", "--num_test", "20", "--progress", "false"]
PIXELS = "PixelCNN(hidden=4, layers=2, features=4)"
VAE = "ConditionalVAE(latent_dim=2, hidden=(5,))"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("pair", [PIXELS, VAE, "MADE(hidden=(5,))"])
def test_train_then_all_that_reads_a_run(pair: str) -> None:
    run("train", "--data", DATA, "--pair", pair, "--valid", "100", *TINY)
    results = json.loads(Path("run/results.json").read_text())
    assert results["data"]["classes"] == 10 and results["data"]["num_train"] == 1337
    run("evaluate", "run", "--num_particles", "2", "--num_test", "20", "--progress", "false")
    again = json.loads(Path("run/evaluation.json").read_text())
    assert again["nll"] == pytest.approx(results["evaluation"]["nll"], rel=1e-5)
    run("sample", "run", "--num", "20", "--out", "all.png")
    run("sample", "run", "--num", "4", "--label", "7", "--out", "seven.png")
    if pair == VAE:
        run("reconstruct", "run", "--num", "3")
    else:
        run("complete", "run", "--num", "2", "--draws", "1")
    assert matplotlib.image.imread("all.png").size > matplotlib.image.imread("seven.png").size > 0


def test_a_label_is_the_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    run("train", "--data", DATA, "--pair", VAE, *TINY)
    asked, plain = [], generation.samples

    def samples(pair: Pair, x: Tensor, c: Tensor, **options: Any) -> Tensor:
        asked.append(c.tolist())
        return plain(pair, x, c, **options)

    monkeypatch.setattr(generation, "samples", samples)
    run("sample", "run", "--num", "3", "--label", "7")
    run("sample", "run", "--num", "12")
    assert asked == [[7, 7, 7], [*range(10), 0, 1]]


def test_without_a_pair_it_is_a_conditional_vae() -> None:
    run("train", "--data", DATA, *TINY)
    assert type(runs.load_run("run").pair).__name__ == "ConditionalVAE"
    run("compare", "--data", DATA, "--seeds", "1", "--workers", "1", *TINY)
    rows = json.loads(Path("compare-labelled/results.json").read_text())["runs"]
    assert len(rows) == 3


def test_what_does_not_fit_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "VAE.model(x)" in refused(capsys, "train", "--data", DATA, "--pair", "VAE(latent_dim=2)", *TINY)
    few = PIXELS.replace("(", "(classes=5, ", 1)
    assert "classes=5, expected 10" in refused(capsys, "train", "--data", DATA, "--pair", few, *TINY)
    told = PIXELS.replace("(", "(classes=10, ", 1)
    assert "got x alone, expected (x, c)" in refused(capsys, "train", "--data", "digits", "--pair", told, *TINY)
    np.save("x.npy", np.random.default_rng(0).random((20, 4)))
    assert "got no labels" in refused(capsys, "train", "--data", "labelled(x.npy)", *TINY)
    assert not Path("run").exists()
    run("train", "--data", DATA, "--pair", VAE, *TINY)
    assert "got the class 10, expected 0 to 9" in refused(capsys, "sample", "run", "--label", "10")
    assert "got the class -1, expected 0 to 9" in refused(capsys, "sample", "run", "--label", "-1")
    run("train", "--pair", "VAE(latent_dim=2)", "--out", "plain", *TINY)
    assert "label: got 3 for a run on digits" in refused(capsys, "sample", "plain", "--label", "3")
