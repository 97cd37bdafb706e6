"""Does each training command of the user's guide train on a card of 8 GiB? And do the kernels that CPUs lack agree?

    python benchmarks/eight_gib.py              # a few steps of each config, with torch's memory capped at 7 GiB
    python benchmarks/eight_gib.py --kernels    # losses of every attention backend and of torch_compile against fp32
    python benchmarks/eight_gib.py --dry_run    # the same on a CPU, with tiny models: do the commands run?

A card of 8 GiB has 7.6 of them, of which CUDA itself and a desktop take half a GiB. Needs a CUDA device, but for
--dry_run. The last line is one JSON document.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGS = {
    "base": [],
    "base, blocks": ["--sequence_mode", "blocks"],
    "base, torch_compile": ["--torch_compile"],
    "small": [],
    "large": [],
    "large, blocks": ["--sequence_mode", "blocks"],
    "wikitext2_best": [],
}
CAPPED = """
import sys, torch
from gpt2_hf.__main__ import main
on_card = "--use_cpu" not in sys.argv
if on_card:
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(7 * 2**30 / total, 1.0))
code = main(sys.argv[1:])
if on_card:
    print("peak GiB", torch.cuda.max_memory_reserved() / 2**30)
sys.exit(code)
"""
TINY = ["--use_cpu", "--d_model", "32", "--num_layers", "1", "--num_heads", "1", "--max_length", "32"]
TINY += ["--max_train_samples", "200", "--max_eval_samples", "8"]
BACKENDS = {
    "eager": ["--attn_implementation", "eager"],
    "sdpa": [],
    "flex_attention": ["--attn_implementation", "flex_attention"],
    "flash_attention_2": ["--attn_implementation", "flash_attention_2"],
    "sdpa, torch_compile": ["--torch_compile"],
    "sdpa, fp32": ["--precision", "fp32"],
    "sdpa, padded": ["--sequence_mode", "padded"],
}


# How many times as long a run may take that begins with a compilation.
_COMPILING = 3


def run(options: list[str], seconds: float) -> dict[str, object]:
    """One capped run in a process of its own; what became of it."""
    begin = time.monotonic()
    try:
        result = subprocess.run(
            [sys.executable, "-c", CAPPED, "train", *options],
            capture_output=True,
            text=True,
            timeout=seconds,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
    except subprocess.TimeoutExpired:
        return {"trains": False, "problem": f"still running after {seconds:g} s"}
    lines = (result.stdout + result.stderr).strip().splitlines()
    peaks = [float(line.split()[-1]) for line in lines if line.startswith("peak GiB")]
    losses = [line for line in lines if line.startswith("step ") and "loss" in line]
    answer: dict[str, object] = {
        "trains": result.returncode == 0,
        "seconds": round(time.monotonic() - begin, 1),
        "peak_gib": round(peaks[0], 2) if peaks else None,
        "losses": losses[-3:],
    }
    if result.returncode:
        answer["problem"] = lines[-1] if lines else f"exit code {result.returncode}"
    return answer


def size_and_steps(options: argparse.Namespace) -> list[str]:
    """What a run here has in place of its config's."""
    size = TINY if options.dry_run else ["--max_eval_samples", "16"]
    if not options.kernels:
        return [*size, "--max_steps", "6"]
    layers = [] if options.dry_run else ["--num_layers", "4"]
    return [*size, *layers, "--dropout", "0", "--max_steps", "5", "--warmup_steps", "1"]


def main() -> None:
    """Run all, print a line each and one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", action="store_true", help="compare backends instead of configs")
    parser.add_argument("--dry_run", action="store_true", help="on a CPU, with tiny models and without the cap")
    parser.add_argument("--cases", nargs="+", help="only those whose names begin so")
    parser.add_argument("--dataset_name", default="python-docs", help="as in training")
    parser.add_argument("--dataset_config_name", help="as in training")
    parser.add_argument("--output_file", help="also write the JSON here")
    parser.add_argument("--seconds", type=float, help="limit of each run (60; of a dry run 300)")
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here")
    options.seconds = options.seconds or (300 if options.dry_run else 60)
    data = ["--dataset_name", options.dataset_name]
    if options.dataset_config_name:
        data += ["--dataset_config_name", options.dataset_config_name]
    common = [*data, "--logging_steps", "1", "--save_strategy", "no", "--report_to", "none"]
    results: dict[str, object] = {}
    for name, further in (BACKENDS if options.kernels else CONFIGS).items():
        if options.cases and not name.startswith(tuple(options.cases)):
            continue
        with tempfile.TemporaryDirectory() as folder:
            config = "small" if options.kernels else name.split(",")[0]
            arguments = ["--config", f"training_args/{config}.json", *common, "--checkpoint_dir", folder, *further]
            arguments += size_and_steps(options)
            if options.dry_run and "--torch_compile" in further:
                arguments += ["--torch_compile_backend", "eager"]  # compiling for a CPU takes longer than the rest
            compiles = "--torch_compile" in further or "flex_attention" in further
            results[name] = run(arguments, options.seconds * (_COMPILING if compiles else 1))
        print(f"{name}: {results[name]}", flush=True)
        if options.output_file:  # after each, for a run that is cut off
            Path(options.output_file).write_text(json.dumps(results, indent=2), encoding="utf-8")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
