"""Kill a training as a crash would, with SIGKILL and without warning, and resume it from its last checkpoint.

    python examples/resume_after_kill.py --output_dir runs/killed

Whatever was being written, a checkpoint on the disk is whole; the resumed run is bit-identical to an uninterrupted
one (on a CPU; tests/job/test_main_job.py compares them).
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

TRAIN = [
    *(sys.executable, "-m", "gpt2_hf", "train", "--dataset_name", "python-docs"),
    *("--d_model", "64", "--num_layers", "2", "--num_heads", "2", "--max_length", "64", "--batch_size", "4"),
    *("--learning_rate", "3e-3", "--warmup_steps", "5", "--logging_steps", "5", "--eval_strategy", "no"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="runs/killed", type=Path, help="folder of the run; it must be new")
    parser.add_argument("--max_steps", type=int, default=40, help="steps of training")
    args = parser.parse_args()

    command = [*TRAIN, "--checkpoint_dir", str(args.output_dir), "--max_steps", str(args.max_steps)]
    command += ["--save_every", "10"]
    process = subprocess.Popen(command)
    while not (args.output_dir / "checkpoint-10").exists() and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    print(f"killed: exit code {process.wait()}; on the disk: {names(args.output_dir)}")

    subprocess.run([*command, "--resume_from", "latest"], check=True)
    history = json.loads((args.output_dir / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    steps = [entry["step"] for entry in history if "loss" in entry]
    print(f"resumed and finished; on the disk: {names(args.output_dir)}; logged without a gap: steps {steps}")


def names(output_dir: Path) -> str:
    """The checkpoints of a run."""
    return ", ".join(sorted(path.name for path in output_dir.glob("checkpoint-*"))) or "no checkpoint"


if __name__ == "__main__":
    main()
