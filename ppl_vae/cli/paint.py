"""`ppl-vae paint`: images of a caption."""

from pathlib import Path

from ppl_vae import films, generation, report, runs
from ppl_vae.cli.inspection import check_num, picture
from ppl_vae.data import Captioned

__all__ = ["paint"]


def paint(
    run: str,
    caption: str,
    num: int = 8,
    film: str | None = None,
    seed: int = 0,
    out: str | None = None,
    data_root: str | None = None,
) -> None:
    """Paint what a caption says: a PNG of several samples, and how they came about as a film.

    Args:
        run: a folder written by `ppl-vae train` on captioned data.
        caption: in the words of the data; no word is replaced by another.
        num: how many.
        film: a GIF of the canvas from step to step, for pairs that paint in steps; none by default.
        seed: of the samples.
        out: the PNG; RUN/painted.png by default.
        data_root: folder of the data sets, where it has moved.
    """
    path = picture(out, run, "painted")
    if film is not None:
        _check_film(film)
    loaded = runs.load_run(run, data_root)
    if not isinstance(loaded.data, Captioned):
        raise ValueError(
            f"run: got one on {loaded.data.name}, expected one on data with captions; train one by "
            "ppl-vae train --data 'scenes(mnist, size=28, digit_size=14)'"
        )
    check_num(num)
    words = loaded.data.read(caption).expand(num, -1)
    batch = (generation.blank(loaded.pair, num), words)
    images = generation.samples(loaded.pair, *batch, seed=seed)
    made = None if film is None else films.film(loaded.pair, *batch, seed=seed)
    print(report.image_grid(images, path, title=caption))
    if film is not None and made is not None:
        print(report.film_gif(made, film))


def _check_film(path: str) -> None:
    if Path(path).suffix != ".gif" or Path(path).is_dir():
        raise ValueError(f"film: got {path!r}, expected the name of a GIF; write --film out.gif")
    runs.check_writable(path, "film")
