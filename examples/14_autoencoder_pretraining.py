"""The beginning of a deep classifier: the three ideas of Bengio et al. 2007, error rates after gradient descent.

A deep net of sigmoid units: trained as a whole; supervised, layer by layer, first; unsupervised, layer by layer, first.
Beside them a shallow net. The step size of each is the one with the lowest error on images held out, where also the
best point of each run is chosen. With rectifiers, or Adam, the differences vanish.

python examples/14_autoencoder_pretraining.py                                           # scikit-learn's digits
python examples/14_autoencoder_pretraining.py --data mnist --root DATA --num-train 10000 --seeds 3      # 20 minutes
"""

import argparse
from functools import partial

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
parser.add_argument("--passes", type=float, default=30, help="of the classifier")
parser.add_argument("--rates", type=float, nargs="+", default=[0.1, 0.5], help="step sizes, of the mean loss")
parser.add_argument("--batch-size", type=int, default=20)
parser.add_argument("--seeds", type=int, default=2)
parser.add_argument("--out", default="pretraining", help="beginning of the files' names")
args = parser.parse_args()

images = data.load(args.data, root=args.root, binarisation="none")
grey = data.labelled(images).subset(num_train=args.num_train)
train, valid = grey.hold_out(len(grey.train) // 10)
x, y = grey.test_batch()

per_pass = train.minibatches(args.batch_size).steps_per_pass
budget = {"batch_size": args.batch_size, "progress": False}
found: dict[str, list[dict[str, float]]] = {}
for seed in range(args.seeds):
    for name, depth, greedy in (
        ("deep, unsupervised layer by layer", args.layers, {"supervised": False}),
        ("deep, supervised layer by layer", args.layers, {"supervised": True}),
        ("deep, as a whole", args.layers, None),
        ("shallow", 1, None),
    ):
        tried = []
        for rate in args.rates:
            descent = partial(torch.optim.SGD, lr=rate / args.batch_size)  # losses are sums over the batch
            torch.manual_seed(seed)
            stack = Autoencoder(grey.shape, args.hidden, (args.hidden,) * (depth - 1), linear_code=False)
            if greedy is not None:
                steps = round(args.pretraining * per_pass)
                pretrain.greedy(stack, train, steps=steps, optimiser=descent, seed=seed, **greedy, **budget)
            steps = round(args.passes * per_pass)
            options = {"optimiser": descent, "valid": valid, "seed": seed, **budget}
            deep, _ = finetune.classifier(stack, train, steps=steps, **options)
            parts = {"train": (train.train, train.dataset.train_labels), "valid": valid, "test": (x, y)}
            tried.append({part: evaluation.classification_error(deep, *xy).value for part, xy in parts.items()})
            print(f"seed {seed}, {name}, step size {rate}: {tried[-1]}", flush=True)
        found.setdefault(name, []).append(min(tried, key=lambda error: error["valid"]))
print(f"{images.name}, {len(train.train)} images: error in percent (standard error over seeds)")
for name, runs in found.items():
    table = 100 * torch.tensor([list(run.values()) for run in runs], dtype=torch.float64)
    error = table.std(0) / len(runs) ** 0.5 if len(runs) > 1 else table.new_zeros(3)
    cells = zip(runs[0], table.mean(0), error, strict=True)
    print(f"{name:35}", "  ".join(f"{part} {mean:5.2f} ({se:.2f})" for part, mean, se in cells))
settings = {key: value for key, value in vars(args).items() if key not in ("root", "out")}
result = {"settings": settings, "data": train.describe(), "errors": found}
print(report.write_json({**result, "environment": report.environment()}, f"{args.out}.json"))
