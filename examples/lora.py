"""Fine-tune a gpt2_hf model with a LoRA adapter (peft).

    pip install peft
    python examples/lora.py --model_path runs/quickstart/best_model --output_dir lora_adapter

Without --model_path it adapts a small random model; the text is the language reference that Python carries.
"""

import argparse
import pydoc_data.topics
import tempfile

import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import TrainingArguments, default_data_collator

from gpt2_hf import GPT2HFConfig, GPT2HFForCausalLM, GPT2HFTrainer, load_tokenizer, load_trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model_path", help="folder of a gpt2_hf or stock GPT-2 model; a small random one if left out"
    )
    parser.add_argument("--output_dir", default="lora_adapter", help="folder for the adapter")
    parser.add_argument("--max_steps", type=int, default=20, help="steps of training")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        if args.model_path:
            model, tokenizer, base = load_trained(args.model_path)
        else:
            model, tokenizer, base = make_small_model(folder), load_tokenizer(), folder
        # "all-linear" is every projection but the head; their names (c_attn, c_proj, c_fc) work as well.
        lora = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear", fan_in_fan_out=True)
        model = get_peft_model(model, lora)
        model.print_trainable_parameters()

        samples = make_samples(tokenizer, length=64)
        trainer = GPT2HFTrainer(  # or transformers' own Trainer
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                max_steps=args.max_steps,
                per_device_train_batch_size=4,
                learning_rate=1e-2,
                logging_steps=max(args.max_steps // 4, 1),
                eval_strategy="steps",
                eval_steps=max(args.max_steps // 4, 1),
                load_best_model_at_end=True,
                save_steps=max(args.max_steps // 4, 1),
                use_cpu=not torch.cuda.is_available(),
            ),
            data_collator=default_data_collator,
            train_dataset=samples[20:],
            eval_dataset=samples[:20],
        )
        trainer.train()
        model.save_pretrained(args.output_dir)

        # The adapter is a folder of its own; it is put on its base model, and merged into it to get a plain one.
        merged = AutoPeftModelForCausalLM.from_pretrained(args.output_dir).merge_and_unload()
        print(f"adapter of {base} saved in {args.output_dir}; merged it is a {type(merged).__name__}")


def make_small_model(folder: str) -> GPT2HFForCausalLM:
    """A small random model, saved so that the adapter can name its base."""
    GPT2HFForCausalLM(GPT2HFConfig(n_embd=64, n_layer=2, n_head=2)).save_pretrained(folder)
    return GPT2HFForCausalLM.from_pretrained(folder)


def make_samples(tokenizer, length: int) -> list[dict[str, list[int]]]:
    """Blocks of token ids with themselves as labels."""
    text = "\n".join(list(pydoc_data.topics.topics.values())[:20])
    ids = tokenizer(text).input_ids
    blocks = [ids[i : i + length] for i in range(0, len(ids) - length, length)]
    return [{"input_ids": block, "labels": block} for block in blocks]


if __name__ == "__main__":
    main()
