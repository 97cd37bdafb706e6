"""Text in, batches of token ids out.

    sources ─► tokenization ─► samples ─► collators
               (documents)     (sequence mode)   (batches)

`load_data` runs the whole row and returns what the trainer needs.
"""

from .collators import FlatteningCollator, PaddingCollator
from .pipeline import LoadedData, load_data
from .samples import BlockSamples, DocumentSamples, SequenceMode

__all__ = [
    "BlockSamples",
    "DocumentSamples",
    "FlatteningCollator",
    "LoadedData",
    "PaddingCollator",
    "SequenceMode",
    "load_data",
]
