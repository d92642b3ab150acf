"""`compare`: equal weights, data and budget; paired differences; the same numbers in worker processes."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch

from ppl_vae import compare, data, evaluation, tables
from ppl_vae.objectives import IWAE, RenyiELBO, Trace_ELBO
from ppl_vae.pairs import VAE, HierarchicalVAE
from ppl_vae.testing import LinearGaussian

make = partial(VAE, (1, 8, 8), 4, (10,))


def run(objectives, **options):
    settings = {"steps": 5, "seeds": 2, "num_particles": 20, "num_test": 50, "progress": False} | options
    return compare(make, objectives, data.load("digits"), **settings)


def test_the_same_objective_twice_gives_the_same_numbers_to_the_last_bit() -> None:
    result = run({"a": IWAE(3), "b": RenyiELBO(alpha=0, num_particles=3)})
    first, second = result.rows
    assert (first.nll, first.bound, first.active_units) == (second.nll, second.bound, second.active_units)
    (difference,) = result.differences()
    assert (difference.nats, difference.standard_error, difference.baseline) == (0.0, 0.0, "a")


def test_rows_and_differences_by_hand() -> None:
    result = run({"elbo": Trace_ELBO(), "iwae": IWAE(3)})
    nll = {(r.objective, r.seed): r.evaluation.nll for r in result.runs}
    gaps = [nll["iwae", seed] - nll["elbo", seed] for seed in (0, 1)]
    (difference,) = result.differences()
    assert difference.nats == pytest.approx(sum(gaps) / 2)
    assert difference.standard_error == pytest.approx(abs(gaps[0] - gaps[1]) / 2)
    assert result.rows[0].nll == pytest.approx((nll["elbo", 0] + nll["elbo", 1]) / 2)
    assert result.rows[0].nll_se == pytest.approx(abs(nll["elbo", 0] - nll["elbo", 1]) / 2)


def test_objectives_are_left_as_they_were_and_the_random_state_too() -> None:
    objective, before = IWAE(2), torch.get_rng_state()
    run({"iwae": objective})
    assert objective.step == 0 and torch.equal(torch.get_rng_state(), before)


def test_worker_processes_give_the_same_numbers() -> None:
    objectives = {"elbo": Trace_ELBO(), "iwae": IWAE(3)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        here, there = run(objectives), run(objectives, workers=2)
    finally:
        torch.set_num_threads(threads)
    assert [r.evaluation.nll for r in here.runs] == [r.evaluation.nll for r in there.runs]
    for key, pair in here.trained.items():
        for name, value in pair.state_dict().items():
            assert torch.equal(value, there.trained[key].state_dict()[name])


def test_a_failing_worker_says_what_failed() -> None:
    with pytest.raises(ValueError, match="5000"):
        run({"elbo": Trace_ELBO()}, workers=2, batch_size=5000)


def test_tables_and_json(tmp_path: Path) -> None:
    pairs = {"one": make, "two": partial(HierarchicalVAE, (1, 8, 8), (4, 2), ((10,), (5,)))}
    objectives = {"elbo:1": Trace_ELBO(1), "elbo:5": Trace_ELBO(5), "iwae:5": IWAE(5)}
    result = compare(pairs, objectives, data.load("digits"), steps=3, seeds=2, num_particles=5, progress=False)
    lines = tables.layers_table(result).splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [["1", "1"], ["1", "5"], ["2", "1"], ["2", "5"]]
    assert lines[2].count(lines[2].split()[2]) == 2, "for k = 1 one run fills both columns"
    text = tables.comparison_table(result)
    assert "NLL(iwae:5) - NLL(elbo:1) = " in text and len([n for n in text.splitlines() if n.startswith("two")]) == 5
    again = json.loads(json.dumps(result.as_dict()))
    assert again["label"] == "log-likelihood" and again["config"]["objectives"]["iwae:5"]["num_particles"] == 5


def test_one_seed_takes_the_standard_error_over_the_data() -> None:
    result = run({"elbo": Trace_ELBO(), "iwae": IWAE(3)}, seeds=1)
    assert result.rows[0].nll_se == result.runs[0].evaluation.nll_se
    assert math.isnan(result.differences()[0].standard_error)


def test_the_signal_to_noise_ratio_is_that_of_the_trained_pair_on_one_test_batch() -> None:
    result = run({"iwae": IWAE(3)}, batch_size=7, gradient_draws=5, seeds=1)
    pair, x = result.trained["pair", "iwae"], data.load("digits").test_batch()[:7]
    expected = evaluation.gradient_snr(pair, IWAE(3), x, num_samples=5, seed=0)
    (row,) = result.rows
    assert {"model": row.snr_model, "guide": row.snr_guide} == pytest.approx(expected)
    assert f"{row.snr_model:.2f}, {row.snr_guide:.2f}" in tables.comparison_table(result)
    without = run({"iwae": IWAE(3)}, gradient_draws=0, seeds=1)
    assert math.isnan(without.rows[0].snr_guide) and "  -  " in tables.comparison_table(without)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("num_particles", 0), ("num_test", 0), ("num_test", -1), ("num_test", 361), ("batch_size", 0)),
        *(("learning_rate", math.nan), ("learning_rate", math.inf), ("learning_rate", -1.0), ("seeds", 10**9)),
    ],
)
def test_numbers_out_of_range_are_refused_before_the_first_run(name: str, value: float) -> None:
    seen: list[object] = []
    with pytest.raises(ValueError, match=f"{name}: got"):
        run({"a": IWAE(3)}, on_run=seen.append, **{name: value})
    assert seen == []


def test_a_pair_that_can_not_be_made_is_refused_before_the_first_run() -> None:
    seen: list[object] = []
    makers = {"good": make, "bad": partial(VAE, (1, 8, 8), 0)}
    with pytest.raises(ValueError, match="latent_dim: got 0"):
        compare(makers, {"a": IWAE(3)}, data.load("digits"), steps=1, on_run=seen.append, progress=False)
    assert seen == []


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="gradient_draws: got 1"):
        run({"elbo": Trace_ELBO()}, gradient_draws=1)
    with pytest.raises(ValueError, match="objectives: got none"):
        run({})
    with pytest.raises(ValueError, match="workers: got 0"):
        run({"elbo": Trace_ELBO()}, workers=0)


def test_tensors_of_any_values_are_compared_on_the_last_tenth_or_on_test_data() -> None:
    x = torch.randn(40, 5)
    options = {"steps": 3, "seeds": 1, "batch_size": 4, "num_particles": 5, "progress": False}
    result = compare(partial(LinearGaussian, 5, 2), {"elbo": Trace_ELBO()}, x, **options)
    assert result.config["evaluation_data"] == 4 and result.config["data"]["train"] == [[36, 5]]
    result = compare(partial(LinearGaussian, 5, 2), {"elbo": Trace_ELBO()}, x, test=x[:7], **options)
    assert result.config["evaluation_data"] == 7 and result.config["data"]["train"] == [[40, 5]]
    with pytest.raises(ValueError, match="got test data beside a data set"):
        run({"elbo": Trace_ELBO()}, test=x)
