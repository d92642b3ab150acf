"""Data sets, their binarisation, and minibatches on the device.

>>> data = load("digits")
>>> batches = Minibatches((data.train,), batch_size=20, seed=0, transform=data.draw)
>>> batches.next()[0].shape
torch.Size([20, 1, 8, 8])
"""

from ppl_vae.data.dataset import Binarisation, DataError, Dataset, binarise
from ppl_vae.data.loaders import default_root, load, names
from ppl_vae.data.local import from_tensor, load_file
from ppl_vae.data.minibatch import Minibatches

__all__ = [
    "Binarisation",
    "DataError",
    "Dataset",
    "Minibatches",
    "binarise",
    "default_root",
    "from_tensor",
    "load",
    "load_file",
    "names",
]
