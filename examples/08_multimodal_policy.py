"""A policy where two actions are right: around the obstacle on the left, or on the right.

A Gaussian policy takes their mean, and hits the obstacle; a conditional VAE takes one of them.

python examples/08_multimodal_policy.py
"""

import argparse

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor

from ppl_vae import evaluation, fit, generation
from ppl_vae.objectives import IWAE
from ppl_vae.pairs import ConditionalVAE, Prediction

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--num-test", type=int, default=1000)
parser.add_argument("--out", default="policy.png")
args = parser.parse_args()

RADIUS, MARGIN = 0.15, 0.1
ALONG = torch.linspace(0, 1, 21)  # an action is a path: how far to the left at each of these points on the way


def states(number: int, widest: float) -> Tensor:
    """Where the obstacle's centre is, along the way and across it: (number, 2)."""
    return torch.stack([0.3 + 0.4 * torch.rand(number), widest * (2 * torch.rand(number) - 1)], 1)


def expert(state: Tensor) -> Tensor:
    """A path for each state: straight on where there is room, otherwise around, on either side equally often."""
    along, across = state.unsqueeze(-1).unbind(1)
    side = torch.where(torch.rand_like(across) < 0.5, -1.0, 1.0)
    height = across + side * (RADIUS + MARGIN)
    in_the_way = across.abs() < RADIUS + MARGIN / 2
    path = torch.where(in_the_way, height, 0.0) * torch.exp(-(((ALONG - along) / 0.2) ** 2) / 2)
    return path + 0.02 * torch.randn_like(path)


def success(path: Tensor, state: Tensor) -> Tensor:
    """Whether no point of the path is in the obstacle, nor farther out than any detour: (B,)."""
    along, across = state.unsqueeze(-1).unbind(1)
    free = (ALONG - along) ** 2 + (path - across) ** 2 > RADIUS**2
    return (free & (path.abs() < 2 * RADIUS + 2 * MARGIN)).all(1)


torch.manual_seed(0)
state = states(20_000, widest=0.6)
test = states(args.num_test, widest=RADIUS / 2)  # the obstacle is right ahead
shape, options = ALONG.shape, {"hidden": (64, 64), "likelihood": "normal"}
policies = {
    "Gaussian": Prediction(shape, (2,), **options),
    # A larger variance than the paths have: between narrow posteriors of left and right the prior would have a gap.
    "conditional VAE": ConditionalVAE(shape, (2,), latent_dim=2, **options, variance=0.07**2),
}
taken, paths = {}, expert(test)
print(f"expert: success {success(paths, test).float().mean():.3f}")
for name, policy in policies.items():
    fit(policy, (expert(state), state), IWAE(10), steps=args.steps, learning_rate=5e-3, device="cpu")
    # The mean path, of the conditional VAE after a draw of z ~ p(z | state); and a draw of every point of the path.
    at_mean, drawn = (generation.samples(policy, paths, test, mean=mean) for mean in (True, False))
    rates = [success(path, test).float().mean() for path in (at_mean, drawn)]
    nll = -evaluation.log_likelihood(policy, paths, test, num_particles=100, seed=0).mean()
    print(f"{name}: success {rates[0]:.3f} (every point drawn: {rates[1]:.3f}), NLL {nll:.1f} nats")
    one = test[:1].expand(50, 2)
    taken[name] = generation.samples(policy, paths[:1].expand(50, -1), one)

figure = Figure(figsize=(8, 3), layout="constrained")
for axes, (name, path) in zip(figure.subplots(1, 2, sharey=True), taken.items(), strict=True):
    axes.add_patch(Circle((test[0, 0].item(), test[0, 1].item()), RADIUS, color="#D55E00"))
    axes.plot(ALONG, path.T, color="#0072B2", alpha=0.4)
    axes.set(title=name, aspect="equal", xlabel="along the way", ylim=(-0.5, 0.5))
FigureCanvasAgg(figure).print_png(args.out)
print(args.out)
