"""The examples run, each with a tiny budget in a fresh process and an empty directory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
CODES = [
    "--steps",
    "10",
    "--judge-steps",
    "10",
    "--num-test",
    "50",
    "--samples",
    "10",
    "--hidden",
    "8",
    "--layers",
    "1",
]
BUDGETS = {
    "01_vae.py": ["--steps", "20", "--num-particles", "10"],
    "02_your_own_pair.py": ["--steps", "20", "--num-particles", "10", "--seeds", "2"],
    "03_compare_bounds.py": ["--steps", "20", "--num-particles", "10", "--seeds", "2"],
    "04_hierarchical.py": ["--steps", "20", "--num-particles", "10"],
    "04_ladder.py": ["--steps", "20", "--num-particles", "10"],
    "05_draw.py": ["--steps", "10", "--num-particles", "5", "--hidden", "16", "--glimpses", "3"],
    "06_text_to_image.py": [
        "--steps",
        "10",
        "--judge-steps",
        "10",
        "--num-test",
        "20",
        "--hidden",
        "16",
        "--glimpses",
        "2",
    ],
    "07_conditional.py": ["--steps", "20", "--num-particles", "10"],
    "08_multimodal_policy.py": ["--steps", "20"],
    "09_pixels.py": ["--steps", "10", "--num-particles", "5", "--hidden", "8", "--layers", "2"],
    "10_vq_vae.py": CODES,
    "10_vq_vae_sound.py": ["--steps", "10", "--sounds", "100", "--hidden", "8", "--codes", "8"],
    "11_vq_vae_2.py": CODES,
    "13_text.py": [
        *["--passes", "0.1", "--num-particles", "5", "--num-train", "300", "--num-test", "30"],
        *["--hidden", "8", "--embedding", "4", "--latent-dim", "2"],
    ],
    "12_categorical.py": ["--steps", "10", "--num-particles", "5", "--variables", "3", "--hidden", "8"],
    "14_autoencoder.py": ["--steps", "10", "--hidden", "8", "--num-test", "50"],
    "14_autoencoder_pretraining.py": [
        *["--num-train", "200", "--hidden", "8", "--pretraining", "0.5", "--passes", "1", "--seeds", "1"],
    ],
    "15_wake_sleep.py": ["--steps", "10", "--units", "6", "4", "--num-particles", "5", "--num-test", "50"],
    "16_semi_supervised.py": [
        *["--passes", "0.2", "--hidden", "8", "--latent-dim", "2", "--num-train", "300", "--seeds", "2"],
    ],
}


def test_every_example_is_run() -> None:
    assert sorted(BUDGETS) == sorted(path.name for path in EXAMPLES.glob("[0-9]*.py"))


@pytest.mark.parametrize("name", BUDGETS)
def test_example_runs(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / name), *BUDGETS[name]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert "nan" not in done.stdout.lower()
    assert any(measure in done.stdout for measure in ("NLL", "-log p(x)", "error", "accuracy"))


def test_examples_are_short() -> None:
    for path in EXAMPLES.glob("[0-9]*.py"):
        assert len(path.read_text().splitlines()) <= 80, path.name


def test_a_new_pair_takes_25_lines() -> None:
    lines = (EXAMPLES / "02_your_own_pair.py").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("class MyPair"))
    end = next(i for i, line in enumerate(lines) if line.startswith("if __name__"))
    assert len([line for line in lines[start:end] if line.strip()]) <= 25
