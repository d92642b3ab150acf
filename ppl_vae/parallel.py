"""Several processes train one pair: each computes the gradient of its part of every batch, and they add them up."""

import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from tqdm import tqdm

from ppl_vae.quiet import private_stream
from ppl_vae.seeds import spread_seed
from ppl_vae.shelf import Shelf

__all__ = ["RankError", "Ranks", "leave", "started_by_torchrun"]

T = TypeVar("T")
R = TypeVar("R")


class RankError(ConnectionError):
    """Another process of the run has ended, or cannot be reached."""


class Ranks:
    """The processes of a run, over `torch.distributed`.

    A loss is a sum over the data of a batch, so the sum over the ranks of the losses of their parts, and of its
    gradients, is that of the whole batch.

    Args:
        together: False is this process alone, as it is where `torch.distributed` is not initialised.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
    """

    def __init__(self, together: bool = True) -> None:
        is_on = together and distributed.is_available() and distributed.is_initialized()
        self.rank, self.size = (distributed.get_rank(), distributed.get_world_size()) if is_on else (0, 1)
        self._wishes: tuple[bool, ...] = ()
        self._granted: tuple[bool, ...] = ()

    @property
    def is_first(self) -> bool:
        """Whether this process writes what the run leaves behind."""
        return self.rank == 0

    def seed(self, seed: int) -> int:
        """The seed of this rank's noise; that of rank 0 is the run's."""
        return spread_seed(seed, self.rank)

    def add(self, loss: Tensor, pair: nn.Module) -> Tensor:
        """Add losses and gradients up over the ranks, average floating-point buffers; the loss of the whole batch.

        One message for all, with the wishes of `agree` in it.
        """
        if self.size == 1:
            return loss
        gradients = [p.grad for p in pair.parameters() if p.grad is not None]
        buffers = [b for b in pair.buffers() if b.is_floating_point()]
        wishes = torch.tensor(self._wishes, dtype=loss.dtype, device=loss.device)
        parts = [loss, wishes, *gradients, *buffers]
        flat = torch.cat([part.detach().flatten().to(loss.dtype) for part in parts])
        with _answered():
            distributed.all_reduce(flat)
        loss, wishes, *rest = (new.view_as(part) for part, new in zip(parts, _split(flat, parts), strict=True))
        self._granted = tuple(bool(wish) for wish in wishes)
        for old, new in zip([*gradients, *buffers], rest, strict=True):
            old.copy_(new)
        for buffer in buffers:
            buffer /= self.size
        return loss

    def agree(self, wishes: Sequence[bool]) -> tuple[bool, ...]:
        """What any rank wishes, the same answer on all: one step late, since it goes with the gradients of the next."""
        if self.size == 1:
            return tuple(wishes)
        granted = self._granted or (False,) * len(wishes)
        self._wishes = tuple(wishes)
        return granted

    def gather(self, value: Any, device: torch.device | None = None) -> list[Any]:
        """The values of all ranks, on each of them; tensors of an accelerator are moved to the `device` of this one."""
        if self.size == 1:
            return [value]
        written, values = io.BytesIO(), [b""] * self.size
        torch.save(value, written)
        with _answered():
            distributed.all_gather_object(values, written.getvalue())
        # From the other processes of this run, not from a file: plain pickles are safe.
        return [torch.load(io.BytesIO(v), map_location=device, weights_only=False) for v in values]

    def map(
        self,
        function: Callable[[T], R],
        parts: Sequence[T],
        seed: int,
        device: torch.device,
        progress: bool = False,
    ) -> list[R]:
        """What a function gives for each part, in their order, on every rank; each does its share.

        Each part has a random stream of its own, so that the result depends neither on how many ranks there are nor on
        which does what.
        """
        mine = range(self.rank, len(parts), self.size)
        results: Shelf[R] = Shelf(len(mine))
        for index in tqdm(mine, disable=not (progress and self.is_first), unit="chunk"):
            with private_stream(spread_seed(seed, index), device):
                results.put(function(parts[index]))
        shares = self.gather(results.all(), device)
        return [shares[index % self.size][index // self.size] for index in range(len(parts))]

    def share(self, module: nn.Module) -> None:
        """Give all ranks the parameters and buffers of the first."""
        if self.size > 1:
            with _answered():
                for tensor in module.state_dict().values():
                    distributed.broadcast(tensor, 0)


@contextmanager
def started_by_torchrun(device: str) -> Iterator[None]:
    """Within, the processes that `torchrun` started talk to each other: through NCCL on CUDA, gloo on CPUs.

    Nothing happens where the environment names no other process.

    Raises:
        RankError: they can't be reached.
    """
    if not _are_several() or distributed.is_initialized():
        yield
        return
    on_cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    with _answered():
        distributed.init_process_group("nccl" if on_cuda else "gloo")
    try:
        yield
    finally:
        if on_cuda:
            distributed.destroy_process_group()


def leave() -> None:
    """End this process, whose work is done, where it is one of several; nothing happens to one alone.

    Without the interpreter's own ending, during which a thread of gloo that is still at work sometimes aborts the
    process ("terminate called without an active exception"): torchrun would then stop the others.
    """
    if _are_several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _are_several() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of gloo and NCCL, whatever ended the connection
        reason = str(error).strip().partition("\n")[0][:200]
        raise RankError(
            f"rank {os.environ.get('RANK', '?')}: got no answer from another process of the run ({reason}), expected "
            "all to be alive; see that process's message; with checkpoints, start all again with --resume"
        ) from error


def _split(flat: Tensor, parts: Sequence[Tensor]) -> Sequence[Tensor]:
    return flat.split([part.numel() for part in parts])
