"""Data sets, in memory or on disk, their binarisation, and minibatches on the device.

>>> data = load("digits")
>>> batches = Minibatches((data.train,), batch_size=20, seed=0, transform=data.draw)
>>> batches.next()[0].shape
torch.Size([20, 1, 8, 8])
"""

from ppl_vae.data.album import Album
from ppl_vae.data.captioned import Captioned, CaptionedImages
from ppl_vae.data.captions import Vocabulary
from ppl_vae.data.coco import coco
from ppl_vae.data.conditioned import Conditioned
from ppl_vae.data.dataset import Binarisation, DataError, Dataset, binarise
from ppl_vae.data.labelled import Labelled, labelled
from ppl_vae.data.loaders import default_root, load, names
from ppl_vae.data.loading import LoadedMinibatches
from ppl_vae.data.local import from_tensor, load_file, load_folder
from ppl_vae.data.minibatch import Minibatches, as_batch
from ppl_vae.data.named import composed_names, is_composed, load_named, with_absolute_paths
from ppl_vae.data.partly_labelled import UNLABELLED, PartlyLabelled, partly_labelled
from ppl_vae.data.quadrants import UNKNOWN, quadrants
from ppl_vae.data.scenes import Scenes, scenes
from ppl_vae.data.source import Source
from ppl_vae.data.stored import Stored
from ppl_vae.data.text import Text, num_tokens
from ppl_vae.data.text_files import text

__all__ = [
    "UNKNOWN",
    "UNLABELLED",
    "Album",
    "Binarisation",
    "Captioned",
    "CaptionedImages",
    "Conditioned",
    "DataError",
    "Dataset",
    "Labelled",
    "LoadedMinibatches",
    "Minibatches",
    "PartlyLabelled",
    "Scenes",
    "Source",
    "Stored",
    "Text",
    "Vocabulary",
    "as_batch",
    "binarise",
    "coco",
    "composed_names",
    "default_root",
    "from_tensor",
    "is_composed",
    "labelled",
    "load",
    "load_file",
    "load_folder",
    "load_named",
    "names",
    "num_tokens",
    "partly_labelled",
    "quadrants",
    "scenes",
    "text",
    "with_absolute_paths",
]
