"""`ppl-vae` on a folder in the layout of COCO: training, all that reads the run, painting, and what is refused."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.coco_folder import file_name, write_coco
from tests.command_line import refused, run

DATA = "coco(coco, size=8, least=1, cache='kept')"
PAIR = (
    'AlignDRAW(latent_dim=2, hidden=6, steps=2, words=2, align=3, read=3, write=3, likelihood="normal", variance=1.0)'
)
TINY = ["--steps", "3", "--batch_size", "4", "--num_particles", "2", "--progress", "false"]
CAPTION = "all of this picture is a green thing ."


@pytest.fixture(autouse=True)
def _beside_a_coco_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_coco(tmp_path / "coco")
    monkeypatch.chdir(tmp_path)


def trained(*words: str) -> None:
    run("train", "--data", DATA, "--pair", PAIR, *TINY, *words)


def test_train_then_all_that_reads_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From another folder: the run knows where its data are."""
    trained("--valid", "1", "--num_test", "1")
    described = json.loads(Path("run/results.json").read_text())["data"]
    assert (described["num_train"], described["train_captions"], described["num_test"]) == (3, 6, 1)
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["binarisation"] == "none"
    assert config["data"] == f"coco({str(tmp_path / 'coco')!r}, size=8, least=1, cache={str(tmp_path / 'kept')!r})"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run("evaluate", "../run", "--num_particles", "2", "--progress", "false")
    for command in ("sample", "reconstruct"):
        run(command, "../run", "--num", "3", "--out", f"{command}.png")
    capsys.readouterr()
    run("paint", "../run", CAPTION, "--num", "3", "--film", "film.gif", "--out", "painted.png")
    assert capsys.readouterr().out.split() == ["painted.png", "film.gif"]
    with Image.open("film.gif") as film:
        assert film.n_frames == 3  # type: ignore[attr-defined]


def test_a_run_goes_on_and_finds_data_by_their_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("train", "--data", "coco(coco, size=8, least=1)", "--pair", PAIR, *TINY, "--data_root", ".")
    assert yaml.safe_load(Path("run/config.yaml").read_text())["data"] == "coco(coco, size=8, least=1)"
    (tmp_path / "moved").mkdir()
    (tmp_path / "coco").rename(tmp_path / "moved" / "coco")
    run("paint", "run", CAPTION, "--data_root", "moved", "--num", "1")
    assert Path("run/painted.png").exists()


def test_the_default_pair_paints_bytes() -> None:
    run("train", "--data", DATA, "--steps", "1", "--batch_size", "4", "--num_particles", "1", "--progress", "false")
    assert "discretised-logistic" in yaml.safe_load(Path("run/config.yaml").read_text())["pair"]


def test_what_cannot_be_painted_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    trained()
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    message = refused(capsys, "paint", "run", "all of this picture is a gren thing .")
    assert "got the word 'gren'" in message and "nearest ('green'" in message and "<unk>" not in message
    assert "empty caption" in refused(capsys, "paint", "run", " ")
    assert "got a caption of 11 words 'thing thing" in refused(capsys, "paint", "run", "thing " * 11)
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("coco()", "expected the folder of COCO's downloads"),
        ("coco(nowhere)", "nowhere/train2017"),
        ("coco(coco, size=0)", "size: got 0"),
        ("coco(coco, year=2014)", "coco/train2014"),
        ("coco(coco, min_words=20)", "no caption of 20 to 29 words"),
        ("coco(coco, colour=1)", "no setting 'colour'"),
        ("coco(coco, size=8", "SyntaxError"),
        ("coco(coco, cache='coco/train2017/000000000100.png')", "cache: got"),
    ],
)
def test_data_that_are_none_are_refused(data: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(capsys, "train", "--data", data, *TINY)
    assert [path.name for path in Path.cwd().iterdir()] == ["coco"]


def test_more_that_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", "coco(coco, size=8, least=1)", "--pair", PAIR]
    assert "binarisation 'dynamic'" in refused(capsys, "train", *data, *TINY, "--binarisation", "dynamic")
    assert "4 images to hold out; expected 1 to 3" in refused(capsys, "train", *data, *TINY, "--valid", "4")
    assert "batch_size=9; expected 1 to 8" in refused(capsys, "train", *data, *TINY, "--batch_size", "9")
    Path("coco/val2017", file_name(0)).write_bytes(b"no picture")
    assert "000000000100.png; expected an image that can be decoded" in refused(capsys, "train", *data, *TINY)
    assert [path.name for path in Path.cwd().iterdir()] == ["coco"]
