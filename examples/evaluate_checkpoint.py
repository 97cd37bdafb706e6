"""Score a checkpoint from Python: perplexity per token and per word, bits per byte.

    python examples/evaluate_checkpoint.py runs/quickstart/best_model

The text is scored document by document (a line of a txt file). By the protocol of the model's training, or with
sliding windows, a command does it:
python -m gpt2_hf evaluate --model_path runs/quickstart/best_model --split validation
"""

import argparse

from gpt2_hf import DataArguments, evaluate_model, load_data, load_trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_path", help="folder, checkpoint name, or hub id of a gpt2_hf model or stock GPT-2")
    parser.add_argument("--test_file", help="text to score; the validation part of python-docs when left out")
    args = parser.parse_args()

    model, tokenizer, _ = load_trained(args.model_path)
    if args.test_file:
        split, data_args = "test", DataArguments(test_file=args.test_file)
    else:
        split, data_args = "validation", DataArguments(dataset_name="python-docs", dataset_config_name=None)
    data = load_data(data_args, tokenizer, model.config.n_positions, splits=(split,))
    result = evaluate_model(model, data.samples[split], data.collator, tokenizer=tokenizer)
    for name, value in result.items():
        if value is None:  # a tokenizer that does not keep the bytes of the text has no words and bytes to count
            continue
        print(f"{name:>16}  {value:,.4f}" if isinstance(value, float) else f"{name:>16}  {value:,}")


if __name__ == "__main__":
    main()
