"""Pairs and objectives as text: `VAE(latent_dim=2)`, `iwae:50`, `my_file.py:MyPair(width=30)`.

A specification is what a Python user would write, reduced to names and literals: it can stand on a
command line, in a YAML file and in the JSON of a result, and reading it runs nothing but the named class.
"""

import ast
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ppl_vae import nn as networks
from ppl_vae import objectives, pairs
from ppl_vae.objectives import (
    IWAE,
    STL,
    VIMCO,
    DReG,
    Objective,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from ppl_vae.pair import Pair

__all__ = ["make_objective", "objective_names", "pair_factory", "pair_names"]

_SHORT: Mapping[str, type[Objective]] = {
    "elbo": Trace_ELBO,
    "mean-field": TraceMeanField_ELBO,
    "iwae": IWAE,
    "stl": STL,
    "dreg": DReG,
    "vimco": VIMCO,
    "rws": ReweightedWakeSleep,
    "enum": TraceEnum_ELBO,
    "graph": TraceGraph_ELBO,
}


def pair_names() -> list[str]:
    """The shipped pairs."""
    return sorted(name for name in pairs.__all__ if issubclass(getattr(pairs, name), Pair))


def objective_names() -> list[str]:
    """The short names (`iwae:50`) and the classes (`RenyiELBO(alpha=0.5, num_particles=50)`)."""
    classes = [n for n in objectives.__all__ if _is_concrete(getattr(objectives, n))]
    return [f"{short}:K" for short in _SHORT] + sorted(classes)


def make_objective(text: str) -> Objective:
    """The objective that a text names: `elbo`, `iwae:50`, `RenyiELBO(alpha=0.5, num_particles=5)`.

    Raises:
        ValueError: an unknown name, or arguments that the objective refuses.
    """
    short, _, count = text.partition(":")
    if short in _SHORT:
        if count and not count.isdigit():
            raise ValueError(f"objective {text!r}: got {count!r} particles, expected a whole number: {short}:50")
        return _SHORT[short](int(count)) if count else _SHORT[short]()
    known = {n: getattr(objectives, n) for n in objectives.__all__}
    result = _evaluate(text, known, "objective", objective_names())
    if inspect.isclass(result):
        try:
            result = result()
        except TypeError as error:
            raise ValueError(f"objective {text!r}: {error}; write its arguments in parentheses") from error
    if not isinstance(result, Objective):
        raise ValueError(f"objective: got {text!r}, expected one of {', '.join(objective_names())}")
    return result


def pair_factory(text: str) -> Callable[[tuple[int, ...]], Pair]:
    """A function from the shape of one datum to a fresh pair.

    `text` names a shipped pair, or a class of a user's file, `my_file.py:MyPair`, with keyword arguments
    in parentheses where wanted. The class is called with the shape of one datum as its first argument.

    Raises:
        ValueError: an unknown name, a missing file, or a class that is not a `Pair`.
    """
    path, colon, rest = text.partition(".py:")
    scope = vars(_load_file(Path(path + ".py"))) if colon else {n: getattr(pairs, n) for n in pair_names()}
    call = ast.parse(rest if colon else text, mode="eval").body if _parses(rest if colon else text) else None
    name = ast.unparse(call.func) if isinstance(call, ast.Call) else rest if colon else text
    cls = scope.get(name)
    if not (inspect.isclass(cls) and issubclass(cls, Pair)):
        where = f"{path}.py defines no Pair of that name" if colon else f"expected one of {', '.join(pair_names())}"
        raise ValueError(f"pair: got {text!r}, {where}; for your own write my_file.py:MyPair")
    arguments = _keywords(call, text) if isinstance(call, ast.Call) else {}

    def make(data_shape: tuple[int, ...]) -> Pair:
        try:
            return cls(data_shape, **arguments)
        except TypeError as error:
            raise ValueError(f"pair {text!r}: {error}; its arguments are {inspect.signature(cls)}") from error

    return make


def _is_concrete(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, Objective) and not inspect.isabstract(value)


def _parses(text: str) -> bool:
    try:
        ast.parse(text, mode="eval")
    except SyntaxError:
        return False
    return True


def _evaluate(text: str, known: Mapping[str, Any], what: str, names: list[str]) -> Any:
    if not _parses(text):
        raise ValueError(f"{what}: got {text!r}, expected one of {', '.join(names)}, with arguments in parentheses")
    node = ast.parse(text, mode="eval").body
    name = ast.unparse(node.func) if isinstance(node, ast.Call) else ast.unparse(node)
    if name not in known:
        raise ValueError(f"{what}: got {text!r}, expected one of {', '.join(names)}")
    if not isinstance(node, ast.Call):
        return known[name]
    try:
        return known[name](*[_literal(a, text) for a in node.args], **_keywords(node, text))
    except TypeError as error:
        raise ValueError(f"{what} {text!r}: {error}") from error


def _keywords(call: ast.Call, text: str) -> dict[str, Any]:
    if any(keyword.arg is None for keyword in call.keywords):
        raise ValueError(f"got {text!r}, expected keyword arguments with plain values")
    return {str(keyword.arg): _literal(keyword.value, text) for keyword in call.keywords}


def _literal(node: ast.expr, text: str) -> Any:
    """A literal, an activation `nn.ReLU`, a schedule `LinearWarmup(1000)`, or a head."""
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "nn" and hasattr(nn, node.attr):
        return getattr(nn, node.attr)
    if isinstance(node, ast.Call):
        known = {**vars(objectives), **{n: getattr(networks, n) for n in networks.__all__}}
        return _evaluate(ast.unparse(node), known, "value", ["LinearWarmup", *networks.__all__])
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise ValueError(f"{text!r}: got {ast.unparse(node)!r}, expected a number, text, tuple or nn.Name") from error


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"pair: got the file {str(path)!r}, which does not exist; expected my_file.py:MyPair")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"pair: {path} can't be imported: {type(error).__name__}: {error}") from error
    return module
