"""Saved models and runs: safetensors for tensors, JSON for the rest, nothing else.

    save, load      a finished model in one file
    RunFolder       the steps of a training run, to go on from bit for bit

Nothing that a file names is imported or evaluated: what `build` made is built again from its
specification, and the parts that this may name are pyrovae's own; any other model is
loaded into an object that the caller has made. Writing is atomic, so whoever reads sees the
old file or the new one; reading verifies a SHA-256 before any number is used.

`files` reads and writes bytes, `tensors` is the tensor file, `trees` takes nested states
apart, `models` and `runs` are the two uses.
"""

from pyrovae.checkpoint.models import load, save
from pyrovae.checkpoint.runs import (
    Checkpoint,
    RunFolder,
    check_savable,
    check_unchanged,
    restore_stream,
)
from pyrovae.checkpoint.trees import check_like, pack, unpack

__all__ = [
    "Checkpoint",
    "RunFolder",
    "check_like",
    "check_savable",
    "check_unchanged",
    "load",
    "pack",
    "restore_stream",
    "save",
    "unpack",
]
