"""Pairs and objectives as text: `VAE(latent_dim=2)`, `iwae:50`, `my_file.py:MyPair(width=30)`.

A specification is what a Python user would write, reduced to names and literals: it can stand on a
command line, in a YAML file and in the JSON of a result, and reading it runs nothing but the named class.
"""

import ast
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from ppl_vae import nn as networks
from ppl_vae import objectives, pairs
from ppl_vae.data import Dataset, Source
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

__all__ = [
    "Maker",
    "evaluated",
    "is_out_of_memory",
    "make_objective",
    "maker",
    "objective_names",
    "pair_factory",
    "pair_names",
    "told_by",
]

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
    short, colon, count = text.partition(":")
    if short in _SHORT:
        # isdigit alone takes other digits than ours, and int refuses thousands of them.
        if colon and not (count.isascii() and count.isdigit() and len(count) < 19):
            raise ValueError(f"objective {_cut(text)}: got {_cut(count)} particles, expected a whole number: {short}:5")
        return _called(f"objective {text!r}", _SHORT[short], *([int(count)] if colon else []))
    known = {n: getattr(objectives, n) for n in objectives.__all__ if _is_concrete(getattr(objectives, n))}
    result = _evaluate(text, known, "objective", objective_names())
    if inspect.isclass(result):
        result = _called(f"objective {text!r}", result)
    if not isinstance(result, Objective):
        raise ValueError(f"objective: got {_cut(text)}, expected one of {', '.join(objective_names())}")
    return result


def evaluated(text: str, known: Mapping[str, Any], what: str) -> Any:
    """What a text names among these, called with its arguments, plain values, where it has parentheses.

    Args:
        text: `Stack(layers=3)`, say.
        known: name -> class.
        what: the text is, for the error.

    Raises:
        ValueError: an unknown name, or arguments that are refused.
    """
    return _evaluate(text, known, what, sorted(known))


def pair_factory(text: str, told: Mapping[str, int] = {}) -> Callable[[tuple[int, ...]], Pair]:
    """A function from the shape of one datum to a fresh pair.

    `text` names a shipped pair, or a class of a user's file, `my_file.py:MyPair`, with keyword arguments
    in parentheses where wanted. The class is called with the shape of one datum as its first argument, and with
    what the data tell, where it takes that: `vocabulary`, how many word numbers their captions have, or `classes`.

    Raises:
        ValueError: an unknown name, a missing file, a file that can't be imported, a class that is not a `Pair`, or
            arguments without a name; when it is called, whatever the class refuses.
    """
    path, colon, rest = text.partition(".py:")
    scope = vars(_load_file(Path(path + ".py"))) if colon else {n: getattr(pairs, n) for n in pair_names()}
    call = _parsed(rest if colon else text)
    name = _shown(call.func) if isinstance(call, ast.Call) else rest if colon else text
    cls = scope.get(name)
    if not (inspect.isclass(cls) and issubclass(cls, Pair)):
        wanted = f"the name of a Pair in {path}.py" if colon else f"one of {', '.join(pair_names())}"
        raise ValueError(f"pair: got {_cut(text)}, expected {wanted}; for your own write my_file.py:MyPair")
    arguments = {}
    if isinstance(call, ast.Call):
        if call.args:
            raise ValueError(f"pair: got {_cut(text)}, expected arguments with their names: latent_dim=2")
        arguments = _keywords(call, text)
    for name in told.keys() & inspect.signature(cls).parameters.keys():
        given, number = arguments.setdefault(name, told[name]), told[name]
        if not isinstance(given, int) or given < number:
            raise ValueError(f"pair {_cut(text)}: got {name}={given}, expected {number}, those of the data")
    # A user's class may raise anything; of ours, whatever else it raises is a fault that must be seen.
    refusals = Exception if colon else (TypeError, ValueError, OverflowError)

    def make(data_shape: tuple[int, ...]) -> Pair:
        try:
            return cls(data_shape, **arguments)
        except refusals as error:
            if is_out_of_memory(error):
                raise
            raise _refusal(f"pair {_cut(text)}", error, cls) from error

    return make


@dataclass(frozen=True)
class Maker:
    """Makes fresh pairs from a text; p(x | z) starts at the mean of the data where the pair knows how."""

    text: str
    shape: tuple[int, ...]
    output_mean: Tensor
    told: Mapping[str, int] = field(default_factory=dict)

    def __call__(self) -> Pair:
        """A fresh pair."""
        pair = pair_factory(self.text, self.told)(self.shape)
        if callable(set_mean := getattr(pair, "set_output_mean", None)):
            set_mean(self.output_mean)
        return pair


def maker(text: str, dataset: Dataset[Any] | Source) -> Maker:
    """A maker of the pair of a text, which is refused here if it is wrong."""
    pair_factory(text, told_by(dataset))
    return Maker(text, dataset.shape, dataset.output_mean, told_by(dataset))


def told_by(dataset: Dataset[Any] | Source) -> Mapping[str, int]:
    """What a pair must know of the data besides their shape: sizes of what they are conditioned on."""
    return dataset.told if isinstance(dataset, Source) else {}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that something does not fit into memory, or into any memory at all."""
    texts = ("allocate memory", "out of memory", "not enough memory", "Storage size calculation overflowed")
    return isinstance(error, MemoryError) or any(text in str(error) for text in texts)


def _is_concrete(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, Objective) and not inspect.isabstract(value)


def _parsed(text: str) -> ast.expr | None:
    """The expression that a text is, or None where it is none or is nested too deeply to be read."""
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _evaluate(text: str, known: Mapping[str, Any], what: str, names: list[str]) -> Any:
    node = _parsed(text)
    if node is None:
        raise ValueError(f"{what}: got {_cut(text)}, expected one of {', '.join(names)}, with arguments in parentheses")
    name = _shown(node.func) if isinstance(node, ast.Call) else _shown(node)
    if name not in known:
        raise ValueError(f"{what}: got {_cut(text)}, expected one of {', '.join(names)}")
    if not isinstance(node, ast.Call):
        return known[name]
    positional, named = [_literal(a, text) for a in node.args], _keywords(node, text)
    return _called(f"{what} {_cut(text)}", known[name], *positional, **named)


def _called(what: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The function's value; what it refuses is said with the text that asked for it."""
    try:
        return function(*args, **kwargs)
    except (TypeError, ValueError, OverflowError) as error:
        raise _refusal(what, error, function) from error


def _refusal(what: str, error: Exception, function: Callable[..., Any]) -> ValueError:
    """What a function says about its arguments, with those that it takes."""
    got = str(error) if ", expected " in str(error) else f"got {type(error).__name__}: {error}, expected what it takes"
    taken = [p.replace(annotation=p.empty) for p in inspect.signature(function).parameters.values()]
    return ValueError(f"{what}: {got}; its arguments are {inspect.Signature(taken)}")


def _cut(text: str) -> str:
    """A text in quotes, for an error: its beginning where it is long."""
    return repr(text) if len(text) <= 200 else f"{text[:200]!r}..."


def _shown(node: ast.expr) -> str:
    try:
        return ast.unparse(node)
    except RecursionError:
        return "an expression nested too deeply"


def _keywords(call: ast.Call, text: str) -> dict[str, Any]:
    if any(keyword.arg is None for keyword in call.keywords):
        raise ValueError(f"got {_cut(text)}, expected keyword arguments with plain values")
    return {str(keyword.arg): _literal(keyword.value, text) for keyword in call.keywords}


def _literal(node: ast.expr, text: str) -> Any:
    """A literal, an activation `nn.ReLU` of torch or of ours, a schedule `LinearWarmup(1000)`, or a head."""
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "nn":
        if node.attr in networks.__all__:
            return getattr(networks, node.attr)
        if hasattr(nn, node.attr):
            return getattr(nn, node.attr)
    if isinstance(node, ast.Call):
        known = {**vars(objectives), **{n: getattr(networks, n) for n in networks.__all__}}
        return _evaluate(_shown(node), known, "value", ["LinearWarmup", *networks.__all__])
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        got = _cut(_shown(node))
        raise ValueError(f"{_cut(text)}: got {got}, expected a number, text, tuple or nn.Name") from error


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"pair: got {str(path)!r}, which is not there, expected a file; write my_file.py:MyPair")
    name = f"_ppl_vae_file_{path.stem}"  # a file torch.py must not stand in for torch
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses, and whoever asks for a class's module, look there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        got = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"pair: got {got} from {path}, expected a file that can be imported; try python {path}"
        ) from error
    return module
