"""Fine-tune GPT-2's weights on a text file, and measure the gain.

    python examples/finetune_gpt2.py README.md --model_name_or_path openai-community/gpt2

The weights may also be in a local folder. The same as a command, for a real run:
python run_clm.py --config training_args/finetune_gpt2.json --train_file book.txt --document_unit paragraph
"""

import argparse
import json
from pathlib import Path

from gpt2_hf import DataArguments, GPT2HFTrainingArguments, ModelArguments, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text_file", help="any UTF-8 text; a document is what stands between blank lines")
    parser.add_argument(
        "--model_name_or_path", default="openai-community/gpt2", help="a stock GPT-2 or a gpt2_hf model"
    )
    parser.add_argument("--output_dir", default="runs/finetuned", help="folder of the run; an earlier one is replaced")
    parser.add_argument("--max_steps", type=int, default=10, help="steps of training")
    args = parser.parse_args()

    train(
        ModelArguments(model_name_or_path=args.model_name_or_path, max_length=128),
        DataArguments(train_file=args.text_file, document_unit="paragraph"),
        GPT2HFTrainingArguments(
            output_dir=args.output_dir,
            overwrite_output_dir=True,
            max_steps=args.max_steps,
            per_device_train_batch_size=2,
            learning_rate=1e-4,
            warmup_steps=2,
            logging_steps=5,
            eval_on_start=True,
            eval_steps=args.max_steps,
            save_steps=args.max_steps,
        ),
    )
    history = json.loads((Path(args.output_dir) / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    perplexities = [entry["eval_perplexity"] for entry in history if "eval_perplexity" in entry]
    print(f"validation perplexity: {perplexities[0]:.2f} before, {min(perplexities):.2f} after")


if __name__ == "__main__":
    main()
