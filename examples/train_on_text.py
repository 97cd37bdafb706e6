"""Train a small GPT-2 on a text file of your own; at the end it writes a sample.

    python examples/train_on_text.py README.md

A document is what stands between blank lines. For a real run, half an hour with a size that suits the text:
gpt2-hf train --size auto --max_training_hours 0.5 --train_file book.txt --document_unit paragraph
"""

import argparse

from gpt2_hf import DataArguments, GPT2HFTrainingArguments, ModelArguments, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text_file", help="any UTF-8 text; more of it makes a better model")
    parser.add_argument("--output_dir", default="runs/my_text", help="folder of the run; an earlier one is replaced")
    parser.add_argument("--max_steps", type=int, default=40, help="steps of training")
    args = parser.parse_args()

    train(
        ModelArguments(d_model=128, num_layers=4, num_heads=4, max_length=128, dropout=0.0),
        DataArguments(train_file=args.text_file, document_unit="paragraph"),
        GPT2HFTrainingArguments(
            output_dir=args.output_dir,
            overwrite_output_dir=True,
            max_steps=args.max_steps,
            learning_rate=3e-3,
            warmup_steps=5,
            logging_steps=10,
            eval_steps=20,
        ),
    )


if __name__ == "__main__":
    main()
