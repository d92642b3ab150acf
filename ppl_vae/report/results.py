"""The files of a comparison and of a run: JSON, CSV, pictures and one page."""

import dataclasses
from pathlib import Path

from torch import Tensor

from ppl_vae import generation
from ppl_vae.comparison import Comparison
from ppl_vae.data import as_batch
from ppl_vae.pair import Pair
from ppl_vae.pairs import Autoencoder, Classifier
from ppl_vae.pairs.quantised import QuantisedPair
from ppl_vae.report.codes import code_figure
from ppl_vae.report.figures import image_grid, learning_curves, manifold_figure, reconstruction_grid, side_by_side
from ppl_vae.report.files import environment, write_csv, write_json
from ppl_vae.report.page import Section, html_page

__all__ = ["comparison_files", "pictures"]

NUM_IMAGES = 100


def comparison_files(result: Comparison, table: str, test: Tensor | tuple[Tensor, ...], folder: Path) -> None:
    """Write results.json, rows.csv, learning_curves.png, the best run's pictures, and index.html.

    Args:
        result: of `compare`.
        table: the text table to put into table.txt and on the page.
        test: some test data, (N, *shape), to reconstruct, or all arguments of the programs, those first.
        folder: an existing folder.
    """
    write_json({**result.as_dict(), "environment": environment(result.config["device"])}, folder / "results.json")
    rows = [
        dataclasses.asdict(row) | {"active_units": "+".join(f"{u:g}" for u in row.active_units)} for row in result.rows
    ]
    write_csv(rows, folder / "rows.csv")
    (folder / "table.txt").write_text(table + "\n")
    curves: dict[str, list[list[tuple[float, float]]]] = {}
    for run in result.runs:
        curves.setdefault(f"{_short(run.pair)} {run.objective}", []).append(run.history.curve)
    learning_curves(curves, folder / "learning_curves.png", title="Training bounds (each objective its own)")
    best = min(result.rows, key=lambda row: row.nll)
    name = f"{_short(best.pair)} trained with {best.objective}"
    figures = [folder / "learning_curves.png", *pictures(result.trained[best.pair, best.objective], test, name, folder)]
    about = f"Data: {result.config['data']['name']}. NLL in nats per datum, {result.runs[0].evaluation.label}."
    versus = [dataclasses.asdict(difference) for difference in result.differences()]
    sections = [
        Section("Rows: means over the seeds", about, table=rows),
        Section("Paired differences in NLL: negative is better than the baseline", table=versus),
        Section("Figures", figures=figures),
    ]
    html_page("A comparison of objectives, in nats", sections, folder / "index.html")


def pictures(pair: Pair, test: Tensor | tuple[Tensor, ...], name: str, folder: Path) -> list[Path]:
    """Write samples.png, real_and_samples.png, reconstructions.png if there are latents, and manifold.png of a 2-D one.

    Of a VQ-VAE also codes.png, of an autoencoder the reconstructions alone. Nothing for data that are no images, and
    for classifiers.

    Args:
        pair: with `data_shape` (1 or 3, H, W).
        test: some test data, (N, *data_shape), or all arguments of the programs, those first.
        name: for the titles.
        folder: an existing folder.
    """
    x, *given = as_batch(test)
    shape = tuple(x.shape[1:])
    if len(shape) != 3 or shape[0] not in (1, 3) or isinstance(pair, Classifier):
        return []
    if isinstance(pair, Autoencoder):  # which can't be drawn from
        again, title = generation.reconstructions(pair, x[:20]), f"Reconstructions: {name}"
        return [reconstruction_grid(x[:20], again, folder / "reconstructions.png", title=title)]
    apart = max(1, len(x) // NUM_IMAGES)  # neighbours may be alike
    spread = slice(0, apart * NUM_IMAGES, apart)
    asked = [part[spread] for part in given]
    real = x[spread]
    blank = real[:1].expand(len(real) if given else NUM_IMAGES, *shape)
    samples = generation.samples(pair, blank, *asked)
    paths = [image_grid(samples, folder / "samples.png", title=f"Samples: {name}")]
    if len(x) >= NUM_IMAGES:
        title = f"Real (left), simulated (right): {name}"
        paths.append(side_by_side(real, samples, folder / "real_and_samples.png", title=title))
    shown = [part[:20] for part in (x, *given)]
    if generation.posterior(pair, *shown):
        again, title = generation.reconstructions(pair, *shown), f"Reconstructions: {name}"
        paths.append(reconstruction_grid(shown[0], again, folder / "reconstructions.png", title=title))
    if isinstance(pair, QuantisedPair):
        paths.append(code_figure(pair, shown[0], folder / "codes.png", title=f"Codes: {name}"))
    if getattr(pair, "latent_dim", None) == 2 and not given:
        grid = generation.manifold(pair, x[:1])
        paths.append(manifold_figure(grid, folder / "manifold.png", title=f"Manifold: {name}"))
    return paths


def _short(pair: str) -> str:
    return pair.partition("(")[0]
