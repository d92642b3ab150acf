"""MNIST, dynamic binarisation, the one-layer pair of Burda et al. 2015, batch 100, 50 passes, on a CPU.

For `Trace_ELBO` and `RenyiELBO` (alpha = 0, k = 5): test NLL (k = 500, first 1,000 test images) and wall time,
next to a hand-written PyTorch loop of the same model, schedule and data order in the same process.

    python examples/reproduce/mnist_one_layer.py --data-root FOLDER_WITH_MNIST --out results/mnist_one_layer.json
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppl_vae import evaluation, fit, report
from ppl_vae.data import Dataset, load
from ppl_vae.objectives import Objective, RenyiELBO, Trace_ELBO
from ppl_vae.pairs import VAE
from ppl_vae.training import steps_of

BATCH, RATE, LATE, LATE_FROM = 100, 1e-3, 0.3, 0.7
TEST_IMAGES, TEST_PARTICLES = 1000, 500


class Handwritten(nn.Module):
    """784-200-200-50 tanh, sigma = exp, as one would write it without a library."""

    def __init__(self, pixel_means: Tensor) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(784, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh())
        self.mu, self.log_sigma = nn.Linear(200, 50), nn.Linear(200, 50)
        self.decoder = nn.Sequential(nn.Linear(50, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh())
        self.logits = nn.Linear(200, 784)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.logits.bias.copy_(torch.logit(pixel_means.flatten(), eps=0.001))

    def log_weight(self, x: Tensor, k: int) -> Tensor:
        h = self.encoder(x)
        mu, log_sigma = self.mu(h), self.log_sigma(h)
        eps = torch.randn(k, *mu.shape)
        z = mu + log_sigma.exp() * eps
        logits = self.logits(self.decoder(z))
        log_px = -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
        return log_px + (0.5 * (eps**2 - z**2) + log_sigma).sum(-1)

    def loss(self, x: Tensor, k: int) -> Tensor:
        return -(torch.logsumexp(self.log_weight(x, k), 0) - math.log(k)).sum()


def train_handwritten(data: Dataset, k: int, steps: int, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    model, pixels = Handwritten(data.pixel_means), data.train.flatten(1)
    optim = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    start = time.perf_counter()
    per_pass, order = len(pixels) // BATCH, torch.arange(0)
    for step in range(steps):
        if step % per_pass == 0:
            order = torch.randperm(len(pixels))
        for group in optim.param_groups:
            group["lr"] = RATE * schedule(step, steps)
        rows = order[step % per_pass * BATCH :][:BATCH]
        optim.zero_grad(set_to_none=True)
        loss = model.loss(torch.bernoulli(pixels[rows]), k)
        loss.backward()
        optim.step()
    seconds = time.perf_counter() - start
    test = data.subset(num_test=TEST_IMAGES).test_batch().flatten(1)
    with torch.no_grad():
        log_weight = torch.cat([model.log_weight(x, TEST_PARTICLES) for x in test.split(20)], 1)
    log_p = torch.logsumexp(log_weight, 0) - math.log(TEST_PARTICLES)
    return {"nll": -log_p.mean().item(), "nll_se": (log_p.std() / len(log_p) ** 0.5).item(), "train_seconds": seconds}


def train_pair(data: Dataset, objective: Objective, steps: int, seed: int, compile: Any) -> dict[str, Any]:
    torch.manual_seed(seed)
    pair = VAE((1, 28, 28))
    pair.set_output_mean(data.pixel_means)
    history = fit(
        pair,
        data,
        objective,
        steps=steps,
        batch_size=BATCH,
        learning_rate=RATE,
        schedule=lambda step: schedule(step, steps),
        seed=seed,
        device="cpu",
        compile=compile,
    )
    test = data.subset(num_test=TEST_IMAGES).test_batch()
    reached = evaluation.evaluate(pair, test, objective=objective, num_particles=TEST_PARTICLES, seed=seed)
    return {**reached.as_dict(), "train_seconds": history.seconds, "compile": history.compile}


def schedule(step: int, steps: int) -> float:
    return LATE if step >= LATE_FROM * steps else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root")
    parser.add_argument("--passes", type=float, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", default="auto", choices=["auto", "off", "inductor"])
    parser.add_argument("--out", type=Path, default=Path("mnist_one_layer.json"))
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    data = load("mnist", binarisation="dynamic", root=args.data_root)
    steps = steps_of(args.passes, data, BATCH)
    result: dict[str, Any] = {
        "config": {
            "passes": args.passes, "steps": steps, "batch_size": BATCH, "optimiser": "Adam", "learning_rate": RATE,
            "schedule": f"x {LATE} for the last {1 - LATE_FROM:.0%}", "seed": args.seed, "data": data.describe(),
            "test_images": TEST_IMAGES, "evaluation_particles": TEST_PARTICLES, "pair": "VAE((1, 28, 28)): 200-200-50",
        },
        "environment": report.environment("cpu"),
        "rows": {},
    }  # fmt: skip
    for name, objective, k in (("Trace_ELBO", Trace_ELBO(), 1), ("RenyiELBO k=5", RenyiELBO(num_particles=5), 5)):
        ours = train_pair(data, objective, steps, args.seed, args.compile)
        hand = train_handwritten(data, k, steps, args.seed)
        result["rows"][name] = {"ours": ours, "handwritten": hand}
        report.write_json(result, args.out)
        ratio = ours["train_seconds"] / hand["train_seconds"]
        print(f"{name}: NLL {ours['nll']:.2f}, {ours['train_seconds']:.0f} s")
        print(f"  by hand: NLL {hand['nll']:.2f}, {hand['train_seconds']:.0f} s; ratio of times {ratio:.2f}")


if __name__ == "__main__":
    main()
