"""Sound as a line of codes: a one-dimensional VQ-VAE of chirps and tones that this script makes itself.

Four kinds of sounds, of 1,024 samples at 8 kHz: tones, rising chirps, falling chirps, and two tones together, of random
pitch, loudness and phase. One code stands for 8 samples. Reconstructions come back with the signal-to-noise ratio
printed; new sounds of each kind are drawn code by code from the prior. Writes WAV files and a picture.

python examples/10_vq_vae_sound.py
"""

import argparse
import math
import wave
from pathlib import Path

import matplotlib.figure
import torch
from torch import Tensor

from ppl_vae import evaluation, fit_stages, generation
from ppl_vae.pairs import VQVAE1d

RATE, LENGTH = 8000, 1024
KINDS = ("tone", "rising", "falling", "two tones")

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=1000, help="of each stage")
parser.add_argument("--codes", type=int, default=128)
parser.add_argument("--hidden", type=int, default=64)
parser.add_argument("--prior-hidden", type=int, default=32)
parser.add_argument("--sounds", type=int, default=4000)
parser.add_argument("--out", type=Path, default=Path("sounds"))
args = parser.parse_args()


def sounds(number: int, seed: int) -> tuple[Tensor, Tensor]:
    """Waveforms (N, 1, L) in [-1, 1] and their kinds (N,)."""
    random = torch.Generator().manual_seed(seed)
    low, high, phase, loud = (torch.rand(number, 1, generator=random) for _ in range(4))
    kind, time = torch.arange(number) % 4, torch.arange(LENGTH) / RATE
    first, second = 150 * 2**low, 400 * 2**high  # Hz
    begin = torch.where((kind == 2)[:, None], second, first)
    end = torch.where((kind == 1)[:, None], second, torch.where((kind == 2)[:, None], first, begin))
    sweep = 2 * math.pi * (begin * time + (end - begin) * time**2 * RATE / (2 * LENGTH) + phase)
    other = torch.where((kind == 3)[:, None], (2 * math.pi * second * time).sin(), sweep.sin())
    return ((0.3 + 0.6 * loud) * (sweep.sin() + other) / 2).unsqueeze(1), kind


def write(x: Tensor, path: Path) -> None:
    """A WAV of a waveform, eight times over, so that it can be heard."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((32767 * x.clamp(-1, 1).repeat(8)).to(torch.int16).numpy().tobytes())


x, kind = sounds(args.sounds, seed=0)
torch.manual_seed(0)
pair = VQVAE1d((1, LENGTH), args.codes, 32, args.hidden, prior_hidden=args.prior_hidden, classes=4, variance=1e-3)
fit_stages(pair, (x, kind), steps=args.steps, batch_size=50, learning_rate=1e-3)

pair.eval()
test, test_kind = (part.to(pair.reference().device) for part in sounds(200, seed=1))
again = generation.reconstructions(pair, test, test_kind)
usage = evaluation.code_usage(pair, test)["z"]
ratio = 10 * torch.log10(test.square().sum() / (test - again).square().sum())
result = evaluation.evaluate(pair, test, test_kind)
print(f"NLL, by a {result.label}: {result.nll:.1f} nats of density")
print(f"signal-to-noise ratio of reconstructions: {ratio:.1f} dB; {usage.used} of {usage.total} codes used")
rate = result.kl["z"] / math.log(2) * RATE / LENGTH  # bits a second
print(f"the codes take {rate:.0f} bits a second under their prior, the waveforms as 16-bit numbers {16 * RATE}")
drawn = generation.samples(pair, test[:4], torch.arange(4, device=test.device), seed=0)
args.out.mkdir(parents=True, exist_ok=True)
figure = matplotlib.figure.Figure(figsize=(10, 8), layout="constrained")
for axes, name, real, back, new in zip(figure.subplots(4, 1), KINDS, test, again, drawn, strict=False):
    for offset, sound, label in ((2, real, "sound"), (0, back, "reconstruction"), (-2, new, "new, of the prior")):
        axes.plot(1000 * torch.arange(LENGTH) / RATE, offset + sound[0].cpu(), linewidth=0.7, label=label)
        write(sound[0].cpu(), args.out / f"{name} {label.split(',')[0]}.wav".replace(" ", "-"))
    axes.set(title=name, yticks=[], xlabel="ms" if name == KINDS[-1] else "")
    axes.legend(loc="upper right", fontsize=7, ncols=3)
figure.savefig(args.out / "sounds.png")
print(args.out / "sounds.png")
