"""A Helmholtz machine, trained by wake-sleep, reweighted wake-sleep and VIMCO: NLL in nats after equal steps.

All see as many images. NLL is importance sampled from each one's own guide, and so too high where that is poor. The
guide of reweighted wake-sleep learns from data and dreams alike, as its authors' did, or from data alone.

python examples/15_wake_sleep.py                                                        # scikit-learn's digits
python examples/15_wake_sleep.py --data mnist --root DATA --units 200 200 --steps 10000 --num-test 1000
"""

import argparse
import time

import torch

from ppl_vae import data, evaluation, fit, generation, report
from ppl_vae.objectives import VIMCO, Objective, ReweightedWakeSleep, WakeSleep
from ppl_vae.pairs import HelmholtzMachine

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="digits", help="digits, mnist, ...")
parser.add_argument("--root", default=None, help="folder of the data files")
parser.add_argument("--units", type=int, nargs="+", default=[30, 15], help="of each layer, bottom to top")
parser.add_argument("--steps", type=int, default=3000, help="of each way")
parser.add_argument("--particles", type=int, default=5, help="of each image, in training; wake-sleep takes one")
parser.add_argument("--num-particles", type=int, default=1000, help="of the likelihood")
parser.add_argument("--num-test", type=int, default=None, help="evaluate on the first so many alone")
parser.add_argument("--out", default="wake-sleep", help="beginning of the files' names")
args = parser.parse_args()

images = data.load(args.data, root=args.root).subset(num_test=args.num_test)
ways: dict[str, Objective] = {
    "wake-sleep": WakeSleep(),
    "reweighted wake-sleep": ReweightedWakeSleep(args.particles, insomnia=0.5),
    "reweighted, wake only": ReweightedWakeSleep(args.particles),
    "VIMCO": VIMCO(args.particles),
}
print(f"{images.name}, units {args.units}, {args.steps} steps of 100 images, {args.particles} particles")
print(f"{'':22} {'NLL (s.e.)':>15} {'ESS':>7} {'ms/step':>8}")
found, curves, rows = {}, {}, []
for name, objective in ways.items():
    torch.manual_seed(0)
    pair = HelmholtzMachine(images.shape, args.units)
    pair.set_output_mean(images.pixel_means)
    start = time.perf_counter()
    history = fit(pair, images, objective, steps=args.steps, batch_size=100, learning_rate=1e-3)
    speed = 1000 * (time.perf_counter() - start) / args.steps
    x = images.test_batch().to(pair.reference().device)
    result = evaluation.evaluate(pair, x, num_particles=args.num_particles, seed=0)
    print(f"{name:22} {f'{result.nll:.2f} ({result.nll_se:.2f})':>15} {result.ess:7.1f} {speed:8.2f}")
    found[name], curves[name] = {"NLL": result.nll, "s.e.": result.nll_se, "ESS": result.ess}, history.curve
    rows.append(generation.samples(pair, x[:12], seed=0))
figures = report.image_grid(torch.cat(rows), f"{args.out}.png", columns=12, title=f"samples: {' | '.join(ways)}")
print(figures, report.learning_curves(curves, f"{args.out}-curves.png", title="Training bounds, each objective's own"))
settings = {key: value for key, value in vars(args).items() if key not in ("root", "out")}
result = {"settings": settings, "data": images.describe(), "found": found, "environment": report.environment()}
print(report.write_json(result, f"{args.out}.json"))
