"""Complete MNIST images of which 1, 2 or 3 quadrants are given: a plain network, and a conditional VAE on top of it.

The task of Sohn, Lee & Yan 2015, section 5.1, in the sizes of Pyro's tutorial: 784-500-500 ReLU networks, 200 latent
variables, Adam 1e-3, batches of 128, up to 50 passes each. The network is trained first; frozen, it makes the guess
that the CVAE starts from. Values are grey: nats of Bernoulli's cross-entropy over the pixels that are not given, which
is no log-likelihood of bits. Four quantities, with standard errors over the test images:

- network: -log p(y | c), exact;
- CVAE: -ELBO, the mean of 10 draws z ~ q(z | y, c) for each image; what the tutorial calls "Monte Carlo";
- CVAE: -log mean_k p(y | c, z_k), 100 draws z ~ p(z | c); what the paper calls Monte Carlo;
- CVAE: the same by importance sampling, 100 draws z ~ q(z | y, c).

All three of the CVAE are above its -log p(y | c) in expectation.

Deviations from the tutorial: which weights are kept, and when to stop, is said by the last twelfth of the training
data (5,000 of MNIST's 60,000), there by the test data. `fit` asks at a hundred points of the longest run, which are
two in each of 50 passes: a patience of 3 passes is one of 6 points. p(y | c, z) sees the guess too, as in the paper,
there z alone; so that it does not learn to do without z, the CVAE's KL term is switched on over its first 5 passes
(of 2 and 3 quadrants z is left unused otherwise). Weights start from Glorot's law.

The command goes on with a run that was stopped, and repeats no quadrants that are finished; processes may share a
folder, each with --quadrants of its own.

    python examples/reproduce/quadrants.py --root DATA --out FOLDER
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch import Tensor

from ppl_vae import Pair, evaluation, fit, generation, report
from ppl_vae.data import UNKNOWN, Dataset, load, quadrants
from ppl_vae.evaluation.estimate import Estimate
from ppl_vae.loop import check_settings
from ppl_vae.objectives import LinearWarmup, Trace_ELBO
from ppl_vae.pairs import ConditionalVAE, Prediction
from ppl_vae.pairs.conditional import PriorGuided
from ppl_vae.records import every
from ppl_vae.training import steps_of

HIDDEN, LATENT_DIM, RATE, BATCH, PATIENCE, WARMUP = (500, 500), 200, 1e-3, 128, 3, 5
ELBO_DRAWS, PARTICLES = 10, 100
NETWORK, ELBO = "network: NLL", f"CVAE: -ELBO, {ELBO_DRAWS} draws"
MONTE_CARLO = f"CVAE: NLL, prior Monte Carlo, {PARTICLES} draws"
IMPORTANCE = f"CVAE: NLL, importance sampled, {PARTICLES} draws"
TUTORIAL = {1: (100.4, 71.8), 2: (61.9, 51.0), 3: (25.4, 24.2)}  # network, and -ELBO of the CVAE, on MNIST
DRAWS, VEIL, INVENTED = 5, (0.16, 0.26, 0.4), (1.0, 0.8, 0.45)  # in the picture: what is unknown, and what is made up
RESULT = "result.json"
Batch = tuple[Tensor, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of the data files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", default="mnist", choices=("mnist", "digits"))
    parser.add_argument("--quadrants", type=int, nargs="+", default=[1, 2, 3], choices=(1, 2, 3), help="that are given")
    parser.add_argument("--passes", type=float, default=50, help="at most, of each training")
    parser.add_argument("--num-train", type=int, help="the first so many alone, for a trial")
    parser.add_argument("--num-test", type=int, help="the first so many alone, for a trial")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data = load(args.data, root=args.root, binarisation="none").subset(args.num_train, args.num_test)
    settings = settings_of(data, args.passes, args.seed)
    claim(args.out, settings, parser)
    for number in args.quadrants:
        folder = args.out / f"quadrants-{number}"
        if (folder / RESULT).exists():
            print(f"{number} given: finished before, see {folder / RESULT}")
        else:
            complete(data, number, settings, folder)
    print(summary(args.out, settings))


def settings_of(data: Dataset, passes: float, seed: int) -> dict[str, Any]:
    """What all numbers depend on, as JSON gives it back."""
    networks = {"hidden": HIDDEN, "latent_dim": LATENT_DIM, "activation": "ReLU", "likelihood": "grey-bernoulli"}
    training = {"optimiser": "Adam", "learning_rate": RATE, "batch_size": BATCH, "passes": passes}
    training |= {"warmup_passes": WARMUP}
    stopping = {"validation": len(data.train) // 12, "patience_passes": PATIENCE}
    draws = {"elbo_draws": ELBO_DRAWS, "particles": PARTICLES}
    return json.loads(json.dumps(networks | training | stopping | draws | {"seed": seed, "data": data.describe()}))


def claim(out: Path, settings: dict[str, Any], parser: argparse.ArgumentParser) -> None:
    """Note the settings of the folder, or refuse to mix them with those of an earlier call."""
    path = out / "settings.json"
    if not path.exists():
        report.write_json(settings, path)
    try:
        check_settings(settings, json.loads(path.read_text()))
    except ValueError as error:
        parser.error(f"{out} is of a run with other settings: {error}, or another --out")


def complete(data: Dataset, number: Any, settings: dict[str, Any], folder: Path) -> None:
    """Train both for one number of quadrants, evaluate them, draw the picture; at the very last, write the result."""
    seed, shape = settings["seed"], data.shape
    rest, held_out = data.hold_out(settings["validation"])
    parts = quadrants(rest.train, number), quadrants(held_out, number)
    options: dict[str, Any] = {"hidden": HIDDEN, "likelihood": settings["likelihood"], "completion": True}
    torch.manual_seed(seed)
    network = Prediction(shape, shape, **options)
    trainings = {"network": train(network, *parts, settings, folder / "network", Trace_ELBO())}
    cvae = ConditionalVAE(shape, shape, LATENT_DIM, **options, baseline=network)
    warmup = LinearWarmup(max(1, steps_of(min(WARMUP, settings["passes"] / 2), parts[0], BATCH)))
    trainings["CVAE"] = train(cvae, *parts, settings, folder / "cvae", Trace_ELBO(kl_weight=warmup))
    y, c = (part.to(cvae.reference()) for part in quadrants(data.test, number))
    nats = measure(network, cvae, y, c, seed)
    picture(network, cvae, data, number, folder / "completions.png")
    found = {name: Estimate.of(values)._asdict() for name, values in nats.items()}
    environment = report.environment(cvae.reference().device)
    report.write_json({"nats": found, "trainings": trainings, "environment": environment}, folder / RESULT)


def train(
    pair: Pair, batch: Batch, valid: Batch, settings: dict[str, Any], checkpoints: Path, objective: Trace_ELBO
) -> dict[str, Any]:
    """Train a pair, or go on with it; what it took."""
    print(f"training: {checkpoints}")
    steps, per_pass = steps_of(settings["passes"], batch, BATCH), len(batch[0]) // BATCH
    points = max(1, round(PATIENCE * per_pass / every(steps)))
    stopping: dict[str, Any] = {"valid": valid, "patience": points, "checkpoints": checkpoints, "resume": True}
    budget: dict[str, Any] = {"steps": steps, "batch_size": BATCH, "learning_rate": RATE, "seed": settings["seed"]}
    history = fit(pair, batch, objective, **budget, **stopping)
    best = max((r.valid for r in history.records if r.valid is not None), default=None)
    taken = {"steps": history.steps, "passes": history.steps / per_pass, "best_step": history.best, "valid": best}
    time = {"seconds": history.seconds, "ms_per_step": history.ms_per_step, "compile": history.compile}
    return {**taken, "patience_points": points, **time, "resumed": history.resumed}


def measure(network: Prediction, cvae: ConditionalVAE, y: Tensor, c: Tensor, seed: int) -> dict[str, Tensor]:
    """The four numbers of each test image, (N,) nats."""
    shown: dict[str, Any] = {"seed": seed, "progress": True}
    print("evaluation")
    return {
        NETWORK: -evaluation.bound(network, Trace_ELBO(), y, c, **shown),
        ELBO: -evaluation.bound(cvae, Trace_ELBO(num_particles=ELBO_DRAWS), y, c, **shown),
        MONTE_CARLO: -evaluation.log_likelihood(PriorGuided(cvae), y, c, num_particles=PARTICLES, **shown),
        IMPORTANCE: -evaluation.log_likelihood(cvae, y, c, num_particles=PARTICLES, **shown),
    }


def picture(network: Prediction, cvae: ConditionalVAE, data: Dataset, number: Any, path: Path) -> None:
    """The first test image of each class: what is given, the network's mean, draws of the CVAE, and the truth."""
    labels = data.test_labels
    assert labels is not None
    rows = [labels.tolist().index(label) for label in labels.unique().tolist()]
    y, c = (part.to(cvae.reference()) for part in quadrants(data.test[rows], number))
    guesses = [generation.samples(network, y, c)]
    guesses += [generation.samples(cvae, y, c, seed=seed) for seed in range(DRAWS)]
    veil, invented = (y.new_tensor(colour).view(3, 1, 1) for colour in (VEIL, INVENTED))
    filled = [torch.where(c == UNKNOWN, image, y) for image in (veil, *(guess * invented for guess in guesses))]
    tiles = torch.stack([*filled, y.expand_as(filled[0])], 1)
    report.image_grid(tiles.flatten(0, 1), path, columns=tiles.shape[1])


def summary(out: Path, settings: dict[str, Any]) -> str:
    """Write the table, the JSON and the picture of all quadrants that are finished; the table."""
    found = {n: out / f"quadrants-{n}" for n in TUTORIAL if (out / f"quadrants-{n}" / RESULT).exists()}
    rows = {n: json.loads((folder / RESULT).read_text()) for n, folder in found.items()}
    published = {n: {"Pyro's tutorial": {"network": a, "-ELBO": b}} for n, (a, b) in TUTORIAL.items()}
    both = {n: {**row, "published": published[n]} for n, row in rows.items()}
    report.write_json({"settings": settings, "quadrants": both}, out / "quadrants.json")
    text = table(rows, f"{settings['data']['name']}, {settings['data']['num_test']:,} test images")
    report.write_bytes(text.encode(), out / "table.md")
    join({n: folder / "completions.png" for n, folder in found.items()}, out / "completions.png")
    return text


def table(rows: dict[int, dict[str, Any]], what: str) -> str:
    names = [NETWORK, ELBO, MONTE_CARLO, IMPORTANCE]
    head = ["quadrants given", *names, "published (MNIST): network", "published (MNIST): -ELBO"]
    lines = [head, ["---"] * len(head)]
    for n, row in rows.items():
        cells = [f"{row['nats'][name]['mean']:.2f} ({row['nats'][name]['standard_error']:.2f})" for name in names]
        lines.append([str(n), *cells, *map(str, TUTORIAL[n])])
    note = f"{what}; nats of grey pixels under Bernoulli's cross-entropy, over the pixels that are not given (s.e.)."
    note += " Published are the figures of Pyro's CVAE tutorial, which stops by its test data."
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", note, ""])


def join(paths: dict[int, Path], out: Path) -> None:
    """The pictures side by side, pixel by pixel, with words above."""
    pictures, dpi, gap, top = [imread(path) for path in paths.values()], 128, 24, 64
    height = len(pictures[0])  # the others have as many classes
    width = sum(image.shape[1] + gap for image in pictures) - gap
    figure, left = Figure(figsize=(width / dpi, (height + top) / dpi), dpi=dpi), 0
    for number, image in zip(paths, pictures, strict=True):
        axes = figure.add_axes((left / width, 0, image.shape[1] / width, height / (height + top)))
        axes.imshow(image, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        axes.set_title(f"{number} of 4 quadrants given", fontsize=10, loc="left", pad=18)
        for words, at in (("given", 0.5), ("network", 1.5), ("CVAE, draws", 2 + DRAWS / 2), ("truth", DRAWS + 2.5)):
            axes.text(at / (DRAWS + 3), 1.01, words, transform=axes.transAxes, ha="center", va="bottom", fontsize=8)
        left += image.shape[1] + gap
    figure.savefig(out, dpi=dpi)


if __name__ == "__main__":
    main()
