"""Where the time of a training step goes: torch's profiler over one step of full blocks, by kind and by operation.

python benchmarks/profile_step.py --dropout 0.1 --batch_size 2
"""

import argparse
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import profile, record_function

from gpt2_hf import GPT2HFConfig, GPT2HFForCausalLM
from gpt2_hf.runtime.precision import current_device_type, resolve_precision

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_addmm_activation")
CONVERSIONS = ("aten::copy_", "aten::_to_copy", "aten::to")


def kind_of(event: Any) -> str:
    """What an operation belongs to, by its name and by those that called it."""
    names, caller = [], event
    while caller is not None:
        names.append(caller.name)
        caller = caller.cpu_parent
    if any(name == "optimizer" for name in names):
        return "optimizer"
    is_product = names[0] in PRODUCTS
    if any("_ChunkedLoss" in name for name in names):
        return "head: products" if is_product else "head: softmax and the rest"
    if any("scaled_dot_product" in name or "_ChunkedCausalAttention" in name for name in names):
        return "attention"
    if is_product:
        return "products of the blocks"
    return "conversions and copies" if names[0] in CONVERSIONS else "the rest"


def shares(events: Iterable[Any], device: str) -> dict[str, float]:
    """The share of each kind in the time that operations take by themselves, the largest first."""
    times: Counter[str] = Counter()
    for event in events:
        if event.device_type != DeviceType.CPU:
            continue  # a kernel, whose time the operation that started it has as well
        times[kind_of(event)] += event.self_cpu_time_total if device == "cpu" else event.self_device_time_total
    return {kind: time / times.total() for kind, time in times.most_common()}


def main() -> None:
    """Profile a step and print its operations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--d_model", type=int, default=768)
    parser.add_argument("--num_layers", type=int, default=12)
    parser.add_argument("--rows", type=int, default=20, help="operations to print")
    options = parser.parse_args()
    device = current_device_type(use_cpu=False)
    dtype = resolve_precision("auto", device).dtype
    dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), options.dropout)
    sizes = {"n_embd": options.d_model, "n_layer": options.num_layers, "n_head": max(options.d_model // 64, 1)}
    config = GPT2HFConfig(**sizes, n_positions=options.length, **dropouts)
    model = GPT2HFForCausalLM(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    ids = torch.randint(0, config.vocab_size, (options.batch_size, options.length), device=device)

    def step() -> None:
        with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
            loss = model(ids, labels=ids).loss
        loss.backward()
        with record_function("optimizer"):
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    for _ in range(2):
        step()
    with profile() as profiler:
        step()
    for kind, share in shares(profiler.events(), device).items():
        print(f"{kind:28} {share:6.1%}")
    print(profiler.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=options.rows))


if __name__ == "__main__":
    main()
