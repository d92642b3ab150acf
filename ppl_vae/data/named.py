"""Data by a text: a data set's name, a file or a folder, or a call such as `labelled(mnist)` or `text(grammar)`."""

import ast
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ppl_vae.data.coco import coco
from ppl_vae.data.dataset import Binarisation, DataError, Dataset
from ppl_vae.data.labelled import labelled
from ppl_vae.data.loaders import load
from ppl_vae.data.partly_labelled import partly_labelled
from ppl_vae.data.scenes import scenes
from ppl_vae.data.source import Source
from ppl_vae.data.text_files import GRAMMAR, text

__all__ = ["composed_names", "is_composed", "load_named", "with_absolute_paths"]


class _Call(NamedTuple):
    """`scenes(mnist, size=28)` in parts: the function, what it is called on, and plain values of its settings."""

    name: str
    source: str
    settings: dict[str, Any]


class _Context(NamedTuple):
    """What a command says of its data besides their text; as for `load`."""

    binarisation: Binarisation | None
    root: str | Path | None
    seed: int


def _scenes(source: str, settings: dict[str, Any], context: _Context) -> Source:
    digits = load(source, binarisation="none", root=context.root)
    return scenes(digits, binarisation=context.binarisation, seed=context.seed, **settings)  # type: ignore[arg-type]


def _labelled(source: str, settings: dict[str, Any], context: _Context) -> Source:
    return labelled(load(source, binarisation=context.binarisation, root=context.root, seed=context.seed), **settings)


def _partly_labelled(source: str, settings: dict[str, Any], context: _Context) -> Source:
    images = load(source, binarisation=context.binarisation, root=context.root, seed=context.seed)
    return partly_labelled(images, **settings)


def _coco(source: str, settings: dict[str, Any], context: _Context) -> Source:
    if context.binarisation not in (None, "none"):
        raise DataError(f"got binarisation {context.binarisation!r}, expected 'none' for photographs; leave it out")
    places = {key: _placed(settings[key], context.root) for key in _PATHS if settings.get(key) is not None}
    return coco(_placed(source, context.root), **{**settings, **places})


def _text(source: str, settings: dict[str, Any], context: _Context) -> Source:
    if context.binarisation not in (None, "none"):
        raise DataError(f"got binarisation {context.binarisation!r}, expected 'none' for text; leave it out")
    return text(source if source == GRAMMAR else _placed(source, context.root), **settings)


@dataclass(frozen=True)
class _Maker:
    """A kind of data that are more than a data set, a file or a folder.

    Args:
        make: from what it is called on, the settings, and what else the command says.
        function: has the settings among its arguments.
        settings: those that may be given.
        kind: what it is called on.
        example: of a call.
        is_path: whether it is called on a folder.
        embedded: what is no folder, even so.
    """

    make: Callable[[str, dict[str, Any], _Context], Source]
    function: Callable[..., Source]
    settings: tuple[str, ...]
    kind: str
    example: str
    is_path: bool = False
    embedded: tuple[str, ...] = ()


_MAKERS = {
    "labelled": _Maker(_labelled, labelled, ("classes",), "the name of a data set with classes", "labelled(mnist)"),
    "partly_labelled": _Maker(
        _partly_labelled,
        partly_labelled,
        ("known", "repeat", "choice", "classes"),
        "the name of a data set with classes, and how many are known",
        "partly_labelled(mnist, known=100)",
    ),
    "scenes": _Maker(
        _scenes,
        scenes,
        ("size", "digit_size", "coloured", "templates", "num_train", "num_test", "banned"),
        "a data set of digits and settings",
        "scenes(mnist, size=28, digit_size=14)",
    ),
    "coco": _Maker(
        _coco,
        coco,
        ("size", "year", "min_words", "max_words", "buckets", "least", "cache", "progress"),
        "the folder of COCO's downloads, in quotes, and settings",
        "coco('data/coco', size=32)",
        is_path=True,
    ),
    "text": _Maker(
        _text,
        text,
        ("words", "least", "unit", "max_length", "num_train", "num_test", "buckets"),
        "the folder of three files of text, in quotes, or grammar, and settings",
        "text('data/ptb', words=10000)",
        is_path=True,
        embedded=(GRAMMAR,),
    ),
}
_PATHS = ("cache",)
"""Settings that are paths."""


def composed_names() -> tuple[str, ...]:
    """The calls that make data with classes, captions or sentences, as one would write them."""
    return tuple(maker.example for maker in _MAKERS.values())


def is_composed(text: str) -> bool:
    """Whether a text asks for such data, and not for a data set, a file or a folder."""
    return text.lstrip().startswith(tuple(f"{name}(" for name in _MAKERS))


def with_absolute_paths(text: str, root: str | Path | None = None) -> str:
    """A call that makes such data with absolute paths, wherever they are relative to the working folder.

    Raises:
        DataError: the text is no such call.
    """
    name, source, settings = _read(text)
    maker = _MAKERS[name]
    if not maker.is_path or source in maker.embedded or root is not None:
        return text
    paths = {key: str(Path(settings[key]).expanduser().resolve()) for key in _PATHS if settings.get(key) is not None}
    words = [repr(str(Path(source).expanduser().resolve()))]
    return f"{name}({', '.join(words + [f'{key}={value!r}' for key, value in {**settings, **paths}.items()])})"


def load_named(
    text: str, *, binarisation: Binarisation | None = None, root: str | Path | None = None, seed: int = 0
) -> Dataset[Any] | Source:
    """What `load` loads, or data with classes, captions or sentences: `labelled(mnist)`, `text(grammar)`.

    Args:
        text: as for `load`; or a call of `labelled` or `scenes` with the name of a data set, or of `coco` or `text`
            with its folder (relative to `root` where that is given), and plain values of their settings.
        binarisation, root, seed: as for `load`.

    Raises:
        DataError: what `load`, `labelled`, `scenes`, `coco` and `text` raise, or a text that is no such call.

    Example:
        >>> load_named("scenes(digits, size=16, num_train=10)").shape
        torch.Size([1, 16, 16])
    """
    if not is_composed(text):
        return load(text, binarisation=binarisation, root=root, seed=seed)
    name, source, settings = _read(text)
    try:
        return _MAKERS[name].make(source, settings, _Context(binarisation, root, seed))
    except DataError as error:
        raise DataError(f"data {text[:200]!r}: {error}") from error
    except (TypeError, ValueError, AttributeError, RuntimeError, OverflowError, OSError) as error:
        raise _no_call(name, text, str(error)) from error


def _read(text: str) -> _Call:
    """The parts of a call that makes such data."""
    text = text.strip()
    name = text.partition("(")[0]
    try:
        call = ast.parse(text, mode="eval").body
        assert isinstance(call, ast.Call) and len(call.args) == 1 and isinstance(call.func, ast.Name)
        source = _source(call.args[0], text)
        settings = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError, AssertionError, RecursionError, MemoryError) as error:
        raise _no_call(name, text, type(error).__name__) from error
    if wrong := [key for key in settings if key not in _MAKERS[name].settings]:
        raise _no_call(name, text, f"no setting {wrong[0]!r}")
    return _Call(name, source, settings)


def _source(node: ast.expr, text: str) -> str:
    """What a call is on: a text in quotes, or as it stands there, `fashion-mnist` and `data/coco` too."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return ast.get_source_segment(text, node) or ast.unparse(node)


def _placed(path: str, root: str | Path | None) -> Path:
    """A path, which is relative to the folder of the data sets where there is one."""
    return Path(root or "").expanduser() / Path(path).expanduser()


def _no_call(name: str, text: str, reason: str) -> DataError:
    maker = _MAKERS[name]
    parameters = inspect.signature(maker.function).parameters.items()
    taken = [p.replace(annotation=p.empty) for n, p in parameters if n in maker.settings]
    expected, settings = f"{maker.kind}, such as {maker.example}", ", ".join(map(str, taken))
    return DataError(f"data: got {text[:200]!r} ({reason}), expected {expected}; the settings are {settings}")
