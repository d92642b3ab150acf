import pyro
import pytest
import torch


@pytest.fixture(autouse=True)
def _fresh():
    """Every test starts from one seed and an empty parameter store."""
    torch.manual_seed(0)
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()
