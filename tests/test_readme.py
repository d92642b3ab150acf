"""The numbers of the README are those of the committed results, and its Python runs."""

import json
import re
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS_SECTION = README.partition("## Results")[2]
RESULTS = ROOT / "examples" / "reproduce" / "results"


def test_the_mnist_table_is_the_committed_result() -> None:
    rows = json.loads((RESULTS / "mnist_one_layer.json").read_text())["rows"]
    for name, row in rows.items():
        ours, hand = row["ours"], row["handwritten"]
        (line,) = [line for line in RESULTS_SECTION.splitlines() if line.startswith(f"| `{name}`")]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1] == f"{ours['nll']:.2f} ({ours['nll_se']:.2f})" and cells[2] == f"{ours['bound']:.2f}"
        assert cells[4:7] == [f"{ours['train_seconds']:.0f} s", f"{hand['nll']:.2f}", f"{hand['train_seconds']:.0f} s"]
        assert cells[7] == f"{ours['train_seconds'] / hand['train_seconds']:.2f}"


def test_the_digits_table_is_the_committed_result() -> None:
    for row in json.loads((RESULTS / "compare_digits.json").read_text())["rows"]:
        assert f"{row['nll']:.2f} ({row['nll_se']:.2f})" in README


def test_the_captions_are_the_committed_result() -> None:
    found = json.loads((RESULTS / "captions" / "captions.json").read_text())
    rows = {
        "real images, digit and place seen together in training": "read right, combinations seen, real images",
        "samples, seen together": "read right, combinations seen, samples",
        "real images, held out": "read right, combinations held out, real images",
        "samples, held out": "read right, combinations held out, samples",
        "samples with one word changed, all read right": "one word changed, all read right",
    }
    for shown, name in rows.items():
        assert f"| {shown} | {found[name]['place']:.3f} | {found[name]['digit']:.3f} |" in README
    own, other = found["bound in nats"].values()
    assert f"{own:.2f} nats with an image's own caption and {other:.2f} with another's" in README


def test_the_rehearsals_are_the_committed_results() -> None:
    rows = json.loads((RESULTS / "aevb-bounds-rehearsal" / "results.json").read_text())["rows"]
    for head, cells in (
        ("latents", [row["row"].split()[0] for row in rows]),
        ("NLL (s.e.)", [row["ours"] for row in rows]),
        ("active units", [row["active units"] for row in rows]),
    ):
        assert f"\n| {head} | {' | '.join(cells)} |\n" in RESULTS_SECTION


def test_the_iwae_table_is_the_committed_result() -> None:
    found = json.loads((RESULTS / "iwae-mnist-rehearsal" / "results.json").read_text())
    rows = {row["row"]: row for row in found["rows"]}
    gaps = {(gap["row"], gap["minus"]): gap["ours"] for gap in found["differences"]}
    for layers in ("1 layer", "2 layers"):
        for k in (1, 5, 50):
            vae, iwae = (f"{layers}, {name}, k = {k}" for name in ("VAE", "IWAE"))
            cells = [cell for name in (vae, iwae) for cell in (rows[name]["ours"], rows[name]["published"])]
            told = " | ".join(cell.split()[0] for cell in cells)
            gap = "" if k == 1 else f" {gaps[iwae, vae]}"
            assert f"\n| {layers[0]} | {k} | {told} |{gap} |\n" in RESULTS_SECTION, (layers, k)


def test_the_rows_of_60_passes_are_the_committed_result() -> None:
    found = json.loads((RESULTS / "iwae-mnist-60-passes" / "results.json").read_text())
    rows = {row["row"]: row for row in found["rows"]}
    for name in ("VAE, k = 1", "VAE, k = 5", "IWAE, k = 5"):
        row = rows[f"1 layer, {name}"]
        assert row["state"] == "finished" and row["steps"] == 178_800
        assert f"\n| {name} | {row['ours']} | {row['active units']} | {row['published']} |\n" in RESULTS_SECTION


def test_the_quadrants_are_the_committed_result() -> None:
    found = json.loads((RESULTS / "quadrants" / "quadrants.json").read_text())
    assert found["settings"]["data"]["num_test"] == 10_000 and found["settings"]["data"]["num_train"] == 60_000
    for number, row in found["quadrants"].items():
        ours = [f"{nats['mean']:.2f} ({nats['standard_error']:.2f})" for nats in row["nats"].values()]
        published = map(str, row["published"]["Pyro's tutorial"].values())
        assert f"\n| {number} | {' | '.join([*ours, *published])} |\n" in RESULTS_SECTION


def test_the_codes_are_the_committed_result() -> None:
    found = json.loads((RESULTS / "vq-vae" / "mnist.json").read_text())["found"]
    text = " ".join(README.split())
    assert f"image is {found['two-part NLL']:.2f} nats, {found['of it the codes']:.2f} of them for the codes" in text
    assert f"and {found['two-part NLL, uniform prior']:.2f} under the uniform prior" in text
    assert f"{found['codes used']} of {found['codes']} codes are used (perplexity {found['perplexity']:.1f})" in text
    real, drawn = found["real test images read right"], found["samples read right"]
    assert f"reads {real:.3f} of real test images right reads {drawn:.3f} of the samples" in text


def test_the_readmes_pair_runs() -> None:
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", README, re.S) if "class MyPair" in c]
    code = code.replace("digits, steps=2000", "digits, steps=3, seeds=1, num_particles=5")
    names: dict[str, object] = {}
    exec(code.replace("steps=2000", "steps=3").replace("num_particles=5000", "num_particles=5"), names)
    assert "result" in names


def test_every_public_objective_and_pair_is_named() -> None:
    from ppl_vae import objectives, pairs

    for name in [*objectives.__all__, *pairs.__all__]:
        if name not in ("Objective", "PairLoss", "Schedule"):
            assert f"`{name}`" in README, name


def test_the_slopes_are_the_committed_result() -> None:
    slopes = json.loads((RESULTS / "snr_law.json").read_text())["slopes"]
    for curve, start in (
        ("IWAE, model", "| model, `IWAE`"),
        ("IWAE, guide", "| guide, `IWAE`"),
        ("DReG, guide", "| guide"),
    ):
        fits = [slopes[curve][part] for part in ("all K", "K >= 100")]
        cells = " | ".join(f"{fit['slope']:+.3f} ({fit['standard_error']:.3f})" for fit in fits)
        assert any(line.startswith(start) and cells in line for line in RESULTS_SECTION.splitlines()), curve


def test_the_step_times_are_the_committed_result() -> None:
    result = json.loads((ROOT / "examples" / "benchmarks" / "results" / "step_time_cpu.json").read_text())
    shown = ("stock", "hand", "hand-compile", "numpyro", "ours-off", "ours-inductor")
    speed = README.partition("## Speed")[2].partition("## Results")[0].splitlines()
    for workload in result["workloads"].values():
        rows = [workload["contestants"][name] for name in shown]
        cells = [f"{row['ms_per_step']['median']:.2f} ({row['ratio']['median']:.2f})" for row in rows]
        assert any(line.endswith("| " + " | ".join(cells) + " |") for line in speed), workload["about"]
    assert result["environment"]["cpu"] in " ".join(speed).replace("\n", " ")


def test_the_stacked_steps_are_the_committed_result() -> None:
    result = json.loads((ROOT / "examples" / "benchmarks" / "results" / "stacked_time_cpu.json").read_text())
    one, five = (result["particles"][k]["stacked-8"]["ratio"]["median"] for k in ("1", "5"))
    assert f"cost {one:.2f} times one at k = 1, and {five:.2f} times at k = 5" in README.replace("\n", " ")


def test_the_estimators_are_the_committed_result() -> None:
    result = json.loads((RESULTS / "estimators.json").read_text())
    for row in result["rows"]:
        name = row["objective"].partition(" ")[0]
        assert f"| `{name}` | {row['nll']:.2f} ({row['nll_se']:.2f}) | {row['bound']:.2f} |" in RESULTS_SECTION
    (difference,) = result["differences"]
    assert f"{difference['nats']:+.2f} ({difference['standard_error']:.2f}) nats" in RESULTS_SECTION


def test_the_pixels_are_the_committed_result() -> None:
    for name, title in (("digits", "8 x 8 digits, 17 grey levels"), ("mnist", "14 x 14 MNIST, binarised")):
        found = json.loads((RESULTS / "pixels" / f"{name}.json").read_text())["found"]
        cells = [f"{row['NLL']:.2f} ({row['s.e.']:.2f}); {row['parameters']:,}" for row in found.values()]
        assert list(found) == ["gated PixelCNN", "VAE", "logistic regressions"]
        assert f"\n| {title} | {' | '.join(cells)} |\n" in README


def test_the_sentences_are_the_committed_result() -> None:
    result = json.loads((RESULTS / "text" / "ptb.json").read_text())
    for name, row in result["found"].items():
        kl = f"{row['KL']:.2f}" if row["KL"] else ""
        perplexities = f"{row['with_end']:.1f} | {row['without_end']:.1f}"
        assert f"\n| {name} | {row['NLL']:.2f} ({row['s.e.']:.2f}) | {kl} | {perplexities} |\n" in README
    lines = (RESULTS / "text" / "ptb.txt").read_text().splitlines()
    path = lines[lines.index("a path:") + 1 :]
    assert "\n".join(path) in README


def test_the_helmholtz_machines_are_the_committed_result() -> None:
    found = json.loads((RESULTS / "wake-sleep" / "mnist.json").read_text())["found"]
    cells = [f"{row['NLL']:.2f} ({row['s.e.']:.2f})" for row in found.values()]
    assert f"\n| {' | '.join(found)} |\n" in README and f"\n| {' | '.join(cells)} |\n" in README


def test_the_comparison_with_wake_sleep_is_the_committed_result() -> None:
    path = RESULTS / "aevb-vs-wake-sleep" / "results.json"
    ours = {row["row"]: row["ours"] or row["state"] for row in json.loads(path.read_text())["rows"]}
    for number in ("1,000", "50,000"):
        cells = [ours[f"{way}, {number} data"] for way in ("AEVB", "wake-sleep", "Monte Carlo EM")]
        assert f"\n| {number} training images | {' | '.join(cells)} |\n" in README


def test_the_beginnings_of_deep_nets_are_the_committed_result() -> None:
    for name, net in json.loads((RESULTS / "pretraining" / "mnist.json").read_text())["found"].items():
        cells = []
        for part in ("train", "valid", "test"):
            percent = [100 * run[part] for run in net["errors"]]
            cells.append(f"{statistics.mean(percent):.2f} ({statistics.stdev(percent) / len(percent) ** 0.5:.2f})")
        assert f"\n| {name} | {' | '.join(cells)} |\n" in README


def test_the_semi_supervised_are_the_committed_result() -> None:
    for name, accuracies in json.loads((RESULTS / "m2" / "mnist.json").read_text())["accuracy"].items():
        assert f"\n| {name} | {statistics.mean(accuracies):.4f} |\n" in README


def test_the_rows_of_100_labels_are_the_committed_result() -> None:
    rows = json.loads((RESULTS / "m2-100-labels" / "results.json").read_text())["rows"]
    for row in [row for row in rows if row["state"] == "finished"]:
        name, published = row["row"].removeprefix("100 labels, "), row["published"].split(" / ")[-1]
        assert f"\n| {name} | {published} | {row['ours'].split(' / ')[-1]} |\n" in README
    assert sum(row["state"] == "finished" for row in rows) == 2


def test_the_story_runs() -> None:
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", README, re.S) if "HelmholtzMachine" in c]
    names: dict[str, Any] = {}
    exec(code.replace("steps=500", "steps=3"), names)
    assert names["deep"].classify(names["digits"].train[:5]).probs.shape == (5, 10)


def test_the_time_of_a_draw_is_the_committed_result() -> None:
    found = json.loads((ROOT / "examples" / "benchmarks" / "results" / "draw_time_cpu.json").read_text())["ways"]
    text = " ".join(README.split())
    assert f"takes {found['cached']['seconds']['median']:.1f} seconds of one core" in text
    assert f"{found['rows so far']['ratio']['median']:.0f} times less than computing the rows so far" in text
