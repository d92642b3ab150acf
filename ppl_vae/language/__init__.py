"""What one does with a model of sentences: say them, search the likeliest, complete them, and score them."""

from ppl_vae.language.beam import Beams, beam
from ppl_vae.language.choices import Choose, greedy, probabilities, sampled
from ppl_vae.language.protocols import LanguagePair, TextPair, WordByWord
from ppl_vae.language.reading import impute, path, reconstructions, samples
from ppl_vae.language.scores import Perplexity, bleu, perplexity

__all__ = [
    "Beams",
    "Choose",
    "LanguagePair",
    "Perplexity",
    "TextPair",
    "WordByWord",
    "beam",
    "bleu",
    "greedy",
    "impute",
    "path",
    "perplexity",
    "probabilities",
    "reconstructions",
    "sampled",
    "samples",
]
