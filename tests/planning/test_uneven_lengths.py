"""The plan of a run whose documents differ much in length: its largest batch is the one that costs most."""

import warnings

import numpy as np
import pytest
from transformers import set_seed

from gpt2_hf.data import FlatteningCollator, LoadedData, PaddingCollator, Samples
from gpt2_hf.model.configuration_gpt2_hf import GPT2HFConfig
from gpt2_hf.model.modeling_gpt2_hf import GPT2HFForCausalLM
from gpt2_hf.options.training_arguments import GPT2HFTrainingArguments
from gpt2_hf.planning import probe

from ..saved_tensors import SavedTensors

BATCH = 8
# Three batches: nearly the same positions, but one has a document of 1,000 among short ones.
EVEN, UNEVEN, SHORT = [130] * BATCH, [*[5] * 7, 1000], [20] * BATCH


class RandomSamples(Samples):
    """Random ids in samples of given lengths."""

    def __init__(self, lengths):
        self.lengths = np.array(lengths, dtype=np.int32)

    def _tokens(self, index, offset):
        return np.random.default_rng(index).integers(0, 200, int(self.lengths[index]) + 1)


def make_probe(tmp_path, collator, dropout, attn_implementation, **given):
    """A probe's trainer, its samples and their batches, in order; `given` are attributes of the arguments."""
    set_seed(0)
    samples = RandomSamples([*SHORT, *EVEN, *UNEVEN])
    options = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    model = GPT2HFForCausalLM(
        GPT2HFConfig(
            vocab_size=200, n_embd=64, n_layer=2, n_head=4, attn_implementation=attn_implementation, **options
        )
    )
    args = GPT2HFTrainingArguments(
        str(tmp_path), use_cpu=True, precision="fp32", report_to=["none"], train_sampling_strategy="sequential"
    )
    vars(args).update(given)
    data = LoadedData({"train": samples, "validation": samples}, collator, {}, {}, [], {})
    batches = probe.first_epoch(args, samples, collator, model)
    return probe.make_probe_trainer(args, model, data, str(tmp_path)), samples, batches


def kept_bytes(trainer, samples):
    """What the forward pass on a batch really keeps."""
    saved, batch = SavedTensors(trainer.model), trainer.data_collator(samples)
    with saved:
        trainer.compute_loss(trainer.model.train(), batch)
    return saved.nbytes


@pytest.mark.parametrize(("dropout", "backend"), [(0.1, "sdpa"), (0.0, "sdpa"), (0.1, "eager")])
@pytest.mark.parametrize("collator", [FlatteningCollator(), PaddingCollator(0), PaddingCollator(0, 1024)])
def test_activations_are_those_of_the_largest_batch(tmp_path, collator, dropout, backend):
    """What is reckoned from one and two samples is, to 15 %, what the batch that costs most really keeps."""
    trainer, samples, batches = make_probe(tmp_path, collator, dropout, backend)
    planned = probe.activation_bytes(trainer, samples, batches)
    real = [kept_bytes(trainer, [samples[int(row)] for row in rows]) for rows in batches.rows]
    assert planned == pytest.approx(max(real), rel=0.15)
    assert real[batches.largest] == pytest.approx(max(real), rel=0.01)


def test_the_layers_that_are_computed_again_are_those_of_the_run(tmp_path):
    """transformers' own arguments are taken out of those for torch, as a Trainer does, and nothing is deprecated."""
    recomputing = {"gradient_checkpointing": True}
    half = recomputing | {"gradient_checkpointing_kwargs": {"every_n_layers": 2, "offload": False}}
    explicit = recomputing | {"gradient_checkpointing_kwargs": {"every_n_layers": 2, "use_reentrant": False}}
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        probes = [
            make_probe(tmp_path, PaddingCollator(0), 0.0, "sdpa", **o) for o in ({}, half, explicit, recomputing)
        ]
    none, by_half, explicitly, all_layers = (probe.activation_bytes(*made) for made in probes)
    assert none > by_half == explicitly > all_layers


def test_the_last_batch_is_completed_as_in_the_run(tmp_path):
    """It may have fewer samples and be the largest; fillers complete it, and padding makes them as long."""
    samples = RandomSamples([*SHORT, *EVEN, 1000])
    args = GPT2HFTrainingArguments(
        str(tmp_path), use_cpu=True, per_device_train_batch_size=BATCH, train_sampling_strategy="sequential"
    )
    model = GPT2HFForCausalLM(GPT2HFConfig(vocab_size=200, n_embd=64, n_layer=2, n_head=4))
    batches = probe.first_epoch(args, samples, PaddingCollator(0), model)
    drawn = probe.completed_by_fillers(batches.rows[batches.largest], BATCH)
    padded = PaddingCollator(0)([samples[number] for number in drawn])["input_ids"]
    assert len(drawn) == BATCH and padded.numel() == batches.positions[batches.largest] == BATCH * 1000
    alone = RandomSamples([1000])
    assert probe.first_epoch(args, alone, PaddingCollator(0), model).positions.tolist() == [1000]
