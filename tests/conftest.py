import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch, and for what tests start: the cores are taken by the others
    os.environ["OMP_NUM_THREADS"] = "1"

import pyro
import pytest
import torch

from ppl_vae.denormals import flush_denormals

# Once for a process; its probe must not be counted where a test counts bytes.
flush_denormals()


@pytest.fixture(autouse=True)
def _fresh():
    """Every test starts from one seed and an empty parameter store."""
    torch.manual_seed(0)
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()
