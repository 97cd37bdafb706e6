"""Where the time of a training step goes: torch's profiler over one step of full blocks, by operation.

python benchmarks/profile_step.py --dropout 0.1 --batch_size 2
"""

import argparse

import torch
from torch.profiler import profile

from gpt2_hf import GPT2HFConfig, GPT2HFForCausalLM
from gpt2_hf.runtime.precision import current_device_type, resolve_precision


def main() -> None:
    """Profile a step and print its operations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--num_layers", type=int, default=12)
    parser.add_argument("--rows", type=int, default=20, help="operations to print")
    options = parser.parse_args()
    device = current_device_type(use_cpu=False)
    dtype = resolve_precision("auto", device).dtype
    dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), options.dropout)
    config = GPT2HFConfig(n_layer=options.num_layers, n_positions=options.length, **dropouts)
    model = GPT2HFForCausalLM(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    ids = torch.randint(0, config.vocab_size, (options.batch_size, options.length), device=device)

    def step() -> None:
        with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
            loss = model(ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(2):
        step()
    with profile() as profiler:
        step()
    print(profiler.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=options.rows))


if __name__ == "__main__":
    main()
