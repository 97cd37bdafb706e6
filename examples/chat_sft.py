"""Turn a trained model into a small chat model with trl's SFTTrainer and a chat template, and talk to it.

    pip install trl
    python examples/chat_sft.py --model_path runs/quickstart/best_model --output_dir chat

Without --model_path it begins with a small random model and a small vocabulary. The few hundred conversations are made
up here: greetings, opposites and counting. The chat template is saved with the tokenizer, so that pipelines, servers
and the GGUF file of `gpt2-hf export --format gguf` know how a conversation is written down.
"""

import argparse
import random

import torch
from datasets import Dataset
from transformers import pipeline
from trl import SFTConfig, SFTTrainer

from gpt2_hf import GPT2HFConfig, GPT2HFForCausalLM, load_trained, train_tokenizer

ROLES = ["<|user|>", "<|assistant|>"]
# Only what stands between "generation" marks, the answers, is trained on.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}<|assistant|>{% generation %}{{ message.content }}<|endoftext|>"
    "{% endgeneration %}{% else %}<|user|>{{ message.content }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NAMES = [
    "Ada",
    "Ben",
    "Chen",
    "Dana",
    "Emil",
    "Fatima",
    "Goran",
    "Hana",
    "Ivan",
    "Juna",
    "Kofi",
    "Lena",
    "Milo",
    "Noor",
]
OPPOSITES = [("hot", "cold"), ("big", "small"), ("up", "down"), ("old", "new"), ("fast", "slow"), ("wet", "dry")]
QUESTIONS = ["Greet Ada.", "What is the opposite of hot?", "Which number comes after 7?"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model_path", help="folder of a gpt2_hf or stock GPT-2 model; a small random one if left out"
    )
    parser.add_argument("--output_dir", default="chat", help="folder for the chat model")
    parser.add_argument("--max_steps", type=int, default=200, help="steps of training")
    parser.add_argument("--question", nargs="+", default=QUESTIONS, help="what to ask it at the end")
    args = parser.parse_args()

    if args.model_path:
        model, tokenizer, _ = load_trained(args.model_path)
    else:
        tokenizer = train_tokenizer(
            iter([[f"{question}\n{answer}" for question, answer in make_pairs()]]), vocab_size=400
        )
        sizes = {"vocab_size": len(tokenizer), "n_positions": 128, "n_embd": 128, "n_layer": 2, "n_head": 4}
        model = GPT2HFForCausalLM(GPT2HFConfig(**sizes, bos_token_id=0, eos_token_id=0))
    tokenizer.add_special_tokens({"additional_special_tokens": ROLES})
    tokenizer.chat_template = CHAT_TEMPLATE
    model.resize_token_embeddings(len(tokenizer))

    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=make_conversations(),
        args=SFTConfig(
            output_dir=args.output_dir,
            max_steps=args.max_steps,
            per_device_train_batch_size=16,
            learning_rate=5e-3,
            max_length=model.config.n_positions,
            assistant_only_loss=True,
            logging_steps=max(args.max_steps // 5, 1),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
        ),
    )
    trainer.train()
    trainer.save_model(args.output_dir)  # with the tokenizer and its chat template

    chat = pipeline("text-generation", model=args.output_dir)
    for question in args.question:
        conversation = [{"role": "user", "content": question}]
        answer = chat(conversation, max_new_tokens=20, do_sample=False)[0]["generated_text"][-1]["content"]
        print(f"user: {question}\nassistant: {answer}")


def make_conversations() -> Dataset:
    """A few hundred questions with their answers, in the form that chat templates take."""
    rows = make_pairs() * 8
    random.Random(0).shuffle(rows)
    return Dataset.from_list(
        [
            {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
            for question, answer in rows
        ]
    )


def make_pairs() -> list[tuple[str, str]]:
    """Questions and answers."""
    pairs = [(f"Greet {name}.", f"Hello, {name}!") for name in NAMES]
    for one, other in OPPOSITES:
        for a, b in ((one, other), (other, one)):
            pairs.append((f"What is the opposite of {a}?", f"The opposite of {a} is {b}."))
    return pairs + [(f"Which number comes after {n}?", f"After {n} comes {n + 1}.") for n in range(20)]


if __name__ == "__main__":
    main()
