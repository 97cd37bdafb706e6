"""Text from a trained model.

In: a model, its tokenizer, a prompt. Out: the prompt with its continuation, one string per sample.
"""

import sys

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .arguments import GenerationArguments
from .errors import UserError
from .model_loading import load_trained
from .precision import current_device_type


def generate_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 0.95,
    num_samples: int = 1,
    seed: int = 42,
) -> list[str]:
    """Continue a prompt.

    Args:
        model: any causal language model of transformers.
        tokenizer: the tokenizer it was trained with.
        prompt: text to continue; an empty one starts from the end-of-text token.
        max_new_tokens: tokens to generate.
        temperature: divides the logits; 0 takes the likeliest token each time.
        top_k: keep so many candidates; 0 keeps all.
        top_p: keep the likeliest candidates of this total probability.
        num_samples: number of texts.
        seed: seed of the sampling; the random numbers of the caller are left alone.

    Raises:
        UserError: if prompt and continuation do not fit into the model's positions.
    """
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids.long()
    if ids.shape[1] == 0:
        ids = torch.tensor([[tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0]])
    positions = model.config.max_position_embeddings
    if ids.shape[1] + max_new_tokens > positions:
        raise UserError(
            f"the prompt has {ids.shape[1]} tokens and --max_new_tokens is {max_new_tokens}, but the model has "
            f"{positions} positions; shorten one of them"
        )
    if temperature == 0:
        sampling: dict[str, object] = {"do_sample": False, "num_return_sequences": 1}
    else:
        sampling = {
            "do_sample": True,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "num_return_sequences": num_samples,
        }
    was_training = model.training
    model.eval()
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            output = model.generate(
                ids.to(model.device),
                attention_mask=torch.ones_like(ids).to(model.device),
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
                **sampling,
            )
    finally:
        model.train(was_training)
    texts = tokenizer.batch_decode(output, skip_special_tokens=True)
    return texts * num_samples if temperature == 0 else texts


def run_generation(args: GenerationArguments) -> int:
    """The command `generate`: print one text per sample."""
    prompt = args.prompt if args.prompt is not None else sys.stdin.read().rstrip("\n")
    model, tokenizer, _ = load_trained(args.model_path)
    model.to(current_device_type(use_cpu=False))
    texts = generate_text(
        model,
        tokenizer,
        prompt,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        num_samples=args.num_samples,
        seed=args.seed,
    )
    for i, text in enumerate(texts):
        if len(texts) > 1:
            print(f"--- {i + 1} of {len(texts)} ---")
        print(text)
    return 0
