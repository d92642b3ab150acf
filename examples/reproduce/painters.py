"""Four painters under the same captions: alignDRAW, noAlignDRAW, and two conditional VAEs, judged by a classifier.

The comparison of Mansimov et al. 2016 on scenes that a classifier can read: MNIST with captions (one digit in a corner;
with --all-places also two beside and above each other), or coloured scenes (--coloured: "a red three is at the top left
of a blue field ."), whose grey values are scored by Bernoulli's cross-entropy: not a log-likelihood. All have the same
data, steps, batches, optimiser and KL warm-up; each is trained once. Twelve combinations of digit and place are held
out. The same command again goes on where it was stopped; painters that are done are not repeated. Writes painters.json,
table.md and a picture of each painter.

    python examples/reproduce/painters.py --root DATA --out painters
    python examples/reproduce/painters.py --root DATA --out coloured --coloured
    python examples/reproduce/painters.py --root DATA --out full --all-places --canvas 60 --digit 28 --glimpses 32 \
        --hidden 300 --latent-dim 150 --steps 50000 --device cuda
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppl_vae import Pair, data, fit, judging, report, similarity
from ppl_vae.data import Scenes
from ppl_vae.data.scene_facts import COLOURS, DIGITS, PLACES
from ppl_vae.nn import SentenceEncoder
from ppl_vae.objectives import LinearWarmup, TraceMeanField_ELBO
from ppl_vae.pairs import AlignDRAW, ConditionalVAE
from ppl_vae.training import resolve_device

Painters = dict[str, Callable[[], Pair]]
Numbers = dict[str, Any]


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in vars(args).items() if key not in ("root", "out", "rows", "device")}
    results = earlier(args.out / "painters.json", settings)
    scenes = load(args).to(resolve_device(args.device))
    makers = painters(args, scenes)
    if unknown := [name for name in args.rows or () if name not in makers]:
        raise SystemExit(f"--rows: got {unknown[0]!r}, expected some of {', '.join(makers)}; name those")
    judge = judging.train_judge(scenes, steps=args.judge_steps)
    device = str(scenes.train.device)
    results |= {"settings": settings, "data": scenes.describe(), "environment": report.environment(device)}
    results.setdefault("painters", {})
    real = replace(scenes, binarisation="none")
    for name, part in parts(real, args.num_test).items():
        results[f"real images, {name}"] = shares(judging.accuracy(judge, part.test_batch()[0], part.test))
    for name in args.rows or makers:
        if name not in results["painters"]:
            results["painters"][name] = trained(name, makers[name], scenes, judge, args)
            report.write_json(results, args.out / "painters.json")
            report.write_bytes(table(results).encode(), args.out / "table.md")
    print(table(results), end="")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist", help="digits or mnist")
    parser.add_argument("--root", default=None, help="folder of the data files")
    parser.add_argument("--out", type=Path, default=Path("painters"))
    parser.add_argument("--coloured", action="store_true")
    parser.add_argument("--all-places", action="store_true", help="also two digits beside and above each other")
    parser.add_argument("--canvas", type=int, default=28)
    parser.add_argument("--digit", type=int, default=14)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--judge-steps", type=int, default=1500)
    parser.add_argument("--glimpses", type=int, default=8, help="T of the two DRAWs")
    parser.add_argument("--hidden", type=int, default=192, help="units of the two DRAWs")
    parser.add_argument("--latent-dim", type=int, default=24, help="of a glimpse")
    parser.add_argument("--window", type=int, default=12, help="side of what is read and written")
    parser.add_argument("--num-test", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", nargs="*", help="painters by name; all by default")
    return parser.parse_args()


def earlier(path: Path, settings: Numbers) -> Numbers:
    """What an earlier call found."""
    found = json.loads(path.read_text()) if path.exists() else {}
    if found and found["settings"] != json.loads(json.dumps(settings)):
        raise SystemExit(f"{path}: got results of other settings, {found['settings']}; give another --out")
    return found


def load(args: argparse.Namespace) -> Scenes:
    return data.scenes(
        data.load(args.data, root=args.root),
        size=args.canvas,
        digit_size=args.digit,
        coloured=args.coloured,
        templates=PLACES if args.all_places else PLACES[4:],
        num_test=args.num_test,
        seed=args.seed,
    )


def parts(scenes: Scenes, number: int) -> dict[str, Scenes]:
    return {"seen": scenes, "held out": replace(scenes, test=scenes.held_out(number))}


def painters(args: argparse.Namespace, scenes: Scenes) -> Painters:
    words, sizes = 32, (args.latent_dim, args.hidden, args.glimpses)
    number, likelihood = len(scenes.vocabulary), "grey-bernoulli" if args.coloured else "bernoulli"
    draw: Numbers = {"words": words, "read": args.window, "write": args.window, "likelihood": likelihood}

    def vae(hidden: tuple[int, ...], **options: Any) -> Pair:
        reader = SentenceEncoder(number, words)
        options |= {"condition": reader, "condition_dim": 2 * words, "likelihood": likelihood}
        return ConditionalVAE(scenes.shape, (scenes.caption_length,), 64, hidden, **options)

    return {
        "alignDRAW": lambda: AlignDRAW(scenes.shape, number, *sizes, align=64, **draw),
        "noAlignDRAW": lambda: AlignDRAW(scenes.shape, number, *sizes, align=None, **draw),
        "conv-deconv VAE": lambda: vae((32, 64), trunk="conv"),
        "fully connected VAE": lambda: vae((500, 500)),
    }


def trained(
    name: str, make: Callable[[], Pair], scenes: Scenes, judge: judging.Judge, args: argparse.Namespace
) -> Numbers:
    """Train one painter, or go on with it, and judge it."""
    print(name)
    torch.manual_seed(args.seed)
    pair = make()
    pair.set_output_mean(scenes.pixel_means.cpu())  # type: ignore[operator]
    # The KL terms are switched on slowly: a painter that has learned to do without z seldom takes it up again.
    objective = TraceMeanField_ELBO(kl_weight=LinearWarmup(steps=max(1, args.steps // 8)))
    began, folder = time.perf_counter(), args.out / name.replace(" ", "-")
    options: Numbers = {"clip_norm": 100.0, "seed": args.seed, "device": scenes.train.device}
    fit(pair, scenes, objective, steps=args.steps, checkpoints=folder, resume=True, **options)
    seconds = time.perf_counter() - began
    found: Numbers = {
        "parameters": sum(p.numel() for p in pair.parameters()),
        "seconds of the last call": seconds,
        **judged(pair, scenes, judge, args),
    }
    picture(pair, scenes, args.out / f"{name.replace(' ', '-')}.png", name)
    return found


def judged(pair: Pair, scenes: Scenes, judge: judging.Judge, args: argparse.Namespace) -> Numbers:
    found: Numbers = {}
    for name, part in parts(scenes, args.num_test).items():
        x, captions = part.test_batch()
        samples = judging.painted(pair, part, part.test)
        found[f"read right, {name}"] = shares(judging.accuracy(judge, samples, part.test))
        own, other = judging.caption_gain(pair, x, captions)
        found[f"bound, {name}"] = {"own caption": mean(own), "another image's": mean(other)}
        grey = replace(part, binarisation="none").test_batch()[0]
        found[f"SSIM of sample and image, {name}"] = mean(similarity.ssim(samples, grey))
    x, captions = scenes.test_batch()
    candidates = min(100, len(captions.unique(dim=0)))
    ranks = judging.retrieval_ranks(pair, x[:200], captions[:200], candidates=candidates)
    found["rank of the own caption"] = {"of": candidates, "mean": mean(ranks), "first": mean((ranks == 1).double())}
    found["one word changed"] = shares(judging.flip_accuracy(pair, judge, scenes, scenes.test))
    if isinstance(pair, AlignDRAW) and pair.alignment is not None:
        found["attention on the telling words, over even"] = similarity.attention_mass(pair, scenes, scenes.test)
    return found


def shares(found: dict[str, judging.Share]) -> Numbers:
    return {name: {"value": share.value, "se": share.se, "number": share.number} for name, share in found.items()}


def mean(x: Tensor) -> Numbers:
    x = x.double()
    return {"value": x.mean().item(), "se": (x.std() / len(x) ** 0.5).item()}


def picture(pair: Pair, scenes: Scenes, path: Path, title: str) -> None:
    """Digits across; down, the corners, or inks on fields at the top left."""
    if scenes.coloured:
        rows = [(ink, field) for ink in COLOURS for field in COLOURS if ink != field]
        labels = [f"{ink} on {field}" for ink, field in rows]
        texts = [f"a {ink} {digit} is at the top left of a {field} field ." for ink, field in rows for digit in DIGITS]
    else:
        labels = list(PLACES[4:])
        texts = [f"the digit {digit} is at the {place} of the image ." for place in labels for digit in DIGITS]
    facts = torch.cat([scenes.facts_of(text) for text in texts])
    images = judging.painted(pair, scenes, facts)
    report.flip_grid(images.unflatten(0, (len(labels), len(DIGITS))), path, rows=labels, columns=DIGITS, title=title)


def table(results: Numbers) -> str:
    """A column for each painter; shares and means with their standard errors."""
    found = results["painters"]
    lines = {"": ["real images", *found], "---": ["---"] * (1 + len(found))}
    for part in ("seen", "held out"):
        for name, real in results[f"real images, {part}"].items():
            read = [painter[f"read right, {part}"][name] for painter in found.values()]
            lines[f"{name} read right, combinations {part}"] = [told(share) for share in (real, *read)]
    for name in results["real images, seen"]:
        flips = [painter["one word changed"][name] for painter in found.values()]
        lines[f"{name} changed in the caption, all read right"] = ["", *map(told, flips)]
    ways: dict[str, Callable[[Numbers], str]] = {
        "bound, own caption (nats)": lambda p: told(p["bound, seen"]["own caption"], 2),
        "bound, another's (nats)": lambda p: told(p["bound, seen"]["another image's"], 2),
        "own caption first by the bound": lambda p: told(p["rank of the own caption"]["first"]),
        "SSIM of sample and image": lambda p: told(p["SSIM of sample and image, seen"]),
        "parameters": lambda p: f"{p['parameters']:,}",
        "seconds": lambda p: f"{p['seconds of the last call']:.0f}",
    }
    lines |= {what: ["", *map(way, found.values())] for what, way in ways.items()}
    return "".join(f"| {' | '.join([what, *cells])} |\n" for what, cells in lines.items())


def told(found: Numbers, digits: int = 3) -> str:
    return f"{found['value']:.{digits}f} ({found['se']:.{digits}f})"


if __name__ == "__main__":
    main()
