"""Batches that a pair could only misread are refused, with what to do."""

import math
from typing import Any

import pytest
import torch

from ppl_vae.checks import check_batch
from ppl_vae.pair import Pair
from ppl_vae.pairs import ConditionalVAE
from ppl_vae.testing import LinearGaussian


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((), "got nothing, expected at least one tensor"),
        ((3, "a"), "got int, str"),
        ((torch.zeros(0, 6).double(),), "got 0 rows"),
        ((torch.zeros(2, 6),), r"batch\[0\]: got torch.float32, expected torch.float64.*x.to\(torch.float64\)"),
        ((torch.zeros(2, 6, dtype=torch.uint8),), "got torch.uint8, expected torch.float64.*x.float"),
        ((torch.zeros(2, 6).double(), torch.zeros(3)), "got tensors of 2, 3 rows"),
        (
            (torch.tensor([[0.0, math.nan], [1.0, math.inf], [0.0, 0.0]]).double(),),
            "got 2 non-finite values.*in 2 rows",
        ),
        ((torch.zeros(2, 6, device="meta").double(),), "got a tensor on meta, expected cpu"),
    ],
)
def test_bad_batches_are_refused(batch: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_batch(LinearGaussian(6, 3).double(), *batch)


def test_good_batches_pass() -> None:
    class Wide(LinearGaussian):
        def model(self, x, *others):
            super().model(x)

    pair, x = Wide(6, 3).double(), torch.zeros(20, 6).double()
    check_batch(pair, x, torch.arange(20), torch.tensor(3.0).double(), "name")
    check_batch(Pair(), x.to(torch.uint8))


def test_other_arguments_than_the_model_takes_are_refused() -> None:
    x = torch.zeros(2, 6).double()
    with pytest.raises(ValueError, match=r"got 2 arguments, expected those of LinearGaussian.model\(x\); pass data"):
        check_batch(LinearGaussian(6, 2).double(), x, torch.zeros(2, 3))
    pair = ConditionalVAE((6,), (3,), 2, (4,))
    with pytest.raises(ValueError, match=r"got 1 argument, expected those of ConditionalVAE.model\(y, c\)"):
        check_batch(pair, x.float())
