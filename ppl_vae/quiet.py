"""Run a pair without leaving a trace of it: no gradient, no change of mode, no use of the global random stream."""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from ppl_vae.pair import Pair

__all__ = ["private_stream", "undisturbed", "unnoticed"]


@contextmanager
def undisturbed(pair: Pair, seed: int | None) -> Iterator[None]:
    """Without gradients, in eval mode, on the random stream of the seed; all is put back at the end.

    Args:
        pair: its modules' modes are kept, each its own.
        seed: of a private random stream; None draws from the global one.
    """
    modes = {module: module.training for module in pair.modules()}
    # Not inference_mode: a tensor that a network keeps would be unfit for training ever after.
    stream = nullcontext() if seed is None else private_stream(seed, pair.reference().device)
    try:
        with torch.no_grad(), stream:
            pair.eval()
            yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def unnoticed(*programs: Callable[..., Any], device: torch.device) -> Iterator[None]:
    """Within, programs may be run for what they say: random streams and their modules' buffers are put back.

    A run that is taken up again runs them so once more: what that moved would be moved twice.
    """
    modules = [owner for program in programs if isinstance(owner := getattr(program, "__self__", program), nn.Module)]
    kept = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
    try:
        with torch.no_grad(), private_stream(0, device):
            yield
    finally:
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)


@contextmanager
def private_stream(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers of torch (on the CPU and on `device`), numpy and Python from `seed`.

    The global states are put back at the end.
    """
    cuda = [device] if device.type == "cuda" else []
    numpys, pythons = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=cuda), ExitStack() as restore:
        restore.callback(np.random.set_state, numpys)
        restore.callback(random.setstate, pythons)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        # Not torch.manual_seed: it would also seed the accelerators whose state is not kept here.
        torch.default_generator.manual_seed(seed)
        for d in cuda:
            with torch.cuda.device(d):
                torch.cuda.manual_seed(seed)
        yield
