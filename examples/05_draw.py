"""DRAW: an image painted in many steps, with attention and without, beside a one-layer VAE.

python examples/05_draw.py
python examples/05_draw.py --data mnist --glimpses 64 --hidden 256 --latent-dim 100 --steps 100000  # Gregor et al. 2015
"""

import argparse

from ppl_vae import data, evaluation, fit, generation, report
from ppl_vae.films import film
from ppl_vae.objectives import TraceMeanField_ELBO
from ppl_vae.pairs import DRAW, VAE

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="digits", help="digits, mnist, ...")
parser.add_argument("--root", default=None, help="folder of the data files")
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--glimpses", type=int, default=8, help="T, of DRAW")
parser.add_argument("--hidden", type=int, default=64)
parser.add_argument("--latent-dim", type=int, default=10)
parser.add_argument("--window", type=int, default=3, help="side of what is read and written")
parser.add_argument("--num-particles", type=int, default=100)
parser.add_argument("--num-test", type=int, default=200, help="evaluate on the first so many")
args = parser.parse_args()

images = data.load(args.data, root=args.root).subset(num_test=args.num_test)
size, options = images.shape, (args.latent_dim, args.hidden, args.glimpses)
pairs = {
    "VAE": VAE(size, args.latent_dim, (args.hidden, args.hidden)),
    "DRAW": DRAW(size, *options, read=args.window, write=args.window),
    "DRAW without attention": DRAW(size, *options, read=None, write=None),
}
objective = TraceMeanField_ELBO()  # the KL of each step in closed form, as in the paper
for name, pair in pairs.items():
    pair.set_output_mean(images.pixel_means)
    fit(pair, images, objective, steps=args.steps, clip_norm=100.0)
    test = images.test_batch().to(pair.reference())
    bound = evaluation.bound(pair, objective, test, seed=0).mean()
    nll = -evaluation.log_likelihood(pair, test, num_particles=args.num_particles, seed=0).mean()
    print(f"{name}: ELBO {bound:.2f}, NLL {nll:.2f} nats ({args.num_particles} particles)")
    if isinstance(pair, DRAW):
        file = name.lower().replace(" ", "_")
        shown = film(pair, generation.blank(pair, 8))
        print(report.film_strip(shown, f"{file}.png", title=f"{name}: eight samples, painted from left to right"))
        print(report.film_gif(shown, f"{file}.gif"))
