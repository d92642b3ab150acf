"""Data flow one way: a room imports rooms to its left alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ppl_vae

ROOT = Path(ppl_vae.__file__).parent
ROOMS = (
    "seeds",
    "data",
    "distributions",
    "nn",
    "pair",
    "checks",
    "quiet",
    "denormals",
    "heap",
    "optimisers",
    "pairs",
    "sites",
    "paths",
    "terms",
    "aggregate",
    "features",
    "dreams",
    "objectives",
    "nonfinite",
    "kernels",
    "compile",
    "capture",
    "precision",
    "shelf",
    "parallel",
    "svi",
    "lagging",
    "checkpoints",
    "records",
    "rates",
    "averages",
    "signals",
    "validation",
    "steps",
    "loop",
    "training",
    "stages",
    "stacked",
    "evaluation",
    "mcem",
    "pretrain",
    "finetune",
    "generation",
    "language",
    "similarity",
    "judging",
    "films",
    "workers",
    "comparison",
    "tables",
    "specs",
    "runs",
    "report",
    "run_folder",
    "reproduction",
    "cli",
    "testing",
)
FILES = sorted(p for p in ROOT.rglob("*.py") if p.relative_to(ROOT).parts[0] not in ("__init__.py", "__main__.py"))


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and room of every import of this package, at any depth of the file."""
    package = ["ppl_vae", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "ppl_vae":
                yield node.lineno, parts[1] if len(parts) > 1 else "__init__"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_rooms_to_its_left(path):
    here = room(path)
    assert here in ROOMS, f"{here} has no place yet: put it into ROOMS, as far left as it can stand"
    for line, there in imported(path):
        allowed = [here, *ROOMS[: ROOMS.index(here)]]
        assert there in allowed, f"{path}:{line}: {here} imports {there}, which is not to its left"


def test_imports_of_every_form_are_seen(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    file = tmp_path / "pairs" / "x.py"
    file.parent.mkdir()
    file.write_text(
        "import ppl_vae\nimport ppl_vae.svi as s\nfrom ppl_vae import terms\nfrom ppl_vae.nn.heads import Head\n"
        "from . import networks\nfrom .. import pair\nfrom ..data import digits\ndef f():\n    import ppl_vae.cli\n"
    )
    expected = ["__init__", "svi", "terms", "nn", "pairs", "pair", "data", "cli"]
    assert [there for _, there in imported(file)] == expected
