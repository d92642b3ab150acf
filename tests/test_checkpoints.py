"""Checkpoints: exact, whole or not there, damage found, no code run, and no second copy in memory."""

import errno
import functools
import hashlib
import io
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ppl_vae import checkpoints as module
from ppl_vae.checkpoints import CheckpointError, Checkpoints, read

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
posix = pytest.mark.skipif(sys.platform == "win32", reason="fork and file size limits")

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.complex64, torch.complex128, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16,
    torch.uint32, torch.uint64, torch.bool,
]  # fmt: skip


class Rank(IntEnum):
    FIRST = 1


class Pair(NamedTuple):
    a: int
    b: int


def anything(dtype: torch.dtype, *shape: int) -> Tensor:
    """All bit patterns, NaNs with payloads among them; a bool is one of two."""
    size = 2 if dtype is torch.bool else 256
    count = torch.empty(shape, dtype=dtype).nbytes
    return torch.randint(size, (count,), dtype=torch.uint8).view(dtype).reshape(shape)


def same(a: Any, b: Any) -> bool:
    """Equal in type and value, to the last bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        if (a.dtype, a.shape, a.device) != (b.dtype, b.shape, b.device):
            return False
        x, y = (t.resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8) for t in (a, b))
        return torch.equal(x, y)
    if isinstance(a, dict):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a.items(), b.items(), strict=True))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a.hex() == b.hex() if isinstance(a, float) else a == b


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def named(folder: Path, content: bytes, step: int = 7) -> Path:
    """A file of any content under the name that belongs to it."""
    path = folder / f"step-{step:09}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
    path.write_bytes(content)
    return path


def archived(obj: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    return buffer.getvalue()


def envelope(**changes: Any) -> dict[str, Any]:
    return {"format": "ppl_vae checkpoint", "version": 1, "step": 7, "state": {"a": 1}} | changes


def test_tensors_of_every_dtype_and_shape_come_back_bit_for_bit(tmp_path: Path) -> None:
    base = anything(torch.float32, 6, 8)
    state: dict[str, Any] = {str(d): [anything(d, *s) for s in ((3, 5), (), (0,), (2, 0, 3))] for d in DTYPES}
    state["views"] = [base.t(), base[::2, 1:7:3], base[:, None].expand(6, 4, 8), base[2:2], base.flatten()[47]]
    state["conjugate"] = anything(torch.complex64, 3).conj()
    state["negative"] = anything(torch.complex64, 3).conj().imag
    Checkpoints(tmp_path).save(state, 1)
    got = Checkpoints(tmp_path).load()
    assert same(got, state)
    assert not same(got, state | {"conjugate": state["conjugate"].conj()})


def test_plain_values_come_back_exactly(tmp_path: Path) -> None:
    ints = [0, -1, 255, 2**31, -(2**31) - 1, 2**63, 2**64 - 1, -(2**63)]
    ints += [s * 2**n + d for n in (2038, 2039, 2040, 2047, 2048, 40_000) for d in (-1, 0, 1) for s in (1, -1)]
    nan = np.array([0x7FF8_0000_DEAD_BEEF], dtype=np.uint64).view(np.float64)[0].item()
    floats = [0.1, -0.0, 5e-324, 1.7976931348623157e308, float("inf"), -float("inf"), nan]
    state = {
        "ints": ints,
        "floats": floats,
        "strings": ["", "\u00e4\U0001f600", "\udc80", "a\0b", "x" * 100_000],
        "others": [True, False, None],
        "nested": ((), [], {}, (1, (2, [3, (4,)])), {"a": {"b": ({},)}}),
        "keys": {0: "a", -5: "b", "0": "c", 1.5: "d", None: "e", True: 1, 2**5000: "f"},
        "ordered": OrderedDict(b=1, a=2),
        "random": random.Random(3).getstate(),
    }
    Checkpoints(tmp_path).save(state, 1)
    got = Checkpoints(tmp_path).load()
    assert same(got, state)
    assert np.array(got["floats"][-1]).view(np.uint64) == 0x7FF8_0000_DEAD_BEEF


def test_modules_optimisers_and_generators_go_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    def make() -> tuple[nn.Module, torch.optim.Optimizer, torch.Generator]:
        net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        return net, torch.optim.Adam(net.parameters(), lr=0.1, amsgrad=True), torch.Generator()

    def train(net: nn.Module, optim: torch.optim.Optimizer, noise: torch.Generator) -> None:
        for _ in range(5):
            optim.zero_grad()
            net(torch.randn(8, 4, generator=noise)).square().sum().backward()
            optim.step()

    net, optim, noise = make()
    train(net, optim, noise)
    state = {"net": net.state_dict(), "optim": optim.state_dict(), "noise": noise.get_state()}
    path = Checkpoints(tmp_path).save(state, 5)
    before = digest(path)
    train(net, optim, noise)
    again, optim2, noise2 = make()
    loaded = read(path)
    assert vars(loaded["net"]) == vars(net.state_dict()) and "_metadata" in vars(loaded["net"])
    again.load_state_dict(loaded["net"])
    optim2.load_state_dict(loaded["optim"])
    noise2.set_state(loaded["noise"])
    train(again, optim2, noise2)
    assert same(dict(again.state_dict()), dict(net.state_dict()))
    assert digest(path) == before, "the optimiser's state is mapped: its changes must not reach the file"


@posix
def test_a_shared_mapping_asked_for_elsewhere_does_not_reach_the_file(tmp_path: Path) -> None:
    import mmap  # has no such options on Windows

    path = Checkpoints(tmp_path).save({"x": torch.zeros(5)}, 1)
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        x = read(path)["x"]
        assert torch.serialization.get_default_mmap_options() == mmap.MAP_SHARED
    x += 1
    del x
    assert read(path)["x"].tolist() == [0.0] * 5


def test_parameters_are_saved_without_gradient_and_without_what_hangs_on_them(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.ones(3))
    weight.unconstrained = lambda: weight  # type: ignore[attr-defined]  # as Pyro's do
    x = torch.ones(3, requires_grad=True)
    x.register_hook(lambda g: g)
    Checkpoints(tmp_path).save({"weight": weight, "x": x * 2}, 1)
    got = Checkpoints(tmp_path).load()
    assert same(got, {"weight": torch.ones(3), "x": 2 * torch.ones(3)})
    assert not got["x"].requires_grad


def test_a_file_is_as_large_as_what_is_in_it(tmp_path: Path) -> None:
    big = torch.randn(500_000)
    halves = list(big.split(100_000))

    def size(**state: Any) -> int:
        path = Checkpoints(tmp_path / "-".join(state)).save(state, 1)
        assert same(read(path), state)
        return path.stat().st_size

    slack = 20_000
    assert size(row=big[10:20]) < slack
    assert size(rows=[big[10:20], big[15:30], big[:10, None].expand(10, 4)]) < slack
    assert size(same=[big[:100_000]] * 5 + [big[:100_000]]) < 400_000 + slack
    assert size(tied=[big, big, big[:7], big.view(1000, 500)]) < 2_000_000 + slack
    assert size(flat=halves) < 2_000_000 + slack
    assert size(kinds=[big[:1000].view(torch.int32), big[:1000], big[:1000].view(torch.int16)]) < 12_000 + slack
    assert size(filled=[base := torch.randn(1000), base.view(torch.int32)]) < 8_000 + slack
    assert size(wide=torch.zeros(1).expand(500_000)) < slack


def test_tensors_that_fill_their_storage_together_are_not_copied() -> None:
    flat = torch.zeros(10)
    packed = module._packed({"a": flat[:4], "b": flat[4:], "c": torch.zeros(10)[:9]})
    assert packed["a"].data_ptr() == flat.data_ptr() and packed["b"].data_ptr() == flat[4:].data_ptr()
    assert packed["c"].untyped_storage().nbytes() == 36


def cycle() -> dict[str, Any]:
    state: dict[str, Any] = {"a": []}
    state["a"].append(state)
    return state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"optim": {"foo": np.zeros(3)}}, r"state\['optim'\]\['foo'\]: got ndarray, expected a tensor, int, float"),
        ({"a": [1, (len,)]}, r"state\['a'\]\[1\]\[0\]: got builtin_function_or_method, expected"),
        ({"a": np.float64(1)}, r"state\['a'\]: got float64, "),
        ({"a": np.int64(1)}, r"state\['a'\]: got int64, "),
        ({"a": Rank.FIRST}, r"state\['a'\]: got Rank, "),
        ({"a": Pair(1, 2)}, r"state\['a'\]: got Pair, "),
        ({"a": Counter("a")}, r"state\['a'\]: got Counter, "),
        ({"a": {1, 2}}, r"state\['a'\]: got set, "),
        ({"a": b"x"}, r"state\['a'\]: got bytes, "),
        ({"a": {b"x": 1}}, r"state\['a'\]\[b'x'\]: got bytes, "),
        ({"a": {(1, 2): 1}}, r"state\['a'\]: got a key of type tuple, expected int, float, str, bool or None"),
        ({"a": nn.Linear(1, 1)}, r"state\['a'\]: got Linear, "),
        (
            {"a": torch.zeros(2, 2).to_sparse()},
            r"state\['a'\]: got a tensor that is torch.sparse_coo, expected a dense",
        ),
        ({"a": torch.zeros(2, device="meta")}, r"state\['a'\]: got a tensor that is meta, "),
        ({"a": torch.empty(2, dtype=torch.int4)}, r"state\['a'\]: got a tensor of torch.int4, "),  # pyright: ignore[reportAttributeAccessIssue]
        (cycle(), r"state\['a'\]\[0\]\['a'\].*: got more than 100 levels, expected fewer"),
        ([1], "state: got list, expected a dict"),
    ],
)
def test_what_could_not_be_read_back_is_refused_before_anything_is_written(
    tmp_path: Path, state: Any, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        Checkpoints(tmp_path / "run").save(state, 1)
    assert names(tmp_path) == []


@pytest.mark.parametrize("step", [-1, True, 1.0, "1", None])
def test_steps_are_counts(tmp_path: Path, step: Any) -> None:
    with pytest.raises(CheckpointError, match=r"step: got .*, expected an int of at least 0"):
        Checkpoints(tmp_path).save({}, step)


def test_the_newest_are_kept_and_the_best(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    checkpoints = Checkpoints(folder, keep=2)
    assert checkpoints.newest() is None and checkpoints.best() is None and not folder.exists()
    kept = []
    for step, best in [(0, False), (5, True), (999, False), (1200, False), (10**9, False), (2 * 10**10, False)]:
        path = checkpoints.save({"step": step}, step, best=best)
        assert path == checkpoints.newest() and path.name == f"step-{step:09}-{digest(path)}.pt"
        assert read(path) == checkpoints.load() == {"step": step}
        kept.append(sorted(int(name.split("-")[1]) for name in names(folder) if name.startswith("step")))
    assert kept == [[0], [0, 5], [5, 999], [999, 1200], [1200, 10**9], [10**9, 2 * 10**10]]
    best = checkpoints.best()
    assert best is not None and best.name == f"best-000000005-{digest(best)}.pt" and read(best) == {"step": 5}
    assert len(names(folder)) == 3
    with pytest.raises(ValueError, match="keep: got 0, expected at least 1"):
        Checkpoints(folder, keep=0)


def test_a_better_one_replaces_the_best_by_a_link(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save({"a": 1}, 10, best=True)
    checkpoints.save({"a": 2}, 9, best=True)  # the last saved as best, whatever its step
    best, newest = checkpoints.best(), checkpoints.newest()
    assert best is not None and newest is not None and best.samefile(newest) and read(best) == {"a": 2}
    checkpoints.save({"a": 2}, 9, best=True)
    assert names(tmp_path) == [best.name, newest.name]
    # After a kill between the new best one and the removal of the old one.
    old = named(tmp_path, archived(envelope(step=11)), 11)
    old.rename(tmp_path / old.name.replace("step", "best"))
    os.utime(tmp_path / old.name.replace("step", "best"), (1, 1))
    assert checkpoints.best() == best


@pytest.mark.parametrize("error", [OSError(errno.EPERM, "no links"), NotImplementedError()])
def test_without_links_the_best_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(*_: Any) -> None:
        raise error

    monkeypatch.setattr(os, "link", refuse)
    checkpoints = Checkpoints(tmp_path, keep=1)
    state = {"a": torch.randn(1_000_000)}  # more than one piece
    for step in (1, 2):
        path = checkpoints.save(state, step, best=True)
    best = checkpoints.best()
    assert best is not None and not best.samefile(path) and same(read(best), state)
    assert names(tmp_path) == [best.name, path.name]
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=re.escape(f"read {best} instead")):
        checkpoints.load()


def test_an_earlier_step_is_kept_by_its_own_save(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (100, 200):
        checkpoints.save({"a": step}, step)
    path = checkpoints.save({"a": -1}, 50)
    assert read(path) == {"a": -1} and checkpoints.load() == {"a": 200}
    assert len(names(tmp_path)) == 2


def test_the_same_step_again_replaces_the_first(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    first = checkpoints.save({"a": 1}, 5)
    shutil.copy2(first, tmp_path / "kept")
    second = checkpoints.save({"a": 2}, 5)
    assert names(tmp_path) == sorted(["kept", second.name])
    # After a kill between the two: the one that was written last counts.
    shutil.copy2(tmp_path / "kept", first)
    os.utime(first, ns=(1, second.stat().st_mtime_ns - 1))
    assert checkpoints.load() == {"a": 2}
    os.utime(first, ns=(1, second.stat().st_mtime_ns + 1))
    assert checkpoints.load() == {"a": 1}


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    others = ["pair.pt", "step-1-0123456789abcdef.pt", "step-0000000001-0123456789abcdef.pt", ".x.tmp", "a.tmp"]
    others += [".step-000000001-0123456789ABCDEF.tmp", "step-000000009-0123456789abcde.pt", ".step-000000001.tmp"]
    others += ["step-000000009-0123456789abcdef.pt.bak", "other-000000009-0123456789abcdef.pt"]
    for name in others:
        (tmp_path / name).write_bytes(b"mine")
    path = checkpoints.save({"a": 1}, 3, best=True)
    Checkpoints(tmp_path)
    assert names(tmp_path) == sorted([*others, path.name, path.name.replace("step", "best")])
    assert checkpoints.newest() == path


def test_200_corrupted_files_are_all_found_and_the_older_good_one_is_offered(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    state = {"weights": torch.randn(1000), "optim": [0.1, {"a": 3}]}
    good = checkpoints.save(state, 1)
    also_bad = checkpoints.save(state, 2)
    also_bad.write_bytes(also_bad.read_bytes()[:-1])
    path = checkpoints.save(state, 3)
    content, draw, refused = path.read_bytes(), random.Random(0), 0
    for i in range(200):
        damaged = bytearray(content)
        if i < 100:
            del damaged[draw.randrange(len(content)) :]
        else:
            damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=f"{path} is damaged: got .* expected .*; read {good} instead"):
            (checkpoints.load if i % 2 else functools.partial(read, path))()
        refused += 1
    assert refused == 200
    path.write_bytes(content)
    assert same(checkpoints.load(), state)
    good.unlink()
    path.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match="start the run anew: no other good one is there"):
        checkpoints.load()


def test_a_later_one_is_not_offered_and_neither_is_a_foreign_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    path, later = checkpoints.save({"a": 1}, 5), checkpoints.save({"a": 1}, 6)
    named(tmp_path, b"not an archive, but its name is right", 4)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no other good one"):
        read(path)
    assert read(later) == {"a": 1}


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"echo > {self.path}",)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    evil = Evil(mark)
    pickle.loads(pickle.dumps(evil))
    assert mark.exists(), "otherwise this tests nothing"
    mark.unlink()
    files = [pickle.dumps(evil, protocol=2), pickle.dumps(evil), archived(evil), archived(envelope(state={"a": evil}))]
    legacy = io.BytesIO()
    torch.save(envelope(state={"a": evil}), legacy, _use_new_zipfile_serialization=False)
    for content in [*files, legacy.getvalue()]:
        path = named(tmp_path, content)
        with pytest.raises(CheckpointError, match=f"{path} is foreign: got a file that can't be read without running"):
            read(path)
        assert not mark.exists()


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        ([1], "is foreign: got something else, expected the four entries"),
        ({"weight": torch.zeros(2)}, "is foreign: got something else, expected the four entries"),
        (envelope(format="other"), "is foreign: got the format 'other', expected 'ppl_vae checkpoint'"),
        (envelope(format=torch.zeros(2)), "is foreign: got the format"),
        (envelope(version=2), "is of another version: got 2, expected 1; read it with the ppl_vae that wrote it"),
        (envelope(version=True), "is of another version: got True"),
        (envelope(step=8), "is foreign: got step 8, expected step 7 as its name says"),
        (envelope(state=[1]), "is foreign: got a state of type list, expected a dict"),
        (envelope(state={"a": {1, 2}}), r"is foreign: got a state that save would have refused.*state\['a'\]: got set"),
    ],
)
def test_foreign_contents_and_other_versions_have_their_own_messages(tmp_path: Path, obj: Any, message: str) -> None:
    assert read(named(tmp_path, archived(envelope()))) == {"a": 1}
    with pytest.raises(CheckpointError, match=message):
        read(named(tmp_path, archived(obj)))


def test_renamed_missing_and_unreadable_ones(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"got no checkpoint in .*run, expected at least one"):
        checkpoints.load()
    path = checkpoints.save({"a": 1}, 5)
    other = path.rename(path.with_name("mine.pt"))
    with pytest.raises(CheckpointError, match=r"mine\.pt is foreign: got a file of this name, expected step-"):
        read(other)
    with pytest.raises(CheckpointError, match="can't be read: got 'No such file or directory', expected"):
        read(path)
    other = other.rename(path.with_name(path.name.replace("5", "6", 1)))
    with pytest.raises(CheckpointError, match="got step 5, expected step 6 as its name says"):
        read(str(other))
    path.mkdir()
    with pytest.raises(CheckpointError, match="can't be read: got"):
        read(path)
    with pytest.raises(CheckpointError, match=r"mine can't be read: got '.*', expected a readable folder"):
        (tmp_path / "mine").write_text("")
        Checkpoints(tmp_path / "mine")


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
            match=rf"step 2 was not saved: got 'Permission denied' for .*, expected a folder that can be written; "
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
    path = checkpoints.save({"a": 1}, 1, best=True)
    before = names(tmp_path)
    state = {"a": torch.randn(500_000), "b": torch.randn(300_000)}
    with file_limit(1_000_000), pytest.raises(CheckpointError, match="was not saved") as caught:
        checkpoints.save(state, 2)
    assert names(tmp_path) == before and checkpoints.load() == {"a": 1}
    needed = checkpoints.save(state, 2).stat().st_size
    message = rf"expected room for a file of {needed} bytes; the temporary file was removed, and {path} is intact"
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
            match=rf"got 'No space left on device' .* room for a file of 20\d{{5}} bytes; the temp.* {path} is intact",
        ):
            checkpoints.save({"a": torch.randn(500_000)}, 2)
        assert names(tmp_path) == [path.name]
        checkpoints.load()
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


CALLS = ["fsync", "replace", "link"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", range(6))
def test_an_error_at_any_point_leaves_whole_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, code: int
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    old = checkpoints.save({"a": 1}, 1, best=True)
    count = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == call + 1:
                raise OSError(code, os.strerror(code))
            return real(*arguments, **options)

        return run

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, counted(getattr(os, name)))
        if call == 3:  # the link: a copy takes its place
            checkpoints.save({"a": 2}, 2, best=True)
        else:
            what = "saved as .* but not as the best" if call > 3 else "not saved"
            found = (
                "expected room for a file of [1-9]" if code != errno.EIO else "expected a folder that can be written"
            )
            with pytest.raises(CheckpointError, match=f"step 2 was {what}: .*{found}"):
                checkpoints.save({"a": 2}, 2, best=True)
    check_whole(tmp_path)
    assert not [name for name in names(tmp_path) if name.endswith(".tmp")]
    assert checkpoints.load() == {"a": 1 if call < 2 else 2}
    assert old.exists() == (call != 3)


def check_whole(folder: Path) -> None:
    """All files of final names are good, and there is one of each kind."""
    found = list(folder.glob("*.pt"))
    for path in found:
        assert digest(path) == path.stem.split("-")[2]
        read(path)
    assert {path.name[:4] for path in found} == {"step", "best"}


def test_an_interruption_is_not_buried() -> None:
    class Interrupted:
        def write(self, _: Any) -> int:
            raise KeyboardInterrupt

    sink = module._Sink(Interrupted(), module._Size())  # pyright: ignore[reportArgumentType]
    torch.save({"a": torch.zeros(100)}, sink)  # pyright: ignore[reportArgumentType]
    with pytest.raises(KeyboardInterrupt):
        sink.finish()


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from ppl_vae.checkpoints import Checkpoints, read

torch.set_num_threads(1)
folder, draw = Path(sys.argv[1]), random.Random(0)
checkpoints = Checkpoints(folder, keep=2)
checkpoints.save({"step": 0, "x": torch.zeros(100_000)}, 0, best=True)

def check():
    left = list(folder.glob(".*.tmp"))
    newest, best = checkpoints.newest(), checkpoints.best()
    assert newest and best
    for path in folder.glob("*.pt"):
        state = read(path)
        assert state["step"] == int(path.name.split("-")[1]) and (state["x"] == state["step"]).all()
    again = Checkpoints(folder, keep=2)
    assert not list(folder.glob(".*.tmp"))
    return len(left), again.load()["step"]

def child(run):
    pid = os.fork()
    if pid == 0:
        try:
            run()
        finally:
            os._exit(1)
    return pid

def save(step):
    Checkpoints(folder, keep=2).save({"step": step, "x": torch.full((100_000,), float(step))}, step, best=step % 2 == 0)

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
            step += 2 - step % 2  # even: a best one each time, which makes more calls
            save(step)
            step += 2
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
                for name in ("fsync", "replace", "link", "unlink"):
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
    # For the newest: sync, rename, sync the folder, remove the temporary name; for the best: link, rename, remove the
    # temporary name, sync the folder; then remove the best one before it, and the oldest.
    assert before == after == 10


@posix
def test_the_temporary_file_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    with module._temporary(tmp_path, "step-000000001") as (path, _):
        Checkpoints(tmp_path)
        assert path.exists()
        stale = tmp_path / ".step-000000001-0123456789abcdef.tmp"
        stale.write_bytes(b"")
        Checkpoints(tmp_path).save({"a": 1}, 1)
        assert path.exists() and not stale.exists()


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
