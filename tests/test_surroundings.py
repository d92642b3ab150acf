"""Hostile surroundings of a run: full disks, permissions, wrong clocks, damage, signals, other processes."""

import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import pkgutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from ppl_vae import cli, loop, report
from ppl_vae.checkpoints import Checkpoints, read
from tests.command_line import snapshot
from tests.test_checkpoint_faults import file_limit, ordinary_folder

pytest.importorskip("resource", reason="limits, permissions and signals are others on Windows")

SETTINGS = ["--steps", "24", "--batch-size", "20", "--objective", "iwae:2", "--valid", "50", "--num-particles", "2"]
SETTINGS += ["--pair", "VAE(latent_dim=2, hidden=(7,))", "--num-test", "20", "--progress", "false"]
EVERY = ["--checkpoint-every", "4"]

# A process that has imported much and computed nothing: its children start in little time.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["ppl_vae.cli", "torch._dynamo", "sklearn.datasets", "tests.test_surroundings"])

SAVE, RECORD = "ppl_vae.checkpoints.Checkpoints.save", "ppl_vae.run_folder.RunFolder.record"
FINISH, WEIGHTS = "ppl_vae.run_folder.RunFolder.finish", "ppl_vae.runs.save_pair"
STEP, SYNC, METRICS = "ppl_vae.svi.SVI.update", "os.fsync", Path("run/metrics.jsonl")

Place = tuple[str, int]
Outcome = tuple[bytes, list[dict[str, Any]]]
Capture = pytest.CaptureFixture[str]


class Crash(Exception):
    """What ends a run here; nothing catches it."""


def crash(*_: Any) -> None:
    raise Crash


def at(patch: pytest.MonkeyPatch, place: Place, act: Callable[[], object]) -> None:
    """Let something happen right before the so-manieth call of a function."""
    name, number = place
    count, real = itertools.count(1), pkgutil.resolve_name(name)

    def called(*arguments: Any, **options: Any) -> Any:
        if next(count) == number:
            act()
        return real(*arguments, **options)

    patch.setattr(name, called)


@functools.cache
def digits() -> Any:
    """Read once: an ordinary user may not be allowed to look where packages are installed."""
    return load_digits(return_X_y=True)


def train(*words: str, place: Place | None = None, signals: Sequence[int] = ()) -> Any:
    """The exit status; sends itself signals at a place."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("learning_curves", "pictures"):  # they take longer than all else
            patch.setattr(report, name, lambda *_: None)
        patch.setattr("sklearn.datasets.load_digits", lambda **_: digits())
        if place is not None:
            at(patch, place, lambda: [Path("signalled").touch(), *(os.kill(os.getpid(), n) for n in signals)])
        try:
            cli.main(["train", *words])
        except SystemExit as stopped:
            return stopped.code
    return 0


@contextlib.contextmanager
def started(words: Sequence[str], place: Place, number: int) -> Iterator[Any]:
    """The same in a process of its own, which has ended when this ends."""
    process = PROCESSES.Process(target=train, args=words, kwargs={"place": place, "signals": [number]})
    process.start()
    yield process
    process.join(300)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def outcome(run: Path) -> Outcome:
    """Weights and learning curve of a run that is complete."""
    curve = lines(run)
    seconds = [0.0, *(row["seconds"] for row in curve)]
    assert seconds == sorted(seconds) and seconds[-1] < 3600 and len(curve) == 24
    assert json.loads((run / "environment.json").read_text())["threads"] and not list(run.rglob("*.tmp"))
    assert (run / "log.txt").read_bytes().endswith(b" finished\n")
    return (run / "pair.pt").read_bytes(), [row | {"seconds": 0} for row in curve]


@pytest.fixture(autouse=True)
def _ctrl_c() -> Iterator[None]:
    """SIGINT interrupts, also where the tests were started in the background, which makes shells ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Of a run that nothing happened to."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert train(*SETTINGS, *EVERY, "--out", str(run)) == 0
    return outcome(run)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("run")


def crashed(*words: str) -> None:
    """A run that ended without notice after step 16; its newest checkpoint, of step 12, has the oldest date: 1970."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        at(patch, (SAVE, 4), crash)
        train(*SETTINGS, *EVERY, "--out", "run", *words)
    for path, date in zip(sorted(Path("run/checkpoints").iterdir()), (4102444800, 1e9, 0), strict=True):
        os.utime(path, (date, date))


@contextlib.contextmanager
def read_only(path: Path) -> Iterator[None]:
    before = path.stat().st_mode
    path.chmod(before & 0o555)
    try:
        yield
    finally:
        path.chmod(before)


TROUBLES: dict[str, tuple[Place, Callable[[], Any], str]] = {
    "full at a checkpoint": ((SAVE, 4), lambda: file_limit(METRICS.stat().st_size + 9000), "free some space"),
    "full within a line": ((RECORD, 11), lambda: file_limit(METRICS.stat().st_size + 60), "free some space"),
    "full at the end": ((FINISH, 1), lambda: file_limit(METRICS.stat().st_size - 60), "free some space"),
    "full at the weights": ((WEIGHTS, 1), lambda: file_limit(METRICS.stat().st_size - 60), "free some space"),
    "read-only checkpoints": ((SAVE, 4), lambda: read_only(Path("run/checkpoints")), "check its permissions"),
    "read-only curve": (
        (RECORD, 11),
        lambda: read_only(METRICS),
        "metrics.jsonl', expected a path that can be read and written; check the path and its permissions",
    ),
    "read-only folder": ((RECORD, 11), lambda: read_only(Path("run")), "check the path and its permissions"),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_a_run_that_can_write_no_more_says_so_and_goes_on_exactly(
    name: str, whole: Outcome, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    place, trouble, advice = TROUBLES[name]
    with ordinary_folder() as folder, contextlib.chdir(folder):
        with contextlib.ExitStack() as stack:
            at(monkeypatch, place, lambda: stack.enter_context(trouble()))
            status = train(*SETTINGS, *EVERY, "--out", "run")
        message = capsys.readouterr().err
        assert status == 2 and message.startswith("ppl-vae: error: ") and message.count("\n") == 1
        assert advice in message and not list(folder.rglob("*.tmp"))
        assert all(map(read, Path("run/checkpoints").iterdir()))
        assert train("--resume", "run") == 0 and outcome(Path("run")) == whole


@pytest.mark.skipif(sys.platform != "linux", reason="tmpfs")
def test_a_disk_that_fills_up(run: Path, whole: Outcome, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    Path("disk").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", "disk"], capture_output=True).returncode:
        pytest.skip("mounting is not permitted; it is under unshare -rm")
    try:
        at(monkeypatch, (SAVE, 4), lambda: subprocess.run(["dd", "if=/dev/zero", "of=disk/other"], capture_output=True))
        for words in ([*SETTINGS, *EVERY, "--out", "disk/run"], ["--resume", "disk/run"]):
            assert train(*words) == 2 and "free some space" in capsys.readouterr().err
            assert all(map(read, Path("disk/run/checkpoints").iterdir()))
        Path("disk/other").unlink()
        assert train("--resume", "disk/run") == 0 and outcome(Path("disk/run")) == whole
    finally:
        subprocess.run(["umount", "-l", "disk"], check=True)


def test_a_read_only_run_is_refused_before_its_first_step(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    with ordinary_folder() as folder, contextlib.chdir(folder):
        crashed()
        monkeypatch.setattr(STEP, crash)
        for path, words in ((Path("run"), ["--resume", "run"]), (Path(), [*SETTINGS, "--out", "new"])):
            with read_only(path):
                assert train(*words) == 2
            message = capsys.readouterr().err
            assert "Permission denied" in message and message.count("\n") == 1
        assert [p.name for p in folder.iterdir()] == ["run"]


@pytest.mark.parametrize("year", [365 * 86400, -365 * 86400])
def test_the_wall_clock_has_no_say(year: int, run: Path, whole: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    """It jumps by a year whenever someone looks at it: forward, no checkpoint is due earlier; backward, none later."""
    clock, saved, save = itertools.count(int(time.time()), year), list[int](), Checkpoints.save
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    monkeypatch.setattr(loop, "SHORTEST", 1e6 if year > 0 else 0)
    monkeypatch.setattr(loop, "SHARE", 0)
    monkeypatch.setattr(Checkpoints, "save", lambda self, state, step: (saved.append(step), save(self, state, step)))
    assert train(*SETTINGS, "--out", "run", place=(RECORD, 11), signals=[signal.SIGTERM]) == 143
    assert train("--resume", "run") == 0 and outcome(run) == whole
    assert saved == ([12, 24] if year > 0 else list(range(1, 25)))


def test_tensorboard_reads_the_learning_curve_of_a_killed_run(run: Path, whole: Outcome) -> None:
    found = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    words = [*SETTINGS, *EVERY, "--tensorboard", "true", "--out", "run"]
    with started(words, (SAVE, 5), signal.SIGKILL) as killed:
        pass
    assert killed.exitcode == -signal.SIGKILL and train("--resume", "run") == 0 and outcome(run) == whole
    events = found.EventAccumulator(str(run / "tensorboard"), {"scalars": 0}, purge_orphaned_data=False).Reload()
    for name in ("bound", "valid", "gradient_norm", "learning_rate"):
        seen = [(event.step, event.value) for event in events.Scalars(name)]
        assert set(seen) == {(row["step"], float(np.float32(row[name]))) for row in lines(run)}, name
        assert len(seen) <= 28


DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes | None], bool]] = {
    "no settings": ("config.yaml", lambda _: None, False),
    "empty settings": ("config.yaml", lambda _: b"", False),
    "half of the settings": ("config.yaml", lambda c: c[: c.index(b"patience")], False),
    "settings that are none": ("config.yaml", lambda _: b"\x00\xff{[", False),
    "half of the environment": ("environment.json", lambda c: c[:50], True),
    "no curve": ("metrics.jsonl", lambda _: None, True),
    "half a line": ("metrics.jsonl", lambda c: c[:-60], True),
    "half a line before the checkpoint": ("metrics.jsonl", lambda c: c[: c.index(b'{"step": 9,') + 30], True),
    "no end of a line": ("metrics.jsonl", lambda c: c[: c.index(b'{"step": 13,') - 1], True),
    "zeros": ("metrics.jsonl", lambda c: c[:-300] + bytes(300), True),
    "bits that are no text": ("metrics.jsonl", lambda c: c[:-300] + b"\xff" * 300, True),
    "no lock": (".lock", lambda _: None, True),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_run_folder_goes_on_exactly_or_is_refused(
    name: str, run: Path, whole: Outcome, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    crashed()
    file, damage, is_fine = DAMAGES[name]
    content, steps = damage((run / file).read_bytes()), list[int]()
    (run / file).write_bytes(content) if content is not None else (run / file).unlink()
    at(monkeypatch, (SAVE, 2), lambda: steps.extend(row["step"] for row in lines(run)))
    status, message = train("--resume", "run"), capsys.readouterr().err
    if is_fine:
        assert status == 0, message
        assert outcome(run) == whole and steps == sorted(set(steps)) and steps[-1] == 20  # it can be read at any time
        assert json.loads((run / "results.json").read_text())["history"]["resumed"] == [12]
    else:
        assert status == 2 and "config.yaml" in message.splitlines()[-1], message
    assert all(map(read, Path("run/checkpoints").iterdir()))


def test_two_processes_that_take_up_one_run(run: Path, whole: Outcome, capsys: Capture) -> None:
    """The first is halted in its third step, so that the second can't be late."""
    crashed()
    with started(["--resume", "run"], (STEP, 3), signal.SIGSTOP) as first:
        try:
            while not Path("signalled").exists() and first.is_alive():
                time.sleep(0.02)
            found = snapshot(run)
            assert train("--resume", "run") == 2 and snapshot(run) == found
            assert "which another process is writing" in capsys.readouterr().err
        finally:
            os.kill(first.pid, signal.SIGCONT)
    assert first.exitcode == 0 and outcome(run) == whole


MOMENTS: dict[str, tuple[Place, Sequence[int], int]] = {
    "the first step": ((STEP, 1), [signal.SIGTERM], 143),
    "a checkpoint": ((SYNC, 5), [signal.SIGTERM], 143),  # of the second checkpoint
    "a checkpoint, twice": ((SYNC, 5), [signal.SIGINT] * 2, 130),
    "a checkpoint's name, twice": ((SYNC, 6), [signal.SIGINT] * 2, 130),
    "the curve, twice": ((RECORD, 7), [signal.SIGINT] * 2, 130),
    "the weights": ((WEIGHTS, 1), [signal.SIGINT] * 2, 130),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_signals_at_bad_times(name: str, run: Path, whole: Outcome, capsys: Capture) -> None:
    place, signals, status = MOMENTS[name]
    assert train(*SETTINGS, *EVERY, "--out", "run", place=place, signals=signals) == status
    message = capsys.readouterr().err
    assert "ppl-vae train --resume" in message and message.count("\n") == 1
    assert all(map(read, Path("run/checkpoints").iterdir()))
    assert train("--resume", "run") == 0 and outcome(run) == whole


def test_another_working_folder_and_another_data_file(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    pixels = np.random.default_rng(0).random((210, 6), dtype="float32").round()
    np.save("data.npy", pixels[:200])
    assert train(*SETTINGS, *EVERY, "--data", "data.npy", "--out", "whole") == 0
    crashed("--data", "data.npy")
    expected = outcome(Path("whole"))
    np.save("data.npy", pixels)
    assert train("--resume", "run") == 2 and "number of data" in capsys.readouterr().err
    np.save("data.npy", pixels[:200])
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    monkeypatch.setenv("PPL_VAE_DATA", str(Path.cwd()))
    assert train("--resume", "../run") == 0 and outcome(Path("../run")) == expected
