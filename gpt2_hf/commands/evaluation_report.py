"""What an evaluation says: the figures, how they were measured, and a comparison; as JSON and in words.

In: scores. Out: a dictionary with all that is needed to measure the same again, and lines to print.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
import transformers

from .. import __version__
from ..data import LoadedData
from ..options.arguments import DataArguments, EvaluationArguments
from ..perplexity import perplexity
from .averaging import ScoredText
from .model_loading import SavedModel
from .scoring import PieceLosses, figures, text_figures
from .significance import CONFIDENCE, paired_difference

POINTLESS_WITH_STRIDE = ("truncate", "pad_to_max_length", "max_train_samples", "max_eval_samples")

# Stands in the output, so that a figure says what it is.
DEFINITIONS = {
    "loss": "sum of the losses of the scored tokens (nats) / tokens",
    "perplexity": "exp(loss)",
    "word_perplexity": "exp(sum / words)",
    "word_perplexity_with_blank_rows": "exp(sum / (words + blank_rows)): where a row is a line, as WikiText counts",
    "bits_per_byte": "sum / ln 2 / bytes",
    "tokens": "that were predicted; the first of a document, or of a window without overlap, is only context",
    "words": "that begin in a scored token: separated by ASCII white space, and one for each line end in the text; "
    "WikiText's own counts have the ends of blank lines too, which the rows of the hub's copy lack",
    "blank_rows": "rows of the split with nothing but white space, which are not scored",
    "bytes": "of the scored tokens, in UTF-8; special tokens have none",
}
_DEFINITIONS_OF_SEVERAL = {
    "loss": "-ln of the mean, over the models, of the probability of a token; summed (nats) / tokens",
    "models": "each model by itself, on the same tokens",
}
_DEFINITIONS_OF_COMPARISON = {
    "difference": "loss - loss of the model that it is compared with; below 0 the first one is better",
    "interval": "of the difference: paired block bootstrap over segments of the text, percentiles",
    "beyond_chance": "whether the interval excludes 0: a statistically significant difference",
}


def make_report(
    args: EvaluationArguments,
    data_args: DataArguments,
    data: LoadedData,
    models: Sequence[SavedModel],
    scores: Mapping[str, ScoredText],
    *,
    context: int,
    precision: str,
) -> dict[str, Any]:
    """The result of an evaluation.

    Args:
        args: the options of the command.
        data_args: those of the text, as they were used.
        data: the text.
        models: that were scored.
        scores: of each text of a mix by its name, or of the only one.
        context: in tokens.
        precision: of the products.
    """
    whole = ScoredText.joined(scores.values())
    return {
        **_models(models, whole),
        "dataset": text_of(args.split, data_args),
        "split": args.split,
        "fingerprint": data.fingerprints[args.split],
        "protocol": data_args.sequence_mode if args.stride is None else "sliding windows",
        "context": context,
        "stride": args.stride,
        "precision": precision,
        **_figures(whole),
        **_with_blank_rows(whole, args, data_args, data),
        **({"texts": {name: _figures(score) for name, score in scores.items()}} if data.texts else {}),
        "data_options": _data_options(args, data_args),
        "definitions": DEFINITIONS | (_DEFINITIONS_OF_SEVERAL if len(models) > 1 else {}),
        "versions": {"gpt2_hf": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }


def add_comparison(
    report: dict[str, Any],
    models: Sequence[SavedModel],
    scores: Mapping[str, ScoredText],
    rivals: Sequence[SavedModel],
    rival_scores: Mapping[str, ScoredText],
) -> None:
    """Add to a report how other models score the same tokens, and whether the difference is significant."""
    ours, theirs = ScoredText.joined(scores.values()), ScoredText.joined(rival_scores.values())
    difference = paired_difference(ours.losses.nll, theirs.losses.nll, ours.losses.tokens)
    names = [_name(models), _name(rivals)]
    if names[0] == names[1]:
        names = [f"{name} ({option})" for name, option in zip(names, ("--model_path", "--against"), strict=True)]
    report["against"] = {
        **_models(rivals, theirs),
        **_loss_and_perplexity(theirs.losses),
        "difference": difference.nats,
        "interval": difference.interval,
        "confidence": CONFIDENCE,
        "pieces": difference.pieces,
        "beyond_chance": difference.is_beyond_chance,
        "in_words": difference.in_words(*names),
    }
    report["definitions"] |= _DEFINITIONS_OF_COMPARISON


def _models(models: Sequence[SavedModel], score: ScoredText) -> dict[str, Any]:
    """The model, or all of them, each with what it scores by itself."""
    if len(models) == 1:
        return {"model": models[0].source}
    members = zip(models, score.members, strict=True)
    return {"models": [{"model": model.source, **_loss_and_perplexity(losses)} for model, losses in members]}


def _name(models: Sequence[SavedModel]) -> str:
    return models[0].source if len(models) == 1 else f"the average of {len(models)} models"


def _loss_and_perplexity(losses: PieceLosses) -> dict[str, float]:
    return {name: value for name, value in figures(losses).items() if name in ("loss", "perplexity")}


def _figures(score: ScoredText) -> dict[str, Any]:
    every = figures(score.losses) | text_figures(score.losses, score.counts)
    return {name: value for name, value in every.items() if name != "nll"}


def _with_blank_rows(
    score: ScoredText, args: EvaluationArguments, data_args: DataArguments, data: LoadedData
) -> dict[str, Any]:
    """Perplexity per word as WikiText counts; unknown where only a part of the split is scored."""
    limit = data_args.max_train_samples if args.split == "train" else data_args.max_eval_samples
    accounting = data.accounting[args.split]
    is_cut = args.stride is None and accounting.truncated and accounting.continued_rows > 0
    rows = accounting.blank_rows if limit is None and not is_cut else None
    words = score.counts.words if score.counts is not None else None
    value = perplexity(figures(score.losses)["nll"] / (words + rows)) if words and rows is not None else None
    return {"blank_rows": rows, "word_perplexity_with_blank_rows": value}


def text_of(split: str, data_args: DataArguments) -> str | None:
    """The files or the dataset that a split comes from; a validation split may be cut from the training text."""
    mix = ", ".join(data_args.train_mix or ())
    return getattr(data_args, f"{split}_file") or data_args.train_file or mix or data_args.dataset_name


def _data_options(args: EvaluationArguments, data_args: DataArguments) -> dict[str, Any]:
    """The options that give the same text and protocol again."""
    left_out = {"tokenizer_name"}
    if args.stride is not None:
        left_out |= set(POINTLESS_WITH_STRIDE)
    return {name: value for name, value in asdict(data_args).items() if value is not None and name not in left_out}


def summary(report: dict[str, Any]) -> list[str]:
    """The result as a person reads it."""
    several, against = report.get("models", []), report.get("against")
    lines = [f"{model['model']}: {_line(model)}" for model in several]
    lines += [
        f"{name}: {_line(text)} over {text['tokens']:,} tokens" for name, text in report.get("texts", {}).items()
    ]
    average = f"average of the {len(several)} models: " if several else ""
    lines.append(f"{average}{_line(report)} over {report['tokens']:,} tokens")
    if report["words"] is None:
        lines.append("no figures per word and per byte: the tokenizer does not keep the bytes of the text")
    elif report["bytes"]:
        per_word = report["word_perplexity"] if report["words"] else None
        # A line of Chinese is one word, and its perplexity a number of hundreds of digits.
        shown = f"perplexity {per_word:.2f} per word, " if per_word is not None and per_word < 1e9 else ""
        lines.append(
            f"{shown}{report['bits_per_byte']:.4f} bits per byte over "
            f"{report['words']:,} words ({report['line_ends']:,} of them line ends), {report['bytes']:,} bytes"
        )
    if against is not None:
        lines += [f"against {model['model']}: {_line(model)}" for model in against.get("models", [])]
        name = against.get("model", f"the average of {len(against.get('models', []))} models")
        lines += [f"against {name}: {_line(against)}", against["in_words"]]
    return lines


def _line(result: dict[str, Any]) -> str:
    return f"loss {result['loss']:.4f} nats per token, perplexity {result['perplexity']:.2f} per token"
