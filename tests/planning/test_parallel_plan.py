"""The formulas of a plan for several devices, beside what two real processes send and hold."""

import dataclasses
import json
import re

import pytest
import torch

from gpt2_hf import GPT2HFConfig, GPT2HFForCausalLM
from gpt2_hf.__main__ import main
from gpt2_hf.errors import UserError
from gpt2_hf.options.arguments import ClusterArguments
from gpt2_hf.options.training_arguments import GPT2HFTrainingArguments, divide_batch
from gpt2_hf.planning.parallel_plan import (
    ModelSize,
    ddp_memory_bytes,
    ddp_traffic_bytes,
    describe,
    fsdp_memory_bytes,
    fsdp_traffic_bytes,
    model_size,
    step_seconds,
)

from .. import ranks
from ..conftest import needs_fork_server
from ..faults import harness

_SIZES = {"vocab_size": 96, "n_positions": 32, "n_embd": 384, "n_layer": 4, "n_head": 4}


def _step(path, rank, port, fsdp):
    """The body of one of two processes: a training step, what it sends, and what it holds afterwards."""
    import os

    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, FullyShardedDataParallelPlugin
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    if fsdp:
        ranks.allow_fsdp_on_cpu()
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    as_the_trainer = DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin if fsdp else None, kwargs_handlers=[as_the_trainer])
    model = GPT2HFForCausalLM(GPT2HFConfig(**_SIZES))
    optimizer = torch.optim.AdamW(model.parameters())
    model, optimizer = accelerator.prepare(model, optimizer)
    buckets = {}

    def hook(state, bucket):
        buckets[bucket.buffer().untyped_storage().data_ptr()] = bucket.buffer().nbytes
        return allreduce_hook(None, bucket)

    if not fsdp:
        model.register_comm_hook(None, hook)
    ids = torch.zeros((1, 8), dtype=torch.long)
    for _ in range(2):  # DDP orders its buckets after the first step
        buckets.clear()
        optimizer.zero_grad(set_to_none=False)
        with torch.profiler.profile(record_shapes=True) as profile:
            accelerator.backward(model(input_ids=ids, labels=ids).loss)
        optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    tensors = [*model.parameters(), *(parameter.grad for parameter in model.parameters()), *states]
    shards = [tensor.to_local() if fsdp else tensor for tensor in tensors]
    # by address: gradients of FSDP2 are views of one buffer for each unit, those of DDP are views of the buckets
    storages = {shard.untyped_storage().data_ptr(): shard.untyped_storage().nbytes() for shard in shards} | buckets
    sums = {"all_reduce": 0, "gathered": 0, "divided": 0, "held": sum(storages.values())}
    for event in profile.events():
        if event.name == "gloo:all_reduce" and not fsdp:
            sums["all_reduce"] += 4 * event.input_shapes[0][0]
        elif event.name == "c10d::_allgather_base_":
            sums["gathered"] += 4 * event.input_shapes[0][0]
        elif event.name == "c10d::_reduce_scatter_base_":
            sums["divided"] += 4 * event.input_shapes[1][0]
    if rank == 0:
        path.write_text(json.dumps(sums))
    accelerator.wait_for_everyone()
    os._exit(0)


@pytest.mark.distributed
@needs_fork_server
@pytest.mark.parametrize("fsdp", [False, True], ids=["ddp", "fsdp2"])
def test_two_processes_send_and_hold_what_the_formulas_say(tmp_path, fsdp):
    """To the byte what is sent; within a thousandth what is held between steps, for shards are rounded up."""
    port = harness.free_port()
    pair = [harness.start_function(_step, tmp_path / "sums", rank, port, fsdp) for rank in (0, 1)]
    assert harness.join(pair, timeout=240) == [0, 0]
    sums = json.loads((tmp_path / "sums").read_text())
    size = model_size(GPT2HFForCausalLM(GPT2HFConfig(**_SIZES)))
    if fsdp:
        assert (sums["gathered"] + sums["divided"]) // 2 == fsdp_traffic_bytes(size, 2, accumulated=1)
        # the rest of the formula is whole only during the backward pass
        share = fsdp_memory_bytes(size, 2) - (size.rest + 2 * size.block) * 8
        assert sums["held"] == pytest.approx(share, rel=1e-3)
    else:
        assert sums["all_reduce"] == ddp_traffic_bytes(size, 2)  # n = 2: 2 (n − 1) / n is 1
        assert sums["held"] == pytest.approx(ddp_memory_bytes(size), rel=1e-3)


def test_sizes_add_up():
    """Blocks and the rest are all parameters of GPT-2 124M; one device sends nothing."""
    size = ModelSize(block=7_087_872, num_blocks=12, rest=39_385_344)
    assert size.total == 124_439_808
    assert ddp_traffic_bytes(size, 1) == fsdp_traffic_bytes(size, 1, accumulated=4) == 0
    assert fsdp_memory_bytes(size, 8) < ddp_memory_bytes(size)
    assert fsdp_traffic_bytes(size, 8, 1, weight_bytes=2) < fsdp_traffic_bytes(size, 8, 1)


def test_traffic_hides_behind_arithmetic_or_adds_to_it():
    """As much as can be sent during the work is free in the shortest step, nothing in the longest."""
    assert step_seconds(3.0, 1.0, 2 / 3) == (3.0, 4.0)
    assert step_seconds(3.0, 4.0, 2 / 3) == pytest.approx((5.0, 7.0))
    assert step_seconds(3.0, 0.0, 1.0) == (3.0, 3.0)


@pytest.mark.parametrize(
    ("samples", "devices", "most", "expected"),
    [(64, 1, 8, (8, 8)), (64, 16, 8, (4, 1)), (64, 4, 8, (8, 2)), (56, 4, 8, (7, 2)), (6, 2, 8, (3, 1))],
)
def test_a_batch_is_divided_into_the_fewest_equal_shares(samples, devices, most, expected):
    """No more at once than a device holds."""
    assert divide_batch(samples, devices, most) == expected


@pytest.mark.parametrize(("samples", "devices", "choices"), [(10, 4, "8 or 12"), (3, 4, "4")])
def test_a_batch_that_cannot_be_divided_is_refused(samples, devices, choices):
    """With the nearest sizes that can."""
    with pytest.raises(UserError, match=f"--global_batch_size {samples} .* use {choices}$"):
        divide_batch(samples, devices, 8)


@pytest.mark.usefixtures("quick_probe")
def test_plan_prints_the_lines(tiny_options, tmp_path, capsys):
    """`plan --nproc 4 --nodes 2`: the batches, and both ways with their memory and traffic; nothing for one device."""
    options = ["plan", *tiny_options, "--checkpoint_dir", str(tmp_path / "run")]
    assert main([*options, "--nproc", "4", "--nodes", "2", "--global_batch_size", "64", "--batch_size", "4"]) == 0
    out = capsys.readouterr().out
    assert "2 nodes × 4 devices: 64 samples per step = 8 devices × 4 samples × 2 accumulated" in out
    assert "\nDDP: " in out and "\nFSDP2: " in out and "at 12.5 GB/s" in out
    # of 200 samples, 64 at a time
    assert "\nthe figures above are those of this one process; on 8 devices: 4 steps\n2 nodes" in out
    assert main([*options, "--nproc", "8", "--global_batch_size", "60"]) == 2
    out, err = capsys.readouterr()
    assert "--global_batch_size 60 cannot be divided among 8 processes; use 56 or 64" in err and "probing: " not in out
    assert main([*options, "--max_steps", "2"]) == 0
    out = capsys.readouterr().out
    assert "FSDP2" not in out
    assert "2 in all, 2 of them warmup (100%)" in out and out.count("warmup takes 5 of 2 steps") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"link_gb_per_second": 100.0}, "--link_gb_per_second has no effect with --nproc 1; leave it out, or add"),
        ({"link_gb_per_second": 9.0, "nodes": 2}, "--link_gb_per_second has no effect with --nproc 1"),
        ({"network_gb_per_second": 50.0, "nproc": 8}, "--network_gb_per_second has no effect with --nodes 1"),
    ],
)
def test_a_link_that_is_not_there_is_refused(options, message):
    """With one device of a machine nothing is sent within it, and with one machine nothing between machines."""
    with pytest.raises(UserError, match=message):
        ClusterArguments(**options)
    ClusterArguments(**{"nproc": 2, "nodes": 2, **options})


def test_gradients_of_copies_are_sent_in_the_last_backward_pass(tmp_path):
    """So that two thirds of a micro-batch hide them, however many are accumulated."""
    with torch.device("meta"):
        model = GPT2HFForCausalLM(GPT2HFConfig())
    args = GPT2HFTrainingArguments(
        str(tmp_path), use_cpu=True, per_device_train_batch_size=8, global_batch_size=64, precision="fp32"
    )
    traffic = ddp_traffic_bytes(model_size(model), 2)
    cluster = ClusterArguments(nproc=2, link_gb_per_second=traffic / 1e9)
    (line,) = (each for each in describe(args, cluster, model, 1.6 / 32) if each.startswith("DDP"))
    assert "a step takes 2.33 to 2.6 s" in line


def test_fp16_is_planned_without_the_way_it_is_refused_for(tmp_path):
    """Shards are not scaled together."""
    with torch.device("meta"):
        model = GPT2HFForCausalLM(GPT2HFConfig(n_layer=1))
    args = GPT2HFTrainingArguments(str(tmp_path), use_cpu=True)
    args.resolved_precision = dataclasses.replace(args.resolved_precision, name="fp16")
    lines = describe(args, ClusterArguments(nproc=2), model)
    assert any(line.startswith("DDP: ") for line in lines) and not any(line.startswith("FSDP2") for line in lines)


def test_muon_is_planned_without_the_way_it_is_refused_for(tmp_path):
    """It needs whole matrices, so no FSDP2; and for the 85M numbers in them half the memory of AdamW."""
    with torch.device("meta"):
        model = GPT2HFForCausalLM(GPT2HFConfig())
    memory = []
    for optim in ("adamw_torch_fused", "muon"):
        args = GPT2HFTrainingArguments(str(tmp_path), use_cpu=True, optim=optim)
        text = "\n".join(describe(args, ClusterArguments(nproc=2), model))
        assert ("FSDP2: " in text) == (optim != "muon")
        memory.append(float(re.search(r"DDP: ([\d.]+) GiB", text).group(1)))
    assert memory[0] - memory[1] == pytest.approx(4 * 84.9e6 / 2**30, abs=0.02)


def test_options_of_a_plan_are_not_those_of_a_run(train_tiny, tmp_path, capsys):
    """`train --nproc` would do nothing; torchrun has an option of that name."""
    assert train_tiny(tmp_path / "run", "--nproc", "2") == 2
    assert "--nproc" in capsys.readouterr().err


def test_accumulation_beside_a_global_batch_is_refused(train_tiny, tmp_path, capsys):
    """It follows from the devices."""
    options = ("--global_batch_size", "8", "--gradient_accumulation_steps", "2")
    assert train_tiny(tmp_path / "run", *options) == 2
    assert "--gradient_accumulation_steps has no effect beside --global_batch_size" in capsys.readouterr().err
