"""The beginning of a deep classifier: the three ideas of Bengio et al. 2007, error rates after gradient descent.

A deep net of sigmoid units: trained as a whole; supervised, layer by layer, first; unsupervised, layer by layer, first.
Beside them a shallow net. The step size of each is the one with the lowest error on images held out, with the first
seed; there too the best point of each run is chosen. With rectifiers, or Adam, the differences vanish.

python examples/14_autoencoder_pretraining.py                                           # scikit-learn's digits
python examples/14_autoencoder_pretraining.py --data mnist --root DATA --num-train 10000 --seeds 3      # 15 minutes
"""

import argparse
import time
from functools import partial
from typing import Any

import torch

from ppl_vae import data, evaluation, finetune, pretrain, report
from ppl_vae.pairs import Autoencoder

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="digits", help="digits, mnist, ...")
parser.add_argument("--root", default=None, help="folder of the data files")
parser.add_argument("--num-train", type=int, default=None, help="the first so many images alone")
parser.add_argument("--hidden", type=int, default=500, help="units of each layer")
parser.add_argument("--layers", type=int, default=3)
parser.add_argument("--pretraining", type=float, default=10, help="passes for each layer")
parser.add_argument("--passes", type=float, default=25, help="of the classifier")
parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 2.0], help="step sizes, on the mean loss")
parser.add_argument("--reconstruction-rate", type=float, default=0.25, help="of the autoencoders, whose loss is larger")
parser.add_argument("--batch-size", type=int, default=50)
parser.add_argument("--seeds", type=int, default=2)
parser.add_argument("--out", default="pretraining", help="beginning of the files' names")
args = parser.parse_args()

images = data.load(args.data, root=args.root, binarisation="none")
grey = data.labelled(images).subset(num_train=args.num_train)
train, valid = grey.hold_out(len(grey.train) // 10)
parts = {"train": (train.train, train.dataset.train_labels), "valid": valid, "test": grey.test_batch()}
per_pass = train.minibatches(args.batch_size).steps_per_pass
NETS: dict[str, tuple[int, bool | None]] = {  # layers, and whether the pre-training is supervised
    "deep, unsupervised layer by layer": (args.layers, False),
    "deep, supervised layer by layer": (args.layers, True),
    "deep, as a whole": (args.layers, None),
    "shallow": (1, None),
}


def trained(depth: int, supervised: bool | None, rate: float, seed: int) -> dict[str, float]:
    """Shares of the images that a net misreads after training."""

    def options(rate: float, passes: float) -> dict[str, Any]:
        descent = partial(torch.optim.SGD, lr=rate / args.batch_size)  # losses are sums over the batch
        steps = max(1, round(passes * per_pass))
        return {"optimiser": descent, "steps": steps, "batch_size": args.batch_size, "seed": seed, "progress": False}

    torch.manual_seed(seed)
    stack = Autoencoder(grey.shape, args.hidden, (args.hidden,) * (depth - 1), linear_code=False)
    if supervised is not None:
        first = rate if supervised else args.reconstruction_rate
        pretrain.greedy(stack, train, supervised=supervised, **options(first, args.pretraining))
    net, _ = finetune.classifier(stack, train, valid=valid, **options(rate, args.passes))
    errors = {part: evaluation.classification_error(net, *xy).value for part, xy in parts.items()}
    print(f"seed {seed}, step size {rate:g}: {errors}", flush=True)
    return errors


start = time.monotonic()
rates: dict[str, float] = {}
found: dict[str, list[dict[str, float]]] = {}
for name, net in NETS.items():
    print(name)
    tried = {rate: trained(*net, rate, 0) for rate in args.rates}
    rates[name] = min(tried, key=lambda rate: tried[rate]["valid"])
    found[name] = [tried[rates[name]], *(trained(*net, rates[name], seed) for seed in range(1, args.seeds))]
print(f"{images.name}, {len(train.train)} images: error in percent (standard error over seeds)")
for name, runs in found.items():
    table = 100 * torch.tensor([list(run.values()) for run in runs], dtype=torch.float64)
    error = table.std(0) / len(runs) ** 0.5 if len(runs) > 1 else table.new_zeros(3)
    cells = zip(parts, table.mean(0), error, strict=True)
    print(f"{name:35}", "  ".join(f"{part} {mean:5.2f} ({se:.2f})" for part, mean, se in cells))
settings = {key: value for key, value in vars(args).items() if key not in ("root", "out")}
result = {"settings": settings, "data": train.describe(), "step sizes": rates, "errors": found}
result |= {"seconds": time.monotonic() - start, "environment": report.environment()}
print(report.write_json(result, f"{args.out}.json"))
