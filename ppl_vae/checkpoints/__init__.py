"""A run's states on disk, in files that are whole or not there and that are read without running code.

A file's name holds the start of its SHA-256, so that a flipped bit or a missing end is found before anything is read
out of it. That is no signature: it tells damage, not who wrote the file. What a file can do at worst is bounded by how
it is read: no code of it is run.
"""

from ppl_vae.checkpoints.folder import DISK_FULL, Checkpoints, read
from ppl_vae.checkpoints.packing import CheckpointError

__all__ = ["DISK_FULL", "CheckpointError", "Checkpoints", "read"]
