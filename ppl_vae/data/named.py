"""Data by a text: a data set's name, a file or a folder, or scenes composed of a set of digits."""

import ast
import inspect
from pathlib import Path
from typing import Any

from ppl_vae.data.dataset import Binarisation, DataError, Dataset
from ppl_vae.data.loaders import load
from ppl_vae.data.scenes import Scenes, scenes

__all__ = ["is_composed", "load_named"]

_SETTINGS = ("size", "digit_size", "coloured", "templates", "num_train", "num_test", "banned")


def is_composed(text: str) -> bool:
    """Whether a text asks for scenes, and not for a data set, a file or a folder."""
    return text.lstrip().startswith("scenes(")


def load_named(
    text: str, *, binarisation: Binarisation | None = None, root: str | Path | None = None, seed: int = 0
) -> Dataset[Any] | Scenes:
    """What `load` loads, or scenes: `scenes(mnist, size=28, digit_size=14, coloured=True)`.

    Args:
        text: as for `load`; or a call of `scenes` with the name of a data set and plain values of its settings.
        binarisation, root, seed: as for `load`.

    Raises:
        DataError: what `load` and `scenes` raise, or a text that is no such call.

    Example:
        >>> load_named("scenes(digits, size=16, num_train=10)").shape
        torch.Size([1, 16, 16])
    """
    if not is_composed(text):
        return load(text, binarisation=binarisation, root=root, seed=seed)
    name, settings = _read(text)
    try:
        digits = load(name, binarisation="none", root=root)
        return scenes(digits, binarisation=binarisation, seed=seed, **settings)  # pyright: ignore[reportArgumentType]
    except DataError as error:
        raise DataError(f"data {text[:200]!r}: {error}") from error
    except (TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise _no_scenes(text, str(error)) from error


def _read(text: str) -> tuple[str, dict[str, Any]]:
    """The data set's name and the settings of a call of `scenes`."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
        assert isinstance(call, ast.Call) and len(call.args) == 1
        name = ast.unparse(call.args[0])
        settings = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError, AssertionError, RecursionError, MemoryError) as error:
        raise _no_scenes(text, type(error).__name__) from error
    if wrong := [key for key in settings if key not in _SETTINGS]:
        raise _no_scenes(text, f"no setting {wrong[0]!r}")
    return name, settings


def _no_scenes(text: str, reason: str) -> DataError:
    taken = [p.replace(annotation=p.empty) for n, p in inspect.signature(scenes).parameters.items() if n in _SETTINGS]
    return DataError(
        f"data: got {text[:200]!r} ({reason}), expected a data set of digits and settings, such as scenes(mnist, "
        f"size=28, digit_size=14); the settings are {', '.join(map(str, taken))}"
    )
