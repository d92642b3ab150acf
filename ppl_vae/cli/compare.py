"""`ppl-vae compare`."""

from pathlib import Path

import torch

from ppl_vae import comparison, report, runs, specs, tables, training
from ppl_vae.cli.common import about, batch_on, check_steps, default_pairs
from ppl_vae.data import Binarisation, Dataset, Source, is_composed, load_named
from ppl_vae.seeds import check_seed
from ppl_vae.training import Compile

__all__ = ["compare"]

LAYERED = ["elbo:1", "elbo:5", "iwae:5", "elbo:50", "iwae:50"]
"""Objectives of the table of Burda et al. 2015."""

FEW = ["mean-field:1", "elbo:1", "iwae:5"]
"""Objectives for a pair of many steps, of which 50 particles would take long."""


def compare(
    pair: list[str] | None = None,
    objective: list[str] | None = None,
    data: str = "digits",
    data_root: str | None = None,
    binarisation: Binarisation | None = None,
    data_seed: int = 0,
    steps: int = 700,
    seeds: int = 3,
    batch_size: int = 20,
    learning_rate: float = 3e-3,
    num_particles: int = 5000,
    num_test: int | None = None,
    gradient_draws: int | None = None,
    device: str = "auto",
    compile: Compile = "auto",
    workers: int | None = None,
    out: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """Train pairs with objectives from equal weights and with an equal budget; say which is better, in nats.

    Without arguments: the digits, one- and two-layer pairs, k in {1, 5, 50}, VAE and IWAE.

    Args:
        pair: a pair, `VAE(latent_dim=2)` or `my_file.py:MyPair`; may be repeated.
        objective: an objective, `elbo:5`, `iwae:50` or `RenyiELBO(alpha=0.5, num_particles=5)`; may be repeated.
        data: digits, mnist, binarised-mnist, fashion-mnist, omniglot, cifar10, frey-faces; a file of arrays; or data
            with classes or captions, as for `ppl-vae train`: a conditional VAE or alignDRAW is then the pair, with
            objectives of few particles, by default.
        data_root: folder of the data sets; the environment variable PPL_VAE_DATA otherwise.
        binarisation: dynamic, static or none; the data set's usual one by default.
        data_seed: of static binarisation and of the test data's one draw.
        steps: gradient steps of each run.
        seeds: runs of each pair and objective.
        batch_size: data per step.
        learning_rate: of Adam.
        num_particles: of the importance-sampled log-likelihood.
        num_test: evaluate on so many test data; all by default.
        gradient_draws: for the signal-to-noise ratio of the gradient at the end; 0 leaves it out; 100 by default, and 0
            without arguments, where the table has no column for it.
        device: auto, cpu, cuda or cuda:N.
        compile: auto, off, inductor or (on CUDA) cudagraph.
        workers: so many runs side by side, in processes of one thread each; all cores for small data on a CPU.
        out: folder of the results; compare-DATA by default.
        overwrite: replace results that are there already (nothing but a folder written by ppl-vae).
        progress: show a progress bar.
    """
    check_steps(steps)
    check_seed("data_seed", data_seed)
    folder = f"compare-{data.partition('(')[0] if is_composed(data) else Path(data).stem}" if out is None else out
    runs.check_free(folder, overwrite)
    dataset = load_named(data, binarisation=binarisation, root=data_root, seed=data_seed)
    has_layers = objective is None and not isinstance(dataset, Source)
    texts = objective or (LAYERED if has_layers else FEW)
    with runs.new_folder(folder, overwrite) as partial:  # before the work: it may turn out that it can't be made
        result = comparison.compare(
            {text: specs.maker(text, dataset) for text in pair or default_pairs(dataset)},
            {text: specs.make_objective(text) for text in texts},
            dataset,
            steps=steps,
            seeds=seeds,
            batch_size=batch_size,
            learning_rate=learning_rate,
            num_particles=num_particles,
            num_test=num_test,
            gradient_draws=(100 if objective else 0) if gradient_draws is None else gradient_draws,
            device=device,
            compile=compile,
            workers=_workers(workers, dataset, device),
            progress=progress,
        )
        table = (tables.layers_table if has_layers else tables.comparison_table)(result)
        report.comparison_files(
            result, table, batch_on(torch.device(result.config["device"]), dataset.test_batch()), partial
        )
    print(table)
    print(f"\n{about(dataset, num_particles, result.runs[0].evaluation)}\nResults: {folder}")


def _workers(workers: int | None, dataset: Dataset | Source, device: str) -> int:
    """All cores for small data on a CPU: one run keeps one core busy. Large data are not copied to processes."""
    if workers is not None:
        return workers
    is_small = dataset.train.shape.numel() <= 10_000_000
    return torch.get_num_threads() if is_small and training.resolve_device(device).type == "cpu" else 1
