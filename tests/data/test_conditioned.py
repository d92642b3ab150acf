"""What all data have for `fit` and the command line: a batch to sample for, and where p(x | z) starts."""

import pytest
import torch

from ppl_vae import specs
from ppl_vae.data import Conditioned, Dataset, Labelled, Scenes, Source, load, load_named, text


@pytest.mark.parametrize("name", ["digits", "labelled(digits)", "scenes(digits, size=16, num_train=20, num_test=5)"])
def test_images_start_at_their_pixel_means_and_are_sampled_for(name: str) -> None:
    data = load_named(name)
    assert not isinstance(data, Source) or isinstance(data, Conditioned)
    assert isinstance(data, Dataset | Conditioned) and torch.equal(data.output_mean, data.pixel_means)
    batch = data.blank(7)
    assert batch[0].shape == (7, *data.shape) and batch[0].dtype == torch.float32
    assert all(part.device == data.train.device for part in batch)
    assert specs.maker("VAE" if name == "digits" else "ConditionalVAE(classes=23)", data).told == specs.told_by(data)


def test_conditions_are_those_asked_for() -> None:
    labelled, scenes = load_named("labelled(digits)"), load_named("scenes(digits, size=16, num_train=9, num_test=5)")
    assert isinstance(labelled, Labelled) and isinstance(scenes, Scenes)
    for data in (labelled, scenes):
        assert torch.equal(data.blank(12)[1], data.conditions(12))
    assert len(load("digits").blank(3)) == 1


def test_text_is_a_source_without_conditions() -> None:
    data = text("grammar", num_train=30, num_test=5)
    assert isinstance(data, Source) and not isinstance(data, Conditioned) and not hasattr(data, "pixel_means")
