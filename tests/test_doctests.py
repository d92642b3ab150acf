"""The examples in the docstrings are true."""

import doctest
import importlib
import pkgutil

import pytest

import ppl_vae

MODULES = [m.name for m in pkgutil.walk_packages(ppl_vae.__path__, "ppl_vae.") if not m.name.endswith(".__main__")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    results = doctest.testmod(importlib.import_module(name))
    assert not results.failed


def test_modules_are_found():
    assert "ppl_vae.pair" in MODULES and "ppl_vae.objectives.elbo" in MODULES
