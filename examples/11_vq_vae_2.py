"""Two levels of codes: a VQ-VAE-2, what each level holds, images with the top level of another, samples of classes.

Two stages: all codes under uniform priors, then both priors: of the top codes given the class (with attention), of the
bottom codes given the class and the top. In the pictures "top only" keeps the top codes of an image and lets the model
draw the bottom ones: what stays the same is what the top level holds. "top of the next" takes the top codes of the
next image, with the bottom codes of this one.

python examples/11_vq_vae_2.py                                          # scikit-learn's digits
python examples/11_vq_vae_2.py --data mnist --root DATA --codes 128 --hidden 64 --layers 8 --steps 5000
"""

import argparse

import torch

from ppl_vae import data, evaluation, fit_stages, generation, judging, report
from ppl_vae.pairs import VQVAE2

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="digits", help="digits, mnist, ...")
parser.add_argument("--root", default=None, help="folder of the data files")
parser.add_argument("--codes", type=int, default=32, help="of each level")
parser.add_argument("--hidden", type=int, default=32, help="features of the networks")
parser.add_argument("--layers", type=int, default=4, help="of each prior")
parser.add_argument("--steps", type=int, default=600, help="of each stage")
parser.add_argument("--num-test", type=int, default=None, help="evaluate on the first so many alone")
parser.add_argument("--samples", type=int, default=500, help="that are read by the classifier")
parser.add_argument("--judge-steps", type=int, default=1500, help="of the classifier")
parser.add_argument("--out", default="vq-vae-2", help="beginning of the files' names")
args = parser.parse_args()

images = data.labelled(data.load(args.data, root=args.root)).subset(num_test=args.num_test)
torch.manual_seed(0)
priors = {"prior_hidden": args.hidden, "prior_layers": args.layers, "attention": max(1, args.layers // 2)}
pair = VQVAE2(images.shape, args.codes, 32, args.hidden, classes=images.classes, **priors)
pair.set_output_mean(images.pixel_means)
fit_stages(pair, images, steps=args.steps, batch_size=100, learning_rate=2e-3)

pair.eval()
x, label = (part.to(pair.reference().device) for part in images.test_batch())
result = evaluation.evaluate(pair, x, label)
bits = result.bits_per_dim
print(f"NLL, by a {result.label}: {result.nll:.2f} ({result.nll_se:.2f}) nats; {bits:.3f} bits per dimension")
for site, usage in evaluation.code_usage(pair, x, label).items():
    used = f"{usage.used} of {usage.total} codes, perplexity {usage.perplexity:.1f}"
    print(f"  {site:6} {result.kl[site]:7.2f} nats, {used}")

wanted = torch.arange(args.samples, device=label.device) % images.classes
samples = generation.samples(pair, x[:1].expand(args.samples, *images.shape), wanted, seed=0)
classifier = judging.train_classifier(images, steps=args.judge_steps)
print(f"samples read as of their class: {judging.class_accuracy(classifier, samples, wanted)}")
print(f"real test images: {judging.class_accuracy(classifier, x, label)}")
print(
    report.image_grid(samples[:100], f"{args.out}-samples.png", columns=images.classes, title="samples of each class")
)

shown = x[:10], label[:10]
z = generation.posterior(pair, *shown)
swapped = {"top": z["top"].roll(-1, 0), "bottom": z["bottom"]}
rows = {
    "data": shown[0],
    "both levels": generation.reconstructions(pair, *shown),
    "top only": generation.reconstructions(pair, *shown, latents=("top",)),
    "again": generation.reconstructions(pair, *shown, latents=("top",), seed=1),
    "top of the next": generation.decode(pair, swapped, *shown).mean,
}
print(report.image_rows(rows, f"{args.out}-levels.png", title="What each level holds"))
print(report.code_figure(pair, shown[0], f"{args.out}-codes.png", title="Images, their codes, and the model's means"))
