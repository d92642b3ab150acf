"""Files written whole or not at all, and the record of what a number was computed with."""

import csv
import dataclasses
import io
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["columns_of", "environment", "markdown_table", "write_bytes", "write_csv", "write_json"]

_PACKAGES = {"torch": "torch", "pyro": "pyro-ppl", "numpy": "numpy", "ppl_vae": "ppl_vae"}


def write_bytes(content: bytes, path: str | Path) -> Path:
    """Write a file so that a reader, at any time and after any crash, finds the old one or the new one whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # the same folder: a rename must not copy
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_json(obj: Any, path: str | Path) -> Path:
    """Write JSON; tensors, arrays, paths, devices and dataclasses are allowed inside.

    Numbers that are not finite are written as Python does (NaN, Infinity) and read back by `json.load`.
    """
    return write_bytes((json.dumps(obj, indent=2, default=_plain) + "\n").encode(), path)


def write_csv(rows: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Write one line for each row; the columns are the rows' keys, in the order in which they first appear."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns_of(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: v.tolist() if hasattr(v, "tolist") else v for k, v in row.items()} for row in rows)
    return write_bytes(text.getvalue().encode(), path)


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the same columns as a table in Markdown; whole numbers with commas.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("rows: got none, expected at least one: a table's columns are those of the first")
    columns = list(rows[0])
    cells = [[f"{row[c]:,}" if isinstance(row[c], int) else str(row[c]) for c in columns] for row in rows]
    lines = [columns, ["---"] * len(columns), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """What a number may depend on besides the code and its configuration, ready for JSON.

    Args:
        device: where the number was computed.
    """
    device = torch.device(device)
    return {
        "python": platform.python_version(),
        **{name: _version(package) for name, package in _PACKAGES.items()},
        "platform": platform.platform(),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
    }


def _plain(obj: Any) -> Any:
    if isinstance(obj, Tensor | np.ndarray | np.generic):
        return obj.tolist()
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return dataclasses.asdict(obj)
    if isinstance(obj, Path | torch.device | torch.dtype | torch.Size):
        return str(obj)
    raise TypeError(f"got {type(obj).__name__}, expected what JSON knows, a tensor, an array, a path or a dataclass")


def columns_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The keys of the rows, in the order in which they first appear."""
    return list(dict.fromkeys(key for row in rows for key in row))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
