"""Checkpoints where writing fails: permissions, a full disk, errors and kills at any point; and their memory."""

import errno
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from ppl_vae.checkpoints import CheckpointError, Checkpoints, read
from ppl_vae.checkpoints.files import Sink
from tests.test_checkpoints import names, posix

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@contextmanager
def ordinary_folder() -> Iterator[Path]:
    """A folder of a user whom permissions bind, and that user."""
    if sys.platform == "win32":
        pytest.skip("permissions are others there")
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
    except OSError:
        pytest.skip("root, and can't be another user")
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    finally:
        if root:
            os.seteuid(0)


def test_permissions() -> None:
    with ordinary_folder() as folder:
        checkpoints = Checkpoints(folder)
        path = checkpoints.save({"a": 1}, 1)
        folder.chmod(0o500)
        with pytest.raises(
            CheckpointError,
            match=rf"step 2 was not saved: got 'Permission denied' in {folder}, expected a folder that can be written; "
            rf"{path} is intact; check its permissions",
        ):
            checkpoints.save({"a": 1}, 2)
        assert checkpoints.load() == {"a": 1}
        with pytest.raises(
            CheckpointError, match=r"not saved: got 'Permission denied'.*no earlier checkpoint is there"
        ):
            Checkpoints(folder / "new").save({"a": 1}, 2)
        path.chmod(0)
        with pytest.raises(CheckpointError, match="can't be read: got 'Permission denied', expected a readable file"):
            checkpoints.load()
        folder.chmod(0)
        with pytest.raises(CheckpointError, match="can't be read: got 'Permission denied', expected a readable folder"):
            checkpoints.newest()
        folder.chmod(0o700)


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    import resource  # not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # Python ignores SIGXFSZ: writing fails with EFBIG
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@posix
def test_a_file_that_does_not_fit(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save({"a": 1}, 1)
    before = names(tmp_path)
    state = {"a": torch.randn(500_000), "b": torch.randn(300_000)}
    with file_limit(1_000_000), pytest.raises(CheckpointError, match="was not saved") as caught:
        checkpoints.save(state, 2)
    assert names(tmp_path) == before and checkpoints.load() == {"a": 1}
    needed = checkpoints.save(state, 2).stat().st_size
    message = rf"expected room for a file of {needed} bytes; {path} is intact; free some space"
    assert re.search(message, str(caught.value))


@linux
def test_a_full_disk(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not permitted")
    try:
        checkpoints = Checkpoints(tmp_path)
        path = checkpoints.save({"a": torch.randn(250_000)}, 1)
        with pytest.raises(
            CheckpointError,
            match=rf"got 'No space left on device' .* room for a file of 20\d{{5}} bytes; {path} is intact",
        ):
            checkpoints.save({"a": torch.randn(500_000)}, 2)
        assert names(tmp_path) == [path.name]
        checkpoints.load()
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", range(3))
def test_an_error_at_any_point_leaves_whole_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, code: int
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    old = checkpoints.save({"a": 1}, 1)
    count = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == call + 1:
                raise OSError(code, os.strerror(code))
            return real(*arguments, **options)

        return run

    found = "expected room for a file of [1-9]" if code != errno.EIO else "expected a folder that can be written"
    with monkeypatch.context() as patch:
        for name in ("fsync", "replace"):  # of the file; to its name; of the folder
            patch.setattr(os, name, counted(getattr(os, name)))
        with pytest.raises(CheckpointError, match=f"step 2 was not saved: .*{found}"):
            checkpoints.save({"a": 2}, 2)
    assert checkpoints.load() == {"a": 1 if call < 2 else 2} and read(old) == {"a": 1}
    assert len(names(tmp_path)) == (1 if call < 2 else 2)


def test_an_interruption_is_not_buried() -> None:
    class Interrupted:
        def write(self, _: Any) -> int:
            raise KeyboardInterrupt

    sink = Sink()
    sink.file = Interrupted()
    torch.save({"a": torch.zeros(100)}, sink)  # pyright: ignore[reportArgumentType]
    assert isinstance(sink.error, KeyboardInterrupt) and sink.bytes > 400


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from ppl_vae.checkpoints import Checkpoints, read

torch.set_num_threads(1)
folder, draw = Path(sys.argv[1]), random.Random(0)
checkpoints = Checkpoints(folder, keep=2)
checkpoints.save({"step": 0, "x": torch.zeros(100_000)}, 0)

def check():
    left = list(folder.glob(".*.tmp"))
    for path in folder.glob("*.pt"):
        state = read(path)
        assert state["step"] == int(path.name.split("-")[1]) and (state["x"] == state["step"]).all()
    assert len(left) <= 1
    return len(left), checkpoints.load()["step"]

def child(run):
    pid = os.fork()
    if pid == 0:
        try:
            run()
        finally:
            os._exit(1)
    return pid

def save(step):
    Checkpoints(folder, keep=2).save({"step": step, "x": torch.full((100_000,), float(step))}, step)
    assert not list(folder.glob(".*.tmp"))

def loop(step):
    while True:
        step += 1
        save(step)

def random_kills():
    left = steps = 0
    for _ in range(20):
        pid = child(lambda: loop(steps))
        time.sleep(draw.uniform(0.0, 0.04))
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        found, step = check()
        left += found
        assert step >= steps
        steps = step
    print("left", left, "steps", steps)
    return steps

def kills_at_every_call(step):
    for after in (False, True):
        for at in range(1, 100):
            save(step := step + 1)
            step += 1
            def run():
                count = 0
                def killing(real):
                    def call(*arguments, **options):
                        nonlocal count
                        count += 1
                        if count == at and not after:
                            os.kill(os.getpid(), signal.SIGKILL)
                        try:
                            return real(*arguments, **options)
                        finally:
                            if count == at:
                                os.kill(os.getpid(), signal.SIGKILL)
                    return call
                for name in ("fsync", "replace", "unlink"):
                    setattr(os, name, killing(getattr(os, name)))
                save(step)
                os._exit(0)
            status = os.waitpid(child(run), 0)[1]
            check()
            if status == 0:
                break
            assert status == signal.SIGKILL, status
        print("calls", at - 1)

kills_at_every_call(random_kills())
"""


@posix
def test_killed_at_any_point_it_leaves_whole_files(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 0, done.stderr
    found = [int(number) for number in re.findall(r"\d+", done.stdout)]
    left, steps, before, after = found
    assert left > 0 and steps > 0, "kills hit no save, or all of them"
    # Sync, rename, remove the temporary name, sync the folder, remove the oldest.
    assert before == after == 5


def status(field: str) -> int:
    """Bytes of a field of this process's memory."""
    file = "/proc/self/status" if field.startswith("Vm") else "/proc/self/smaps_rollup"
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(file).read_text(), re.MULTILINE)
    assert found
    return 1024 * int(found[1])


@linux
def test_neither_saving_nor_loading_takes_memory(tmp_path: Path) -> None:
    size = 64 << 20
    state = {f"weight{i}": torch.full((size // 16,), float(i + 1)) for i in range(4)}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save({"a": torch.zeros(3)}, 0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    except OSError:
        pytest.skip("the peak can't be reset")
    before = status("VmRSS")
    checkpoints.save(state, 1)
    assert status("VmHWM") - before < size // 4
    del state
    before = status("Anonymous")
    loaded = checkpoints.load()
    assert status("Anonymous") - before < size // 8
    assert [t[-1].item() for t in loaded.values()] == [1, 2, 3, 4]
