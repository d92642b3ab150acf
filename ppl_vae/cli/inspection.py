"""The commands that read a run: `ppl-vae evaluate | sample | reconstruct | complete | manifold`, and `list`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppl_vae import data, evaluation, generation, report, runs, specs, training
from ppl_vae.cli.common import about, batch_on, check_evaluation, print_evaluation
from ppl_vae.data import Labelled, Text

__all__ = ["check_num", "complete", "evaluate", "list_names", "manifold", "picture", "place", "reconstruct", "sample"]


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
    check_evaluation(seed, num_particles)
    loaded = runs.load_run(run, data_root)
    bound = loaded.objective if objective is None else specs.make_objective(objective)
    pair = loaded.pair.to(training.resolve_device(device))
    test = batch_on(pair.reference().device, loaded.data.subset(num_test=num_test).test_batch())
    reached = evaluation.evaluate(
        pair, *test, objective=bound, num_particles=num_particles, seed=seed, progress=progress
    )
    report.write_json(reached.as_dict(), Path(run) / "evaluation.json")
    print_evaluation(reached)
    print(about(loaded.data, num_particles, reached))


def sample(
    run: str,
    num: int = 64,
    label: int | None = None,
    seed: int = 0,
    out: str | None = None,
    data_root: str | None = None,
) -> None:
    """Draw samples from a run's model: a PNG. Of a run on classes or captions: of each in turn.

    Args:
        run: a folder written by `ppl-vae train`.
        num: how many.
        label: of this class alone, for a run on data with classes, `labelled(mnist)`.
        seed: of the samples.
        out: the PNG; RUN/samples.png by default.
        data_root: folder of the data sets, where it has moved.
    """
    path = picture(out, run, "samples")
    loaded = _of_images(run, data_root)
    check_num(num)
    batch = loaded.data.blank(num)
    if label is not None:
        batch = (batch[0], _class(loaded.data, label).expand(num))
    images = generation.samples(loaded.pair, *batch, seed=seed)
    columns = loaded.data.classes if isinstance(loaded.data, Labelled) and label is None else None  # one for each
    title = "samples" if label is None else f"samples of class {label}"
    print(report.image_grid(images, path, columns=columns, title=title))


def _of_images(run: str, data_root: str | None) -> runs.LoadedRun:
    """A run whose data can be shown as pictures."""
    loaded = runs.load_run(run, data_root)
    if isinstance(loaded.data, Text):
        raise ValueError(
            f"run: got one on sentences, {loaded.data.name}, expected one on images; see ppl-vae text --help for "
            "ppl-vae text sample, reconstruct, path and impute"
        )
    return loaded


def _class(dataset: Any, label: int) -> Tensor:
    """A class that is asked for, (1,)."""
    if not isinstance(dataset, Labelled):
        raise ValueError(
            f"label: got {label} for a run on {dataset.name}, expected one on data with classes; train one by "
            "ppl-vae train --data 'labelled(mnist)'"
        )
    return dataset.read(label)


def reconstruct(
    run: str,
    num: int = 20,
    latents: str | None = None,
    seed: int = 0,
    out: str | None = None,
    data_root: str | None = None,
) -> None:
    """Reconstruct test data through a run's guide and model: a PNG, each datum above its reconstruction.

    Args:
        run: a folder written by `ppl-vae train`.
        num: how many.
        latents: of these latent sites alone, apart by commas (top, of a VQVAE2); the model draws the others.
        seed: of the latent draws.
        out: the PNG; RUN/reconstructions.png by default.
        data_root: folder of the data sets, where it has moved.
    """
    path = picture(out, run, "reconstructions")
    loaded = _of_images(run, data_root)
    check_num(num)
    test = [part[:num] for part in data.as_batch(loaded.data.test_batch())]
    kept = None if latents is None else [name.strip() for name in latents.split(",")]
    images = generation.reconstructions(loaded.pair, *test, latents=kept, seed=seed)
    print(report.reconstruction_grid(test[0], images, path))


def complete(
    run: str,
    given: int | None = None,
    num: int = 10,
    draws: int = 5,
    seed: int = 0,
    out: str | None = None,
    data_root: str | None = None,
) -> None:
    """Complete test images of which the upper rows are given: a PNG; in each line what is given, draws, the image.

    Args:
        run: a folder written by `ppl-vae train` with a pair that draws pixel by pixel, such as PixelCNN.
        given: so many rows are given; half of them by default.
        num: how many images.
        draws: completions of each.
        seed: of the draws.
        out: the PNG; RUN/completions.png by default.
        data_root: folder of the data sets, where it has moved.
    """
    path = picture(out, run, "completions")
    loaded = _of_images(run, data_root)
    check_num(num)
    check_num(draws)
    test = [part[:num] for part in data.as_batch(loaded.data.test_batch())]
    is_given = _upper(tuple(test[0].shape[1:]), given)
    drawn = generation.completions(loaded.pair, *test, given=is_given, num=draws, seed=seed, progress=True)
    asked = torch.where(is_given, test[0], 0.5)
    lines = torch.cat([asked.unsqueeze(1), drawn, test[0].unsqueeze(1)], 1)
    print(report.image_grid(lines.flatten(0, 1), path, columns=draws + 2, title="given, completions, image"))


def _upper(shape: tuple[int, ...], rows: int | None) -> Tensor:
    """Which elements of an image are in its first rows."""
    if len(shape) != 3:
        raise ValueError(f"run: got data of shape {shape}, expected images (channels, height, width)")
    rows = shape[1] // 2 if rows is None else rows
    if not 0 <= rows < shape[1]:
        raise ValueError(f"given: got {rows}, expected 0 to {shape[1] - 1}: less than the rows of an image")
    return (torch.arange(shape[1]) < rows)[:, None].expand(shape)


def manifold(run: str, size: int = 20, out: str | None = None, data_root: str | None = None) -> None:
    """Show the manifold of a 2-D latent: the unit square through the prior's inverse distribution function.

    Args:
        run: a folder written by `ppl-vae train`.
        size: images along a side.
        out: the PNG; RUN/manifold.png by default.
        data_root: folder of the data sets, where it has moved.
    """
    path = picture(out, run, "manifold")
    loaded = _of_images(run, data_root)
    print(report.manifold_figure(generation.manifold(loaded.pair, size=size), path))


def picture(out: str | None, run: str, name: str) -> Path:
    """Where a picture goes; as `place`."""
    return place(out, run, f"{name}.png", "PNG")


def place(out: str | None, run: str, name: str, kind: str) -> Path:
    """Where a file goes: what is asked for, or RUN/NAME.

    Raises:
        ValueError: a folder is there, or nothing can be written there.
    """
    if out is None:
        return Path(run) / name
    if Path(out).is_dir():
        raise ValueError(f"out: got {out!r}, a folder, expected the name of a {kind}: --out {name}")
    runs.check_writable(out)
    return Path(out)


def check_num(num: int) -> None:
    """Refuse a number of pictures that is a slip.

    Raises:
        ValueError: it is below 1, or beyond what torch has words for.
    """
    if not 1 <= num <= generation.MOST:
        raise ValueError(f"num: got {num}, expected a whole number from 1 to {generation.MOST}")


def list_names() -> None:
    """Print the names of pairs, objectives and data sets."""
    for title, names in (
        ("pairs", specs.pair_names()),
        ("objectives", specs.objective_names()),
        ("data", (*data.names(), *data.composed_names())),
    ):
        print(f"{title}: {', '.join(names)}")
