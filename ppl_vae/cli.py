"""The command line: `ppl-vae compare | train | evaluate | sample | reconstruct | manifold | list`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonargparse
import torch
import yaml
from torch import Tensor

from ppl_vae import comparison, data, evaluation, generation, report, runs, specs, tables, training
from ppl_vae.data import Binarisation, Dataset
from ppl_vae.nonfinite import NonFiniteError
from ppl_vae.pair import Pair
from ppl_vae.training import Compile

__all__ = ["main"]


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
        data: digits, mnist, fashion-mnist, omniglot, cifar10, frey-faces, or a file of arrays.
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
        overwrite: replace a folder that is there already.
        progress: show a progress bar.
    """
    folder = out or f"compare-{Path(data).stem}"
    runs.check_free(folder, overwrite)
    dataset = _load(data, binarisation, data_root, data_seed)
    texts = objective or ["elbo:1", "elbo:5", "iwae:5", "elbo:50", "iwae:50"]
    result = comparison.compare(
        {text: _maker(text, dataset) for text in pair or _default_pairs(dataset)},
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
    table = (tables.comparison_table if objective else tables.layers_table)(result)
    with runs.new_folder(folder, overwrite) as partial:
        report.comparison_files(result, table, dataset.test_batch().to(result.config["device"]), partial)
    print(table)
    print(f"\n{_about(dataset, num_particles, result.runs[0].evaluation)}\nResults: {folder}")


def train(
    pair: str | None = None,
    objective: str = "elbo",
    data: str = "digits",
    data_root: str | None = None,
    binarisation: Binarisation | None = None,
    data_seed: int = 0,
    steps: int = 5000,
    batch_size: int = 100,
    learning_rate: float = 1e-3,
    seed: int = 0,
    num_particles: int = 5000,
    num_test: int | None = None,
    device: str = "auto",
    compile: Compile = "auto",
    out: str = "run",
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """Train one pair with one objective, evaluate it, and write a run folder.

    Args:
        pair: a pair, `VAE(latent_dim=2)` or `my_file.py:MyPair`.
        objective: an objective, `elbo`, `iwae:50` or `RenyiELBO(alpha=0.5, num_particles=5)`.
        data: digits, mnist, fashion-mnist, omniglot, cifar10, frey-faces, or a file of arrays.
        data_root: folder of the data sets; the environment variable PPL_VAE_DATA otherwise.
        binarisation: dynamic, static or none; the data set's usual one by default.
        data_seed: of static binarisation and of the test data's one draw.
        steps: gradient steps.
        batch_size: data per step.
        learning_rate: of Adam.
        seed: of the initial weights, the minibatches and the noise.
        num_particles: of the importance-sampled log-likelihood.
        num_test: evaluate on so many test data; all by default.
        device: auto, cpu, cuda or cuda:N.
        compile: auto, off, inductor or (on CUDA) cudagraph.
        out: the run folder.
        overwrite: replace a folder that is there already.
        progress: show a progress bar.
    """
    config = dict(locals())
    runs.check_free(out, overwrite)
    dataset = _load(data, binarisation, data_root, data_seed)
    config |= {"pair": pair or _default_pairs(dataset)[0], "binarisation": dataset.binarisation}
    config["data_root"] = data_root and str(Path(data_root).resolve())
    bound = specs.make_objective(objective)
    torch.manual_seed(seed)
    trained = _maker(config["pair"], dataset)()
    history = training.fit(
        trained,
        dataset,
        bound,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        device=device,
        compile=compile,
        progress=progress,
    )
    test = dataset.subset(num_test=num_test).test_batch().to(trained.reference().device)
    reached = evaluation.evaluate(trained, test, objective=bound, num_particles=num_particles, seed=seed)
    result = {"data": dataset.describe(), "evaluation": reached.as_dict(), "history": history.as_dict()}
    with runs.new_folder(out, overwrite) as partial:
        (partial / runs.CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))
        runs.save_pair(partial, trained)
        report.write_json({**result, "environment": report.environment(history.device)}, partial / "results.json")
        report.learning_curves({objective: history.curve}, partial / "learning_curve.png")
        report.pictures(trained, test, type(trained).__name__, partial)
    _print_evaluation(reached)
    print(f"{_about(dataset, num_particles, reached)}\nRun: {out}")


def evaluate(
    run: str,
    objective: str | None = None,
    num_particles: int = 5000,
    num_test: int | None = None,
    data_root: str | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Evaluate a run on its test data: log-likelihood, bound, active units and KL of each layer.

    Args:
        run: a folder written by `ppl-vae train`.
        objective: the bound to report; the one that it was trained for by default.
        num_particles: of the importance-sampled log-likelihood.
        num_test: evaluate on so many test data; all by default.
        data_root: folder of the data sets, where it has moved.
        device: auto, cpu, cuda or cuda:N.
        seed: of the noise.
        progress: show a progress bar.
    """
    loaded = runs.load_run(run, data_root)
    bound = specs.make_objective(objective) if objective else loaded.objective
    pair = loaded.pair.to(training.resolve_device(device))
    test = loaded.data.subset(num_test=num_test).test_batch().to(pair.reference().device)
    reached = evaluation.evaluate(
        pair, test, objective=bound, num_particles=num_particles, seed=seed, progress=progress
    )
    report.write_json(reached.as_dict(), Path(run) / "evaluation.json")
    _print_evaluation(reached)
    print(_about(loaded.data, num_particles, reached))


def sample(run: str, num: int = 64, seed: int = 0, out: str | None = None, data_root: str | None = None) -> None:
    """Draw samples from a run's model: a PNG.

    Args:
        run: a folder written by `ppl-vae train`.
        num: how many.
        seed: of the samples.
        out: the PNG; RUN/samples.png by default.
        data_root: folder of the data sets, where it has moved.
    """
    loaded = runs.load_run(run, data_root)
    images = generation.samples(loaded.pair, loaded.data.test[:1].expand(num, *loaded.data.shape), seed=seed)
    print(report.image_grid(images, out or Path(run) / "samples.png", title="samples"))


def reconstruct(run: str, num: int = 20, seed: int = 0, out: str | None = None, data_root: str | None = None) -> None:
    """Reconstruct test data through a run's guide and model: a PNG, each datum above its reconstruction.

    Args:
        run: a folder written by `ppl-vae train`.
        num: how many.
        seed: of the latent draws.
        out: the PNG; RUN/reconstructions.png by default.
        data_root: folder of the data sets, where it has moved.
    """
    loaded = runs.load_run(run, data_root)
    test = loaded.data.test_batch()[:num]
    images = generation.reconstructions(loaded.pair, test, seed=seed)
    print(report.reconstruction_grid(test, images, out or Path(run) / "reconstructions.png"))


def manifold(run: str, size: int = 20, out: str | None = None, data_root: str | None = None) -> None:
    """Show the manifold of a 2-D latent: the unit square through the prior's inverse distribution function.

    Args:
        run: a folder written by `ppl-vae train`.
        size: images along a side.
        out: the PNG; RUN/manifold.png by default.
        data_root: folder of the data sets, where it has moved.
    """
    loaded = runs.load_run(run, data_root)
    print(report.manifold_figure(generation.manifold(loaded.pair, size=size), out or Path(run) / "manifold.png"))


def list_names() -> None:
    """Print the names of pairs, objectives and data sets."""
    for title, names in (
        ("pairs", specs.pair_names()),
        ("objectives", specs.objective_names()),
        ("data", data.names()),
    ):
        print(f"{title}: {', '.join(names)}")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `ppl-vae`. Exit status 2 for anything that the user can mend, 130 when interrupted."""
    commands: dict[str, Any] = {
        "compare": compare,
        "train": train,
        "evaluate": evaluate,
        "sample": sample,
        "reconstruct": reconstruct,
        "manifold": manifold,
        "list": list_names,
    }
    try:
        jsonargparse.auto_cli(commands, args=_options(sys.argv[1:] if argv is None else argv), as_positional=True)
    except (ValueError, OSError, NonFiniteError) as error:
        print(f"ppl-vae: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("ppl-vae: interrupted; nothing was written", file=sys.stderr)
        sys.exit(130)


def _options(argv: Sequence[str]) -> list[str]:
    """Options as the parser wants them: `--data-root` is `--data_root`, and compare's `--objective a --objective b`
    is `--objective+=a --objective+=b`."""
    result, rest = [], list(argv)
    lists = ("--pair", "--objective") if rest[:1] == ["compare"] else ()
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
        if name in lists and (equals or rest):
            value = value if equals else rest.pop(0)
            result.append(f"{name}={value}" if value.startswith("[") else f"{name}+={value}")
        else:
            result.append(name + equals + value)
    return result


def _load(name: str, binarisation: Binarisation | None, root: str | None, seed: int) -> Dataset:
    return data.load(name, binarisation=binarisation, root=root, seed=seed)


def _default_pairs(dataset: Dataset) -> list[str]:
    """One- and two-layer pairs: Burda et al.'s sizes, smaller ones for small images."""
    likelihood = f', likelihood="discretised-logistic", levels={dataset.levels}'
    tail = "" if dataset.binarisation != "none" else likelihood
    if dataset.train[0].numel() <= 100:
        return [
            f"VAE(latent_dim=20, hidden=(100, 100){tail})",
            f"HierarchicalVAE(latent_dims=(20, 10), hidden=((100, 100), (50, 50)){tail})",
        ]
    return [
        f"VAE(latent_dim=50, hidden=(200, 200){tail})",
        f"HierarchicalVAE(latent_dims=(100, 50), hidden=((200, 200), (100, 100)){tail})",
    ]


@dataclass(frozen=True)
class _Maker:
    """Makes fresh pairs from a text; p(x | z) starts at the pixel means where the pair knows how."""

    text: str
    shape: tuple[int, ...]
    pixel_means: Tensor

    def __call__(self) -> Pair:
        pair = specs.pair_factory(self.text)(self.shape)
        if callable(set_mean := getattr(pair, "set_output_mean", None)):
            set_mean(self.pixel_means)
        return pair


def _maker(text: str, dataset: Dataset) -> _Maker:
    specs.pair_factory(text)
    return _Maker(text, dataset.shape, dataset.pixel_means)


def _workers(workers: int | None, dataset: Dataset, device: str) -> int:
    """All cores for small data on a CPU: one run keeps one core busy. Large data are not copied to processes."""
    if workers is not None:
        return workers
    is_small = dataset.train.numel() <= 10_000_000
    return torch.get_num_threads() if is_small and training.resolve_device(device).type == "cpu" else 1


def _print_evaluation(reached: evaluation.Evaluation) -> None:
    print(f"NLL {reached.nll:.2f} (s.e. {reached.nll_se:.2f} over {reached.num_data} data) nats: {reached.label}")
    if reached.bound is not None:
        print(f"bound {reached.bound:.2f} nats, ESS {reached.ess:.0f} of {reached.num_particles}")
    for site, units in reached.active_units.items():
        print(f"{site}: {units.count} of {units.total} units active, KL {reached.kl[site]:.2f} nats")


def _about(dataset: Dataset, num_particles: int, reached: Any) -> str:
    note = f"; {dataset.note}" if dataset.note else ""
    return (
        f"{dataset.name}, {dataset.binarisation} binarisation, {reached.num_data} test data; NLL in nats by importance "
        f"sampling with {num_particles} particles ({reached.label}){note}"
    )


if __name__ == "__main__":
    main()
