"""The benchmark runs, and is honest: the rivals compute what ours computes."""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import Z_LIMIT

BENCHMARKS = Path(__file__).parent.parent / "examples" / "benchmarks"
CASES = [("mlp", 1), ("mlp", 3), ("burda1", 1), ("burda1", 50), ("burda2", 1), ("burda2", 50), ("conv", 1)]


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a file of the benchmark as its scripts do."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.mark.parametrize(("name", "k"), CASES)
def test_hand_written_loss_and_gradients_are_ours(modules: Any, name: str, k: int) -> None:
    workloads = modules("workloads")
    workload = replace(workloads.WORKLOADS[name], k=k)
    images = torch.rand(6, 1, 28, 28).round()
    check = workloads.agreement(workload, images)
    assert check["parameters"]["hand"] == check["parameters"]["ours"]
    assert check["loss"]["hand"] == pytest.approx(check["loss"]["ours"], rel=1e-12)
    assert abs(check["loss"]["hand"]) > 0
    assert check["largest_relative_difference_of_gradients"] < 1e-10


def test_weights_of_another_architecture_are_refused(modules: Any) -> None:
    rivals = modules("rivals")
    with pytest.raises(ValueError, match="not the same architecture"):
        rivals.copy_weights(torch.nn.Linear(2, 3), torch.nn.Linear(2, 4))
    with pytest.raises(ValueError, match="left: not the same architecture"):
        rivals.copy_weights(torch.nn.Linear(2, 3), torch.nn.Linear(2, 3, bias=False))


@pytest.mark.parametrize("name", ["mlp", "burda1", "burda2", "conv"])
def test_numpyro_has_the_loss_of_the_hand_written_model(modules: Any, name: str) -> None:
    pytest.importorskip("numpyro")
    workloads, numpyro_rival = modules("workloads"), modules("numpyro_rival")
    workload = replace(workloads.WORKLOADS[name], batch=8)
    task = workloads.Task.of(workload, workloads.load_images(None)[0][:8])
    hand, x = task.hand(), task.batches[0]
    by_hand = torch.tensor([hand.loss(x).item() for _ in range(50)])
    theirs = torch.tensor(numpyro_rival.losses(task, 50))
    error = (by_hand.var() / len(by_hand) + theirs.var() / len(theirs)).sqrt()
    assert abs(theirs.mean() - by_hand.mean()) < Z_LIMIT * error


def test_ratio_is_that_of_blocks_of_one_round(modules: Any) -> None:
    timing = modules("timing")
    slow, fast = timing.Entry(blocks=[4.0, 8.0, 12.0]), timing.Entry(blocks=[2.0, 2.0, 6.0])
    assert slow.as_dict(fast)["ratio"] == {"q1": 2.0, "median": 2.0, "q3": 3.0}
    assert slow.as_dict(fast)["ms_per_step"] == {"q1": 6.0, "median": 8.0, "q3": 10.0}
    assert timing.Entry(status="not installed").as_dict(fast)["status"] == "not installed"


def test_quick_run_writes_every_number(tmp_path: Path) -> None:
    asked = ["stock", "stock-jit", "hand", "hand-cudagraph", "numpyro", "ours-off", "ours-cudagraph"]
    command = [sys.executable, str(BENCHMARKS / "step_time.py"), "--quick", "--threads", "1"]
    command += ["--workloads", "burda1", "--contestants", *asked]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "results" / "step_time_cpu.json").read_text())
    assert result["config"]["rounds"] == 3 and result["config"]["pyro_validates_by_default"]
    assert result["environment"]["threads"] == 1
    rows = result["workloads"]["burda1"]["contestants"]
    assert list(rows) == asked
    for name in ("stock", "hand", "ours-off"):
        assert rows[name]["status"] == "ok"
        assert len(rows[name]["blocks_ms"]) == 3
        assert 0 < rows[name]["ms_per_step"]["q1"] <= rows[name]["ms_per_step"]["median"]
        assert -1000 < rows[name]["bound_before_timing"] < 0
        assert name in done.stdout
    assert rows["hand"]["ratio"]["median"] == 1
    assert rows["stock-jit"]["status"] == "Pyro compiles no RenyiELBO: k = 1 alone"
    assert rows["hand-cudagraph"]["status"] == "needs CUDA"
    assert rows["ours-cudagraph"]["status"] == "not for cpu"
    assert rows["numpyro"]["status"] == "ok" or rows["numpyro"]["status"].startswith("not installed")
    sweep = result["scaling"]
    assert [row["batch"] for row in sweep["batch"]["rows"]] == [row["k"] for row in sweep["k"]["rows"]] == [2, 4]
    assert all(row[name]["peak_bytes"] > 1000 for row in sweep["k"]["rows"] for name in ("hand", "ours"))
    assert (tmp_path / "results" / "step_time_cpu.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads memory from /proc")
def test_the_cost_of_checkpoints_is_written(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "checkpoint_cost.py"), "--seconds", "1", "--megabytes", "64"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "results" / "checkpoint_cost.json").read_text())
    assert result["share"]["training_seconds"] > 1 and result["memory"]["seconds"] > 0
    assert result["memory"]["peak_megabytes"] - result["memory"]["before_megabytes"] < 32


def test_the_time_of_a_step_that_processes_share_is_written(tmp_path: Path) -> None:
    options = ["--steps", "5", "--rounds", "1", "--batches", "16", "--compile", "off"]
    command = [sys.executable, str(BENCHMARKS / "rank_time.py"), *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "results" / "rank_time.json").read_text())["rows"]
    assert row["batch"] == 16 and row["ratio"] == pytest.approx(row["ms_ranks"] / row["ms_threads"])


@pytest.mark.parametrize("options", [["--stack", "gated"], ["--stack", "masked", "--whole"]], ids=["gated", "masked"])
def test_the_time_of_a_draw_is_written(tmp_path: Path, options: list[str]) -> None:
    tiny = ["--hidden", "2", "--layers", "2", "--number", "2", "--size", "5", "--sample", "3", "--rounds", "2"]
    command = [sys.executable, str(BENCHMARKS / "draw_time.py"), *tiny, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    ways = json.loads((tmp_path / "results" / "draw_time_cpu.json").read_text())["ways"]
    how = "measured" if "--whole" in options else "estimated from 3 of 25 pixels"
    assert {name: way["how"] for name, way in ways.items()} == {
        "cached": "measured",
        "rows so far": how,
        "whole image": how,
    }
    assert all(len(way["rounds_seconds"]) == 2 and way["seconds"]["q1"] > 0 for way in ways.values())
    assert ways["cached"]["ratio"]["median"] == 1 and how in done.stdout


def test_the_time_of_a_painters_step_is_written(tmp_path: Path) -> None:
    tiny = ["--canvas", "12", "--glimpses", "2", "--hidden", "8", "--latent-dim", "2", "--batch", "4"]
    options = [*tiny, "--warm", "1", "--steps", "1", "--rounds", "2"]
    command = [sys.executable, str(BENCHMARKS / "painter_time.py"), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results" / "painter_time_cpu.json").read_text())
    assert list(found["ms_per_step"]) == ["off"] and found["ms_per_step"]["off"]["q1"] > 0
    assert f"{found['loss_after_warm_up']['off']:.2f} nats per datum" in done.stdout


def test_the_text_vae_by_hand_is_the_same_and_both_are_timed(tmp_path: Path) -> None:
    tiny = ["--vocabulary", "30", "--latent-dim", "2", "--embedding", "4", "--hidden", "8", "--batch", "4"]
    options = [*tiny, "--steps", "1", "--rounds", "2"]
    command = [sys.executable, str(BENCHMARKS / "text_time.py"), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results" / "text_time_cpu.json").read_text())
    losses = found["losses_on_one_seed"]
    assert losses["ppl_vae"] == pytest.approx(losses["by hand"], rel=1e-5)
    assert found["words_per_second"]["ppl_vae"]["q1"] > 0 and found["ratio_to_by_hand"]["median"] > 0


def test_pixels_at_which_draws_are_timed_are_spread_evenly(modules: Any) -> None:
    spread = modules("draw_time").spread
    assert spread(784, 784) == list(range(784))
    assert spread(3, 25) == [4, 12, 20]
    assert sum(spread(16, 784)) / 16 == pytest.approx(392, abs=1)
