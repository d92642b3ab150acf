"""Checkpoints: exact, the newest kept, damage found, no code run."""

import functools
import hashlib
import io
import os
import pickle
import random
import shutil
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ppl_vae.checkpoints import CheckpointError, Checkpoints, read
from ppl_vae.checkpoints.packing import packed

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
    turned = anything(torch.complex64, 3)
    state["conjugate"] = [turned, turned.conj(), turned[:2], turned[:2].conj()]
    state["negative"] = anything(torch.complex64, 3).conj().imag
    Checkpoints(tmp_path).save(state, 1)
    got = Checkpoints(tmp_path).load()
    assert same(got, state)
    assert not same(got, state | {"conjugate": [turned] * 2 + [turned[:2]] * 2})


def test_plain_values_come_back_exactly(tmp_path: Path) -> None:
    ints = [0, -1, 255, 2**31, -(2**31) - 1, 2**63, 2**64 - 1, -(2**63), 2**2039 - 1, 1 - 2**2039]
    nan = np.array([0x7FF8_0000_DEAD_BEEF], dtype=np.uint64).view(np.float64)[0].item()
    floats = [0.1, -0.0, 5e-324, 1.7976931348623157e308, float("inf"), -float("inf"), nan]
    state = {
        "ints": ints,
        "floats": floats,
        "strings": ["", "\u00e4\U0001f600", "\udc80", "a\0b", "x" * 100_000],
        "others": [True, False, None],
        "nested": ((), [], {}, (1, (2, [3, (4,)])), {"a": {"b": ({},)}}),
        "keys": {0: "a", -5: "b", "0": "c", 1.5: "d", None: "e", True: 1, 2**2039 - 1: "f"},
        "random": random.Random(3).getstate(),
    }
    Checkpoints(tmp_path).save(state | {"ordered": OrderedDict(b=[1], a=2)}, 1)
    got = Checkpoints(tmp_path).load()
    assert same(got, state | {"ordered": {"b": [1], "a": 2}})
    assert np.array(got["floats"][-1]).view(np.uint64) == 0x7FF8_0000_DEAD_BEEF


def test_modules_and_generators_go_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    def make() -> tuple[nn.Module, torch.Generator]:
        return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), torch.Generator()

    def go_on(net: nn.Module, noise: torch.Generator) -> None:
        for _ in range(5):
            net(torch.randn(8, 4, generator=noise))

    net, noise = make()
    go_on(net, noise)
    path = Checkpoints(tmp_path).save({"net": net.state_dict(), "noise": noise.get_state()}, 5)
    go_on(net, noise)
    again, noise2 = make()
    loaded = read(path)
    again.load_state_dict(loaded["net"], assign=True)  # the running means are the file's from here
    noise2.set_state(loaded["noise"])
    before = digest(path)
    go_on(again, noise2)
    assert same(dict(again.state_dict()), dict(net.state_dict()))
    assert digest(path) == before


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
    values = packed({"a": flat[:4], "b": flat[4:], "c": torch.zeros(10)[:9]}, 1)["state"]
    assert values["a"].data_ptr() == flat.data_ptr() and values["b"].data_ptr() == flat[4:].data_ptr()
    assert values["c"].untyped_storage().nbytes() == 36


def cycle() -> dict[str, Any]:
    state: dict[str, Any] = {"a": []}
    state["a"].append(state)
    return state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"optim": {"foo": np.zeros(3)}}, r"state\['optim'\]\['foo'\]: got ndarray, expected a tensor, int"),
        ({"a": [1, (len,)]}, r"state\['a'\]\[1\]\[0\]: got builtin_function_or_method, expected"),
        ({"a": np.float64(1)}, r"state\['a'\]: got float64, "),
        ({"a": np.int64(1)}, r"state\['a'\]: got int64, "),
        ({"a": Rank.FIRST}, r"state\['a'\]: got Rank, "),
        ({"a": Pair(1, 2)}, r"state\['a'\]: got Pair, "),
        ({"a": Counter("a")}, r"state\['a'\]: got Counter, "),
        ({"a": {1, 2}}, r"state\['a'\]: got set, "),
        ({"a": b"x"}, r"state\['a'\]: got bytes, "),
        ({"a": [-(2**2039)]}, r"state\['a'\]\[0\]: got int of 2040 bits, expected a tensor, int of at most 2039 bits"),
        ({"a": {2**20_000: 1}}, r"a key of state\['a'\]: got int of 20001 bits, expected int of at most 2039 bits, fl"),
        ({"a": {(1, 2): 1}}, r"a key of state\['a'\]: got tuple, expected int"),
        ({"a": {1: {b"x": 1}}}, r"a key of state\['a'\]\[1\]: got bytes, expected int"),
        ({"a": nn.Linear(1, 1)}, r"state\['a'\]: got Linear, "),
        (
            {"a": [torch.zeros(2, 2).to_sparse()]},
            r"state\['a'\]\[0\]: got a tensor of torch.sparse_coo on cpu, expected",
        ),
        ({"a": torch.zeros(2, device="meta")}, r"state\['a'\]: got a tensor of .* on meta, expected a dense one"),
        (cycle(), r"state\['a'\]\[0\]\['a'\].*: got over 100 levels, expected fewer"),
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


def test_the_newest_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    checkpoints = Checkpoints(folder, keep=2)
    assert checkpoints.newest() is None and not folder.exists()
    kept = []
    for step in (0, 5, 999, 1200, 10**9, 2 * 10**10):
        path = checkpoints.save({"step": step}, step)
        assert path == checkpoints.newest() and path.name == f"step-{step:09}-{digest(path)}.pt"
        assert read(path) == checkpoints.load() == {"step": step}
        kept.append([int(name.split("-")[1]) for name in names(folder)])
    assert list(map(sorted, kept)) == [[0], [0, 5], [5, 999], [999, 1200], [1200, 10**9], [10**9, 2 * 10**10]]
    path = checkpoints.save({"a": -1}, 50)  # an earlier step is kept by its own save
    assert read(path) == {"a": -1} and checkpoints.load() == {"step": 2 * 10**10} and len(names(folder)) == 2
    with pytest.raises(ValueError, match="keep: got 0, expected at least 1"):
        Checkpoints(folder, keep=0)


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
    others = ["pair.pt", "step-1-0123456789abcdef.pt", ".x.tmp", "a.tmp", "step-1.tmp", ".step-1"]
    others += ["step-000000009-0123456789abcde.pt", "step-000000009-0123456789ABCDEF.pt"]
    others += ["step-000000009-0123456789abcdef.pt.bak", "other-000000009-0123456789abcdef.pt"]
    for name in [*others, left := ".step-123.tmp"]:
        (tmp_path / name).write_bytes(b"mine")
    assert checkpoints.newest() is None
    assert left in names(tmp_path), "another process may be writing it: only a save removes what is left"
    path = checkpoints.save({"a": 1}, 3)
    assert names(tmp_path) == sorted([*others, path.name])
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
    with pytest.raises(CheckpointError, match="start the run anew: there is no other good one up to this step"):
        checkpoints.load()


def test_a_later_one_is_not_offered_and_neither_is_a_foreign_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    path, later = checkpoints.save({"a": 1}, 5), checkpoints.save({"a": 1}, 6)
    named(tmp_path, b"not an archive, but its name is right", 4)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="there is no other good one"):
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
        ([1], "got <class 'list'>, expected"),
        (
            {"weight": torch.zeros(2)},
            "got {'format': None, 'version': None, 'step': None, 'state': <class 'NoneType'>}",
        ),
        (envelope(format="other"), "got {'format': 'other', 'version': 1,.* expected {'format': 'ppl_vae checkpoint'"),
        (envelope(format=torch.zeros(2)), r"got {'format': tensor\(\[0., 0.\]\)"),
        (envelope(version=2), "got .*'version': 2, .*, expected .*'version': 1, "),
        (envelope(version=True), "got .*'version': True, "),
        (envelope(step=8), "got .*'step': 8, .*, expected .*'step': 7, "),
        (envelope(step=torch.zeros(2)), "got .*'step': tensor"),
        (envelope(state=[1]), "got .*'state': <class 'list'>}, expected .*'state': <class 'dict'>}"),
    ],
)
def test_foreign_contents_and_other_versions_are_told(tmp_path: Path, obj: Any, message: str) -> None:
    assert read(named(tmp_path, archived(envelope()))) == {"a": 1}
    with pytest.raises(
        CheckpointError, match=f"is foreign, renamed or of another ppl_vae: {message}.*; read .* instead"
    ):
        read(named(tmp_path, archived(obj)))


def test_renamed_missing_and_unreadable_ones(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"got none in .*run, expected step-"):
        checkpoints.load()
    path = checkpoints.save({"a": 1}, 5)
    other = path.rename(path.with_name("mine.pt"))
    with pytest.raises(CheckpointError, match=r"mine\.pt is foreign: got a file of this name, expected step-"):
        read(other)
    with pytest.raises(CheckpointError, match="can't be read: got 'No such file or directory', expected"):
        read(path)
    other = other.rename(path.with_name(path.name.replace("5", "6", 1)))
    with pytest.raises(CheckpointError, match=r"renamed .*: got .*'step': 5, .*, expected .*'step': 6, "):
        read(str(other))
    path.mkdir()
    with pytest.raises(CheckpointError, match="can't be read: got"):
        read(path)
    with pytest.raises(CheckpointError, match=r"mine can't be read: got '.*', expected a readable folder"):
        (tmp_path / "mine").write_text("")
        Checkpoints(tmp_path / "mine").load()
