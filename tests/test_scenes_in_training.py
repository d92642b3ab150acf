"""Scenes train pairs of (image, caption): fresh images each time, refusals, and a run that is taken up again."""

import pytest
import torch

from ppl_vae import data, fit, fit_stacked
from ppl_vae.data import Minibatches, Scenes
from ppl_vae.nn import SentenceEncoder
from ppl_vae.pairs import VAE, AlignDRAW, ConditionalVAE
from ppl_vae.testing import check_pair
from ppl_vae.training import steps_of


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    corners = ("top left", "bottom right")
    return data.scenes(data.load("digits"), size=16, templates=corners, num_train=50, num_test=5)


def small(scenes: Scenes, seed: int = 0) -> AlignDRAW:
    torch.manual_seed(seed)
    return AlignDRAW(scenes.shape, len(scenes.vocabulary), 2, 4, 2, words=2, align=3, read=2, write=2)


def test_a_transform_may_make_several_tensors():
    first, second = torch.arange(6.0), torch.arange(6)
    batches = Minibatches((first, second), 2, transform=lambda x: (x + 10, x + 20))
    x, y, z = batches.next()
    assert torch.equal(x + 10, y) and torch.equal(y - 20, z.float())


def test_fit_draws_images_and_captions(scenes):
    """The same noise and order: what `draw` makes of the facts of each batch."""
    pair, seen = small(scenes), []
    inner = pair.model
    pair.model = lambda x, caption: (seen.append((x, caption)), inner(x, caption))[1]  # type: ignore[method-assign]
    history = fit(pair, scenes, steps=3, batch_size=10, progress=False)
    assert len(history.curve) == 3
    assert all(x.shape == (10, 1, 16, 16) and set(x.unique().tolist()) == {0.0, 1.0} for x, _ in seen)
    texts = {text for _, caption in seen for text in scenes.vocabulary.decode(caption)}
    assert texts <= set(scenes.texts(scenes.train))


def test_a_stopped_run_ends_as_if_it_had_not_stopped(scenes, tmp_path):
    whole, parted = small(scenes), small(scenes)
    options = {"steps": 8, "batch_size": 10, "progress": False}
    fit(whole, scenes, **options)

    class Stop(Exception):
        pass

    def stop(step: int) -> None:
        if step == 5:
            raise Stop

    with pytest.raises(Stop):
        fit(parted, scenes, **options, checkpoints=tmp_path, checkpoint_every=3, on_step=stop)
    again = small(scenes, seed=1)
    fit(again, scenes, **options, checkpoints=tmp_path, resume=True)
    for ours, theirs in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_steps_of_passes(scenes):
    assert steps_of(2, scenes, 10) == 10


@pytest.mark.parametrize("trunk", ["mlp", "conv"])
def test_a_conditional_vae_takes_captions(scenes, trunk):
    torch.manual_seed(0)
    encoder = SentenceEncoder(len(scenes.vocabulary), 3)
    options = {"condition": encoder, "condition_dim": 6, "trunk": trunk, "image_features": 5}
    pair = ConditionalVAE(scenes.shape, (scenes.caption_length,), 2, (4, 4), **options)
    report = check_pair(pair, *(part[:3] for part in scenes.test_batch()))
    assert report.ok, str(report)
    before = [p.clone() for p in encoder.parameters()]
    fit(pair, scenes, steps=2, batch_size=10, progress=False)
    assert not any(torch.equal(p, q) for p, q in zip(encoder.parameters(), before, strict=True))


def test_what_cannot_train_is_refused(scenes):
    with pytest.raises(ValueError, match=r"got 2 arguments, expected those of VAE.model\(x\)"):
        fit(VAE(scenes.shape), scenes, steps=1, batch_size=10, progress=False)
    with pytest.raises(ValueError, match="got Scenes, which is read or composed as it is asked for"):
        fit_stacked([small(scenes), small(scenes)], scenes, steps=1, batch_size=10, progress=False)
