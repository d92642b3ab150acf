"""Images from captions: alignDRAW paints digits in their places; what it painted is read by a classifier.

python examples/06_text_to_image.py                      # 8 x 8 digits on a canvas of 16
python examples/06_text_to_image.py --data mnist --canvas 28 --digit 14 --hidden 192 --steps 5000
python examples/06_text_to_image.py --data mnist --canvas 60 --all-places --glimpses 32 --hidden 300 --latent-dim 150
"""

import argparse
from dataclasses import replace

from ppl_vae import data, fit, judging, report
from ppl_vae.data.scene_facts import DIGITS, PLACES
from ppl_vae.films import film
from ppl_vae.generation import blank
from ppl_vae.objectives import LinearWarmup, TraceMeanField_ELBO
from ppl_vae.pairs import AlignDRAW

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="digits", help="digits or mnist")
parser.add_argument("--root", default=None, help="folder of the data files")
parser.add_argument("--canvas", type=int, default=16, help="side of the images")
parser.add_argument("--digit", type=int, default=None, help="side of a digit")
parser.add_argument("--all-places", action="store_true", help="also two digits beside and above each other")
parser.add_argument("--steps", type=int, default=3000)
parser.add_argument("--judge-steps", type=int, default=1500)
parser.add_argument("--glimpses", type=int, default=8, help="T")
parser.add_argument("--hidden", type=int, default=128)
parser.add_argument("--latent-dim", type=int, default=24)
parser.add_argument("--window", type=int, default=12, help="side of what is read and written")
parser.add_argument("--num-test", type=int, default=500)
args = parser.parse_args()

corners = PLACES if args.all_places else PLACES[4:]
images = data.load(args.data, root=args.root)
scenes = data.scenes(images, size=args.canvas, digit_size=args.digit, templates=corners, num_test=args.num_test)
sizes = (args.latent_dim, args.hidden, args.glimpses)
pair = AlignDRAW(scenes.shape, len(scenes.vocabulary), *sizes, words=32, align=64, read=args.window, write=args.window)
pair.set_output_mean(scenes.pixel_means)
# The KL terms are switched on slowly: a painter that has learned to do without z seldom takes it up again.
objective = TraceMeanField_ELBO(kl_weight=LinearWarmup(steps=max(1, args.steps // 8)))
history = fit(pair, scenes, objective, steps=args.steps, clip_norm=100.0)

scenes = scenes.to(pair.reference().device)
judge = judging.train_judge(scenes, steps=args.judge_steps)
found: dict[str, dict[str, float]] = {}


def read(name: str, shares: dict[str, judging.Share]) -> None:
    print(f"{name}: " + ", ".join(f"{attribute} {share}" for attribute, share in shares.items()))
    found[name] = {attribute: share.value for attribute, share in shares.items()}


held_out = replace(scenes, test=scenes.held_out(args.num_test))
for name, some in (("seen", scenes), ("held out", held_out)):
    real = replace(some, binarisation="none").test_batch()[0]
    read(f"read right, combinations {name}, real images", judging.accuracy(judge, real, some.test))
    read(
        f"read right, combinations {name}, samples",
        judging.accuracy(judge, judging.painted(pair, some, some.test), some.test),
    )
read("one word changed, all read right", judging.flip_accuracy(pair, judge, scenes, scenes.test))
own, other = judging.caption_gain(pair, *scenes.test_batch(), objective=objective)
print(f"NLL bound with its own caption {-own.mean():.2f}, with another image's {-other.mean():.2f} nats")
found["bound in nats"] = {"own caption": own.mean().item(), "another image's": other.mean().item()}
report.write_json(
    {"settings": vars(args) | {"root": None}, "environment": report.environment(history.device), **found},
    "captions.json",
)

texts = [f"the digit {digit} is at the {place} of the image ." for place in PLACES[4:] for digit in DIGITS]
shown = film(pair, blank(pair, len(texts)), scenes.vocabulary.encode(texts).to(pair.reference().device))
grid = shown.canvases[:, -1].unflatten(0, (4, 10))
print(report.flip_grid(grid, "captions.png", rows=PLACES[4:], columns=DIGITS, title="the digit ... is at the ..."))
print(report.film_gif(shown, "captions.gif", columns=10))
