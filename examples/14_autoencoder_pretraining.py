"""The beginning of a deep classifier: the three ideas of Bengio et al. 2007, error rates after gradient descent.

A deep net of sigmoid units: trained as a whole; supervised, layer by layer, first; unsupervised, layer by layer, first.
Beside them a shallow net. The step size of each is the one with the lowest error on images held out, with the first
seed; there too the best point of each run is chosen. With rectifiers, or Adam, the differences vanish.

python examples/14_autoencoder_pretraining.py                                           # scikit-learn's digits
python examples/14_autoencoder_pretraining.py --data mnist --root DATA --num-train 10000 --seeds 3 --workers 2
"""

import argparse
import time
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from ppl_vae import data, evaluation, finetune, pretrain, report
from ppl_vae.pairs import Autoencoder
from ppl_vae.workers import Advance, run_jobs

NETS: dict[str, tuple[bool, bool | None]] = {  # whether it is deep, and whether the pre-training is supervised
    "deep, unsupervised layer by layer": (True, False),
    "deep, supervised layer by layer": (True, True),
    "deep, as a whole": (True, None),
    "shallow": (False, None),
}


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="digits, mnist, ...")
    parser.add_argument("--root", default=None, help="folder of the data files")
    parser.add_argument("--num-train", type=int, default=None, help="the first so many images alone")
    parser.add_argument("--hidden", type=int, default=500, help="units of each layer")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--pretraining", type=float, default=10, help="passes for each layer")
    parser.add_argument("--passes", type=float, default=25, help="of the classifier")
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 2.0], help="step sizes, on the mean loss")
    parser.add_argument("--reconstruction-rate", type=float, default=0.25, help="of the autoencoders: larger losses")
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="nets side by side, of a thread each")
    parser.add_argument("--out", default="pretraining", help="beginning of the files' names")
    return parser.parse_args()


def grey_images(args: argparse.Namespace) -> tuple[data.Labelled, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """What is trained on, and the parts that errors are counted on."""
    grey = data.labelled(data.load(args.data, root=args.root, binarisation="none")).subset(num_train=args.num_train)
    train, valid = grey.hold_out(len(grey.train) // 10)
    return train, {"train": (train.train, train.train_labels), "valid": valid, "test": grey.test_batch()}


def errors_of(args: argparse.Namespace, is_deep: bool, supervised: bool | None, advance: Advance) -> dict[str, Any]:
    """A net's step size, and the shares of images that it misreads, for each seed."""
    train, parts = grey_images(args)

    def options(rate: float, passes: float, seed: int) -> dict[str, Any]:
        descent = partial(torch.optim.SGD, lr=rate / args.batch_size)  # losses are sums over the batch
        steps = max(1, round(passes * train.minibatches(args.batch_size).steps_per_pass))
        return {"optimiser": descent, "steps": steps, "batch_size": args.batch_size, "seed": seed, "progress": False}

    def trained(rate: float, seed: int) -> dict[str, float]:
        torch.manual_seed(seed)
        below = (args.hidden,) * (args.layers - 1 if is_deep else 0)
        stack = Autoencoder(train.shape, args.hidden, below, linear_code=False)
        if supervised is not None:
            first = rate if supervised else args.reconstruction_rate
            pretrain.greedy(stack, train, supervised=supervised, **options(first, args.pretraining, seed))
        net, _ = finetune.classifier(stack, train, valid=parts["valid"], **options(rate, args.passes, seed))
        advance(1)
        return {part: evaluation.classification_error(net, *xy).value for part, xy in parts.items()}

    tried = {rate: trained(rate, 0) for rate in args.rates}
    rate = min(tried, key=lambda rate: tried[rate]["valid"])
    return {"step size": rate, "errors": [tried[rate], *(trained(rate, seed) for seed in range(1, args.seeds))]}


def main() -> None:
    """Train, print the table, and write what was found."""
    args, start = arguments(), time.monotonic()
    jobs = [partial(errors_of, args, *net) for net in NETS.values()]
    with tqdm(total=len(NETS) * (len(args.rates) + args.seeds - 1), unit="net", smoothing=0) as bar:
        found = dict(zip(NETS, run_jobs(jobs, args.workers, bar.update), strict=True))
    train, parts = grey_images(args)
    print(f"{train.name}, {len(train.train)} images: error in percent (standard error over seeds)")
    for name, net in found.items():
        table = 100 * torch.tensor([list(run.values()) for run in net["errors"]], dtype=torch.float64)
        error = table.std(0) / len(table) ** 0.5 if len(table) > 1 else table.new_zeros(3)
        cells = zip(parts, table.mean(0), error, strict=True)
        print(f"{name:35}", "  ".join(f"{part} {mean:5.2f} ({se:.2f})" for part, mean, se in cells))
    settings = {key: value for key, value in vars(args).items() if key not in ("root", "out")}
    result = {"settings": settings, "data": train.describe(), "found": found, "seconds": time.monotonic() - start}
    print(report.write_json({**result, "environment": report.environment()}, f"{args.out}.json"))


if __name__ == "__main__":
    main()
