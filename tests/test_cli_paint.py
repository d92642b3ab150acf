"""`ppl-vae` on scenes with captions: training, all that reads the run, painting, and what is refused."""

import json
from pathlib import Path

import matplotlib.image
import pytest
import torch
from PIL import Image

from ppl_vae import runs
from tests.command_line import refused, run

SCENES = "scenes(digits, size=16, templates=('top left', 'bottom right'), num_train=60, num_test=6)"
PAIR = "AlignDRAW(latent_dim=2, hidden=6, steps=2, words=2, align=3, read=3, write=3)"
TINY = ["--steps", "3", "--batch_size", "10", "--num_particles", "2", "--progress", "false"]
CAPTION = "The digit three is at the top left of the image."


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def trained(*words: str) -> None:
    run("train", "--data", SCENES, "--pair", PAIR, *TINY, *words)


def test_train_then_all_that_reads_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    trained("--valid", "10")
    names = {path.name for path in Path("run").iterdir()}
    assert names >= {"config.yaml", "pair.pt", "results.json", "samples.png", "reconstructions.png"}
    results = json.loads(Path("run/results.json").read_text())
    assert results["data"]["name"] == "digits-scenes" and results["data"]["num_train"] == 50
    run("evaluate", "run", "--num_particles", "2", "--progress", "false")
    again = json.loads(Path("run/evaluation.json").read_text())
    assert again["nll"] == pytest.approx(results["evaluation"]["nll"], rel=1e-5)
    for command in ("sample", "reconstruct"):
        run(command, "run", "--num", "3", "--out", f"{command}.png")
        assert matplotlib.image.imread(f"{command}.png").size > 0
    capsys.readouterr()
    run("paint", "run", CAPTION, "--num", "3", "--film", "film.gif")
    assert capsys.readouterr().out.split() == ["run/painted.png", "film.gif"]
    with Image.open("film.gif") as film:
        assert film.n_frames == 3  # type: ignore[attr-defined]


def test_the_pair_learns_how_many_words_there_are() -> None:
    trained()
    loaded = runs.load_run("run")
    reader = dict(loaded.pair.named_modules())["reader.embed"]
    assert isinstance(reader, torch.nn.Embedding) and reader.num_embeddings == 23


def test_a_runs_config_trains_it_again() -> None:
    trained()
    run("train", "--config", "run/config.yaml", "--out", "again")
    first, second = (json.loads(Path(f"{name}/results.json").read_text()) for name in ("run", "again"))
    assert first["evaluation"]["nll"] == second["evaluation"]["nll"]


def test_the_same_seed_paints_the_same() -> None:
    trained()
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        run("paint", "run", CAPTION, "--seed", seed, "--out", f"{name}.png")
    a, b, c = (Path(f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


def test_what_cannot_be_painted_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    trained()
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    assert "'sevn'" in refused(capsys, "paint", "run", "the digit sevn is at the top left of the image .")
    assert "empty caption" in refused(capsys, "paint", "run", " ")
    assert "film: got 'out.png'" in refused(capsys, "paint", "run", CAPTION, "--film", "out.png")
    assert "film: got 'run/pair.pt/a.gif'" in refused(capsys, "paint", "run", CAPTION, "--film", "run/pair.pt/a.gif")
    assert "num: got 0" in refused(capsys, "paint", "run", CAPTION, "--num", "0")
    assert "run: got nowhere" in refused(capsys, "paint", "nowhere", CAPTION)
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


def test_a_run_without_captions_paints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    run("train", "--pair", "VAE(latent_dim=2, hidden=(3,))", *TINY)
    assert "run: got one on digits, expected one on data with captions" in refused(capsys, "paint", "run", CAPTION)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("scenes(digits)", "size"),
        ("scenes(digits, size=4)", "expected"),
        ("scenes(digits, size='large')", "size: got 'large'"),
        ("scenes(digits, size=16, colour=True)", "no setting 'colour'"),
        ("scenes(nothing, size=16)", "got data set 'nothing'"),
        ("scenes(digits, size=16", "SyntaxError"),
        ("scenes(digits, size=open('x'))", "ValueError"),
        ("scenes(digits, size=16, templates=('middle',))", "middle"),
        ("scenes(digits, size=16, num_train=0)", "num_train: got 0"),
    ],
)
def test_scenes_that_are_none_are_refused(data: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(capsys, "train", "--data", data, *TINY)
    assert list(Path.cwd().iterdir()) == []


def test_scenes_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    objectives = ["--objective", "mean-field:1", "--objective", "iwae:2"]
    run("compare", "--data", SCENES, "--pair", PAIR, *objectives, *TINY, "--seeds", "2", "--workers", "1")
    found = json.loads(Path("compare-scenes/results.json").read_text())
    assert [row["objective"] for row in found["rows"]] == ["mean-field:1", "iwae:2"]
    assert found["config"]["data"]["name"] == "digits-scenes" and Path("compare-scenes/samples.png").exists()
    assert "IWAE" not in capsys.readouterr().out  # no table of layers


def test_pairs_and_commands_without_captions_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    pair = "VAE(latent_dim=2, hidden=(3,))"
    assert "expected those of VAE.model(x)" in refused(capsys, "train", "--data", SCENES, "--pair", pair, *TINY)
    few = PAIR.replace("(", "(vocabulary=5, ", 1)
    assert "vocabulary=5, expected 23" in refused(capsys, "train", "--data", SCENES, "--pair", few, *TINY)
    assert "expected those of VAE.model(x)" in refused(capsys, "compare", "--data", SCENES, "--pair", pair, *TINY)
    static = ["--binarisation", "static"]
    assert "'static'" in refused(capsys, "train", "--data", SCENES, "--pair", PAIR, *static, *TINY)
    assert list(Path.cwd().iterdir()) == []
