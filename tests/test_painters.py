"""The comparison of painters under the same captions, with a tiny budget."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "examples" / "reproduce" / "painters.py"
TINY = {"data": "digits", "canvas": 16, "digit": 8, "num-test": 40, "device": "cpu"}
TINY |= {"steps": 8, "judge-steps": 8, "glimpses": 2, "hidden": 8, "latent-dim": 2}


def call(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    tiny = [word for key, value in TINY.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, str(SCRIPT), *tiny, "--out", str(folder), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def test_painters_are_trained_once_and_set_side_by_side(tmp_path: Path) -> None:
    done = call(tmp_path, "--rows", "alignDRAW")
    assert done.returncode == 0, done.stderr
    first = json.loads((tmp_path / "painters.json").read_text())["painters"]
    assert list(first) == ["alignDRAW"] and (tmp_path / "alignDRAW.png").exists()

    done = call(tmp_path, "--rows", "alignDRAW", "fully connected VAE")
    assert done.returncode == 0, done.stderr
    both = json.loads((tmp_path / "painters.json").read_text())["painters"]
    assert both["alignDRAW"] == first["alignDRAW"] and list(both) == ["alignDRAW", "fully connected VAE"]
    table = (tmp_path / "table.md").read_text().splitlines()
    assert done.stdout.endswith("\n".join(table) + "\n")
    assert len({line.count("|") for line in table}) == 1 and "held out" in "".join(table)

    refused = call(tmp_path, "--rows", "alignDRAW", "--seed", "1")
    assert refused.returncode != 0 and "got results of other settings" in refused.stderr
    assert json.loads((tmp_path / "painters.json").read_text())["painters"] == both
