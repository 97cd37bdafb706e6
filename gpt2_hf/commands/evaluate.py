"""Score a model, or the average of several, on a text: exact loss and perplexity, and whether a difference is real.

In: models, tokenized documents, a protocol: that of the training, or sliding windows. Out: a dictionary that says what
was measured and how.

The Trainer's own evaluation (`trainer.exact_evaluation`) gives the same loss while it trains. This one needs no
Trainer, and counts words and bytes.
"""

import glob
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate import PartialState
from transformers.utils import logging as transformers_logging

from ..checkpoints import written
from ..data import BlockSamples, LoadedData, load_same_data
from ..data.folders import visible_files
from ..data.samples import SequenceMode
from ..data.tokenizer import same_tokens
from ..errors import UserError
from ..options.arguments import DataArguments, EvaluationArguments, Split
from ..options.mixture import DATA_FILES
from ..runtime import distributed
from ..runtime.files import write_json
from ..runtime.own_process import suit_changing_shapes
from ..runtime.precision import current_device_type, resolve_precision
from .averaging import ScoredText, score_texts
from .evaluation_report import POINTLESS_WITH_STRIDE, add_comparison, make_report, summary, text_of
from .model_loading import SavedModel, find_trained
from .output_files import is_pipe_or_device, is_same_file, is_stdout, require_writable
from .scoring import Text
from .significance import Places
from .sliding_windows import SlidingWindows, collate_windows
from .training_protocol import inherited_options, read_trained_option, with_training_protocol

# The options that name a text, which no output replaces.
_TEXTS = (*DATA_FILES, "dataset_name")


def run_evaluation(args: EvaluationArguments, data_args: DataArguments, given: dict[str, str]) -> int:
    """The command `evaluate`: print the result, the last line as JSON."""
    if "split" not in given:
        args.split = _split_of_the_file(given)
    transformers_logging.disable_progress_bar()
    processes = PartialState(cpu=current_device_type(use_cpu=False) == "cpu")
    distributed.set_timeout(distributed.PATIENCE_SECONDS)
    try:
        _evaluate(args, data_args, given, processes)
    finally:
        processes.destroy_process_group()
    return 0


def _evaluate(
    args: EvaluationArguments, data_args: DataArguments, given: dict[str, str], processes: PartialState
) -> None:
    precision = resolve_precision(args.precision, processes.device.type)
    models, rivals = _find_models(args)
    max_length, notes = _context(args, [*models, *rivals])
    source = models[0].source  # of several, the first one says what is scored and by which protocol
    streaming = data_args.streaming if "streaming" in given else bool(read_trained_option(source, "streaming"))
    _check_options(args, given, streaming, max_length)
    data_args = with_training_protocol(data_args, given, source)
    output = None if args.output_file is None else Path(os.path.expanduser(args.output_file))
    if output is not None and processes.is_main_process:  # which writes it
        _check_output(output, data_args)
    inherited = inherited_options(source, given)
    tokenizer, splits = models[0].tokenizer, (args.split,)
    data = load_same_data(data_args, tokenizer, max_length, splits, args.batch_size, inherited=inherited)
    texts = _texts(data, args, data_args, max_length)
    in_windows = args.stride is not None or data_args.sequence_mode == SequenceMode.BLOCKS
    dtype = None if precision.dtype == torch.float32 else precision.dtype
    how: dict[str, Any] = {"device": processes.device, "batch_size": args.batch_size, "dtype": dtype}
    with suit_changing_shapes(processes.device.type, shapes_change=not (in_windows or data_args.pad_to_max_length)):
        scores = score_texts(models, texts, **how)
        sources = [model.source for model in models]
        if len(rivals) == 1 and rivals[0].source in sources:  # which has been scored
            number = sources.index(rivals[0].source)
            rival_scores = {name: text.of_member(number) for name, text in scores.items()}
        else:
            rival_scores = score_texts(rivals, texts, **how) if rivals else {}
    if not processes.is_main_process:
        return
    report = make_report(args, data_args, data, models, scores, context=max_length, precision=precision.name)
    if rivals:
        add_comparison(report, models, scores, rivals, rival_scores)
    lines = [*data.lines, *notes, *summary(report)]
    if output is not None:
        losses = ScoredText.joined(scores.values()).losses
        report["pieces"] = {"tokens": losses.tokens.tolist(), "nll": losses.nll.tolist()}
    report = _printable_numbers(report)
    try:  # it may have taken hours: one of the two has it, if the other cannot be written
        print(*lines, json.dumps(report), sep="\n", flush=True)
    finally:
        if output is not None and not is_stdout(output):
            _write_report(output, report)


def _find_models(args: EvaluationArguments) -> tuple[list[SavedModel], list[SavedModel]]:
    """The models of `--model_path` and of `--against`.

    Raises:
        UserError: if one is missing or damaged, or if their tokens are not the same.
    """
    models = [find_trained(path) for path in args.model_path]
    rivals = [find_trained(path, option="--against") for path in args.against or ()]
    first, *others = [*models, *rivals]
    for other in others:
        if not same_tokens(first.tokenizer, other.tokenizer):
            raise UserError(
                f"{other.option}: {other.source} has another tokenizer than {first.source}: they do not predict the "
                "same tokens; score each by itself, and compare the bits per byte"
            )
    return models, rivals


def _context(args: EvaluationArguments, models: Sequence[SavedModel]) -> tuple[int, list[str]]:
    """Tokens of context, the same for all models, and what to tell the user about it."""
    contexts = [
        args.max_length or read_trained_option(model.source, "max_length") or model.config.n_positions
        for model in models
    ]
    context = min(contexts)
    for model in models:
        if context > model.config.n_positions:
            whose = "the model's" if len(models) == 1 else f"{model.source}'s"
            raise UserError(f"--max_length {context} exceeds {whose} {model.config.n_positions} positions")
    if len(set(contexts)) == 1:
        return context, []
    trained = ", ".join(f"{model.source} {length}" for model, length in zip(models, contexts, strict=True))
    return context, [f"context: {context} tokens, the smallest that a model was trained with ({trained})"]


def _split_of_the_file(given: dict[str, str]) -> Split:
    """The split whose file is given, where `--split` is not."""
    splits = [split for split in get_args(Split) if f"{split}_file" in given]
    if len(splits) > 1:
        files = " and ".join(f"--{split}_file" for split in splits)
        choices = " or ".join(f"--split {split}" for split in splits)
        raise UserError(f"{files} are given; add {choices} to say which is scored")
    return splits[0] if splits else "test"


def _check_options(args: EvaluationArguments, given: dict[str, str], streaming: bool, max_length: int) -> None:
    if args.stride is not None and args.stride > max_length:
        raise UserError(
            f"--stride {args.stride} exceeds --max_length {max_length}: tokens between would not be scored"
        )
    if "tokenizer_name" in given:
        raise UserError("--tokenizer_name has no effect: a model is scored with its own tokenizer; leave it out")
    if args.stride is not None:
        for name in POINTLESS_WITH_STRIDE:
            if name in given:
                raise UserError(
                    f"--{name} has no effect with --stride, which slides over the whole text; leave it out"
                )
    other_limit = "max_eval_samples" if args.split == "train" else "max_train_samples"
    if other_limit in given:
        raise UserError(f"--{other_limit} has no effect with --split {args.split}; leave it out")
    for name in ("shuffle_buffer_size", *(["validation_split_percentage"] if args.split == "test" else [])):
        if given.get(name) == "command line":  # a config may have it from a training
            raise UserError(f"--{name} has no effect with --split {args.split}; leave it out")
    if streaming and args.split == "train":
        raise UserError("--split train: the training text is streamed without end; add --streaming false to store it")


def _check_output(output: Path, data_args: DataArguments) -> None:
    """Refuse an output file that has no place, or would replace a text or what the run itself has written."""
    mix = data_args.train_mix if isinstance(data_args.train_mix, dict) else {}
    for text in (vars(data_args), *mix.values()):
        for name, place in ((name, os.path.expanduser(text[name])) for name in _TEXTS if text.get(name)):
            inside = visible_files(place) if os.path.isdir(place) else glob.glob(place, recursive=True)
            if any(is_same_file(path, output) for path in (place, *inside)):
                raise UserError(f"--output_file: {output} would replace the text of --{name}; choose another name")
    target = Path(os.path.realpath(output))
    if target.name in (*written.FILE_NAMES, written.RECORD_NAME) and written.holds_record(target.parent):
        raise UserError(f"--output_file: {output} is a file of the run in that folder; choose another name")
    require_writable(output)


def _texts(data: LoadedData, args: EvaluationArguments, data_args: DataArguments, max_length: int) -> dict[str, Text]:
    """What is scored, each text of a mix by its name."""
    if args.split not in data.samples:
        text = text_of(args.split, data_args)
        raise UserError(
            f"--split {args.split}: {text} has no such split; choose another"
            if text is not None
            else f"--split {args.split}: no text is given for it; add --{args.split}_file, or choose another split"
        )
    parts = {name: part for name, part in data.texts.items() if args.split in part.samples}
    return {name: _text(part, args, max_length) for name, part in (parts or {"": data}).items()}


def _text(data: LoadedData, args: EvaluationArguments, max_length: int) -> Text:
    """The samples of the training protocol or, with a stride, windows over what they are cut from."""
    samples: Any = data.samples[args.split]
    documents = data.documents[args.split]
    if args.stride is None:
        places = Places(samples.first_targets, samples.lengths)
        return Text.in_pieces(samples, data.collator, places, samples.document_starts)
    # Of blocks the stream that they are cut from, with <|endoftext|> where the model was taught to expect it.
    if isinstance(samples, BlockSamples):
        windows = SlidingWindows(samples.read, samples.accounting.scored_tokens + 1, max_length, args.stride)
    else:
        windows = SlidingWindows(documents.read, documents.num_tokens, max_length, args.stride)
    places = Places(windows.first_targets, windows.lengths)
    return Text.in_pieces(windows, collate_windows, places, samples.document_starts)


def _printable_numbers(value: Any) -> Any:
    """The same without infinity and NaN, which JSON does not know: perplexity per word of a text without spaces."""
    if isinstance(value, dict):
        return {name: _printable_numbers(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_printable_numbers(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_report(path: Path, report: dict[str, Any]) -> None:
    """Replace a file, that to which a link leads; write a pipe or a device."""
    try:
        if is_pipe_or_device(path):
            path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
            return
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(target, report)
    except OSError as error:
        raise UserError(f"--output_file: {path} cannot be written ({error.strerror})") from error
