"""The beginning of a deep classifier: the three ideas of Bengio et al. 2007, error rates after gradient descent.

A deep net of sigmoid units: trained as a whole; supervised, layer by layer, first; unsupervised, layer by layer, first.
Beside them a shallow net. The step size of each is the one with the lowest error on images held out, with the first
seed; there too the best point of each run is chosen. With rectifiers, or Adam, the differences vanish.

python examples/14_autoencoder_pretraining.py                                           # scikit-learn's digits
python examples/14_autoencoder_pretraining.py --data mnist --root DATA --num-train 10000 --seeds 3 --workers 2
"""

import argparse
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from ppl_vae import data, evaluation, finetune, pretrain, report
from ppl_vae.pairs import Autoencoder
from ppl_vae.workers import Advance, run_jobs

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="digits", help="digits, mnist, ...")
parser.add_argument("--root", default=None, help="folder of the data files")
parser.add_argument("--num-train", type=int, default=None, help="the first so many images alone")
parser.add_argument("--hidden", type=int, default=500, help="units of each layer")
parser.add_argument("--pretraining", type=float, default=10, help="passes for each layer")
parser.add_argument("--passes", type=float, default=25, help="of the classifier")
parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 2.0], help="step sizes, on the mean loss")
parser.add_argument("--reconstruction-rate", type=float, default=0.25, help="of the autoencoders: their loss is larger")
parser.add_argument("--seeds", type=int, default=2)
parser.add_argument("--workers", type=int, default=1, help="nets side by side, of a thread each")
parser.add_argument("--out", default="pretraining", help="beginning of the files' names")
NETS: dict[str, tuple[int, bool | None]] = {  # layers, and whether their pre-training is supervised
    "deep, unsupervised layer by layer": (3, False),
    "deep, supervised layer by layer": (3, True),
    "deep, as a whole": (3, None),
    "shallow": (1, None),
}


def errors_of(args: argparse.Namespace, layers: int, supervised: bool | None, advance: Advance) -> dict[str, Any]:
    """A net's step size, and the shares of images that it misreads, for each seed."""
    grey = data.labelled(data.load(args.data, root=args.root, binarisation="none")).subset(num_train=args.num_train)
    train, valid = grey.hold_out(len(grey.train) // 10)

    def options(rate: float, passes: float, seed: int) -> dict[str, Any]:
        steps = max(1, round(passes * train.minibatches(50).steps_per_pass))
        descent = partial(torch.optim.SGD, lr=rate / 50)  # losses are sums over the batch
        return {"optimiser": descent, "steps": steps, "batch_size": 50, "seed": seed, "progress": False}

    def trained(rate: float, seed: int) -> dict[str, float]:
        torch.manual_seed(seed)
        stack = Autoencoder(train.shape, args.hidden, (args.hidden,) * (layers - 1), linear_code=False)
        if supervised is not None:
            first = rate if supervised else args.reconstruction_rate
            pretrain.greedy(stack, train, supervised=supervised, **options(first, args.pretraining, seed))
        net, _ = finetune.classifier(stack, train, valid=valid, **options(rate, args.passes, seed))
        advance(1)
        parts = {"train": (train.train, train.train_labels), "valid": valid, "test": grey.test_batch()}
        return {part: evaluation.classification_error(net, *xy).value for part, xy in parts.items()}

    tried = {rate: trained(rate, 0) for rate in args.rates}
    rate = min(tried, key=lambda rate: tried[rate]["valid"])
    return {"step size": rate, "errors": [tried[rate], *(trained(rate, seed) for seed in range(1, args.seeds))]}


if __name__ == "__main__":
    args = parser.parse_args()
    with tqdm(total=len(NETS) * (len(args.rates) + args.seeds - 1), unit="net", smoothing=0) as bar:
        jobs = [partial(errors_of, args, *net) for net in NETS.values()]
        found = dict(zip(NETS, run_jobs(jobs, args.workers, bar.update), strict=True))
    print(f"{args.data}: error in percent (standard error over {args.seeds} seeds)")
    for name, net in found.items():
        runs = 100 * torch.tensor([list(run.values()) for run in net["errors"]], dtype=torch.float64)
        row = zip(net["errors"][0], runs.mean(0), runs.std(0, correction=len(runs) > 1) / len(runs) ** 0.5, strict=True)
        print(f"{name:35}", "  ".join(f"{part} {mean:5.2f} ({se:.2f})" for part, mean, se in row))
    settings = {key: value for key, value in vars(args).items() if key not in ("root", "out")}
    result = {"settings": settings, "found": found, "environment": report.environment()}
    print(report.write_json(result, f"{args.out}.json"))
