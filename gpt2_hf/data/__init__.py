"""Text in, batches of token ids out: every format that is read, and every way to make batches of it.

    readers ─► sources ─► tokenization ─► samples ─► collators
    (files)    (documents)  (ids, cached)   (sequence mode)  (batches)

`load_data` runs the whole row and returns what the trainer needs. `sampling` puts the samples in order; with
`--streaming`, `streaming` takes the place of tokenization, samples and sampling.
"""

from .collators import FlatteningCollator, PaddingCollator
from .pipeline import LoadedData, load_data, load_same_data
from .samples import BlockSamples, DocumentSamples, MixedSamples, Samples, SequenceMode
from .sampling import EpochSampler, TextByTextSampler, train_sampler
from .streaming import StreamingLoader, StreamingSamples

__all__ = [
    "BlockSamples",
    "DocumentSamples",
    "EpochSampler",
    "FlatteningCollator",
    "LoadedData",
    "MixedSamples",
    "PaddingCollator",
    "Samples",
    "SequenceMode",
    "StreamingLoader",
    "StreamingSamples",
    "TextByTextSampler",
    "load_data",
    "load_same_data",
    "train_sampler",
]
