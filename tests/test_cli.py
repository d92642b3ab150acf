"""The command line: every command on the digits with a tiny budget; every error in one line, exit status 2."""

import json
from pathlib import Path

import matplotlib.image
import pytest

from ppl_vae import cli

TINY = ["--steps", "5", "--num-particles", "4", "--progress", "false"]
OWN = """
from ppl_vae.pairs import VAE

class Mine(VAE):
    def __init__(self, data_shape):
        super().__init__(data_shape, 2, (7,))
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*words: str) -> None:
    cli.main(list(words))


def test_compare_writes_table_json_csv_and_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    run("compare", "--seeds", "2", *TINY)
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split()[:3] == ["layers", "k", "VAE"]
    body = [line.split()[:2] for line in printed.splitlines()[2:8]]
    assert body == [["1", "1"], ["1", "5"], ["1", "50"], ["2", "1"], ["2", "5"], ["2", "50"]]
    folder = Path("compare-digits")
    expected = {"results.json", "rows.csv", "table.txt", "index.html", "learning_curves.png", "samples.png"}
    expected |= {"real_and_samples.png"}
    assert expected | {"reconstructions.png"} == {path.name for path in folder.iterdir()}
    results = json.loads((folder / "results.json").read_text())
    assert len(results["runs"]) == 2 * 2 * 5 and len(results["rows"]) == 2 * 5
    assert results["config"]["data"]["binarisation"] == "dynamic"
    assert {"torch", "pyro", "device"} <= results["environment"].keys()
    assert matplotlib.image.imread(folder / "samples.png").ndim == 3


def test_compare_with_repeated_objectives_and_a_users_pair(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.py").write_text(OWN)
    words = ["--pair", "own.py:Mine", "--objective", "elbo", "--objective=iwae:2", "--seeds", "2", "--out", "mine"]
    run("compare", *words, *TINY)
    printed = capsys.readouterr().out
    assert "own.py:Mine" in printed and "NLL(iwae:2) - NLL(elbo)" in printed
    assert (Path("mine") / "manifold.png").exists()  # its latent is 2-D


def test_train_then_all_that_reads_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    run("train", "--pair", "VAE(latent_dim=2, hidden=(10,))", "--objective", "iwae:3", *TINY)
    trained = json.loads(Path("run/results.json").read_text())
    assert {p.name for p in Path("run").iterdir()} >= {"config.yaml", "pair.pt", "results.json", "manifold.png"}
    run("evaluate", "run", "--num_particles", "4", "--progress", "false")
    again = json.loads(Path("run/evaluation.json").read_text())
    assert again["nll"] == pytest.approx(trained["evaluation"]["nll"], rel=1e-6)
    for command, picture in (("sample", "samples"), ("reconstruct", "reconstructions"), ("manifold", "manifold")):
        run(command, "run", "--out", f"{command}.png")
        assert matplotlib.image.imread(f"{command}.png").size > 0, picture
    assert "z: " in capsys.readouterr().out


def test_a_runs_config_trains_it_again() -> None:
    run("train", "--pair", "VAE(latent_dim=2, hidden=(10,))", *TINY)
    run("train", "--config", "run/config.yaml", "--out", "again")
    first, second = (json.loads(Path(f"{name}/results.json").read_text()) for name in ("run", "again"))
    assert first["evaluation"]["nll"] == second["evaluation"]["nll"]


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    run("list")
    printed = capsys.readouterr().out
    assert "HierarchicalVAE" in printed and "iwae:K" in printed and "omniglot" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "--objective", "iwae:0"], "num_particles: got 0"),
        (["compare", "--objective", "nope"], "expected one of elbo:K"),
        (["compare", "--pair", "Nope"], "expected one of AlignDRAW"),
        (["compare", "--seeds", "0"], "seeds: got 0"),
        (["train", "--objective", "RenyiELBO(alpha=1)"], "other than 1"),
        (["train", "--data", "nope"], "digits"),
        (["train", "--data", "mnist", "--data_root", "nowhere"], "nowhere"),
        (["train", "--data", "missing.npz"], "missing.npz"),
        (["train", "--binarisation", "none", "--pair", "VAE(latent_dim=2)"], "outside the support of Bernoulli"),
        (["train", "--device", "cuda:7"], "cuda:7"),
        (["train", "--batch_size", "5000"], "5000"),
        (["train", "--steps", "-1"], "steps"),
        (["train", "--no_such_option", "3"], "no_such_option"),
        (["train", "--steps", "many"], "steps"),
        (["evaluate", "nowhere"], "expected a folder written by ppl-vae train"),
        (["frobnicate"], "frobnicate"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_are_one_message_and_leave_nothing_behind(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = TINY if words[0] in ("compare", "train") and words[1] != "--steps" else []
    with pytest.raises(SystemExit) as stopped:
        run(*words, *tiny)
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert message in captured.err and "Traceback" not in captured.err
    assert list(Path.cwd().iterdir()) == []


def test_a_folder_of_results_is_not_overwritten_unless_asked() -> None:
    words = ["train", "--pair", "VAE(latent_dim=2, hidden=(5,))", *TINY]
    run(*words)
    Path("run/mine.txt").write_text("keep")
    with pytest.raises(SystemExit):
        run(*words)
    assert Path("run/mine.txt").read_text() == "keep"
    run(*words, "--overwrite", "true")
    assert not Path("run/mine.txt").exists() and Path("run/pair.pt").exists()


@pytest.mark.parametrize("command", ["train", "compare"])
@pytest.mark.parametrize("name", ["mine.txt", "config.yaml", "results.json"])
def test_a_folder_of_others_is_never_overwritten(name: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine", name).write_text("{}")  # a file of that name alone does not make it ours
    with pytest.raises(SystemExit) as stopped:
        run(command, "--out", "mine", "--overwrite", "true", *TINY)
    assert stopped.value.code == 2 and "expected a folder written by ppl-vae" in capsys.readouterr().err
    assert [str(p) for p in Path.cwd().rglob("*")] == [str(Path.cwd() / "mine"), str(Path.cwd() / "mine" / name)]


def test_results_of_a_comparison_are_overwritten_when_asked() -> None:
    words = ["compare", "--pair", "VAE(latent_dim=2, hidden=(5,))", "--objective", "elbo", "--seeds", "1", *TINY]
    run(*words, "--out", "a/mine")
    Path("a/mine/more.txt").touch()
    run(*words, "--out", "a/mine", "--overwrite", "true")
    assert not Path("a/mine/more.txt").exists() and Path("a/mine/results.json").exists()
    assert [p.name for p in Path("a").iterdir()] == ["mine"]


def test_damaged_weights_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    run("train", "--pair", "VAE(latent_dim=2, hidden=(5,))", *TINY)
    weights = Path("run/pair.pt")
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(SystemExit) as stopped:
        run("sample", "run")
    assert stopped.value.code == 2 and "got run/pair.pt damaged" in capsys.readouterr().err
