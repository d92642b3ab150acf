"""`ppl-vae` on pairs of codes: both stages by one command, a kill in the second, what reads a run."""

import json
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from ppl_vae.run_folder import RunFolder
from ppl_vae.training import Record
from tests.command_line import refused, run

SIZES = "codes=4, code_dim=2, hidden=4, blocks=1, prior_hidden=4, prior_layers=1"
TRAIN = ["train", "--data", "labelled(digits)", "--steps", "4", "--batch_size", "10", "--checkpoint_every", "2"]
TRAIN += ["--num_test", "20", "--progress", "false", "--pair", f"VQVAE2({SIZES})"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def results(folder: str) -> dict[str, Any]:
    found = json.loads(Path(folder, "results.json").read_text())
    # What another run of the same has too: no times.
    return {"evaluation": {**found["evaluation"], "seconds": 0}, "codes": found["codes"], "data": found["data"]}


def test_both_stages_then_all_that_reads_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    run(*TRAIN)
    shown = capsys.readouterr().out
    assert "of 4 codes used" in shown and "two-part code" in shown and "importance sampling" not in shown
    found = results("run")
    assert set(found["codes"]) == {"top", "bottom"} and found["evaluation"]["num_particles"] == 1
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    for name in ("codes", "reconstructions", "samples", "learning_curve"):
        assert matplotlib.image.imread(f"run/{name}.png").size > 0
    run("evaluate", "run", "--num_test", "20", "--progress", "false")
    assert json.loads(Path("run/evaluation.json").read_text())["nll"] == pytest.approx(found["evaluation"]["nll"])
    run("sample", "run", "--num", "4", "--label", "7", "--out", "seven.png")
    for latents in ("top", "bottom", "top, bottom"):
        run("reconstruct", "run", "--num", "3", "--latents", latents, "--out", f"{latents}.png")
    pictures = [Path(f"{name}.png").read_bytes() for name in ("top", "bottom", "top, bottom")]
    assert len(set(pictures)) == 3
    assert "latents: got 'z', expected some of top, bottom" in refused(capsys, "reconstruct", "run", "--latents", "z")


@pytest.mark.parametrize("points", [2, 6])
def test_a_run_that_was_killed_in_either_stage_ends_the_same(points: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run(*TRAIN, "--out", "whole")
    keep, count = RunFolder.record, 0

    def killed(folder: RunFolder, record: Record) -> None:
        nonlocal count
        keep(folder, record)
        count += 1
        if count == points:
            raise MemoryError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "record", killed)
        with pytest.raises((MemoryError, SystemExit)):
            run(*TRAIN, "--out", "run")
    run(*TRAIN, "--resume", "run")
    assert results("run") == results("whole")
    lines = [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(1, 9))
