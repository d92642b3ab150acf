"""A run that is killed, from outside and at any time, goes on and ends with the weights of one that was not.

PPL_VAE_KILLS sets how often, one run and as many runs; 3 by default, since each costs the start of a process.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ppl_vae.checkpoints import Checkpoints
from tests.test_surroundings import PROCESSES, train

KILLS = int(os.environ.get("PPL_VAE_KILLS", "3"))
TRAIN = [sys.executable, "-m", "ppl_vae", "train"]
SETTINGS = ["--steps", "1500", "--batch_size", "20", "--objective", "iwae:5", "--num-particles", "2"]
SETTINGS += ["--pair", "VAE(latent_dim=3, hidden=(20,))", "--checkpoint-every", "10", "--valid", "50"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def start(folder: Path, *words: str) -> "subprocess.Popen[str]":
    command = [*TRAIN, *words, "--progress", "false"]
    return subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def newest_step(run: Path) -> int:
    newest = Checkpoints(run / "checkpoints").newest() if run.exists() else None
    return int(newest.name.split("-")[1]) if newest else 0


def wait_for(run: Path, step: int, process: "subprocess.Popen[str]") -> None:
    while newest_step(run) < step and process.poll() is None:
        time.sleep(0.02)


def test_killed_runs_end_the_same(tmp_path: Path) -> None:
    chance, run = random.Random(0), tmp_path / "killed"
    whole = start(tmp_path, *SETTINGS, "--out", "whole")
    assert whole.wait(300) == 0
    words = [*SETTINGS, "--out", "killed"]
    for number in range(KILLS):
        process = start(tmp_path, *words)
        wait_for(run, newest_step(run) + chance.randrange(1, 1000 // KILLS), process)
        time.sleep(0.02 * chance.random())
        how = signal.SIGKILL if number % 3 else signal.SIGTERM
        process.send_signal(how)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == (-9 if how == signal.SIGKILL else 128 + how), errors
        assert "Traceback" not in errors
        words = ["--resume", "killed"]
    last = start(tmp_path, *words)
    _, errors = last.communicate(timeout=300)
    assert last.returncode == 0, errors
    first, second = (torch.load(tmp_path / name / "pair.pt", weights_only=True) for name in ("whole", "killed"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    curves = [
        [json.loads(line) | {"seconds": 0} for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "killed")
    ]
    assert curves[0] == curves[1] and len(curves[0]) == 100
    log = (run / "log.txt").read_text()
    assert log.count(" began: ") == 1 and log.count(" was taken up: ") == KILLS and log.endswith(" finished\n")
    assert {p.name for p in tmp_path.iterdir()} == {"whole", "killed"}


def test_runs_killed_once_end_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    chance, words = random.Random(1), [*SETTINGS, "--progress", "false"]
    assert train(*words, "--out", "whole") == 0
    expected = torch.load("whole/pair.pt", weights_only=True)
    for number in range(KILLS):
        process: Any = PROCESSES.Process(target=train, args=[*words, "--out", f"{number}"])
        process.start()
        step = chance.randrange(1, 1400)
        while newest_step(Path(f"{number}")) < step and process.is_alive():
            time.sleep(0.002)
        time.sleep(0.02 * chance.random())
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert train("--resume", f"{number}") == 0
        got = torch.load(f"{number}/pair.pt", weights_only=True)
        assert got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in got)


def test_two_processes_never_write_one_folder(tmp_path: Path) -> None:
    process = start(tmp_path, *SETTINGS, "--steps", "1000000", "--out", "run")
    wait_for(tmp_path / "run", 1, process)
    for words in (["--resume", "run"], [*SETTINGS, "--out", "run", "--overwrite", "true"]):
        second = start(tmp_path, *words)
        _, errors = second.communicate(timeout=60)
        assert second.returncode == 2 and "which another process is writing" in errors
    before = newest_step(tmp_path / "run")
    wait_for(tmp_path / "run", before + 1, process)
    assert process.poll() is None
    process.kill()
    process.communicate(timeout=60)


@pytest.mark.parametrize("limit", [20_000, 200_000])
def test_a_full_disk_ends_a_run_with_one_message(limit: int, tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: the first checkpoint does not fit, or the environment."""
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "from ppl_vae.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    pair = ["--pair", "VAE(latent_dim=20, hidden=(100, 100))"]
    words = ["train", *SETTINGS, *pair, "--progress", "false"]
    ended = subprocess.run(
        [sys.executable, "-c", script, *words],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 2 and "Traceback" not in ended.stderr, ended.stderr
    assert "expected room for a file" in ended.stderr
    assert not list(tmp_path.rglob("*.tmp"))
