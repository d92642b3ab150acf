"""Downloads through torchvision, all or nothing: into a temporary folder beside, then renamed."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ppl_vae.data.dataset import DataError


def torchvision_set(name: str) -> Callable[..., Any]:
    """The class `torchvision.datasets.<name>`.

    Imported on use, since torchvision does not import beside every build of torch and most data need it not.

    Raises:
        DataError: torchvision does not import.
    """
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError, OSError) as error:  # a mismatched build fails in any of these ways
        raise DataError(
            f"got {type(error).__name__} on importing torchvision ({error}); expected a torchvision that "
            "fits the installed torch, to fetch this data set; reinstall both together, or place the files by hand"
        ) from error
    return getattr(datasets, name)


@contextmanager
def fetched(name: str, root: Path, *arguments: dict[str, Any]) -> Iterator[Path]:
    """A temporary folder in `root` into which torchvision downloaded a data set; it is gone afterwards.

    Args:
        name: class in `torchvision.datasets`.
        root: folder of all data, made if need be.
        arguments: keyword arguments of each construction (e.g. one a part); none means one without arguments.

    Yields:
        The folder, on the file system of `root`, so that a rename out of it is atomic.

    Raises:
        DataError: no network, a wrong checksum, a folder that cannot be written.
    """
    make = torchvision_set(name)
    is_new = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".download-", dir=root, ignore_cleanup_errors=True)
    except OSError as error:
        raise DataError(
            f"got {type(error).__name__} on writing to {root} ({error}); expected a folder to download "
            f"{name} into; name a writable one by --data-root, root=... or the environment variable PPL_VAE_DATA"
        ) from error
    with _removed_if_empty(root, is_new), folder as temporary:
        try:
            for keywords in arguments or ({},):
                make(temporary, download=True, **keywords)
        except Exception as error:  # torchvision lets through whatever the network, tar or zip raised
            reason = " ".join(str(error).split())  # it spans lines
            raise DataError(
                f"got {type(error).__name__} on downloading {name} ({reason}); expected network access to its "
                f"mirrors; try again later, or place the files under {root} by hand"
            ) from error
        yield Path(temporary)


@contextmanager
def _removed_if_empty(folder: Path, is_new: bool) -> Iterator[None]:
    """Leave no empty folder behind that a failed download made."""
    try:
        yield
    finally:
        if is_new and not any(folder.iterdir()):
            folder.rmdir()


def install(source: Path, target: Path) -> None:
    """Moves a downloaded file or folder to its place, atomically; another process may have been there first.

    Args:
        source: what `fetched` brought.
        target: where it belongs, on the same file system.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir() and target.exists():
        for path in source.iterdir():
            install(path, target / path.name)
        return
    source.replace(target)
