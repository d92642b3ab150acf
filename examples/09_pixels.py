"""Images pixel by pixel: a gated PixelCNN beside a VAE with about as many parameters, in nats, and completed images.

python examples/09_pixels.py                                      # scikit-learn's digits, 17 grey levels
python examples/09_pixels.py --data mnist --half --hidden 24  # 14 x 14, binarised; about 7 minutes on two cores
"""

import argparse
import math
from dataclasses import replace

import torch
import torch.nn.functional as F

from ppl_vae import Pair, data, evaluation, fit, generation, report
from ppl_vae.objectives import Trace_ELBO
from ppl_vae.pairs import MADE, VAE, PixelCNN

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="digits", help="digits, mnist, ...")
parser.add_argument("--root", default=None, help="folder of the data files")
parser.add_argument("--half", action="store_true", help="half as wide and high, by means over 2 x 2 pixels")
parser.add_argument("--hidden", type=int, default=32, help="features of the PixelCNN")
parser.add_argument("--layers", type=int, default=6)
parser.add_argument("--steps", type=int, default=1500, help="of each")
parser.add_argument("--num-particles", type=int, default=500, help="of the VAE's likelihood")
parser.add_argument("--num-test", type=int, default=None, help="evaluate on the first so many alone")
parser.add_argument("--out", default="pixels", help="beginning of the files' names")
args = parser.parse_args()

images = data.load(args.data, root=args.root, binarisation="none" if args.data == "digits" else None)
images = images.subset(num_test=args.num_test)
if args.half:
    images = replace(images, train=F.avg_pool2d(images.train, 2), test=F.avg_pool2d(images.test, 2), note="halved")
grey: dict = {} if images.binarisation != "none" else {"likelihood": "categorical", "levels": images.levels}


def size(pair: Pair) -> int:
    return sum(p.numel() for p in pair.parameters())


pixels = PixelCNN(images.shape, args.hidden, args.layers, features=args.hidden, **grey)
wide = min(range(8, 1000, 8), key=lambda units: abs(size(VAE(images.shape, 20, (units, units), **grey)) - size(pixels)))
pairs: dict[str, Pair] = {
    "gated PixelCNN": pixels,
    "VAE": VAE(images.shape, 20, (wide, wide), **grey),
    "logistic regressions": MADE(images.shape, (), **grey),
}
found = {}
print(f"{args.data}: NLL of the test images, nats per image (s.e.)")
for name, pair in pairs.items():
    pair.set_output_mean(images.pixel_means)  # type: ignore[operator]
    fit(pair, images, Trace_ELBO(), steps=args.steps, batch_size=100, learning_rate=2e-3, ema=0.99)
    particles = args.num_particles if name == "VAE" else 1
    x = images.test_batch().to(pair.reference().device)
    nll = -evaluation.log_likelihood(pair, x, num_particles=particles, seed=0)
    mean, error = nll.mean().item(), nll.std().item() / len(nll) ** 0.5
    bits = mean / (math.log(2) * images.shape.numel())
    found[name] = {"parameters": size(pair), "NLL": mean, "s.e.": error, "bits per dimension": bits}
    print(f"  {name:20} {size(pair):8,} parameters: NLL {mean:.2f} ({error:.2f}), {bits:.3f} bits per dimension")
settings = {key: value for key, value in vars(args).items() if key not in ("root", "out")}
result = {"settings": settings, "data": images.describe(), "found": found, "environment": report.environment()}
print(report.write_json(result, f"{args.out}.json"))

height = images.shape[1]
given = (torch.arange(height) < height // 2)[:, None].expand(images.shape)
x = images.test_batch()[:10].to(pixels.reference().device)
drawn = generation.completions(pixels, x, given=given, num=8)
lines = torch.cat([torch.where(given.to(x.device), x, 0.5).unsqueeze(1), drawn, x.unsqueeze(1)], 1)
title = "given | eight completions | image"
print(report.image_grid(lines.flatten(0, 1), f"{args.out}.png", columns=10, title=title))
