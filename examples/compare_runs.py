"""Train with two learning rates, and draw both runs in one picture.

    python examples/compare_runs.py --output_dir runs/learning_rates

For runs that are there already: python -m gpt2_hf report runs/a runs/b
"""

import argparse
from pathlib import Path

from gpt2_hf import DataArguments, GPT2HFTrainingArguments, ModelArguments, compare_runs, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="runs/learning_rates", type=Path, help="folder of the two runs")
    parser.add_argument("--max_steps", type=int, default=30, help="steps of each run")
    args = parser.parse_args()

    folders = []
    for learning_rate in (3e-4, 3e-3):
        folders.append(args.output_dir / f"lr_{learning_rate:g}")
        train(
            ModelArguments(d_model=64, num_layers=2, num_heads=2, max_length=64),
            DataArguments(dataset_name="python-docs", dataset_config_name=None),
            GPT2HFTrainingArguments(
                output_dir=str(folders[-1]),
                overwrite_output_dir=True,
                max_steps=args.max_steps,
                learning_rate=learning_rate,
                warmup_steps=5,
                logging_steps=5,
                eval_steps=10,
            ),
        )
    compare_runs(folders, args.output_dir / "comparison.png")
    print(f"both runs in one picture: {args.output_dir / 'comparison.png'}")


if __name__ == "__main__":
    main()
