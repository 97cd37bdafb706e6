"""What a run will be on several devices: memory, traffic and time of a step, by formula.

In: the sizes of a model, the number of devices and the speeds of their links. Out: numbers and lines to print.
The formulas are checked against two real processes in `tests/planning/test_parallel_plan.py`.

Sources: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations" (bytes of a
ring); Li et al. 2020, "PyTorch Distributed" (DDP: buckets, overlap with the backward pass); Rajbhandari et al. 2020,
"ZeRO", section 7 (traffic of sharded weights); Zhao et al. 2023, "PyTorch FSDP" (units, prefetching).
"""

from dataclasses import dataclass

from ..model.modeling_gpt2_hf import GPT2HFForCausalLM
from ..options.arguments import ClusterArguments
from ..options.training_arguments import GPT2HFTrainingArguments
from ..trainer.muon import state_bytes
from ..trainer.weight_average import average_bytes

_FP32 = 4
# AdamW's two moments, fp32.
_MOMENTS = 8
# Share of a step's arithmetic that is the backward pass: two products for each one of the forward pass.
_BACKWARD = 2 / 3


@dataclass(frozen=True)
class ModelSize:
    """Parameters by the units that FSDP2 gathers together.

    Attributes:
        block: of one transformer block.
        num_blocks: how many blocks there are.
        rest: embeddings, tied head and final LayerNorm; gathered once a pass and kept until it has ended.
    """

    block: int
    num_blocks: int
    rest: int

    @property
    def total(self) -> int:
        """All parameters, the tied head counted once."""
        return self.block * self.num_blocks + self.rest


def model_size(model: GPT2HFForCausalLM) -> ModelSize:
    """Count the parameters of a model, on whatever device it is."""
    block = sum(parameter.numel() for parameter in model.transformer.h[0].parameters())
    num_blocks = len(model.transformer.h)
    total = sum(parameter.numel() for parameter in model.parameters())
    return ModelSize(block, num_blocks, total - block * num_blocks)


def ddp_memory_bytes(size: ModelSize) -> int:
    """A device's memory before activations: weights, gradients, AdamW's moments.

    The gradients lie in the buckets they are sent in: the trainer sets `gradient_as_bucket_view` (Li et al. 2020,
    section 4.2), or torch would hold both.
    """
    return size.total * (_FP32 + _FP32 + _MOMENTS)


def fsdp_memory_bytes(size: ModelSize, devices: int, weight_bytes: int = _FP32) -> int:
    """A device's memory before activations: its share of everything, and what is whole for a moment.

    Whole at the end of the backward pass are the rest, two blocks (one computes while the next is gathered), and the
    gradients of as many parameters on their way to be divided (Zhao et al. 2023, section 4).

    Args:
        size: of the model.
        devices: that share it.
        weight_bytes: of a gathered weight; 2 with bf16.
    """
    share = -(-size.total * (_FP32 + _FP32 + _MOMENTS) // devices)
    gathered = size.rest + 2 * size.block
    return share + gathered * (weight_bytes + _FP32)


def ddp_traffic_bytes(size: ModelSize, devices: int) -> int:
    """What a device sends in an optimizer step, however many batches it accumulates: one all-reduce of fp32 gradients.

    A ring sends every byte twice but for a device's own share, 2 (n − 1) / n (Patarasuk and Yuan 2009).
    """
    return 2 * (devices - 1) * size.total * _FP32 // devices


def fsdp_traffic_bytes(size: ModelSize, devices: int, accumulated: int, weight_bytes: int = _FP32) -> int:
    """What a device sends in an optimizer step: weights gathered and gradients divided for every accumulated batch.

    Blocks are gathered for the forward and again for the backward pass, the rest once; a gathering or a division sends
    (n − 1) / n of the bytes (Rajbhandari et al. 2020, section 7.2).
    """
    gathered = (2 * size.block * size.num_blocks + size.rest) * weight_bytes
    divided = size.total * _FP32
    return accumulated * (devices - 1) * (gathered + divided) // devices


def step_seconds(arithmetic: float, traffic: float, hidden_share: float) -> tuple[float, float]:
    """The shortest and the longest that a step can take.

    Args:
        arithmetic: seconds of the device's own work.
        traffic: seconds of sending.
        hidden_share: share of the arithmetic during which sending can go on; of the longest, none.
    """
    shortest = max(arithmetic, arithmetic * (1 - hidden_share) + traffic)
    return shortest, arithmetic + traffic


def describe(
    args: GPT2HFTrainingArguments,
    cluster: ClusterArguments,
    model: GPT2HFForCausalLM,
    seconds_per_sample: float | None = None,
    teacher_bytes: int = 0,
) -> list[str]:
    """The lines of a plan for several devices.

    Args:
        args: of the run; `global_batch_size`, if given, is divided among the devices.
        cluster: the devices and their links.
        model: that will be trained.
        seconds_per_sample: of a training step on one device, where it is known.
        teacher_bytes: memory for the models that are learned from, whole on each device.
    """
    devices, size = cluster.devices, model_size(model)
    share, accumulated = args.parts_on(devices)
    weight_bytes = 2 if args.resolved_precision.name == "bf16" else _FP32
    link = cluster.link_gb_per_second if cluster.nproc > 1 else cluster.network_gb_per_second
    if cluster.nodes > 1:  # a ring is as fast as its slowest link
        link = min(link, cluster.network_gb_per_second)
    of_muon = _MOMENTS * size.total - state_bytes(model, args.uses_muon)  # bytes that it does not need
    average = average_bytes(args.ema_decay, size.total)
    hidden = _BACKWARD / accumulated  # gradients are sent in the last backward pass
    ways = {"DDP": (ddp_memory_bytes(size) - of_muon + average, ddp_traffic_bytes(size, devices), hidden)}
    # Muon needs whole matrices, and fp16 is refused with shards
    if not args.uses_muon and args.resolved_precision.name != "fp16":
        ways["FSDP2"] = (
            fsdp_memory_bytes(size, devices, weight_bytes) + average // devices,
            fsdp_traffic_bytes(size, devices, accumulated, weight_bytes),
            1.0,
        )
    lines = [
        f"{cluster.nodes} nodes × {cluster.nproc} devices: {devices * share * accumulated:,} samples per step = "
        f"{devices} devices × {share} samples × {accumulated} accumulated"
    ]
    for name, (memory, traffic, hidden_share) in ways.items():
        memory += teacher_bytes
        seconds = traffic / (link * 1e9)
        line = (
            f"{name}: {memory / 2**30:.2f} GiB per device before activations; sends {traffic / 1e9:.2f} GB per step, "
            f"{1e3 * seconds:.1f} ms at {link:g} GB/s"
        )
        if seconds_per_sample is not None:
            alone = seconds_per_sample * share * accumulated
            shortest, longest = step_seconds(alone, seconds, hidden_share)
            line += f"; a step takes {shortest:.3g} to {longest:.3g} s, {alone / longest:.0%} to "
            line += f"{alone / shortest:.0%} of it arithmetic"
        lines.append(line)
    return lines
