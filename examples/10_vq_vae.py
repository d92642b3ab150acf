r"""Images as a grid of codes: a VQ-VAE, the prior over its codes, and samples of each class, read by a classifier.

Two stages: codes under a uniform prior, then a gated PixelCNN over codes that stay, told the class. What is printed is
-log p(x | z) - log p(z), a two-part code for an image and an upper bound of -log p(x). On MNIST the classifier, trained
on real digits, reads most samples as of the class that was asked for.

python examples/10_vq_vae.py                                            # scikit-learn's digits
python examples/10_vq_vae.py --data mnist --root DATA --codes 128 --hidden 64 --halvings 2 --steps 800 --layers 6 \
    --judge-steps 500
"""

import argparse
import math

import torch

from ppl_vae import data, evaluation, fit_stages, generation, judging, report
from ppl_vae.pairs import VQVAE

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="digits", help="digits, mnist, ...")
parser.add_argument("--root", default=None, help="folder of the data files")
parser.add_argument("--codes", type=int, default=32)
parser.add_argument("--halvings", type=int, default=1, help="of height and width")
parser.add_argument("--hidden", type=int, default=32, help="features of the networks")
parser.add_argument("--layers", type=int, default=4, help="of the prior")
parser.add_argument("--steps", type=int, default=600, help="of each stage")
parser.add_argument("--num-test", type=int, default=None, help="evaluate on the first so many alone")
parser.add_argument("--samples", type=int, default=1000, help="that are read by the classifier")
parser.add_argument("--judge-steps", type=int, default=1500, help="of the classifier")
parser.add_argument("--out", default="vq-vae", help="beginning of the files' names")
args = parser.parse_args()

images = data.labelled(data.load(args.data, root=args.root)).subset(num_test=args.num_test)
torch.manual_seed(0)
sizes = {"codes": args.codes, "hidden": args.hidden, "halvings": args.halvings, "classes": images.classes}
pair = VQVAE(images.shape, code_dim=32, prior_hidden=args.hidden, prior_layers=args.layers, **sizes)
pair.set_output_mean(images.pixel_means)
fit_stages(pair, images, steps=args.steps, batch_size=100, learning_rate=2e-3)

pair.eval()
test = [part.to(pair.reference().device) for part in images.test_batch()]
whole = evaluation.evaluate(pair, *test)
of_codes = whole.kl["z"]  # of a point that is -log p(z)
usage = evaluation.code_usage(pair, *test)["z"]
uniform = whole.nll - of_codes + math.log(args.codes) * pair.codes(test[0][:1])["z"][0, 0].numel()
labels = torch.arange(args.samples, device=test[1].device) % images.classes
samples = generation.samples(pair, test[0][:1].expand(args.samples, *images.shape), labels, seed=0)
classifier = judging.train_classifier(images, steps=args.judge_steps)
found = {
    "two-part NLL": whole.nll,
    "standard error": whole.nll_se,
    "bits per dimension": whole.bits_per_dim,
    "of it the codes": of_codes,
    "two-part NLL, uniform prior": uniform,
    "codes used": usage.used,
    "codes": usage.total,
    "perplexity": usage.perplexity,
    "samples read right": judging.class_accuracy(classifier, samples, labels).value,
    "real test images read right": judging.class_accuracy(classifier, *test).value,
}
for name, value in found.items():
    print(f"{name:28} {value:.6g}")
settings = {name: value for name, value in vars(args).items() if name not in ("root", "out")}
settings |= {"data": images.describe()}
print(
    report.write_json({"settings": settings, "found": found, "environment": report.environment()}, f"{args.out}.json")
)
print(
    report.code_figure(pair, test[0][:10], f"{args.out}-codes.png", title="Images, their codes, and the model's means")
)
print(
    report.image_grid(samples[:100], f"{args.out}-samples.png", columns=images.classes, title="samples of each class")
)
