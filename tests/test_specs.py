"""Pairs and objectives as text."""

import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from ppl_vae import specs
from ppl_vae.objectives import (
    IWAE,
    MIWAE,
    STL,
    VIMCO,
    CyclicalWarmup,
    DReG,
    LinearWarmup,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
)
from ppl_vae.pairs import VAE

OWN = """
from ppl_vae.pairs import VAE

class Mine(VAE):
    def __init__(self, data_shape, width=7):
        super().__init__(data_shape, 2, (width,))
"""


def test_objectives_by_short_name_and_by_class() -> None:
    assert isinstance(specs.make_objective("elbo"), Trace_ELBO)
    assert specs.make_objective("iwae:7").num_particles == 7
    renyi = specs.make_objective("RenyiELBO(alpha=0.5, num_particles=3, kl_weight=LinearWarmup(9))")
    assert isinstance(renyi, RenyiELBO) and renyi.alpha == 0.5 and renyi.kl_weight == LinearWarmup(9)
    assert isinstance(specs.make_objective("IWAE"), IWAE)


@pytest.mark.parametrize(
    ("short", "cls"), [("stl", STL), ("dreg", DReG), ("vimco", VIMCO), ("rws", ReweightedWakeSleep)]
)
def test_further_short_names(short: str, cls: type) -> None:
    objective = specs.make_objective(f"{short}:7")
    assert type(objective) is cls and objective.num_particles == 7
    assert specs.make_objective(short).num_particles == cls().num_particles
    assert f"{short}:K" in specs.objective_names()


def test_further_objectives_by_class() -> None:
    bounds = specs.make_objective("MIWAE(3, 4, kl_weight=CyclicalWarmup(9, cycles=2))")
    assert isinstance(bounds, MIWAE) and (bounds.num_bounds, bounds.particles_per_bound) == (3, 4)
    assert bounds.kl_weight == CyclicalWarmup(9, cycles=2)


def test_a_pair_with_arguments() -> None:
    own: Any = specs.pair_factory("VAE(latent_dim=3, hidden=(9, 8), activation=nn.leaky_rectifier)")((1, 4, 4))
    assert [m.negative_slope for m in own.encoder.modules() if isinstance(m, nn.LeakyReLU)] == [0.1, 0.1]
    pair = specs.pair_factory("VAE(latent_dim=3, hidden=(9, 8), activation=nn.ReLU)")((1, 4, 4))
    assert isinstance(pair, VAE) and pair.latent_dim == 3
    assert any(isinstance(module, nn.ReLU) for module in pair.encoder.modules())


def test_a_pair_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    for text, width in ((f"{tmp_path}/own.py:Mine", 7), (f"{tmp_path}/own.py:Mine(width=3)", 3)):
        pair = specs.pair_factory(text)((1, 4, 4))
        assert isinstance(pair, VAE) and type(pair).__name__ == "Mine"
        assert pair.encoder.state_dict()["0.hidden.0.bias"].shape == (width,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nope", "expected one of elbo:K"),
        ("iwae:0", "objective 'iwae:0': num_particles: got 0"),
        ("elbo:", "got '' particles"),
        ("iwae:\u00b2", "expected a whole number"),
        ("iwae:" + "9" * 5000, "expected a whole number"),
        ("vimco:1", "expected at least 2"),
        ("rws:1", "for one use WakeSleep"),
        ("MIWAE", "expected what it takes; its arguments are .num_bounds"),
        ("iwae:many", "expected a whole number"),
        ("RenyiELBO(alpha=1)", "use Trace_ELBO"),
        ("RenyiELBO(beta=1)", "unexpected keyword"),
        ("IWAE(5, **{})", "expected keyword arguments"),
        ("IWAE(num_particles=len('abc'))", "expected one of"),
        ("__import__('os').system('true')", "expected one of"),
        ("IWAE((", "with arguments in parentheses"),
        ("LinearWarmup(5)", "expected one of"),
    ],
)
def test_bad_objectives(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        specs.make_objective(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Nope", "expected one of AlignDRAW"),
        ("missing.py:Mine", "which is not there, expected a file"),
        ("VAE(depth=3)", "unexpected keyword"),
        ("VAE(2)", "expected arguments with their names"),
        ("VAE(latent_dim={[1]: 2})", "expected a number"),
        # Where the recursion ends, in the parser or behind it, depends on how deep the caller is.
        ("VAE(latent_dim=" + "-" * 5000 + "1)", r"pair: got|got 'an expression nested too deeply'"),
        ("VAE(latent_dim=[x for x in y])", "expected a number"),
        ("VAE(hidden=(0,))", "at least 1"),
    ],
)
def test_bad_pairs(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        specs.pair_factory(text)((1, 4, 4))


def test_a_file_without_the_pair_and_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("Mine = 3\n")
    with pytest.raises(ValueError, match="expected the name of a Pair in"):
        specs.pair_factory(f"{tmp_path}/own.py:Mine")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(ValueError, match=r"got ZeroDivisionError.* from .*can be imported"):
        specs.pair_factory(f"{tmp_path}/broken.py:Mine")
    (tmp_path / "exits.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(ValueError, match=r"got SystemExit: 3 from .*can be imported"):
        specs.pair_factory(f"{tmp_path}/exits.py:Mine")


def test_a_file_never_stands_in_for_a_module_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("from ppl_vae.pairs import VAE as Mine\n")
    before = sys.modules["torch"]
    assert isinstance(specs.pair_factory(f"{tmp_path}/torch.py:Mine")((1, 4, 4)), VAE)
    assert sys.modules["torch"] is before


def test_what_a_users_class_raises_is_said_and_a_fault_of_ours_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(OWN + "        raise KeyError('width')\n")
    with pytest.raises(ValueError, match="KeyError: 'width'"):
        specs.pair_factory(f"{tmp_path}/own.py:Mine")((1, 4, 4))
    monkeypatch.setattr(VAE, "__init__", lambda self, shape: {}["fault"])
    with pytest.raises(KeyError):
        specs.pair_factory("VAE")((1, 4, 4))
