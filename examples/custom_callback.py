"""Add your own callback to the Trainer: this one stops as soon as the validation loss is low enough.

    python examples/custom_callback.py --stop_below 10

It also shows the parts that `gpt2_hf.train` puts together: tokenizer, data, model, trainer.
"""

import argparse

from transformers import TrainerCallback

from gpt2_hf import (
    DataArguments,
    GPT2HFConfig,
    GPT2HFForCausalLM,
    GPT2HFTrainer,
    GPT2HFTrainingArguments,
    load_data,
    load_tokenizer,
)


class StopBelow(TrainerCallback):
    """Ends the training, with a checkpoint, at the first evaluation whose loss is below a limit."""

    def __init__(self, limit: float):
        self.limit = limit

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if metrics["eval_loss"] < self.limit:
            print(f"step {state.global_step}: {metrics['eval_loss']:.3f} is below {self.limit:g}, enough")
            control.should_save = control.should_training_stop = True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stop_below", type=float, default=10.0, help="validation loss that is low enough")
    parser.add_argument("--output_dir", default="runs/callback", help="folder for the checkpoints")
    parser.add_argument("--max_steps", type=int, default=60, help="steps at most")
    args = parser.parse_args()

    tokenizer = load_tokenizer()
    data = load_data(DataArguments(dataset_name="python-docs", dataset_config_name=None), tokenizer, max_length=64)
    trainer = GPT2HFTrainer(
        GPT2HFForCausalLM(GPT2HFConfig(n_positions=64, n_embd=64, n_layer=2, n_head=2)),
        GPT2HFTrainingArguments(
            output_dir=args.output_dir,
            max_steps=args.max_steps,
            learning_rate=3e-3,
            warmup_steps=5,
            logging_steps=5,
            eval_steps=5,
        ),
        data_collator=data.collator,
        train_dataset=data.samples["train"],
        eval_dataset=data.samples["validation"],
        processing_class=tokenizer,
        callbacks=[StopBelow(args.stop_below)],
    )
    trainer.train()
    print(f"stopped at step {trainer.state.global_step}; best checkpoint: {trainer.state.best_model_checkpoint}")


if __name__ == "__main__":
    main()
