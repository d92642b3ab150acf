"""A run folder describes itself, is written by one process, and is never left half made."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from ppl_vae import cli
from ppl_vae.cli import train as train_command
from ppl_vae.records import History, Record
from ppl_vae.run_folder import RunFolder

TINY = ["--steps", "20", "--batch_size", "20", "--num-particles", "2", "--num_test", "20", "--progress", "false"]
TINY += ["--pair", "VAE(latent_dim=2, hidden=(7,))"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*words: str) -> None:
    cli.main(["train", *words])


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(*words)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def lines(folder: str = "run") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


def test_a_run_folder_describes_itself() -> None:
    options = ["--ema", "0.9", "--valid", "100", "--schedule", "cosine:5", "--clip-norm", "50", "--accumulate", "2"]
    run(*TINY, *options, "--checkpoint-every", "7", "--precision", "bf16", "--on-nonfinite", "skip")
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["ema"] == 0.9 and config["schedule"] == "cosine:5" and config["binarisation"] == "dynamic"
    assert {"torch", "cpu", "threads", "device"} <= json.loads(Path("run/environment.json").read_text()).keys()
    curve = lines()
    assert [row["step"] for row in curve] == list(range(1, 21))
    assert all(row["valid"] < 0 and row["gradient_norm"] > 0 and row["skipped"] == 0 for row in curve)
    assert curve[0]["learning_rate"] < curve[5]["learning_rate"] > curve[-1]["learning_rate"]
    assert Path("run/metrics.csv").read_text().startswith("step,bound,seconds,gradient_norm,learning_rate")
    steps = sorted(int(p.name.split("-")[1]) for p in Path("run/checkpoints").iterdir())
    assert steps == [7, 14, 20]
    log = Path("run/log.txt").read_text().splitlines()
    assert len(log) == 2 and " began: " in log[0] and log[1].endswith("+00:00 finished")
    best = max(curve, key=lambda row: row["valid"])["step"]
    assert json.loads(Path("run/results.json").read_text())["history"]["best"] == best


def test_a_finished_run_taken_up_is_evaluated_again_and_refuses_other_settings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(*TINY)
    first = json.loads(Path("run/results.json").read_text())
    run("--resume", "run", "--num-particles", "2", "--progress", "false")
    second = json.loads(Path("run/results.json").read_text())
    assert first["evaluation"]["nll"] == second["evaluation"]["nll"] and second["history"]["resumed"] == [20]
    message = refused(capsys, "--resume", "run", "--batch_size", "30")
    assert "resume: got {'batch_size': 30}, expected {'batch_size': 20}" in message
    assert "without config.yaml, expected a folder written by ppl-vae train" in refused(capsys, "--resume", "nowhere")


def test_a_checkpoint_may_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    run(*TINY, "--checkpoint-every", "5")
    older, newer, newest = sorted(Path("run/checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-1])
    message = refused(capsys, "--resume", "run")
    assert f"{newest} is damaged" in message and f"{newer} instead" in message
    first = Path("run/pair.pt").read_bytes()
    run("--resume", str(older))
    assert Path("run/pair.pt").read_bytes() == first and [row["step"] for row in lines()] == list(range(1, 21))


def test_an_older_folder_goes_when_the_new_run_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    run(*TINY)
    before = Path("run/pair.pt").read_bytes()
    with pytest.raises(SystemExit):
        run(*TINY, "--overwrite", "true", "--learning_rate", "nan")
    assert Path("run/pair.pt").read_bytes() == before and [p.name for p in Path().iterdir()] == ["run"]
    run(*TINY, "--overwrite", "true", "--seed", "1")
    assert Path("run/pair.pt").read_bytes() != before and [p.name for p in Path().iterdir()] == ["run"]


def test_a_line_that_a_kill_has_cut_off_is_written_again() -> None:
    with RunFolder.create("run", {}) as folder:
        for step in (10, 20, 30):
            folder.record(Record(step, -1.0, 0.1))
    metrics = Path("run/metrics.jsonl")
    metrics.write_text(metrics.read_text()[:-9])
    with RunFolder.reopen("run") as folder:
        folder.record(Record(20, -2.0, 0.2))
        folder.record(Record(30, -2.0, 0.3))
    assert [(row["step"], row["bound"]) for row in lines()] == [(10, -1.0), (20, -2.0), (30, -2.0)]
    folder.finish(History(records=[Record(5, -3.0, 0.1)]))
    assert [row["step"] for row in lines()] == [5]


def test_errors_before_the_first_point_leave_nothing_and_later_ones_keep_the_run() -> None:
    for steps in (0, 1):
        with pytest.raises(ArithmeticError), RunFolder.create("run", {"a": 1}) as folder:
            for step in range(steps):
                folder.record(Record(step, -1.0, 0.1))
            raise ArithmeticError("as it happens")
        assert Path("run").exists() is (steps > 0)
    assert Path("run/log.txt").read_text().endswith("ended by ArithmeticError: as it happens\n")


def test_one_folder_at_a_time() -> None:
    with RunFolder.create("run", {}) as folder:
        folder.record(Record(1, -1.0, 0.1))
        with pytest.raises(ValueError, match="which another process is writing"), RunFolder.reopen("run"):
            pass
    with RunFolder.reopen("run"):
        pass


def test_an_unfinished_run_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    run(*TINY)
    Path("run/pair.pt").unlink()
    with pytest.raises(SystemExit):
        cli.main(["sample", "run"])
    assert "let it go on with ppl-vae train --resume run" in capsys.readouterr().err


def test_a_disk_without_room_is_refused_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = sys.modules[train_command.__module__]
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: _Usage)
    message = refused(capsys, *TINY)
    assert "out: got 0 MB free at run, expected at least" in message and list(Path().iterdir()) == []


class _Usage:
    free = 1000


def test_tensorboard_gets_the_learning_curve(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    message = refused(capsys, *TINY, "--tensorboard", "true")
    assert "pip install 'ppl_vae[tensorboard]'" in message and list(Path().iterdir()) == []
    seen: list[tuple[str, int]] = []

    class Writer:
        def __init__(self, folder: Path) -> None:
            assert folder == Path("run/tensorboard")

        def __enter__(self) -> "Writer":
            return self

        def __exit__(self, *error: object) -> None: ...

        def add_scalar(self, name: str, value: float, step: int) -> None:
            seen.append((name, step))

    fake = ModuleType("torch.utils.tensorboard.writer")
    fake.SummaryWriter = Writer  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", fake)
    run(*TINY, "--tensorboard", "true")
    assert [step for name, step in seen if name == "bound"] == list(range(1, 21))
    assert {name for name, _ in seen} == {"bound", "gradient_norm", "learning_rate", "skipped"}
