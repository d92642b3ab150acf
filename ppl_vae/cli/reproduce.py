"""`ppl-vae reproduce`."""

from ppl_vae import reproduction
from ppl_vae.training import Compile

__all__ = ["reproduce"]


def reproduce(
    table: str,
    fraction: float = 1.0,
    passes: float | None = None,
    rows: str | None = None,
    seeds: int = 1,
    num_particles: int | None = None,
    num_test: int | None = None,
    batch_size: int | None = None,
    data_root: str | None = None,
    device: str = "auto",
    compile: Compile = "auto",
    stacked: bool = False,
    workers: int | None = None,
    out: str | None = None,
    progress: bool = True,
) -> None:
    """Train the rows of a published table and set them beside what was printed.

    The same command again goes on where an earlier one stopped, whatever ended it.

    Args:
        table: iwae-mnist, iwae-omniglot, aevb-bounds, aevb-bounds-frey, lvae, estimators, aevb-vs-wake-sleep; of error
            rates bengio-2006 and m2; or a YAML file like them.
        fraction: of each stage of the schedule, for a rehearsal.
        passes: stop after so many passes over the data.
        rows: numbers or names of rows, apart by semicolons; all but those on request by default.
        seeds: runs of each row.
        num_particles: of the importance-sampled log-likelihood; the table's by default, fewer for a rehearsal.
        num_test: evaluate on so many test data; all by default, 1,000 for a rehearsal.
        batch_size: data per step, where it is not to be the table's.
        data_root: folder of the data sets; the environment variable PPL_VAE_DATA otherwise.
        device: auto, cpu, cuda or cuda:N.
        compile: auto, off, inductor or (on CUDA) cudagraph.
        stacked: train the seeds of a row in one batched computation: for a GPU, which one run leaves idle.
        workers: rows that are trained side by side; on a CPU one for each core by default.
        out: folder of the results; the table's name by default.
        progress: show a progress bar over all rows.
    """
    protocol = reproduction.load_protocol(table)
    budget = reproduction.Budget(fraction, passes, num_particles, num_test, batch_size)
    folder = out or table.removesuffix(".yaml").rpartition("/")[2]
    text = reproduction.reproduce(
        protocol,
        folder,
        rows=None if rows is None else [row.strip() for row in rows.split(";")],
        seeds=seeds,
        budget=budget,
        data_root=data_root,
        device=device,
        compile=compile,
        stacked=stacked,
        workers=workers,
        progress=progress,
    )
    print(f"{text}\n\nResults: {folder}")
