"""Data of one's own: tensors and files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ppl_vae.data import DataError, from_tensor, load, load_file

BYTES = np.arange(240, dtype=np.uint8).reshape(20, 3, 4)


def test_bytes_become_images_and_the_last_tenth_is_the_test_set() -> None:
    data = from_tensor(BYTES, "mine", train_labels=np.arange(20))
    assert data.shape == (1, 3, 4) and len(data.train) == 18 and data.binarisation == "none"
    assert torch.equal(data.test[:, 0] * 255, torch.from_numpy(BYTES[18:]).float())
    assert data.test_labels is not None and data.test_labels.tolist() == [18, 19]
    assert "last 2 of 20" in data.note


@pytest.mark.parametrize(
    ("x", "event"),
    [
        (torch.rand(20, 7), (7,)),
        (torch.rand(20, 3, 4, 4, dtype=torch.float64), (3, 4, 4)),
        (torch.rand(20, 5, 4) > 0.5, (1, 5, 4)),
    ],
)
def test_shapes_and_types_that_are_taken(x: torch.Tensor, event: tuple[int, ...]) -> None:
    data = from_tensor(x, test=x[:3])
    assert data.shape == event and (len(data.train), len(data.test)) == (20, 3)
    torch.testing.assert_close(data.train.reshape(x.shape), x.float())


@pytest.mark.parametrize(
    ("x", "keywords", "message"),
    [
        (torch.rand(20), {}, r"got shape \(20,\); expected \(N, D\)"),
        (torch.rand(20, 32, 32, 3), {}, r"looks like \(N, H, W, C\)"),
        (torch.arange(20).reshape(4, 5), {}, "int64; expected uint8"),
        (torch.rand(20, 3) * 2, {}, "rescale"),
        (torch.rand(1, 3), {}, "leaves data on both sides"),
        (torch.rand(9, 3), {"test_fraction": 1.0}, "test_fraction=1.0"),
        (torch.rand(9, 3), {"test_labels": torch.zeros(1)}, "test_labels without test"),
    ],
)
def test_others_are_refused(x: torch.Tensor, keywords: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_tensor(x, **keywords)


def test_files_of_each_kind_hold_the_same_data(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", BYTES)
    np.savez(tmp_path / "b.npz", train=BYTES[:18], test=BYTES[18:])
    torch.save({"train": torch.from_numpy(BYTES[:18]), "test": torch.from_numpy(BYTES[18:])}, tmp_path / "c.pt")
    torch.save(torch.from_numpy(BYTES), tmp_path / "d.pt")
    sets = [load_file(path) for path in sorted(tmp_path.iterdir())]
    assert [data.name for data in sets] == ["a", "b", "c", "d"]
    for data in sets:
        assert torch.equal(data.train[:, 0] * 255, torch.from_numpy(BYTES[:18]).float())
        assert torch.equal(data.test, sets[0].test)


def test_load_takes_a_path_and_binarises(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", train=BYTES, test=BYTES, train_labels=np.arange(20))
    data = load(str(tmp_path / "mine.npz"), binarisation="static", seed=7)
    assert (data.name, data.binarisation, data.seed) == ("mine", "static", 7)
    assert set(data.train.unique().tolist()) == {0.0, 1.0}
    assert load(str(tmp_path / "mine.npz")).binarisation == "none"


def test_unusable_files_are_one_clear_error(tmp_path: Path) -> None:
    np.savez(tmp_path / "named.npz", x_train=BYTES)
    np.savez(tmp_path / "pickled.npz", train=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "cut.npy", BYTES)
    whole = (tmp_path / "cut.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-50])
    (tmp_path / "text.pt").write_text("no tensor")
    torch.save([torch.zeros(20, 8)], tmp_path / "list.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    np.save(tmp_path / "strings.npy", BYTES.astype(str))
    np.savez(tmp_path / "labels.npz", train=BYTES, train_labels=np.full(20, "cat"))
    np.save(tmp_path / "array.npy", BYTES)
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    messages = {
        "named.npz": r"got arrays \['x_train'\]; expected 'train'",
        "pickled.npz": "damaged file .*pickled.npz",
        "cut.npy": "damaged file .*cut.npy",
        "text.pt": "damaged file .*text.pt: got a pickle of other objects than plain tensors",
        "model.pt": "damaged file .*model.pt: got a pickle of other objects than plain tensors",
        "list.pt": "list: train: got list; expected an array of numbers",
        "strings.npy": "strings: train: got <U.*; expected an array of numbers",
        "labels.npz": "labels: train_labels: got <U.*; expected an array of numbers",
        "array.npz": "a single array, not an archive",
        "absent.npz": "absent.npz: got no such file",
    }
    for file, message in messages.items():
        with pytest.raises(DataError, match=message):
            load(str(tmp_path / file))
