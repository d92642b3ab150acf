"""Tables of the literature: protocols as published, rows as runs that survive, pages that show what was reached."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ppl_vae import Pair, cli, evaluation, fit, rates, reproduction
from ppl_vae.data import load
from ppl_vae.objectives import IWAE, LinearWarmup, Trace_ELBO
from ppl_vae.pairs import VAE, HierarchicalVAE
from ppl_vae.reproduction import Budget, Job, Protocol, load_protocol, protocol_names
from ppl_vae.run_folder import RunFolder
from ppl_vae.specs import maker

Capture = pytest.CaptureFixture[str]

SMALL = """
title: A small table
source: nowhere
data: digits
num_train: 1000
batch_size: 20
passes: 40
schedule: burda
eps: 0.0001
num_particles: 30
rows:
  - {name: "VAE", pair: "VAE(latent_dim=2, hidden=(9,))", objective: "elbo:1", published: {nll: 20, active_units: [2]}}
  - {name: "IWAE, k = 1", same_as: "VAE"}
  - {name: "IWAE, k = 3", pair: "VAE(latent_dim=2, hidden=(9,))", objective: "iwae:3", versus: ["VAE"]}
  - {name: "then", pair: "VAE(latent_dim=2, hidden=(9,))", objective: "iwae:2", start: "VAE", passes: 8,
     schedule: "constant:0.1", on_request: true}
"""
PART = ["--fraction", "0.1", "--passes", "30", "--num-test", "40", "--num-particles", "5", "--progress", "false"]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    return "small.yaml"


def run(*words: str, workers: int = 1) -> int:
    try:
        cli.main(["reproduce", *words, "--workers", str(workers)])
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


@pytest.mark.parametrize("name", protocol_names())
def test_protocols_of_the_library_can_be_read(name: str) -> None:
    assert load_protocol(name).rows


def test_the_protocol_of_burda_et_al() -> None:
    protocol = load_protocol("iwae-mnist")
    assert isinstance(protocol, Protocol)
    published = [(row.published.nll, row.published.active_units) for row in protocol.rows]
    assert published[:11:5] == [(86.76, [19]), (84.78, [25]), (84.78, [17, 5])]
    assert len(protocol.chosen(None)) == 12 and [row.name for row in protocol.chosen(["13"])] == [
        "1 layer, VAE, k = 1",
        "1 layer, VAE, k = 1, then IWAE, k = 50",
    ]
    assert published[0] == published[1] and published[6] == published[7]  # with one particle they are the same
    assert protocol.num_train == 59_600 and (protocol.batch_size, protocol.eps) == (20, 1e-4)
    per_pass = 59_600 // protocol.batch_size
    burda = rates.parse(protocol.schedule, steps=1, steps_per_pass=per_pass)
    assert isinstance(burda, rates.Burda) and burda.steps == protocol.passes * per_pass == 9_774_400


def test_a_table_is_trained_as_fit_would_and_set_beside_what_was_published(table: str) -> None:
    assert run(table, *PART, "--out", "out", "--seeds", "2", workers=2) == 0
    found = json.loads(Path("out/results.json").read_text())
    first, again, last, then = found["rows"]
    assert then["state"] == "on request"
    assert first["published"] == "20.00 (2)" and (first["steps"], first["seeds"], first["state"]) == (
        150,
        2,
        "finished",
    )
    assert again["ours"] == first["ours"] and again["state"] == "the run of VAE" and last["published"] == ""
    nll = {(r["row"], r["seed"]): r["evaluation"]["nll"] for r in found["runs"]}
    gaps = [nll["IWAE, k = 3", seed] - nll["VAE", seed] for seed in range(2)]
    (difference,) = found["differences"]
    assert difference["ours"] == f"{sum(gaps) / 2:+.2f} ({abs(gaps[0] - gaps[1]) / 2:.2f})" and difference["seeds"] == 2
    for name in ("table.md", "index.html"):
        text = Path("out", name).read_text()
        assert "IWAE, k = 3" in text and first["ours"] in text and "A rehearsal: 0.1 of each stage" in text
        assert "NLL in nats per datum on 40 test data of digits (" in text and "only the first 40 of " in text
    data = load("digits").subset(1000, 40)
    torch.manual_seed(1)
    pair = VAE((1, 8, 8), latent_dim=2, hidden=(9,))
    pair.set_output_mean(data.pixel_means)
    adam = torch.optim.Adam(pair.parameters(), lr=1e-3, eps=1e-4, fused=True)
    settings: dict[str, Any] = {"optim": adam, "schedule": rates.Burda(5), "progress": False, "device": "cpu"}
    fit(pair, data, IWAE(num_particles=3), steps=150, batch_size=20, seed=1, **settings)
    got = torch.load("out/iwae-k-3-seed-1/pair.pt", weights_only=True)
    assert all(torch.equal(got[name], value) for name, value in pair.state_dict().items())


def test_the_prior_of_the_weights_is_spread_over_the_batches_of_a_pass(table: str) -> None:
    """A step on 20 of 1,000 data: as on their loss with 20 / 1000 of -log p(theta), theta ~ N(0, I / 3)."""
    Path(table).write_text(SMALL.replace("eps:", "weight_precision: 3\neps:"))
    protocol = load_protocol(table)
    assert isinstance(protocol, Protocol)
    job = Job(protocol, protocol.rows[0], 0, Budget(), Path("out"), None, None, "cpu", "off")
    ours, by_hand = job.pair(), job.pair()
    x = job.dataset().test_batch()[:20]
    steps: list[tuple[Pair, float, torch.optim.Optimizer]] = [
        (ours, 0.0, job.adam(list(ours.parameters()))),
        (by_hand, 20 / 1000, torch.optim.Adam(by_hand.parameters(), lr=1e-3, eps=1e-4)),
    ]
    for pair, share, adam in steps:
        for seed in range(3):
            torch.manual_seed(seed)
            adam.zero_grad()
            prior = sum((3 * weight.square().sum() / 2 for weight in pair.parameters()), start=torch.zeros(()))
            (Trace_ELBO()(pair)(x) + share * prior).backward()
            adam.step()
    torch.testing.assert_close(ours.state_dict(), by_hand.state_dict(), rtol=1e-5, atol=1e-6)


def test_what_is_done_is_kept_and_what_was_stopped_goes_on(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(table, *PART, "--out", "whole") == 0
    real, calls = reproduction.job.fit, list[int]()  # pyright: ignore[reportAttributeAccessIssue]

    def stopped(*args: Any, on_record: Any, **options: Any) -> Any:
        def ask(record: Any) -> None:
            on_record(record)
            if len(calls) == 2 and record.step == 70:
                os.kill(os.getpid(), signal.SIGTERM)

        calls.append(1)
        return real(*args, on_record=ask, **options)

    monkeypatch.setattr("ppl_vae.reproduction.job.fit", stopped)
    assert run(table, *PART, "--out", "out") == 143
    rows = json.loads(Path("out/results.json").read_text())["rows"]
    assert [row["state"] for row in rows] == [
        "finished",
        "the run of VAE",
        "not begun",
        "on request",
    ]  # written before it began
    assert run(table, *PART, "--out", "out") == 0 and len(calls) == 3  # the first row is not trained again
    runs = [json.loads(Path(folder, "results.json").read_text())["runs"] for folder in ("whole", "out")]
    assert runs[0][1]["history"]["resumed"] == [] and runs[1][1]["history"]["resumed"] == [71]
    for first, second in zip(*runs, strict=True):
        assert first["evaluation"] | {"seconds": 0} == second["evaluation"] | {"seconds": 0}


def test_stacked_seeds_are_the_runs_one_by_one_and_go_on_too(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = RunFolder.record
    part = [*PART, "--seeds", "2", "--rows", "3; 4"]
    assert run(table, *part, "--out", "apart") == 0
    assert run(table, *part, "--stacked", "true", "--out", "whole") == 0

    def stopped(self: RunFolder, record: Any) -> None:
        real(self, record)
        if record.step == 70 and "k-3-seed-1" in str(self.path):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunFolder, "record", stopped)
    assert run(table, *part, "--stacked", "true", "--out", "out") == 143
    assert run(table, *part, "--stacked", "true", "--out", "out") == 0
    apart, whole, out = (json.loads(Path(f, "results.json").read_text()) for f in ("apart", "whole", "out"))
    assert [r["history"]["resumed"] for r in out["runs"]] == [[], [], [70], [70], [], []]
    for runs, close in (("whole", 0), ("apart", 1e-4)):
        for name in ("vae", "iwae-k-3", "then"):
            for seed in (0, 1):
                first, second = (
                    torch.load(f"{folder}/{name}-seed-{seed}/pair.pt", weights_only=True) for folder in (runs, "out")
                )
                torch.testing.assert_close(first, second, rtol=close, atol=close)
    lines = {(line["row"], line["seeds"]) for line in out["rows"]}
    assert lines == {("VAE", 2), ("IWAE, k = 1", 2), ("IWAE, k = 3", 2), ("then", 2)}
    assert [line["ours"] for line in apart["rows"]] == [line["ours"] for line in whole["rows"]]  # two decimals
    before = Path("out/results.json").read_text()
    assert run(table, *part, "--stacked", "true", "--out", "out") == 0  # all is done
    assert Path("out/results.json").read_text() == before


def test_the_bound_on_test_data_is_followed_and_left_alone(table: str) -> None:
    assert run(table, *PART, "--rows", "1", "--out", "without") == 0
    Path(table).write_text(SMALL.replace("num_particles: 30", "rehearsal_test: 25\ntest_curve: true"))
    assert run(table, *PART, "--rows", "1", "--out", "with") == 0
    first, second = (torch.load(f"{out}/vae-seed-0/pair.pt", weights_only=True) for out in ("without", "with"))
    assert all(torch.equal(first[name], second[name]) for name in first)  # training doesn't notice
    curve = json.loads(Path("with/vae-seed-0/test_curve.json").read_text())
    assert [int(step) for step in curve] == list(range(1, 151))
    data = load("digits").subset(1000, 40)
    pair = VAE((1, 8, 8), latent_dim=2, hidden=(9,))
    pair.load_state_dict(second)
    bound = evaluation.bound(pair, Trace_ELBO(), data.test_batch()[:25], seed=0)
    assert curve["150"] == pytest.approx(bound.mean().item(), rel=1e-6)
    assert Path("with/test_curves.png").exists() and not Path("without/test_curves.png").exists()


def test_layers_stand_from_bottom_to_top_though_a_ladder_draws_them_downwards(table: str) -> None:
    pair = "LadderVAE(latent_dims=(4, 3, 2), hidden=((9,), (7,), (5,)))"
    Path(table).write_text(SMALL.partition("rows:")[0] + f"rows: [{{name: one, pair: '{pair}', objective: elbo}}]\n")
    assert run(table, *PART, "--out", "out") == 0
    (line,), (found,) = (json.loads(Path("out/results.json").read_text())[part] for part in ("rows", "runs"))
    kl, units = found["evaluation"]["kl"], found["evaluation"]["active_units"]
    assert list(kl) == ["z3", "z2", "z1"] and line["KL"] == "+".join(f"{kl[f'z{layer}']:.2f}" for layer in (1, 2, 3))
    assert line["active units"] == "+".join(f"{units[f'z{layer}']['count']:g}" for layer in (1, 2, 3))


def test_the_layers_are_followed_and_warm_up_is_counted_in_passes(table: str, capsys: Capture) -> None:
    two = "HierarchicalVAE(latent_dims=(3, 2), hidden=((9,), (7,)))"
    rows = f"rows:\n  - {{name: two, pair: '{two}', objective: elbo, warmup: 20}}\n  - {{name: one, pair: '{two}', "
    Path(table).write_text(
        SMALL.partition("rows:")[0] + f"rehearsal_test: 25\nkl_curve: true\n{rows}objective: elbo}}\n"
    )
    assert run(table, *PART, "--out", "out") == 0
    curve = json.loads(Path("out/two-seed-0/kl_curve.json").read_text())
    assert [int(step) for step in curve] == list(range(1, 151)) and set(curve["1"]) == {"z1", "z2"}
    data, pair = load("digits").subset(1000, 40), HierarchicalVAE((1, 8, 8), (3, 2), ((9,), (7,)))
    pair.load_state_dict(torch.load("out/two-seed-0/pair.pt", weights_only=True))
    kl = evaluation.kl_per_site(pair, data.test_batch()[:25], num_particles=10, seed=0)
    assert curve["150"] == pytest.approx({site: values.mean().item() for site, values in kl.items()}, rel=1e-6)
    # A tenth of 50 steps is a pass of this rehearsal: warm-up takes 20 of its 30 passes.
    torch.manual_seed(0)
    fresh = maker(two, data)()
    adam = torch.optim.Adam(fresh.parameters(), lr=1e-3, eps=1e-4, fused=True)
    warm = Trace_ELBO(kl_weight=LinearWarmup(100))
    fit(fresh, data, warm, steps=150, batch_size=20, optim=adam, schedule=rates.Burda(5), seed=0, progress=False)
    assert all(torch.equal(value, pair.state_dict()[name]) for name, value in fresh.state_dict().items())
    assert Path("out/kl_curves.png").exists() and Path("out/index.html").read_text().count("<img") == 3
    assert re.search(r"\| \d+\.\d\d\+\d+\.\d\d \|", capsys.readouterr().out)  # the column of KL terms


def test_some_rows(table: str) -> None:
    assert run(table, *PART, "--rows", "2", "--out", "out") == 0
    rows = json.loads(Path("out/results.json").read_text())["rows"]
    assert [row["state"] for row in rows] == ["finished", "the run of VAE", "not begun", "on request"] and rows[2][
        "ours"
    ] == ""
    assert run(table, *PART, "--rows", "IWAE, k = 3;1", "--out", "out") == 0
    assert json.loads(Path("out/results.json").read_text())["rows"][2]["state"] == "finished"


def test_a_row_may_begin_with_the_end_of_another(table: str) -> None:
    """Weights and moments are taken over; the rate is that of the row's own schedule; steps are counted anew."""
    assert run(table, *PART, "--rows", "then", "--batch-size", "10", "--out", "out") == 0
    rows = json.loads(Path("out/results.json").read_text())["rows"]
    assert [row["state"] for row in rows] == ["finished", "the run of VAE", "not begun", "finished"]
    assert (rows[0]["steps"], rows[3]["steps"]) == (300, 80)  # 10 steps a pass; 8 passes are fewer than 30
    assert "Deviations: Batches of 10, not 20. " in Path("out/table.md").read_text()
    assert Path("out/then-seed-0/metrics.jsonl").read_text().count('"learning_rate": 0.0001,') == 80
    data = load("digits").subset(1000, 40)
    torch.manual_seed(0)
    pair = VAE((1, 8, 8), latent_dim=2, hidden=(9,))
    pair.set_output_mean(data.pixel_means)
    adam = torch.optim.Adam(pair.parameters(), lr=1e-3, eps=1e-4, fused=True)
    settings: dict[str, Any] = {"optim": adam, "batch_size": 10, "progress": False, "device": "cpu"}
    fit(pair, data, Trace_ELBO(), steps=300, schedule=rates.Burda(10), **settings)
    adam.param_groups[0]["lr"] = 1e-3
    fit(pair, data, IWAE(num_particles=2), steps=80, schedule=rates.Constant(0.1), **settings)
    got = torch.load("out/then-seed-0/pair.pt", weights_only=True)
    assert all(torch.equal(got[name], value) for name, value in pair.state_dict().items())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "table: got 'nowhere' (No such file or directory), expected one of"),
        (["small.yaml", "--rows", "5"], "rows: got 5, expected names or numbers of 1 'VAE', 2 'IWAE, k = 1'"),
        (["small.yaml", "--fraction", "0"], "fraction: got 0.0"),
        (["small.yaml", "--passes", "-1"], "passes: got -1.0"),
        (["small.yaml", "--seeds", "0"], "seeds: got 0"),
        (["small.yaml", "--num-particles", "0"], "num_particles: got 0"),
        (["small.yaml", "--num-test", "0"], "num_test: got 0"),
        (["small.yaml", "--device", "cuda:99"], "device: got 'cuda:99'"),
        (["small.yaml", "--out", "."], "expected a folder of this table or none"),
        (["other.yaml"], "got 'other.yaml'"),
    ],
)
def test_what_is_refused(table: str, words: list[str], said: str, capsys: Capture) -> None:
    Path("other.yaml").write_text("title: 3\nlines: []\n")
    assert run(*words) == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1 and {p.name for p in Path().iterdir()} == {table, "other.yaml"}


def test_a_folder_of_another_budget_is_refused(table: str, capsys: Capture) -> None:
    assert run(table, *PART, "--rows", "1", "--out", "out") == 0
    assert run(table, *PART, "--passes", "31", "--out", "out") == 2
    assert "out: got out of another table or budget" in capsys.readouterr().err


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"name": "a", "pair": "VAE()", "objective": "elbo:1"}] * 2,
        [{"name": "a"}],
        [{"name": "a", "pair": "VAE()", "objective": "nothing:1"}],
        [{"name": "a", "pair": "VAE()", "objective": "elbo:1", "versus": ["b"]}],
        [{"name": "a", "same_as": "b"}],
        [{"name": "a", "pair": "VAE()", "objective": "elbo:1", "start": "a"}],
        [{"name": "a", "pair": "VAE()", "objective": "elbo:1", "schedule": "often"}],
    ],
)
def test_rows_that_make_no_sense_are_refused(rows: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="got"):
        Protocol("t", "s", "digits", [reproduction.Row(**row) for row in rows], passes=1)


def test_the_state_of_a_run_whose_last_line_is_cut(tmp_path: Path) -> None:
    protocol = load_protocol("iwae-mnist")
    assert isinstance(protocol, Protocol)
    job = Job(protocol, protocol.rows[0], 0, Budget(), tmp_path, None, None, "cpu", "off")
    assert job.steps_done == 0 and job.result() is None
    (tmp_path / "metrics.jsonl").write_text('{"step": 3}\n{"step": 12}\n')
    assert job.steps_done == 12
    (tmp_path / "metrics.jsonl").write_text('{"step": 3}\n{"st')
    assert job.steps_done == 3


WORKERS = """
import functools, os, sys, time
from ppl_vae.workers import run_jobs

def job(advance, number):
    open(f"{number}.{os.getpid()}", "w").close()
    time.sleep(600)

if __name__ == "__main__":
    list(run_jobs([functools.partial(job, number=n) for n in range(2)], 2, lambda steps: None))
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(WORKERS)
    parent = subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path)
    until = time.monotonic() + 120
    while len(started := list(tmp_path.glob("[01].*"))) < 2:
        assert parent.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    workers = [Path("/proc", path.suffix[1:], "stat") for path in started]
    while any(path.exists() and path.read_text().split(") ")[-1][0] != "Z" for path in workers):
        assert time.monotonic() < until
        time.sleep(0.05)
