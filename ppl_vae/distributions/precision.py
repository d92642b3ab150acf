"""The one rule of precision: a log-probability is never computed in half precision."""

import torch
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)


def at_least_float32(x: Tensor) -> Tensor:
    """Return x as it is, or as float32 where it is float16 or bfloat16.

    A network may run in bfloat16 (3 digits); log-probabilities of some hundred nats are then wrong by whole
    nats.
    """
    return x.float() if x.dtype in _HALF else x
