"""A few labels and many images: a classifier by itself, and the VAE whose classifier also learns from the unlabelled.

M2 of Kingma et al. 2014, the classes of unlabelled images drawn (as a score function would have it) or summed out, and
with the classification loss on what is labelled. The table has the share of test images read right; the picture
writes each class in several hands: z goes along the rows, y along the columns.

python examples/16_semi_supervised.py                                                   # scikit-learn's digits
python examples/16_semi_supervised.py --data mnist --root DATA --labels 3000 --repeat 4 --num-train 15000 --passes 17
"""

import argparse

import torch
from torch import nn

from ppl_vae import data, evaluation, fit, generation, report
from ppl_vae.objectives import Objective, Trace_ELBO, TraceEnum_ELBO
from ppl_vae.pairs import Classifier, SemiSupervisedVAE

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="digits", help="digits, mnist, ...")
parser.add_argument("--root", default=None, help="folder of the data files")
parser.add_argument("--labels", type=int, default=50, help="that are known, a multiple of the classes")
parser.add_argument("--repeat", type=int, default=1, help="how often a pass comes by each labelled image")
parser.add_argument("--num-train", type=int, default=None, help="the first so many images alone")
parser.add_argument("--num-test", type=int, default=None)
parser.add_argument("--latent-dim", type=int, default=10)
parser.add_argument("--hidden", type=int, default=500)
parser.add_argument("--weight", type=float, default=100.0, help="of the classification loss")
parser.add_argument("--passes", type=float, default=40)
parser.add_argument("--seeds", type=int, default=1, help="each has labels of its own choice")
parser.add_argument("--out", default="semi-supervised", help="beginning of the files' names")
args = parser.parse_args()

images = data.load(args.data, root=args.root).subset(args.num_train, args.num_test)
sizes = {"latent_dim": args.latent_dim, "hidden": (args.hidden,), "activation": nn.ReLU}
ways: dict[str, tuple[float, Objective]] = {
    "M2, classes drawn": (0.0, Trace_ELBO()),
    "M2, classes summed out": (0.0, TraceEnum_ELBO()),
    "M2, and a classification loss": (args.weight, TraceEnum_ELBO()),
}
found: dict[str, list[float]] = {}
trained: dict[str, SemiSupervisedVAE] = {}
some = data.partly_labelled(images, args.labels, repeat=args.repeat)
x, y = some.test_batch()
steps = round(args.passes * some.minibatches(100).steps_per_pass)
for seed in range(args.seeds):
    some = data.partly_labelled(images, args.labels, repeat=args.repeat, choice=seed)
    torch.manual_seed(seed)
    alone, known = Classifier(some.shape, some.classes, (args.hidden,)), some.labelled_only()
    fit(alone, known, steps=steps, batch_size=min(100, args.labels), seed=seed)
    found.setdefault("classifier alone", []).append(1 - evaluation.classification_error(alone, x, y).value)
    for name, (weight, objective) in ways.items():
        torch.manual_seed(seed)
        trained[name] = pair = SemiSupervisedVAE(some.shape, some.classes, **sizes, classification=weight)
        pair.set_output_mean(some.pixel_means)
        fit(pair, some, objective, steps=steps, batch_size=100, seed=seed)
        found.setdefault(name, []).append(1 - evaluation.classification_error(pair, x, y).value)
print(f"{images.name}, {args.labels} labels of {len(images.train)} images: accuracy on {len(y)} test images")
for name, values in found.items():
    accuracy = torch.tensor(values, dtype=torch.float64)
    error = f" ({accuracy.std() / len(values) ** 0.5:.4f})" if len(values) > 1 else ""
    print(f"{name:30} {accuracy.mean():.4f}{error}")
pair = trained["M2, and a classification loss"]
z = torch.randn(8, 1, args.latent_dim, generator=torch.Generator().manual_seed(0)).expand(-1, some.classes, -1)
values = {"z": z.flatten(0, 1).to(pair.reference()), "y": torch.eye(some.classes).repeat(8, 1).to(pair.reference())}
drawn = generation.decode(pair, values, *(part.to(pair.reference().device) for part in some.blank(8 * some.classes)))
print(report.image_grid(drawn.mean, f"{args.out}.png", columns=some.classes, title="each class in eight hands"))
settings = {key: value for key, value in vars(args).items() if key not in ("root", "out")}
result = {"settings": settings, "data": some.describe(), "accuracy": found, "environment": report.environment()}
print(report.write_json(result, f"{args.out}.json"))
