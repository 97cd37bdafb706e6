"""The number of trained tokens of a step is exact, whatever number format the model computes in."""

import pytest
import torch
from torch.distributed.fsdp._fully_shard._fsdp_common import _cast_fp_tensor

from gpt2_hf.model.configuration_gpt2_hf import GPT2HFConfig
from gpt2_hf.model.modeling_gpt2_hf import GPT2HFForCausalLM
from gpt2_hf.options.training_arguments import GPT2HFTrainingArguments
from gpt2_hf.trainer.gpt2_trainer import GPT2HFTrainer


@pytest.mark.parametrize("count", [257, 1029, 5003])
@pytest.mark.parametrize("key", ["labels", "shift_labels"])
def test_the_count_survives_the_cast_to_bf16(tmp_path, count, key):
    """FSDP2 casts floating inputs of a bf16 model; above 256 a count would change by up to 0.4 percent."""
    args = GPT2HFTrainingArguments(str(tmp_path), use_cpu=True, precision="fp32", report_to=[], eval_strategy="no")
    model = GPT2HFForCausalLM(GPT2HFConfig(vocab_size=8, n_positions=8, n_embd=8, n_layer=1, n_head=1)).eval()
    trainer = GPT2HFTrainer(model, args)
    labels = torch.ones(1, count + (key == "labels"), dtype=torch.int64)
    _, num_items = trainer.get_batch_samples(iter([{key: labels}]), 1, args.device)
    cast = _cast_fp_tensor(torch.bfloat16, num_items)
    assert int(cast) == count and not cast.is_floating_point()
    ids = torch.arange(8).unsqueeze(0)
    expected = model(ids, labels=ids, num_items_in_batch=count).loss
    assert torch.equal(model(ids, labels=ids, num_items_in_batch=cast).loss, expected)
