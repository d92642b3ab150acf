"""Tables of error rates, and rows without a guide: protocols, runs that go on, pages."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppl_vae import cli, evaluation, reproduction
from ppl_vae.data import labelled, load
from ppl_vae.pairs import Classifier
from ppl_vae.reproduction import ErrorProtocol, Protocol, load_protocol
from ppl_vae.reproduction.ways import M2, Alone, Stack

Capture = pytest.CaptureFixture[str]

ERRORS = """
title: A small table of errors
source: nowhere
data: digits
num_train: 400
num_valid: 100
batch_size: 20
rows:
  - name: deep
    way: "Stack(2, 8, greedy='unsupervised', pretraining=4, passes=20, rates=(0.5,), reconstruction_rate=0.5)"
    published: {train: 0, valid: 1.4, test: 1.5}
  - {name: "alone", way: "Alone(labels=20, hidden=8, passes=20)"}
  - {name: "M2", way: "M2(labels=20, hidden=8, latent_dim=2, passes=10)", on_request: true}
"""
CHAINS = """
title: Without a guide
source: nowhere
data: digits
binarisation: static
num_particles: 200
passes: 20
estimator: prior
test_curve: true
train_curve: true
rows:
  - {name: "AEVB", pair: "VAE(latent_dim=2, hidden=(8,))", objective: "elbo:1", num_train: 200, versus: ["MCEM"]}
  - {name: "MCEM", pair: "VAE(latent_dim=2, hidden=(8,))", method: mcem, num_train: 300}
  - {name: "MCEM, more", absent: not applicable on-line}
"""


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("errors.yaml").write_text(ERRORS)
    Path("chains.yaml").write_text(CHAINS)


def run(*words: str) -> int:
    try:
        cli.main(["reproduce", *words, "--workers", "1", "--progress", "false"])
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def test_the_protocol_of_bengio_et_al() -> None:
    protocol = load_protocol("bengio-2006")
    assert isinstance(protocol, ErrorProtocol) and protocol.num_valid == 10_000
    found = {row.name: (row.parsed(), row.published.test) for row in protocol.rows}
    assert found["deep, unsupervised layer by layer"] == (Stack(greedy="unsupervised"), 1.4)
    assert found["deep, as a whole"] == (Stack(), 2.4) and found["shallow"] == (Stack(layers=1), 1.9)


def test_the_protocol_of_kingma_et_al() -> None:
    protocol = load_protocol("m2")
    assert isinstance(protocol, ErrorProtocol) and protocol.binarisation == "none"
    ways = {row.name: row.parsed() for row in protocol.rows}
    assert ways["3,000 labels, M2"] == M2(3000, repeat=6) and ways["100 labels, classifier alone"] == Alone(100)
    assert len(protocol.chosen(None)) == 8


def test_the_protocol_of_kingma_and_welling_has_chains_for_1000_data_alone() -> None:
    protocol = load_protocol("aevb-vs-wake-sleep")
    assert isinstance(protocol, Protocol) and (protocol.estimator, protocol.weight_precision) == ("prior", 1)
    assert [(row.method, row.num_train) for row in protocol.rows if row.has_run] == [
        *[("svi", 1000), ("svi", 1000), ("mcem", 1000), ("svi", 50_000), ("svi", 50_000)]
    ]
    (absent,) = [row for row in protocol.rows if not row.has_run]
    assert (absent.name, absent.absent) == ("Monte Carlo EM, 50,000 data", "not applicable on-line")


def test_a_table_of_errors(tables: None, capsys: Capture) -> None:
    assert run("errors.yaml", "--out", "out", "--seeds", "2") == 0
    found = json.loads(Path("out/results.json").read_text())
    deep, alone, m2 = found["rows"]
    assert deep["published"] == "0 / 1.4 / 1.5" and (alone["published"], m2["state"]) == ("", "on request")
    assert (deep["state"], deep["seeds"], deep["steps"]) == ("finished", 2, 2 * 4 * 15 + 20 * 15)
    percents = [run["errors"]["test"]["percent"] for run in found["runs"] if run["row"] == "deep"]
    error = abs(percents[0] - percents[1]) / 2
    assert deep["ours"].endswith(f" / {sum(percents) / 2:.2f} ({error:.2f})")
    assert all(0 <= percent < 80 for percent in percents)  # of ten classes: better than chance
    assert deep["ours"] in Path("out/table.md").read_text() and deep["ours"] in capsys.readouterr().out
    assert "alone" in Path("out/index.html").read_text()


def test_the_errors_are_those_of_the_pair(tables: None, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Any] = []
    real = Alone.train

    def kept(self: Alone, run: Any) -> Any:
        trained.append(real(self, run))
        return trained[-1]

    monkeypatch.setattr(Alone, "train", kept)
    assert run("errors.yaml", "--out", "out", "--rows", "alone") == 0
    data = labelled(load("digits").subset(400))
    _, valid = data.hold_out(100)
    errors = json.loads(Path("out/alone-seed-0/results.json").read_text())["errors"]
    (pair,) = trained
    assert isinstance(pair, Classifier)
    parts = {"valid": valid, "test": data.test_batch()}
    for part, (x, y) in parts.items():
        assert errors[part]["percent"] == 100 * evaluation.classification_error(pair, x, y).value


@pytest.mark.parametrize("binarisation", ["dynamic", "none"])
def test_m2_on_request(tables: None, binarisation: str) -> None:
    Path("m2.yaml").write_text(f"{ERRORS}binarisation: {binarisation}\n")
    assert run("m2.yaml", "--out", "out", "--rows", "M2", "--fraction", "0.2") == 0
    found = json.loads(Path("out/results.json").read_text())
    row, (trained,) = found["rows"][2], found["runs"]
    assert trained["data"]["binarisation"] == binarisation
    assert row["state"] == "finished" and row["steps"] == 10 * 3  # 300 data: a fifth of 15 steps a pass
    assert "A rehearsal: 0.2 of the passes" in Path("out/table.md").read_text()


def test_a_row_of_several_stages_goes_on_where_it_was_stopped(tables: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("errors.yaml", "--out", "whole", "--rows", "deep") == 0
    real, calls = reproduction.ways.pretrain.fit, list[int]()  # pyright: ignore[reportAttributeAccessIssue]

    def stopped(*args: Any, on_record: Any, **options: Any) -> Any:
        def ask(record: Any) -> None:
            on_record(record)
            if len(calls) == 2 and record.step == 30:
                os.kill(os.getpid(), signal.SIGTERM)

        calls.append(1)
        return real(*args, on_record=ask, **options)

    monkeypatch.setattr("ppl_vae.pretrain.fit", stopped)
    assert run("errors.yaml", "--out", "out", "--rows", "deep") == 143
    assert run("errors.yaml", "--out", "out", "--rows", "alone") == 0
    rows = json.loads(Path("out/results.json").read_text())["rows"]
    assert [row["state"] for row in rows] == ["unfinished", "finished", "on request"]
    assert run("errors.yaml", "--out", "out", "--rows", "deep") == 0
    runs = [json.loads(Path(folder, "results.json").read_text())["runs"][0] for folder in ("whole", "out")]
    assert runs[0]["errors"] == runs[1]["errors"] and len(calls) == 4  # the first layer goes by without a step


def test_rows_without_a_guide_are_measured_by_the_model_alone(tables: None) -> None:
    assert run("chains.yaml", "--out", "out", "--num-test", "50") == 0
    found = json.loads(Path("out/results.json").read_text())
    assert [row["state"] for row in found["rows"]] == ["finished", "finished", "not applicable on-line"]
    assert [run["data"]["num_train"] for run in found["runs"]] == [200, 300]
    for row in found["runs"]:
        assert 10 < row["evaluation"]["nll"] < 64 * 0.7 and row["evaluation"]["num_particles"] == 200
        assert row["evaluation"]["kl"] == {}
    text = Path("out/table.md").read_text()
    assert "by draws from the model alone with 200 particles" in text and "AEVB | MCEM" in text
    for part in ("test", "train"):
        assert Path(f"out/{part}_curves.png").stat().st_size > 0
        values = list(json.loads(Path(f"out/mcem-seed-0/{part}_curve.json").read_text()).values())
        assert len(values) > 2 and values[-1] > values[0]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["errors.yaml", "--passes", "3"], "passes: got it for a table of error rates"),
        (["errors.yaml", "--num_particles", "3"], "num_particles: got it for a table of error rates"),
        (["errors.yaml", "--stacked", "true"], "stacked: got it for a table of error rates"),
        (["wrong.yaml"], "expected one of Alone, M2, Stack"),
        (["worse.yaml"], "its arguments are"),
        (["without.yaml"], "got no labels"),
    ],
)
def test_refusals(tables: None, capsys: Capture, words: list[str], reason: str) -> None:
    Path("wrong.yaml").write_text(ERRORS.replace("Stack(", "Stick("))
    Path("worse.yaml").write_text(ERRORS.replace("passes=20, rates", "storeys=20, rates"))
    Path("without.yaml").write_text(ERRORS.replace("data: digits", "data: none.npz"))
    np.savez("none.npz", train=np.zeros((400, 4), np.float32), test=np.zeros((10, 4), np.float32))
    assert run(*words, "--out", "out") != 0
    assert reason in capsys.readouterr().err
    assert not Path("out").exists()
