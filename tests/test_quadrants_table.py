"""The script of the quadrants' table: it goes on where it stopped, repeats nothing, and mixes no settings."""

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

SCRIPT = Path(__file__).parent.parent / "examples" / "reproduce" / "quadrants.py"
TINY = ["--data", "digits", "--passes", "1", "--num-train", "600", "--num-test", "20"]
Run = Callable[..., Any]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Call the script; its namespace, in which a test may put something else."""
    spec = importlib.util.spec_from_file_location("quadrants_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def call(*words: str) -> Any:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *TINY, "--out", str(tmp_path / "out"), *words])
        script.main()
        return script

    return call


def test_it_goes_on_and_repeats_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    script = run("--quadrants", "1")
    first = (out / "quadrants-1" / "result.json").read_bytes()
    run("--quadrants", "3", "1")
    assert (out / "quadrants-1" / "result.json").read_bytes() == first

    found = json.loads((out / "quadrants.json").read_text())
    assert list(found["quadrants"]) == ["1", "3"] and found["settings"]["data"]["num_test"] == 20
    assert str(tmp_path) not in (out / "quadrants.json").read_text()
    for row in found["quadrants"].values():
        assert list(row["nats"]) == [script.NETWORK, script.ELBO, script.MONTE_CARLO, script.IMPORTANCE]
        assert all(0 < number["standard_error"] < number["mean"] for number in row["nats"].values())
        assert row["nats"][script.IMPORTANCE]["mean"] < row["nats"][script.ELBO]["mean"]
        assert [row["trainings"][name]["steps"] for name in ("network", "CVAE")] == [4, 4]
    lines = (out / "table.md").read_text().splitlines()
    assert {len(re.findall(r"\|", line)) for line in lines[:4]} == {8} and lines[3].startswith("| 3 |")
    assert imread(out / "completions.png").std() > 0

    # Stopped before the result was written: the trainings are there, and so are the same numbers again.
    (out / "quadrants-1" / "result.json").unlink()
    run("--quadrants", "1")
    again, before = json.loads((out / "quadrants-1" / "result.json").read_text()), json.loads(first)
    assert again["nats"] == before["nats"]
    assert again["trainings"]["CVAE"]["resumed"] == [4] and before["trainings"]["CVAE"]["resumed"] == []

    # With all there, nothing is trained.
    monkeypatch.setattr(script, "fit", None)
    capsys.readouterr()
    run("--quadrants", "1", "3")
    assert capsys.readouterr().out.count("finished before") == 2


def test_other_settings_are_refused(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    run("--quadrants", "2")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    for words, text in ((["--seed", "1"], "got {'seed': 1}, expected {'seed': 0}"), (["--num-test", "19"], "num_test")):
        with pytest.raises(SystemExit):
            run("--quadrants", "2", *words)
        error = capsys.readouterr().err
        assert text in error and "another --out" in error
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
