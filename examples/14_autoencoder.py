"""Two numbers for an image: an autoencoder beside PCA, in squared error and as a picture of the classes; and t-SNE.

python examples/14_autoencoder.py                                                       # scikit-learn's digits
python examples/14_autoencoder.py --data mnist --root DATA --steps 10000
"""

import argparse

import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import nn

from ppl_vae import data, evaluation, fit, generation, report
from ppl_vae.pairs import Autoencoder

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="digits", help="digits, mnist, ...")
parser.add_argument("--root", default=None, help="folder of the data files")
parser.add_argument("--hidden", type=int, nargs="+", default=[500, 250, 100], help="units of the encoder's layers")
parser.add_argument("--corruption", type=float, default=0.0, help="share of the pixels that are hidden while training")
parser.add_argument("--steps", type=int, default=3000)
parser.add_argument("--num-test", type=int, default=2000, help="show and measure the first so many alone")
parser.add_argument("--out", default="autoencoder", help="beginning of the files' names")
args = parser.parse_args()

grey = data.labelled(data.load(args.data, root=args.root, binarisation="none"))
grey = grey.subset(num_test=min(args.num_test, len(grey.test_batch()[0])))
x, y = grey.test_batch()
torch.manual_seed(0)
pair = Autoencoder(grey.shape, 2, args.hidden, activation=nn.ReLU, corruption=args.corruption)
pair.set_output_mean(grey.pixel_means)
fit(pair, grey.dataset, steps=args.steps, batch_size=100)
pair.cpu()
pca = PCA(2).fit(grey.train.flatten(1).numpy())
components = pca.transform(x.flatten(1).numpy())
decoded = {
    "autoencoder": generation.reconstructions(pair, x),
    "PCA": torch.from_numpy(pca.inverse_transform(components)).reshape(x.shape),
}
errors = {name: (x - again).square().flatten(1).sum(1).mean().item() for name, again in decoded.items()}
print(f"{grey.name}, {len(x)} test images from two numbers each: squared error of an image")
for name, error in errors.items():
    print(f"{name:12} {error:7.3f}")
probe = evaluation.linear_probe(pair, grey, fractions=(0.1, 1.0))
print("classes read off the codes by a linear map, share that is wrong:", {f: str(share) for f, share in probe.items()})
planes = {"autoencoder": generation.posterior(pair, x)["z"], "PCA": torch.from_numpy(components)}
planes["t-SNE, of the pixels"] = torch.from_numpy(TSNE(random_state=0).fit_transform(x.flatten(1).numpy()))
print(report.class_scatter(planes, y, f"{args.out}-codes.png", title=f"{grey.name}, test images by class"))
rows = {"test images": x[:10], **{name: again[:10] for name, again in decoded.items()}}
print(report.image_rows(rows, f"{args.out}.png"))
settings = {key: value for key, value in vars(args).items() if key not in ("root", "out")}
result = {"settings": settings, "data": grey.describe(), "squared_error": errors, "environment": report.environment()}
print(report.write_json(result, f"{args.out}.json"))
