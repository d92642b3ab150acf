"""Run a pair over any amount of data and particles, in chunks that fit into memory and caches, by all processes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from ppl_vae import terms
from ppl_vae.checks import check_batch
from ppl_vae.denormals import flush_denormals
from ppl_vae.evaluation.memory import ChunkSize, Cost, plan
from ppl_vae.heap import keep_freed_memory
from ppl_vae.pair import Pair
from ppl_vae.parallel import Ranks
from ppl_vae.quiet import private_stream, undisturbed
from ppl_vae.seeds import fresh_seed
from ppl_vae.sites import density_sites
from ppl_vae.terms import NotPerDatumError, Terms

__all__ = ["Chunks", "Settings", "Step", "chunked"]

S = TypeVar("S")
R = TypeVar("R")
Step = Callable[[S | None, Terms], S]
Batch = tuple[Any, ...]

MEMORY = 256 * 2**20
"""Default bytes of a chunk on a CPU; an accelerator, whose chunks should be large, gets eight times as many."""

# On a CPU a chunk's largest tensor is kept to so many bytes. Measured with VAE((1, 28, 28)) and its 784 pixels,
# seconds per million particles of data (2 threads; 1 thread in brackets):
#     0.8 MB 7.5 (9.5);  1.6 MB 4.9 (7.5);  3 MB 4.1 (6.6);  6 to 16 MB 3.3-3.8 (5.8-6.2);  31 MB 4.5-5.0 (8-9);
#     78 MB 7.2 (11-13).
# Small chunks pay for Python and effect handlers (1 ms a chunk), large ones for fresh pages and cache misses. How
# the chunk is divided into data and particles made no difference, and neither did inference_mode (+-3 %).
TENSOR_BYTES = 8e6


@dataclass(frozen=True)
class Settings:
    """How to run.

    Args:
        memory: upper limit of the bytes of a chunk's tensors; None: `MEMORY`.
        batch_size: data of a chunk; None: as many as are fast.
        seed: of a private random stream; None: the global one.
        progress: show a progress bar.

    Raises:
        ValueError: memory or batch_size below 1.
    """

    memory: int | None = None
    batch_size: int | None = None
    seed: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        for name, value in (("memory", self.memory), ("batch_size", self.batch_size)):
            if value is not None:
                require_positive(name, value)

    def size(self, cost: Cost, device: torch.device, num_data: int, num_particles: int, split: bool) -> ChunkSize:
        """The chunk size for these data on this device."""
        memory = self.memory or (MEMORY if device.type == "cpu" else 8 * MEMORY)
        return plan(
            cost,
            num_data,
            num_particles,
            memory=memory,
            tensor_bytes=TENSOR_BYTES if device.type == "cpu" else memory,
            batch_size=self.batch_size,
            split=split,
        )


@dataclass(frozen=True)
class Chunks(Generic[S]):
    """The chunks of a batch: `map` a function over its parts, `fold` the particles of each.

    Args:
        draw: `draw(part, num_particles)` -> terms.
        parts: of the data.
        num_particles: K of each datum.
        step: adds the terms of some particles to the state of a part (None before the first).
        most: particles of a chunk.
        seed: of the noise: each part has a stream of its own.
        device: of the data.
        ranks: the processes that share the parts.
        progress: show a progress bar.
        has_point_guide: the guide leaves nothing to chance: whatever it samples, if anything, is a `Delta`.
    """

    draw: Callable[[Batch, int], Terms]
    parts: Sequence[Batch]
    num_particles: int
    step: Step[S]
    most: int
    seed: int
    device: torch.device
    ranks: Ranks
    progress: bool
    has_point_guide: bool

    def map(self, function: Callable[[Batch], R]) -> list[R]:
        """What the function gives for each part, in their order, on every process; each does its share."""
        return self.ranks.map(function, self.parts, self.seed, self.device, self.progress)

    def fold(self, part: Batch) -> S:
        """The state of one part of the batch after all K particles."""
        state, left = None, self.num_particles
        while left > 0:
            state = self.step(state, self.draw(part, min(left, self.most)))
            left -= self.most
        assert state is not None
        return state


@contextmanager
def chunked(
    pair: Pair,
    batch: Batch,
    num_particles: int,
    step: Step[S],
    settings: Settings,
    *,
    split: bool = True,
    once: bool = False,
) -> Iterator[Chunks[S]]:
    """Check a batch, choose the chunk size by measurement, and set up the run: use it as `with`.

    Inside: no gradient, eval mode, random streams of the seed, and no validation. Supports and
    parameters have been validated by then, in a pass of one particle over all data. Denormal floats
    are flushed to zero, in this process from here on, as `fit` does: `exp(-|logit|)` of a saturated
    Bernoulli underflows, which made its log-probability up to five times slower.

    Args:
        pair: any pair.
        batch: its tensors have N rows.
        num_particles: K.
        step: see `Chunks`.
        settings: memory, batch size, seed, progress.
        split: whether the particles of one datum may be split over several chunks.
        once: of a guide that leaves nothing to chance draw one particle, for all would be the same; `Chunks` says how
            many are drawn.

    Raises:
        ValueError: a bad batch (`check_batch`), K < 1, or too little memory.
        NotPerDatumError: a site is not per datum.
    """
    require_positive("num_particles", num_particles)
    check_batch(pair, *batch)
    flush_denormals()
    keep_freed_memory()
    device = pair.reference().device
    with undisturbed(pair, settings.seed):
        one = _first_row(batch, 1)
        has_point_guide = _is_point(pair, one)
        if once and has_point_guide:
            num_particles = 1
        draw = partial(_draw, pair, terms.guess_plate_nesting(pair.model, pair.guide, *one))
        with private_stream(0, device):
            cost = Cost.measure(lambda rows, particles: step(None, draw(_first_row(batch, rows), particles)))
        size = settings.size(cost, device, _num_rows(batch), num_particles, split)
        ranks = Ranks()
        # With one particle the validated pass would be half of the work: validate the run itself.
        if num_particles > 1:
            parts = _parts(batch, settings.size(cost, device, _num_rows(batch), 1, split).rows)
            _validate(draw, parts[ranks.rank :: ranks.size])
        seed = ranks.gather(settings.seed if settings.seed is not None else fresh_seed())[0]
        parts, show = _parts(batch, size.rows), settings.progress
        with pyro.validation_enabled(num_particles == 1):
            yield Chunks(draw, parts, num_particles, step, size.particles, seed, device, ranks, show, has_point_guide)


def _is_point(pair: Pair, batch: Batch) -> bool:
    """Whether all that the guide samples is a `Delta`, or nothing."""
    with private_stream(0, pair.reference().device):
        sites = density_sites(poutine.trace(pair.guide).get_trace(*batch))
    laws = [node["fn"] for node in sites.values() if not node["is_observed"]]
    return all(isinstance(getattr(law, "base_dist", law), dist.Delta) for law in laws)


def require_positive(name: str, value: int) -> None:
    """Refuse anything but a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: got {value!r}, expected a whole number of at least 1")


def _draw(pair: Pair, nesting: int, part: Batch, num_particles: int) -> Terms:
    drawn = terms.draw(
        pair.model,
        pair.guide,
        *part,
        num_particles=num_particles,
        max_plate_nesting=nesting,
        particles=pair.particles,
    )
    got, expected = drawn.log_likelihood().shape[1], _num_rows(part)
    if got != expected:
        raise NotPerDatumError(
            f"plate {drawn.draws[0].data_plate.name!r}: got {got} rows for {expected} data, expected as many; take "
            'its size from the batch, pyro.plate("data", len(x)), without subsampling'
        )
    return drawn


def _validate(draw: Callable[[Batch, int], Terms], parts: list[Batch]) -> None:
    with pyro.validation_enabled(True):
        for part in parts:
            draw(part, 1)


def _num_rows(batch: Batch) -> int:
    return next(len(b) for b in batch if isinstance(b, Tensor) and b.dim())


def _parts(batch: Batch, rows: int) -> list[Batch]:
    """The batch cut along its rows; what has no rows goes into every part."""
    return [_map_rows(batch, lambda b, i=i: b[i : i + rows]) for i in range(0, _num_rows(batch), rows)]


def _first_row(batch: Batch, times: int) -> Batch:
    return _map_rows(batch, lambda b: b[:1].repeat_interleave(times, 0))


def _map_rows(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    return tuple(function(b) if isinstance(b, Tensor) and b.dim() else b for b in batch)
