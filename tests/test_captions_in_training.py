"""Captioned images train pairs of (image, caption) in batches of one width: bounds, resume, overfitting, warnings."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_vae import fit, fit_stacked, generation
from ppl_vae.data import Album, CaptionedImages, Vocabulary
from ppl_vae.objectives import Trace_ELBO
from ppl_vae.pairs import AlignDRAW
from ppl_vae.training import steps_of
from tests.coco_folder import COLOURS

TEXTS = ("a {} thing", "all of this picture is {}")


@pytest.fixture(scope="module")
def data() -> CaptionedImages:
    """Eight copies of four pictures of one colour each, which a caption of 3 words and one of 6 tell."""
    vocabulary = Vocabulary.from_texts([text.format(name) for text in TEXTS for name in COLOURS])
    pixels = torch.tensor(list(COLOURS.values()), dtype=torch.uint8).view(4, 3, 1, 1).expand(4, 3, 4, 4)
    captions = vocabulary.encode([text.format(name) for name in COLOURS for text in TEXTS])
    album = Album(pixels.repeat(8, 1, 1, 1), captions.repeat(8, 1), torch.arange(32).repeat_interleave(2))
    return CaptionedImages(
        name="colours", train_album=album, test_album=album[:4], vocabulary=vocabulary, buckets=(3, 6)
    )


def small(data: CaptionedImages, seed: int = 0, **options: Any) -> AlignDRAW:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"latent_dim": 2, "hidden": 12, "steps": 2, "words": 4, "align": 6, "read": 3, "write": 4}
    return AlignDRAW(data.shape, len(data.vocabulary), **{**sizes, **options})


@pytest.mark.parametrize("align", [6, None])
def test_a_cut_caption_has_the_bound_of_the_padded_one(data: CaptionedImages, align: int | None) -> None:
    """To 1e-6 on the same noise: padding says nothing; another word does."""
    pair = small(data, align=align).double()
    rows = data.train[:8:2]  # of 3 words
    x, cut = data.draw(rows, 3)
    _, padded = data.draw(rows)
    assert cut.shape == (4, 3) and padded.shape == (4, 6) and not padded[:, 3:].any()

    def bound(captions: Tensor) -> Tensor:
        torch.manual_seed(1)
        return Trace_ELBO().bound(pair.model, pair.guide, x.double(), captions)

    torch.testing.assert_close(bound(cut), bound(padded), rtol=1e-6, atol=1e-6)
    assert (bound(cut) - bound(cut.flip(0))).abs().max() > 1e-4


def test_fit_takes_batches_of_either_width(data: CaptionedImages) -> None:
    pair, widths = small(data), []
    inner = pair.model
    pair.model = lambda x, caption: (widths.append(caption.shape[1]), inner(x, caption))[1]  # type: ignore[method-assign]
    fit(pair, data, steps=steps_of(2, data, 8), batch_size=8, progress=False)
    assert steps_of(2, data, 8) == 16 and set(widths) == {3, 6}


def test_a_stopped_run_ends_as_if_it_had_not_stopped(data: CaptionedImages, tmp_path) -> None:
    """Within a pass of eight batches."""
    whole, parted, again = small(data), small(data), small(data, seed=1)
    options: dict[str, Any] = {"steps": 11, "batch_size": 8, "progress": False}
    fit(whole, data, **options)

    class Stop(Exception):
        pass

    def stop(step: int) -> None:
        if step == 6:
            raise Stop

    with pytest.raises(Stop):
        fit(parted, data, **options, checkpoints=tmp_path, checkpoint_every=5, on_step=stop)
    fit(again, data, **options, checkpoints=tmp_path, resume=True)
    for ours, theirs in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_captures_a_step_of_each_width(data: CaptionedImages) -> None:
    """Not the drawing of the batch with it, which has two shapes."""
    history = fit(small(data), data, steps=120, batch_size=8, device="cuda", compile="cudagraph", progress=False)
    assert history.compile == "cudagraph" and all(record.bound < 0 for record in history.records)


def test_images_held_out_are_part_of_the_curve(data: CaptionedImages) -> None:
    left, valid = data.hold_out(4)
    history = fit(small(data), left, steps=3, batch_size=7, valid=valid, progress=False)
    assert all(record.valid is not None for record in history.records)


def test_a_few_captioned_images_are_learnt_by_heart(data: CaptionedImages) -> None:
    """What it shows: captions reach the canvas through training in buckets, both widths of them.

    The bound of each picture is higher with its own captions than with any other's, in either wording; and a picture
    painted from a caption alone is nearest to the one that the caption tells. A pair that saw no captions, or those
    of other pictures, or lost the last word (the colour!) in the cut, would do neither better than by chance.
    """
    pair = small(data, variance=0.1, likelihood="normal", hidden=24, words=8, align=12)
    fit(pair, data, steps=250, batch_size=8, learning_rate=0.03, progress=False)
    x, _ = data.test_batch()
    for place in range(len(TEXTS)):
        captions = torch.stack([data.test_album.captions_of(number)[place] for number in range(4)])
        bounds = torch.stack([bounded(pair, x, captions.roll(turn, 0)) for turn in range(4)])
        assert (bounds[0] > bounds[1:] + 10).all(), bounds  # of four seeds: by more than 150
        painted = generation.samples(pair, generation.blank(pair, 4), captions)
        distance = (painted.unsqueeze(1) - x).square().flatten(2).sum(-1)
        assert distance.argmin(1).tolist() == [0, 1, 2, 3], distance


def bounded(pair: AlignDRAW, x: Tensor, captions: Tensor) -> Tensor:
    torch.manual_seed(1)
    return Trace_ELBO(num_particles=20).bound(pair.model, pair.guide, x, captions)


def test_captions_that_are_never_used_are_told(data: CaptionedImages) -> None:
    kept = torch.cat([data.train_album.image[::2], torch.tensor([31])])
    rows = torch.cat([data.train_album.captions[::2], data.train_album.captions[-1:]])
    few = replace(data, train_album=Album(data.train_album.images, rows, kept))
    with pytest.warns(UserWarning, match="ppl_vae: 1 of 33 training data are never used: .* batch_size=8; choose"):
        fit(small(data), few, steps=1, batch_size=8, progress=False)
    with pytest.raises(ValueError, match="got batch_size=33 for groups of at most 32 rows"):
        fit(small(data), few, steps=1, batch_size=33, progress=False)


def test_what_cannot_train_is_refused(data: CaptionedImages) -> None:
    with pytest.raises(ValueError, match="got CaptionedImages, which is read or composed as it is asked for"):
        fit_stacked([small(data), small(data)], data, steps=1, batch_size=8, progress=False)  # type: ignore[arg-type]
