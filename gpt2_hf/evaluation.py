"""Score a model on a text: exact loss and perplexity, by the training protocol or with sliding windows.

In: a model, tokenized documents, a protocol. Out: a dictionary that says what was measured and how.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .arguments import DataArguments, EvaluationArguments
from .checkpoints import RESOLVED_CONFIG_NAME, write_json
from .chunked_loss import IGNORE_INDEX
from .data import load_data
from .errors import UserError
from .metrics import perplexity
from .model_loading import load_trained
from .modeling_gpt2_hf import GPT2HFForCausalLM
from .precision import current_device_type, resolve_precision


@torch.no_grad()
def evaluate_model(
    model: GPT2HFForCausalLM,
    samples: Dataset,
    collator: Any,
    *,
    batch_size: int = 8,
    dtype: torch.dtype | None = None,
) -> dict[str, float]:
    """Sum the token losses of all samples.

    Args:
        model: the model to score, on its device.
        samples: a map-style dataset of samples that `collator` understands.
        collator: makes a batch of a list of samples.
        batch_size: samples in a batch; it does not change the result.
        dtype: compute the products in this type by autocast.

    Returns:
        `loss` (nats per scored token), `perplexity`, `tokens` (scored), `nll` (the sum, in nats).
    """
    was_training = model.training
    model.eval()
    device = model.device
    sums, tokens = [], 0
    for batch in DataLoader(samples, batch_size=batch_size, collate_fn=collator):
        batch = {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            nll = model(**batch, num_items_in_batch=1, return_logits=False).loss
        sums.append(nll.item())
        tokens += int((batch["shift_labels"] != IGNORE_INDEX).sum())
    model.train(was_training)
    if tokens == 0:
        raise ValueError("no token was scored")
    nll = math.fsum(sums)
    return {"loss": nll / tokens, "perplexity": perplexity(nll / tokens), "tokens": tokens, "nll": nll}


class SlidingWindows(Dataset):
    """One stream of tokens in windows of `max_length` inputs that move on by `stride`.

    A token is scored in the first window that reaches it, with all the context it has there; a window's own first
    token has none and is not scored, so with `stride < max_length` every token but the very first is scored once.
    This is the protocol of the perplexity guide in transformers' documentation.
    """

    def __init__(self, stream: np.ndarray, max_length: int, stride: int):
        self.stream = stream
        self.windows = list(_windows(len(stream), max_length, stride))

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        start, first_scored, stop = self.windows[index]
        ids = self.stream[start:stop]
        targets = np.full(len(ids), IGNORE_INDEX, dtype=np.int64)
        offset = first_scored - start - 1  # position whose target is the first scored token
        targets[offset:-1] = ids[offset + 1 :]
        return {"input_ids": ids, "shift_labels": targets}


def _windows(num_tokens: int, max_length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """`(start, first scored token, stop)` of each window."""
    scored_until = 1  # the very first token has no context
    for start in range(0, num_tokens, stride):
        stop = min(start + max_length, num_tokens)
        if stop > scored_until:
            # a window's own first token has no context inside it and was scored by the one before, if at all
            yield start, max(scored_until, start + 1), stop
            scored_until = stop
        if stop == num_tokens:
            return


def _collate_windows(samples: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    length = max(len(sample["input_ids"]) for sample in samples)
    input_ids = np.zeros((len(samples), length), dtype=np.int64)
    shift_labels = np.full((len(samples), length), IGNORE_INDEX, dtype=np.int64)
    for i, sample in enumerate(samples):
        input_ids[i, : len(sample["input_ids"])] = sample["input_ids"]
        shift_labels[i, : len(sample["shift_labels"])] = sample["shift_labels"]
    return {"input_ids": torch.from_numpy(input_ids), "shift_labels": torch.from_numpy(shift_labels)}


def run_evaluation(args: EvaluationArguments, data_args: DataArguments, given: dict[str, str]) -> int:
    """The command `evaluate`: print the result, the last line as JSON."""
    device = current_device_type(use_cpu=False)
    precision = resolve_precision(args.precision, device)
    model, tokenizer, source = load_trained(args.model_path)
    model.to(device)
    data_args = with_training_protocol(data_args, given, source)
    trained_length = read_trained_option(source, "max_length")
    max_length = args.max_length or trained_length or model.config.n_positions
    if max_length > model.config.n_positions:
        raise UserError(f"--max_length {max_length} exceeds the model's {model.config.n_positions} positions")
    if args.stride is not None and args.stride > max_length:
        raise UserError(
            f"--stride {args.stride} exceeds --max_length {max_length}: tokens between would not be scored"
        )
    if "tokenizer_name" in given:
        raise UserError("--tokenizer_name has no effect: a model is scored with its own tokenizer; leave it out")
    if args.stride is not None:
        for name in ("sequence_mode", "truncate", "pad_to_max_length", "max_eval_samples"):
            if name in given:
                raise UserError(
                    f"--{name} has no effect with --stride, which slides over the whole text; leave it out"
                )
    if data_args.streaming and args.split == "train":
        raise UserError("--split train: the training text is streamed without end; add --streaming false to store it")
    # A validation split may have to be cut from the training text, which is then needed too.
    splits = ("train", "validation") if args.split == "validation" else (args.split,)
    data = load_data(data_args, tokenizer, max_length, splits, batch_size=args.batch_size)
    if args.split not in data.samples:
        raise UserError(
            f"--split {args.split}: {data_args.dataset_name or data_args.train_file} has no such split; "
            f"it has {', '.join(data.samples) or 'none of the others asked for'}"
        )
    samples, collator = data.samples[args.split], data.collator
    if args.stride is not None:
        documents = data.documents[args.split]
        stream = documents.read(0, documents.num_tokens)
        samples, collator = SlidingWindows(stream, max_length, args.stride), _collate_windows
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision.name)
    result = evaluate_model(model, samples, collator, batch_size=args.batch_size, dtype=dtype)
    report = {
        "model": source,
        "dataset": data_args.dataset_name if not data_args.train_file else data_args.train_file,
        "split": args.split,
        "protocol": data_args.sequence_mode if args.stride is None else "sliding windows",
        "context": max_length,
        "stride": args.stride,
        "precision": precision.name,
        **{name: result[name] for name in ("loss", "perplexity", "tokens")},
    }
    print(data.accounting[args.split].line(args.split))
    print(f"loss {report['loss']:.4f}, perplexity {report['perplexity']:.2f} over {report['tokens']:,} tokens")
    if args.output_file:
        write_json(Path(args.output_file), report)
    print(json.dumps(report))
    return 0


def with_training_protocol(data_args: DataArguments, given: dict[str, str], source: str) -> DataArguments:
    """Take what the command does not say about the data from the config the model was trained with."""
    trained = read_trained_config(source)
    values = {name: getattr(data_args, name) for name in data_args.__dataclass_fields__}
    named_source = {"dataset_name", "train_file", "validation_file", "test_file"} & set(given)
    source_options = {
        "dataset_name",
        "dataset_config_name",
        "train_file",
        "validation_file",
        "test_file",
        "text_column",
    }
    limits = {"max_train_samples", "max_eval_samples"}  # shortcuts of a run, not part of how it measures
    for name, value in trained.items():
        if name in values and name not in limits | set(given) and not (named_source and name in source_options):
            values[name] = value
    inherited = values.pop("dataset_config_is_inherited")
    result = DataArguments(**values)
    result.dataset_config_is_inherited = (bool(named_source) and "dataset_config_name" not in given) or inherited
    return result


def read_trained_config(source: str) -> dict[str, Any]:
    """The resolved config beside a model that this package trained; empty for any other."""
    path = Path(source) / RESOLVED_CONFIG_NAME
    if not path.is_file():
        return {}
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


def read_trained_option(source: str, name: str) -> Any:
    """One option of the run that trained a model, or `None`."""
    return read_trained_config(source).get(name)
