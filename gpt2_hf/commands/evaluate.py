"""Score a model on a text: exact loss and perplexity, by the training protocol or with sliding windows.

In: a model, tokenized documents, a protocol. Out: a dictionary that says what was measured and how.

Only what was scored counts. The first token of a document (of a window, where windows do not overlap) is not scored,
having nothing before it; nor is what `--truncate` or `--max_eval_samples` leave out. Neither is in the number of
tokens, nor of words, nor of bytes, by which the summed loss is divided.

The Trainer's own evaluation (`trainer.exact_evaluation`) gives the same loss while it trains. This one needs no
Trainer, and counts words and bytes.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import transformers
from accelerate import PartialState
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from .. import __version__
from ..checkpoints.folders import RESOLVED_CONFIG_NAME, write_json
from ..data import BlockSamples, LoadedData, load_data
from ..data.collators import pad_rows
from ..data.samples import SequenceMode
from ..errors import UserError
from ..metrics import perplexity
from ..model.chunked_loss import IGNORE_INDEX
from ..model.modeling_gpt2_hf import GPT2HFForCausalLM
from ..options.arguments import DataArguments, EvaluationArguments, Split
from ..runtime.distributed import is_distributed
from ..runtime.own_process import suit_changing_shapes
from ..runtime.precision import current_device_type, resolve_precision
from .model_loading import load_trained
from .text_units import TextCounts, TextUnits

# Options that act under certain values of others, and are refused otherwise. Those of the training run are passed over
# then: its protocol is repeated as far as it goes with what is asked for.
_ACTS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "truncate": lambda options: options["sequence_mode"] != "blocks",
    "pad_to_max_length": lambda options: options["sequence_mode"] == "padded",
    "join_documents": lambda options: options["sequence_mode"] == "blocks" and not options["streaming"],
    "shuffle_buffer_size": lambda options: options["streaming"],
}

_POINTLESS_WITH_STRIDE = ("truncate", "pad_to_max_length", "max_train_samples", "max_eval_samples")

# Stands in the output, so that a figure says what it is.
DEFINITIONS = {
    "loss": "sum of the losses of the scored tokens (nats) / tokens",
    "perplexity": "exp(loss)",
    "word_perplexity": "exp(sum / words)",
    "bits_per_byte": "sum / ln 2 / bytes",
    "tokens": "that were predicted; the first of a document, or of a window without overlap, is only context",
    "words": "that begin in a scored token: separated by ASCII white space, and one for each line end in the text; "
    "WikiText's own counts have the ends of blank lines too, which the rows of the hub's copy lack",
    "bytes": "of the scored tokens, in UTF-8; special tokens have none",
}


@torch.no_grad()
def evaluate_model(
    model: GPT2HFForCausalLM,
    samples: Dataset,
    collator: Any,
    *,
    batch_size: int = 8,
    dtype: torch.dtype | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> dict[str, Any]:
    """Sum the token losses of all samples, divided among the processes if there are several.

    Args:
        model: the model to score, on its device.
        samples: a map-style dataset of samples that `collator` understands.
        collator: makes a batch of a list of samples.
        batch_size: samples in a batch; it does not change the result, nor does the number of processes.
        dtype: compute the products in this type by autocast.
        tokenizer: with it, the figures per word and per byte as well.

    Returns:
        `loss` (nats per scored token), `perplexity`, `tokens` (scored), `nll` (the sum, in nats); with a tokenizer
        also `word_perplexity`, `bits_per_byte`, `words`, `line_ends` (among the words) and `bytes`, as `DEFINITIONS`
        says, or `None` where the tokenizer does not keep the bytes of the text (see `text_units`).

    Raises:
        UserError: if no token is scored.
    """
    was_training = model.training
    model.eval()
    device = model.device
    units = TextUnits.of(tokenizer) if tokenizer is not None else None
    sums, tokens, text = [], 0, TextCounts()
    loader = DataLoader(_share_of_process(samples), batch_size=batch_size, collate_fn=collator)
    for batch in tqdm(loader, desc="evaluating", leave=False, disable=None if _process_index() == 0 else True):
        targets = batch["shift_labels"]
        scored = targets != IGNORE_INDEX
        tokens += int(scored.sum())
        if units is not None:
            text += units.count(batch["input_ids"][scored].numpy(), targets[scored].numpy())
        batch = {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            sums.append(model(**batch, num_items_in_batch=1, return_logits=False).loss.item())
    model.train(was_training)
    nll = _sum_over_processes([math.fsum(sums)], torch.float64, device)[0]
    counts = [tokens, text.words, text.line_ends, text.bytes]
    tokens, words, line_ends, num_bytes = map(int, _sum_over_processes(counts, torch.int64, device))
    if tokens == 0:
        raise UserError("no token was scored: with one token of context nothing is predicted; raise --max_length")
    if tokenizer is None:
        return _figures(nll, tokens)
    known = units is not None
    return _figures(
        nll,
        tokens,
        words=words if known else None,
        line_ends=line_ends if known else None,
        bytes=num_bytes if known else None,
    )


def over_all(results: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The figures of `evaluate_model` over several texts: losses and units are summed, then divided."""
    results = list(results)
    units = [name for name in ("words", "line_ends", "bytes") if name in results[0]]
    sums = {
        name: None if any(result[name] is None for result in results) else sum(result[name] for result in results)
        for name in units
    }
    return _figures(
        math.fsum(result["nll"] for result in results), sum(result["tokens"] for result in results), **sums
    )


def _figures(nll: float, tokens: int, **units: int | None) -> dict[str, Any]:
    """From sums to the figures of `DEFINITIONS`; `units` are words, line ends and bytes, if they are asked for."""
    figures: dict[str, Any] = {
        "loss": nll / tokens,
        "perplexity": perplexity(nll / tokens),
        "tokens": tokens,
        "nll": nll,
    }
    if units:
        words, num_bytes = units["words"], units["bytes"]
        figures["word_perplexity"] = perplexity(nll / words) if words else None
        figures["bits_per_byte"] = nll / math.log(2) / num_bytes if num_bytes else None
    return figures | units


def _process_index() -> int:
    return torch.distributed.get_rank() if is_distributed() else 0


def _share_of_process(samples: Any) -> Dataset:
    """The samples of this process: every sample belongs to exactly one."""
    if not is_distributed():
        return samples
    return Subset(samples, range(_process_index(), len(samples), torch.distributed.get_world_size()))


def _sum_over_processes(values: list, dtype: torch.dtype, device: torch.device) -> list:
    if not is_distributed():
        return values
    total = torch.tensor(values, dtype=dtype, device=device)
    torch.distributed.all_reduce(total)
    return total.tolist()


class SlidingWindows(Dataset):
    """One stream of tokens in windows of `max_length` inputs that move on by `stride`.

    A token is scored in the first window that reaches it, with all the context it has there; a window's own first
    token has none and is not scored, so with `stride < max_length` every token but the very first is scored once.
    These are the windows of the perplexity guide in transformers' documentation. With `stride = max_length` the
    guide's figure is this one. With less it weighs each window but the first as if it had one target less, because it
    subtracts one for the shift where no target is lost: its mean is of the same token losses, off in the weights by
    about one part in `stride`. Here every scored token weighs the same.
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


def collate_windows(samples: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Windows to `input_ids` and `shift_labels`, both int64 `[B, T]`, right-padded."""
    length = max(len(sample["input_ids"]) for sample in samples)
    return {
        name: pad_rows([sample[name] for sample in samples], length, value)
        for name, value in (("input_ids", 0), ("shift_labels", IGNORE_INDEX))
    }


def run_evaluation(args: EvaluationArguments, data_args: DataArguments, given: dict[str, str]) -> int:
    """The command `evaluate`: print the result, the last line as JSON."""
    if "split" not in given:
        args.split = _split_of_the_file(given)
    transformers_logging.disable_progress_bar()
    processes = PartialState(cpu=current_device_type(use_cpu=False) == "cpu")
    try:
        _evaluate(args, data_args, given, processes)
    finally:
        processes.destroy_process_group()
    return 0


def _evaluate(
    args: EvaluationArguments, data_args: DataArguments, given: dict[str, str], processes: PartialState
) -> None:
    precision = resolve_precision(args.precision, processes.device.type)
    model, tokenizer, source = load_trained(args.model_path)
    model.to(processes.device)
    max_length = args.max_length or read_trained_option(source, "max_length") or model.config.n_positions
    streaming = data_args.streaming if "streaming" in given else bool(read_trained_option(source, "streaming"))
    _check_options(args, given, streaming, max_length, model.config.n_positions)
    data_args = with_training_protocol(data_args, given, source)
    data = load_data(
        data_args,
        tokenizer,
        max_length,
        (args.split,),
        batch_size=args.batch_size,
        inherited=inherited_options(source, given),
    )
    if args.split not in data.samples:
        text = _text_of(args.split, data_args)
        raise UserError(
            f"--split {args.split}: {text} has no such split; choose another"
            if text is not None
            else f"--split {args.split}: no text is given for it; add --{args.split}_file, or choose another split"
        )
    dtype = None if precision.dtype == torch.float32 else precision.dtype
    texts = {name: text for name, text in data.texts.items() if args.split in text.samples}
    results = {}
    in_windows = args.stride is not None or data_args.sequence_mode == SequenceMode.BLOCKS
    with suit_changing_shapes(processes.device.type, shapes_change=not (in_windows or data_args.pad_to_max_length)):
        for name, part in (texts or {"": data}).items():
            samples, collator = _protocol(part, args, max_length)
            results[name] = evaluate_model(
                model, samples, collator, batch_size=args.batch_size, dtype=dtype, tokenizer=tokenizer
            )
    result = over_all(results.values())
    if not processes.is_main_process:
        return
    report = {
        "model": source,
        "dataset": _text_of(args.split, data_args),
        "split": args.split,
        "fingerprint": data.fingerprints[args.split],
        "protocol": data_args.sequence_mode if args.stride is None else "sliding windows",
        "context": max_length,
        "stride": args.stride,
        "precision": precision.name,
        **_without_sum(result),
        **({"texts": {name: _without_sum(results[name]) for name in texts}} if texts else {}),
        "data_options": _data_options(args, data_args),
        "definitions": DEFINITIONS,
        "versions": {"gpt2_hf": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }
    for line in [*data.lines, *_summary(report)]:
        print(line)
    if args.output_file:
        _write_report(Path(args.output_file), report)
    print(json.dumps(report))


def _split_of_the_file(given: dict[str, str]) -> Split:
    """The split whose file is given, where `--split` is not."""
    splits = [split for split in get_args(Split) if f"{split}_file" in given]
    if len(splits) > 1:
        files = " and ".join(f"--{split}_file" for split in splits)
        choices = " or ".join(f"--split {split}" for split in splits)
        raise UserError(f"{files} are given; add {choices} to say which is scored")
    return splits[0] if splits else "test"


def _check_options(
    args: EvaluationArguments, given: dict[str, str], streaming: bool, max_length: int, positions: int
) -> None:
    if max_length > positions:
        raise UserError(f"--max_length {max_length} exceeds the model's {positions} positions")
    if args.stride is not None and args.stride > max_length:
        raise UserError(
            f"--stride {args.stride} exceeds --max_length {max_length}: tokens between would not be scored"
        )
    if "tokenizer_name" in given:
        raise UserError("--tokenizer_name has no effect: a model is scored with its own tokenizer; leave it out")
    if args.stride is not None:
        for name in _POINTLESS_WITH_STRIDE:
            if name in given:
                raise UserError(
                    f"--{name} has no effect with --stride, which slides over the whole text; leave it out"
                )
    other_limit = "max_eval_samples" if args.split == "train" else "max_train_samples"
    if other_limit in given:
        raise UserError(f"--{other_limit} has no effect with --split {args.split}; leave it out")
    if streaming and args.split == "train":
        raise UserError("--split train: the training text is streamed without end; add --streaming false to store it")


def _protocol(data: LoadedData, args: EvaluationArguments, max_length: int) -> tuple[Dataset, Any]:
    """The samples that are scored, and their collator."""
    if args.stride is None:
        return data.samples[args.split], data.collator
    samples, documents = data.samples[args.split], data.documents[args.split]
    # Of blocks the stream that they are cut from, with <|endoftext|> where the model was taught to expect it.
    if isinstance(samples, BlockSamples):
        stream = samples.read(0, samples.accounting.scored_tokens + 1)
    else:
        stream = documents.read(0, documents.num_tokens)
    return SlidingWindows(stream, max_length, args.stride), collate_windows


def _text_of(split: str, data_args: DataArguments) -> str | None:
    """The files or the dataset that a split comes from; a validation split may be cut from the training text."""
    mix = ", ".join(data_args.train_mix or ())
    return getattr(data_args, f"{split}_file") or data_args.train_file or mix or data_args.dataset_name


def _data_options(args: EvaluationArguments, data_args: DataArguments) -> dict[str, Any]:
    """The options that give the same text and protocol again."""
    left_out = {"tokenizer_name", "dataset_config_is_inherited"}
    if args.stride is not None:
        left_out |= set(_POINTLESS_WITH_STRIDE)
    return {name: value for name, value in asdict(data_args).items() if value is not None and name not in left_out}


def _summary(report: dict[str, Any]) -> list[str]:
    """The result as a person reads it."""
    lines = [
        f"{name}: loss {text['loss']:.4f} nats per token, perplexity {text['perplexity']:.2f} per token "
        f"over {text['tokens']:,} tokens"
        for name, text in report.get("texts", {}).items()
    ]
    lines.append(
        f"loss {report['loss']:.4f} nats per token, perplexity {report['perplexity']:.2f} per token "
        f"over {report['tokens']:,} tokens"
    )
    if report["words"] is None:
        return [*lines, "no figures per word and per byte: the tokenizer does not keep the bytes of the text"]
    if report["words"]:
        lines.append(
            f"perplexity {report['word_perplexity']:.2f} per word, {report['bits_per_byte']:.4f} bits per byte over "
            f"{report['words']:,} words ({report['line_ends']:,} of them line ends), {report['bytes']:,} bytes"
        )
    return lines


def _without_sum(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name != "nll"}


def _write_report(path: Path, report: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, report)
    except OSError as error:
        raise UserError(f"--output_file: {path} cannot be written ({error.strerror})") from error


def with_training_protocol(data_args: DataArguments, given: dict[str, str], source: str) -> DataArguments:
    """Take what the command does not say about the data from the config the model was trained with, where it acts."""
    if data_args.shift_blocks and "shift_blocks" in given:
        raise UserError("--shift_blocks has no effect: a text is scored as it is cut once; leave it out")
    fields = data_args.__dataclass_fields__
    values = {name: getattr(data_args, name) for name in fields}
    named_source = {"dataset_name", "train_file", "validation_file", "test_file", "train_mix"} & set(given)
    source_options = {
        "dataset_name",
        "dataset_config_name",
        "train_file",
        "validation_file",
        "test_file",
        "train_mix",
        "text_column",
    }
    limits = {"max_train_samples", "max_eval_samples"}  # shortcuts of a run, not part of how it measures
    left_out = limits | (source_options if named_source else set())
    trained = {name: value for name, value in inherited_options(source, given).items() if name in values}
    values |= {name: value for name, value in trained.items() if name not in left_out}
    values |= {name: fields[name].default for name, acts in _ACTS.items() if name in trained and not acts(values)}
    values["shift_blocks"] = False  # a text is scored as it is cut once
    was_inherited = values.pop("dataset_config_is_inherited")
    result = DataArguments(**values)
    result.dataset_config_is_inherited = (bool(named_source) and "dataset_config_name" not in given) or was_inherited
    return result


def inherited_options(source: str, given: dict[str, str]) -> dict[str, Any]:
    """The options of the run that trained a model, but for those that are given anew."""
    return {name: value for name, value in read_trained_config(source).items() if name not in given}


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
