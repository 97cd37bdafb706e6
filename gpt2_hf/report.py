"""A finished run as a person reads it: a model card with the measured results, and its curves as a picture.

In: the Trainer's log history and result files in `output_dir`. Out: `README.md` and `curves.png` there.
"""

import json
from pathlib import Path
from typing import Any

from .checkpoints import BEST_MODEL, RESOLVED_CONFIG_NAME, TRAINER_STATE_NAME
from .parsing import PROVENANCE_KEY

CURVES_NAME = "curves.png"
CARD_NAME = "README.md"


def write_report(output_dir: str | Path, sample: str | None = None) -> None:
    """Write the card and the picture of the run in `output_dir` from the files that it left there."""
    output_dir = Path(output_dir)
    history = json.loads((output_dir / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["log_history"]
    config = json.loads((output_dir / RESOLVED_CONFIG_NAME).read_text(encoding="utf-8"))
    results = {}
    for split in ("train", "eval", "test"):
        path = output_dir / f"{split}_results.json"
        if path.is_file():
            results.update(json.loads(path.read_text(encoding="utf-8")))
    draw_curves(history, output_dir / CURVES_NAME)
    (output_dir / CARD_NAME).write_text(model_card(config, results, sample), encoding="utf-8")


def draw_curves(history: list[dict[str, Any]], path: Path) -> None:
    """Draw loss, perplexity and learning rate over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss, perplexity, rate = figure.subplots(1, 3)
    for axes, title, names in (
        (loss, "loss (nats per token)", ("loss", "eval_loss")),
        (perplexity, "perplexity per token", ("perplexity", "eval_perplexity")),
        (rate, "learning rate", ("learning_rate",)),
    ):
        for name in names:
            points = [(entry["step"], entry[name]) for entry in history if name in entry]
            label = "validation" if name.startswith("eval_") else "training"
            if points:
                axes.plot(*zip(*points, strict=True), label=label, marker="." if label == "validation" else None)
        axes.set_title(title)
        axes.set_xlabel("optimizer step")
        axes.grid(alpha=0.3)
    perplexity.set_yscale("log")
    if loss.lines:
        loss.legend()
    figure.savefig(path, dpi=110)


def model_card(config: dict[str, Any], results: dict[str, Any], sample: str | None) -> str:
    """The README of a run: metadata for the hub, results, settings, a sample, and how to load the model."""
    provenance = config.get(PROVENANCE_KEY, {})
    dataset = config.get("train_file") or config.get("dataset_name")
    rows = [
        (label, results[name], text)
        for label, name, text in (
            ("validation loss", "eval_loss", "{:.4f}"),
            ("validation perplexity", "eval_perplexity", "{:.2f}"),
            ("test loss", "test_loss", "{:.4f}"),
            ("test perplexity", "test_perplexity", "{:.2f}"),
            ("training loss (mean of the last invocation)", "train_loss", "{:.4f}"),
            ("optimizer steps", "train_steps", "{:,}"),
            ("hours, all invocations", "train_hours", "{:.2f}"),
        )
        if name in results
    ]
    parts = [
        _metadata(config, results),
        f"# GPT-2, {provenance.get('parameters', 0) / 1e6:.1f}M parameters",
        f"Trained with gpt2_hf on `{dataset}`. Losses are nats per token, summed over all scored tokens; perplexity "
        "is their exponential.",
        _table(rows),
        f"![curves]({CURVES_NAME})",
        "## Load it\n\n```python\nimport gpt2_hf\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{BEST_MODEL}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{BEST_MODEL}")\n```\n\n'
        "Without gpt2_hf installed, add `trust_remote_code=True`.",
    ]
    if sample:
        parts.append("## A sample\n\n" + "\n".join(f"> {line}" for line in sample.strip().splitlines()))
    settings = {name: value for name, value in config.items() if name != PROVENANCE_KEY and value is not None}
    parts.append("## Settings\n\n```json\n" + json.dumps(settings, indent=2) + "\n```")
    parts.append("## Made with\n\n```json\n" + json.dumps(provenance, indent=2) + "\n```")
    return "\n\n".join(parts) + "\n"


def _table(rows: list[tuple[str, Any, str]]) -> str:
    return "\n".join(
        ["| result | value |", "|---|--:|", *(f"| {name} | {text.format(value)} |" for name, value, text in rows)]
    )


def _metadata(config: dict[str, Any], results: dict[str, Any]) -> str:
    """The YAML header of a model card, as the hub reads it."""
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags:", "- gpt2_hf"]
    dataset = config.get("dataset_name")
    if dataset and not config.get("train_file") and dataset.count("/") == 1 and not dataset.startswith("."):
        lines += ["datasets:", f"- {dataset}"]
    if "eval_loss" in results:
        lines += ["metrics:", "- perplexity"]
    return "\n".join([*lines, "---"])
