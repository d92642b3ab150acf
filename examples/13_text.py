"""Sentences from a continuous space: a text VAE beside a language model, with and without its words as inputs.

Five models: the language model; the VAE as it is, which ends without using z; with a KL weight that rises and words
that are dropped; and language model and VAE that never see a word ("inputless"). Then, of the third: sentences, what is
said of the mean of their z and of draws, and the path between two (tables 7 and 8 of Bowman et al. 2016).

python examples/13_text.py                                                             # a toy grammar
python examples/13_text.py --data DATA/ptb --words 5000 --num-train 10000 --num-test 1000 --max-length 40  # 20 minutes
"""

import argparse
from typing import Any

import torch

from ppl_vae import data, evaluation, fit, language, rates, report
from ppl_vae.objectives import SigmoidWarmup, TraceMeanField_ELBO
from ppl_vae.pairs import LanguageModel, TextVAE

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="grammar", help="a folder with three files of sentences, or grammar")
parser.add_argument("--words", type=int, default=10_000, help="of the vocabulary")
parser.add_argument("--num-train", type=int, default=None, help="the first so many alone")
parser.add_argument("--num-test", type=int, default=None)
parser.add_argument("--max-length", type=int, default=None, help="of a sentence")
parser.add_argument("--latent-dim", type=int, default=32)
parser.add_argument("--embedding", type=int, default=100)
parser.add_argument("--hidden", type=int, default=200)
parser.add_argument("--keep", type=float, default=0.6, help="probability that the third model sees a word")
parser.add_argument(
    "--passes", type=float, default=2.4, help="of the language model; the VAEs' KL weight rises as long"
)
parser.add_argument("--num-particles", type=int, default=30)
parser.add_argument("--path", nargs=2, default=None, help="two sentences; two of the test set by default")
parser.add_argument("--out", default="text", help="beginning of the files' names")
args = parser.parse_args()

limits = {"num_train": args.num_train, "num_test": args.num_test, "max_length": args.max_length}
sentences = data.text(args.data, words=args.words, **limits)
steps = max(2, round(args.passes * sentences.minibatches(32).steps_per_pass))
sizes: dict[str, Any] = {"vocabulary": sentences.levels, "embedding": args.embedding, "hidden": args.hidden}
vae = {**sizes, "latent_dim": args.latent_dim, "summary": "mean"}
plain, *warm = (
    TraceMeanField_ELBO(kl_weight=w) for w in (1.0, SigmoidWarmup(3 * steps // 2), SigmoidWarmup(4 * steps))
)
torch.manual_seed(0)  # of the weights
# Each with the steps after which it gets no better on sentences held out.
models = {
    "language model": (LanguageModel(sentences.shape, **sizes), plain, steps),
    "VAE": (TextVAE(sentences.shape, **vae), plain, steps),
    "VAE, annealed, words dropped": (TextVAE(sentences.shape, **vae, keep=args.keep), warm[0], 5 * steps // 2),
    "language model, inputless": (LanguageModel(sentences.shape, **sizes, keep=0), plain, steps // 2),
    "VAE, inputless": (TextVAE(sentences.shape, **vae, keep=0, dropout=0.2), warm[1], 4 * steps),
}
valid = None if sentences.valid is None else sentences.valid[:50]
found, tokens = {}, data.num_tokens(sentences.test)
print("NLL and KL in nats per sentence, its end mark counted; perplexity per word, end marks counted")
for name, (pair, objective, number) in models.items():
    pair.set_output_mean(sentences.output_mean)
    options: dict[str, Any] = {"batch_size": 32, "learning_rate": 2e-3, "clip_norm": 160.0, "valid": valid}
    fit(pair, sentences, objective, steps=number, schedule=rates.Cosine(number), **options)
    x = sentences.test.to(pair.reference().device)
    result = evaluation.evaluate(pair, x, num_particles=args.num_particles, seed=0)
    again = language.perplexity(torch.full((len(x),), result.nll), tokens)
    found[name] = {"NLL": result.nll, "s.e.": result.nll_se, "KL": result.kl.get("z", 0.0), **again.as_dict()}
    print(f"{name:30} NLL {result.nll:7.2f} ({result.nll_se:.2f})  KL {found[name]['KL']:6.2f}  {again.with_end:8.1f}")
settings = {key: value for key, value in vars(args).items() if key not in ("data", "out")}
result = {"settings": settings, "data": sentences.describe(), "found": found, "environment": report.environment()}
print(report.write_json(result, f"{args.out}.json"))

pair = models["VAE, annealed, words dropped"][0]
lines, x = [], sentences.test[:5].to(pair.reference().device)
mean, draws = language.reconstructions(pair, x), language.reconstructions(pair, x, at_means=False, num=3)
for row in zip(*map(sentences.words, (x, mean, *draws)), strict=True):
    lines += [f"{name:9} {text}" for name, text in zip(("input", "mean", *["sample"] * 3), row, strict=True)] + [""]
first, second = (sentences.test[5:7] if args.path is None else sentences.read(args.path)).to(x.device)
lines += ["a path:", *sentences.words(language.path(pair, first, second))]
print("\n".join(lines))
print(report.write_bytes("\n".join(lines).encode(), f"{args.out}.txt"))
