"""`ppl-vae` on sentences: train, text, and what is refused."""

import json
import math
from pathlib import Path

import pytest
import torch

from ppl_vae import runs
from tests.command_line import refused, run

SIZES = "latent_dim=2, embedding=4, hidden=8"
DATA = "text(grammar, num_train=300, num_test=40)"
TRAIN = ["train", "--data", DATA, "--steps", "4", "--batch_size", "20", "--num_particles", "5", "--progress", "false"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_train_and_all_that_reads_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    run(*TRAIN, "--pair", f"TextVAE({SIZES})", "--valid", "50")
    shown = capsys.readouterr().out
    assert "end marks counted" in shown and "40 test data" in shown and "binarisation" not in shown
    found = json.loads(Path("run/results.json").read_text())
    tokens = found["data"]["test_tokens"]
    nats = found["evaluation"]["nll"] * 40
    assert found["perplexity"]["tokens"] == tokens
    assert found["perplexity"]["with_end"] == pytest.approx(math.exp(nats / tokens))
    assert found["perplexity"]["without_end"] == pytest.approx(math.exp(nats / (tokens - 40)))
    (*_, last) = (json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines())
    assert last["kl"] is not None and last["mutual_information"] <= math.log(50) and last["active_units"] <= 2
    assert Path("run/sentences.txt").read_text().count("input") == 10
    run("evaluate", "run", "--num_particles", "5", "--progress", "false")
    assert json.loads(Path("run/evaluation.json").read_text())["nll"] == pytest.approx(found["evaluation"]["nll"])
    for action, options, lines in (
        ("sample", ["--num", "3"], 3),
        ("sample", ["--num", "3", "--temperature", "0.5", "--top-k", "4", "--top_p=0.9"], 3),
        ("reconstruct", ["--num", "2"], 13),
        ("reconstruct", ["the whale swims", "--beam", "2", "a dog runs"], 13),
        ("path", ["--steps", "2", "the whale swims", "a dog runs"], 4),
        ("impute", ["the whale"], 1),
        ("impute", ["--num", "3"], 3),
    ):
        capsys.readouterr()
        run("text", action, "run", *options)
        said = capsys.readouterr().out.splitlines()
        assert len(said) == lines + 1 and said[-1] == f"run/{action}.txt"
        assert Path(said[-1]).read_text().splitlines() == said[:-1]
    run("text", "impute", "run", "the whale", "--out", "rest.txt")
    assert Path("rest.txt").read_text().startswith("the whale | ")


def test_a_language_model_and_one_that_is_pretrained(capsys: pytest.CaptureFixture[str]) -> None:
    run(*TRAIN, "--pair", "LanguageModel(embedding=4, hidden=8)", "--out", "lm")
    assert "input" not in Path("lm/sentences.txt").read_text()
    run("text", "sample", "lm", "--num", "2")
    run("text", "impute", "lm", "some dogs")
    assert "got a guide without a site 'z'" in refused(capsys, "text", "reconstruct", "lm")
    run(*TRAIN, "--pair", f"TextVAE({SIZES})", "--pretrain", "3", "--objective", "FreeBits(0.5)", "--out", "pre")
    lines = [json.loads(line) for line in Path("pre/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 8))
    run(*TRAIN, "--pair", f"TextVAE({SIZES})", "--aggressive", "true", "--valid", "30", "--out", "slow")


def test_by_default_it_is_a_text_vae_of_the_vocabulary() -> None:
    run(*TRAIN)
    loaded = runs.load_run("run")
    assert type(loaded.pair).__name__ == "TextVAE"
    bias = dict(loaded.pair.named_parameters())["network.out.bias"]
    assert bias.shape == (loaded.data.levels - 1,) and bool(torch.isfinite(bias).all())


def test_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    run(*TRAIN, "--pair", f"TextVAE({SIZES})")
    for words, message in (
        (["text", "path", "run"], "sentences: got 0, expected two"),
        (["text", "path", "run", "a dog", "a dog", "a dog"], "sentences: got 3, expected two"),
        (["text", "sing", "run"], "action: got 'sing', expected one of reconstruct, sample, path, impute"),
        (["text", "sample", "run", "--temperature", "0"], "temperature: got 0.0, expected a number above 0"),
        (["text", "reconstruct", "run", ""], "got the empty sentence"),
        (["text", "reconstruct", "run", "the " * 40], "got a sentence of 40 words"),
        (["text", "sample", "nowhere"], "run: got nowhere"),
        (["sample", "run"], "run: got one on sentences, grammar, expected one on images"),
        (["reconstruct", "run"], "ppl-vae text sample"),
        (["complete", "run"], "ppl-vae text sample"),
        (["manifold", "run"], "ppl-vae text sample"),
        ([*TRAIN, "--aggressive", "true", "--out", "x"], "aggressive: got True without data held out"),
    ):
        assert message in refused(capsys, *words)
    run("train", "--steps", "2", "--num_particles", "5", "--num_test", "10", "--progress", "false", "--out", "digits")
    assert "expected one on sentences" in refused(capsys, "text", "sample", "digits")
