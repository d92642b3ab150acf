"""`ppl-vae text`: what a run on sentences says."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ppl_vae import evaluation, generation, language, report, runs
from ppl_vae.cli.inspection import check_num, place
from ppl_vae.data import Text, num_tokens
from ppl_vae.pair import Pair

__all__ = ["Action", "text", "told"]

Action = Literal["reconstruct", "sample", "path", "impute"]


def text(
    action: Action,
    run: str,
    sentences: list[str] | None = None,
    num: int = 10,
    beam: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    steps: int = 5,
    seed: int = 0,
    out: str | None = None,
    data_root: str | None = None,
) -> None:
    """Sentences of a run: reconstructed, sampled, on the path between two, or completed; printed, and a text file.

    `ppl-vae text path RUN "they were laughing ." "it was my turn ."`

    Args:
        action: reconstruct (of each sentence the words said of the mean of its z, and of three draws), sample, path
            (between two sentences), or impute (the missing ends of sentences).
        run: a folder written by `ppl-vae train` on sentences, `text(...)`.
        sentences: in the words of the data, in quotes; unknown words are replaced. Test sentences where none are given,
            of which impute gets the first halves.
        num: how many samples, or test sentences.
        beam: width of a beam search for the likeliest words; greedy by default, and impute takes 5.
        temperature: of samples.
        top_k: samples take none but the k likeliest words.
        top_p: samples take none but the fewest words that together have this probability.
        steps: of a path, between its ends.
        seed: of what is drawn.
        out: the text file; RUN/ACTION.txt by default.
        data_root: folder of the data sets, where it has moved.
    """
    sentences = sentences or []
    check_num(num)
    path = place(out, run, f"{action}.txt", "text file")
    choose = language.sampled(temperature, top_k, top_p)
    loaded = runs.load_run(run, data_root)
    if not isinstance(loaded.data, Text):
        raise ValueError(
            f"run: got one on {loaded.data.name}, expected one on sentences; train one by "
            "ppl-vae train --data 'text(grammar)'"
        )
    pair: Any = loaded.pair
    decoded = {"width": beam} if beam is not None else {}
    lines: Mapping[Action, Callable[[], list[str]]] = {
        "reconstruct": lambda: _reconstruct(pair, loaded.data, sentences, num, decoded, seed),
        "sample": lambda: _sample(pair, loaded.data, num, decoded or {"choose": choose}, seed),
        "path": lambda: _path(pair, loaded.data, sentences, steps, decoded),
        "impute": lambda: _impute(pair, loaded.data, sentences, num, beam or 5),
    }
    said = "\n".join(lines[action]())
    print(said)
    print(report.write_bytes(f"{said}\n".encode(), path))


def told(pair: Pair, data: Text, reached: evaluation.Evaluation, folder: Path) -> language.Perplexity:
    """What there is to say of a run's sentences: samples and reconstructions in sentences.txt, and the perplexity."""
    lines = _sample(pair, data, 10, {}, 0)
    if generation.posterior(pair, data.test[:1]):
        lines += ["", *_reconstruct(pair, data, [], 10, {}, 0)]
    report.write_bytes("".join(f"{line}\n" for line in lines).encode(), folder / "sentences.txt")
    nats = torch.full((reached.num_data,), reached.nll, dtype=torch.float64)
    perplexity = language.perplexity(nats, num_tokens(data.test.cpu()))
    print(f"perplexity {perplexity}")
    return perplexity


def _reconstruct(
    pair: Any, data: Any, sentences: Sequence[str], num: int, decoded: Mapping[str, Any], seed: int
) -> list[str]:
    """As table 7 of Bowman et al.: a sentence, its mean, three samples."""
    x = data.read(sentences) if sentences else data.test[:num]
    mean = data.words(language.reconstructions(pair, x, **decoded))
    draws = language.reconstructions(pair, x, at_means=False, num=3, seed=seed, **decoded)
    rows = zip(data.words(x), mean, *(data.words(part) for part in draws), strict=True)
    names = ("input", "mean", "sample 1", "sample 2", "sample 3")
    lines = [line for row in rows for line in (*map(_labelled, names, row), "")]
    score = language.bleu(mean, [[sentence] for sentence in data.words(x)])
    return [*lines, f"BLEU-4 of {len(x)} reconstructions from the mean: {score:.4f}"]


def _sample(pair: Any, data: Any, num: int, decoded: Mapping[str, Any], seed: int) -> list[str]:
    return data.words(language.samples(pair, num, seed=seed, **decoded))


def _path(pair: Any, data: Any, sentences: Sequence[str], steps: int, decoded: Mapping[str, Any]) -> list[str]:
    """As table 8 of Bowman et al."""
    if len(sentences) != 2:
        raise ValueError(f"sentences: got {len(sentences)}, expected two: ppl-vae text path RUN 'first' 'second'")
    first, second = data.read(sentences)
    return data.words(language.path(pair, first, second, steps, **decoded))


def _impute(pair: Any, data: Any, sentences: Sequence[str], num: int, width: int) -> list[str]:
    x = _begun(data.read(sentences) if sentences else data.test[:num], halved=not sentences)
    whole = data.words(language.impute(pair, x, width=width))
    return [f"{start} | {end[len(start) :].strip()}" for start, end in zip(data.words(x), whole, strict=True)]


def _begun(x: Tensor, halved: bool) -> Tensor:
    """Sentences without their end mark, or the first half of their words."""
    words = (x > 0).sum(1, keepdim=True) - 1
    kept = torch.arange(x.shape[1], device=x.device) < ((words + 1) // 2 if halved else words)
    return x * kept


def _labelled(name: str, sentence: str) -> str:
    return f"{name:9} {sentence}"
