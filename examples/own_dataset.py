"""Train on a `datasets.Dataset` of your own, with a tokenizer and a collator of transformers.

The usual twenty lines, with GPT2HFTrainer in the place of Trainer:

    python examples/own_dataset.py --output_dir runs/own_dataset
"""

import argparse

from datasets import Dataset
from transformers import DataCollatorForLanguageModeling, TrainingArguments

from gpt2_hf import GPT2HFConfig, GPT2HFForCausalLM, GPT2HFTrainer, load_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="runs/own_dataset", help="folder for checkpoints and the best model")
    parser.add_argument("--max_steps", type=int, default=20, help="steps of training")
    options = parser.parse_args()

    tokenizer = load_tokenizer()
    sentences = [f"The square of {i} is {i * i}, and that of {i + 1} is larger." for i in range(200)]
    rows = Dataset.from_dict({"text": sentences}).map(lambda batch: tokenizer(batch["text"]), batched=True)
    rows = rows.train_test_split(test_size=40, seed=0)
    trainer = GPT2HFTrainer(
        GPT2HFForCausalLM(GPT2HFConfig(n_embd=64, n_layer=2, n_head=2)),
        # with transformers' own arguments as here, or with GPT2HFTrainingArguments, which have a time budget
        TrainingArguments(
            options.output_dir,
            max_steps=options.max_steps,
            learning_rate=1e-2,
            eval_strategy="steps",
            eval_steps=max(options.max_steps // 2, 1),
            metric_for_best_model="loss",
        ),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        train_dataset=rows["train"],
        eval_dataset={"squares": rows["test"], "start": rows["train"].select(range(20))},
    )
    trainer.train()
    metrics = trainer.evaluate()
    print(f"perplexity of squares {metrics['eval_squares_perplexity']:.2f}, of all {metrics['eval_perplexity']:.2f}")


if __name__ == "__main__":
    main()
