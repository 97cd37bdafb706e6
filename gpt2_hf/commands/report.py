"""Runs as a person reads them: a model card with the measured results, and curves as a picture.

In: the Trainer's log history and result files in `output_dir`. Out: `README.md` and `curves.png` there, and in
`best_model/`, so that this folder can be published as it is; or one picture and a table of several runs.
"""

import io
import itertools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoints import written
from ..checkpoints.folders import (
    CHECKPOINT_NAME,
    is_best_model,
    list_checkpoints,
    saved_model,
)
from ..checkpoints.manifest import MANIFEST_NAME
from ..checkpoints.written import (
    BEST_MODEL,
    BEST_MODEL_FILES,
    CARD_NAME,
    CURVES_NAME,
    RESOLVED_CONFIG_NAME,
    RESULT_NAMES,
    TRAINER_STATE_NAME,
)
from ..errors import UserError, printable
from ..options.arguments import ReportArguments
from ..options.parsing import PROVENANCE_KEY
from ..options.secrets import without_secrets
from ..runtime.files import read_json
from ..runtime.hub import is_hub_id
from .evaluation_files import compare_evaluations

# Written into each picture; one without it that has the default name is somebody else's.
_PICTURE_MARK = "gpt2_hf"

_RESULTS = [
    ("validation loss", "eval_loss", "{:.4f}"),
    ("validation perplexity", "eval_perplexity", "{:.2f}"),
    ("test loss", "test_loss", "{:.4f}"),
    ("test perplexity", "test_perplexity", "{:.2f}"),
    ("training loss (mean of the last invocation)", "train_loss", "{:.4f}"),
    ("optimizer steps", "train_steps", "{:,}"),
    ("hours, all invocations", "train_hours", "{:.2f}"),
]
_SAMPLE_HEADING = "## A sample"


@dataclass(frozen=True)
class RunRecord:
    """What a run left in its folder: finished or not, as far as it got.

    Attributes:
        folder: the run's `output_dir`.
        config: `resolved_config.json`.
        history: the Trainer's log entries, in their order.
        results: the result files' numbers; of an unfinished run, its best evaluation so far.
        best_step: of the best evaluation; `None` without one.
        last_step: that it has reached.
    """

    folder: Path
    config: dict[str, Any]
    history: list[dict[str, Any]]
    results: dict[str, Any]
    best_step: int | None
    last_step: int

    @property
    def num_parameters(self) -> int:
        """Of the model; 0 if not recorded."""
        return int(self.config.get(PROVENANCE_KEY, {}).get("parameters", 0))

    @property
    def model(self) -> Path | None:
        """The folder of the run's model, all of which is read; `None` if it was not saved."""
        return saved_model(self.folder, self.best_step, self.last_step)


def read_run(folder: str | Path) -> RunRecord:
    """Read a run's record.

    Raises:
        UserError: if the folder holds no run, or one that has not saved anything yet.
    """
    folder = Path(os.path.expanduser(folder))
    states = [folder / TRAINER_STATE_NAME, *(path / TRAINER_STATE_NAME for path in reversed(list_checkpoints(folder)))]
    state = next((path for path in states if path.is_file()), None)
    config = folder / RESOLVED_CONFIG_NAME
    if state is None or not config.is_file():
        raise UserError(f"{folder} holds no run with a checkpoint; give the --checkpoint_dir of a run")
    reached = read_json(state)
    history, best_step = reached.get("log_history", []), reached.get("best_global_step")
    results: dict[str, Any] = {}
    for split in ("train", "eval", "test"):
        path = folder / f"{split}_results.json"
        if path.is_file():
            results.update(read_json(path))
    if "eval_loss" not in results:
        results.update(best_evaluation(history, best_step))
    if history:
        results.setdefault("train_steps", history[-1]["step"])
    results["planned_steps"] = reached.get("max_steps", 0)
    # earlier versions wrote secrets into it, which must not get into a card that is published
    config_shown = without_secrets(read_json(config))
    return RunRecord(folder, config_shown, history, results, best_step, reached.get("global_step", 0))


def best_evaluation(history: Sequence[dict[str, Any]], best_step: int | None) -> dict[str, Any]:
    """The logged evaluation of the best model; the last one where none is the best, and nothing without any."""
    entries = [entry for entry in history if "eval_loss" in entry]
    of_best = [entry for entry in entries if entry["step"] == best_step]
    return next(reversed(of_best or entries), {})


def delete_results(output_dir: str | Path) -> None:
    """Delete what a run wrote when it ended, because it is resumed; its checkpoints tell how far it is."""
    for name in (TRAINER_STATE_NAME, *RESULT_NAMES):
        written.delete(Path(output_dir), name)


def write_report(output_dir: str | Path, model: Path | None, sample: str | None = None) -> list[Path]:
    """Write the model card and the curves of the run in `output_dir` from the files that it left there.

    Args:
        output_dir: of the run.
        model: the folder of its model (see `RunRecord.model`).
        sample: a text of that model.

    Returns:
        Those of them that are not written, because somebody else's file has the name.
    """
    run = read_run(output_dir)
    results = run.results
    if "step" in results and not is_best_model(model):
        results = results | best_evaluation(run.history, run.last_step)
    card = model_card(run.config, results, sample, None if model is None else model.name)
    contents = {
        CARD_NAME: card.encode("utf-8", errors="backslashreplace"),  # names of files may hold bytes, no characters
        CURVES_NAME: draw_curves(run.history),
    }
    left = []
    for name in report_names(model):
        try:
            with written.replacing(run.folder, name) as temporary:
                temporary.write_bytes(contents[Path(name).name])
        except FileExistsError:
            left.append(run.folder / name)
    return left


def report_names(model: Path | None) -> list[str]:
    """The files of the report of a run with this model, relative to its folder."""
    return [CARD_NAME, CURVES_NAME, *(BEST_MODEL_FILES if is_best_model(model) else ())]


# ---- pictures ----


def points(history: list[dict[str, Any]], name: str, axis: str = "step") -> list[tuple[float, float]]:
    """`(x, y)` of each log entry that has both.

    Where the training loss has a part of teachers, it is that of the labels alone, as in evaluations.
    """
    comparable = {"loss": "cross_entropy"}.get(name, name)
    return [(entry[axis], entry.get(comparable, entry[name])) for entry in history if name in entry and axis in entry]


def resumed_steps(history: list[dict[str, Any]]) -> list[int]:
    """The last logged step before each resume: after it, the clock of the invocation begins again."""
    timed = [entry for entry in history if "session_hours" in entry]
    pairs = itertools.pairwise(timed)
    return [before["step"] for before, after in pairs if after["session_hours"] < before["session_hours"]]


def draw_curves(history: list[dict[str, Any]]) -> bytes:
    """A PNG of loss, perplexity and learning rate over the steps, and the loss over time; resumes are dotted lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7))
    # as matplotlib's layouts would place them, in half the time
    figure.subplots_adjust(left=0.07, right=0.99, bottom=0.07, top=0.95, wspace=0.17, hspace=0.3)
    (loss, perplexity), (rate, time) = figure.subplots(2, 2)
    for axes, title, axis, names in (
        (loss, "loss (nats per token)", "step", ("loss", "eval_loss")),
        (perplexity, "perplexity per token", "step", ("perplexity", "eval_perplexity")),
        (rate, "learning rate", "step", ("learning_rate",)),
        (time, "loss over time, all invocations", "hours", ("loss", "eval_loss")),
    ):
        for name in names:
            curve = points(history, name, axis)
            label = "validation" if name.startswith("eval_") else "training"
            if curve:
                axes.plot(*zip(*curve, strict=True), label=label, marker="." if label == "validation" else None)
        axes.set_title(title)
        axes.set_xlabel("optimizer step" if axis == "step" else "hours")
        axes.grid(alpha=0.3)
        if axis == "step":
            for i, step in enumerate(resumed_steps(history)):
                axes.axvline(step, color="gray", linestyle=":", label="resumed" if i == 0 else None)
        if len(axes.lines) > 1:
            axes.legend()
    perplexity.set_yscale("log")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110, metadata={"Software": _PICTURE_MARK})
    return picture.getvalue()


def compare_runs(dirs: Sequence[str | Path], output: str | Path) -> list[str]:
    """Draw several runs in one picture.

    Args:
        dirs: the runs' folders.
        output: the picture; its ending chooses the format.

    Returns:
        A table of the results, as lines.

    Raises:
        UserError: if a folder holds no run.
    """
    from matplotlib.figure import Figure

    runs = [read_run(folder) for folder in dirs]
    labels = _labels([run.folder for run in runs])
    figure = Figure(figsize=(12, 7), layout="constrained")
    for axes, (title, axis, name) in zip(
        figure.subplots(2, 2).flat,
        [
            ("validation loss (nats per token)", "step", "eval_loss"),
            ("validation loss over time", "hours", "eval_loss"),
            ("training loss (nats per token)", "step", "loss"),
            ("learning rate", "step", "learning_rate"),
        ],
        strict=True,
    ):
        for label, run in zip(labels, runs, strict=True):
            curve = points(run.history, name, axis)
            marker = "." if name == "eval_loss" else None
            axes.plot(*(zip(*curve, strict=True) if curve else ([], [])), label=label, marker=marker)
        axes.set_title(title)
        axes.set_xlabel("optimizer step" if axis == "step" else "hours, all invocations")
        axes.grid(alpha=0.3)
    figure.legend(labels, loc="outside lower center", ncols=min(len(runs), 4))
    is_png = Path(output).suffix == ".png"
    figure.savefig(output, dpi=110, metadata={"Software": _PICTURE_MARK} if is_png else None)
    return _comparison(labels, runs)


def _labels(folders: list[Path]) -> list[str]:
    """Folder names, with as much of the path as tells them apart."""
    resolved = [folder.resolve() for folder in folders]
    for depth in range(1, max(len(path.parts) for path in resolved) + 1):
        labels = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(labels)) == len(set(resolved)):
            break
    return labels


def _comparison(labels: list[str], runs: list[RunRecord]) -> list[str]:
    columns = [(name.replace("validation", "val."), key, text) for name, key, text in _RESULTS if key != "train_loss"]
    rows = [["run", "parameters", *(name for name, _, _ in columns)]]
    for label, run in zip(labels, runs, strict=True):
        cells = [text.format(run.results[key]) if key in run.results else "–" for _, key, text in columns]
        rows.append([label, f"{run.num_parameters / 1e6:.1f}M", *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])  # names left, numbers right
        for row in rows
    ]


def run_report(args: ReportArguments, given: dict[str, str]) -> int:
    """The command `report`: draw one run again, or compare several."""
    folders = [Path(os.path.expanduser(folder)) for folder in args.runs]
    if len(folders) == 1:
        if "output_file" in given:
            raise UserError("--output_file has no effect for a single run, whose report stays in its folder")
        (folder,) = folders
        if (folder / MANIFEST_NAME).is_file():
            raise UserError(f"{folder} is a checkpoint, which stays as it is; give its run: {folder.resolve().parent}")
        try:
            model = read_run(folder).model
            for name in report_names(model):
                written.refuse_foreign_file(folder, name)
        except FileExistsError as error:
            raise UserError(f"{error}; move it away to have the report written") from error
        try:
            write_report(folder, model, _sample_of(folder))
        except OSError as error:
            raise UserError(f"{folder}: the report cannot be written ({error.strerror})") from error
        print(f"written: {folder / CARD_NAME}, {folder / CURVES_NAME}")
        return 0
    picture = Path(os.path.expanduser(args.output_file))
    if not picture.suffix:  # matplotlib would add one, and replace another file
        raise UserError(f"--output_file: {args.output_file} needs an ending, such as {args.output_file}.png")
    if "output_file" not in given and picture.exists() and not _is_own_picture(picture):
        raise UserError(f"--output_file: {picture} is there and no comparison of runs; name the picture to be written")
    try:
        lines = compare_runs(folders, picture)
    except UserError:
        raise  # what is wrong with a run is not the picture's fault
    except (OSError, ValueError) as error:
        raise UserError(f"--output_file: {args.output_file} cannot be written: {error}") from error
    print("\n".join([*lines, *compare_evaluations(folders, _labels(folders))]))
    print(f"written: {args.output_file}")
    return 0


def _is_own_picture(path: Path) -> bool:
    with open(path, "rb") as file:
        return _PICTURE_MARK.encode() in file.read(1000)


# ---- the model card ----


def model_card(
    config: dict[str, Any], results: dict[str, Any], sample: str | None, model: str | None = BEST_MODEL
) -> str:
    """The README of a run: metadata for the hub, results, settings, a sample, and how to load the model, if any."""
    provenance = config.get(PROVENANCE_KEY, {})
    dataset = printable(_text_of(config))
    rows = [(label, results[name], text) for label, name, text in _RESULTS if name in results]
    for name in config.get("train_mix") or ():
        rows += [(f"{row[0]} of {name}", results[row[1]], row[2]) for row in _results_of(name) if row[1] in results]
    parts = [
        f"---\n{_metadata(config, results)}\n---",
        f"# GPT-2, {provenance.get('parameters', 0) / 1e6:.1f}M parameters",
        f"Trained with gpt2_hf on `{dataset}`. Losses are nats per token, summed over all scored tokens; perplexity "
        "is their exponential.",
        *_unfinished(config, results),
        _table(rows),
        f"![curves]({CURVES_NAME})",
    ]
    if model is not None:
        parts.append(
            "## Load it\n\n```python\nimport gpt2_hf\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{model}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{model}")\n```\n\n'
            "Without gpt2_hf installed, add `trust_remote_code=True`. From the hub, give the repository's id."
        )
    if sample:
        parts.append(f"{_SAMPLE_HEADING}\n\n" + "\n".join(f"> {line}" for line in sample.strip().splitlines()))
    settings = {name: value for name, value in config.items() if name != PROVENANCE_KEY and value is not None}
    parts.append("## Settings\n\n```json\n" + json.dumps(settings, indent=2) + "\n```")
    parts.append("## Made with\n\n```json\n" + json.dumps(provenance, indent=2) + "\n```")
    return "\n\n".join(parts) + "\n"


def _unfinished(config: dict[str, Any], results: dict[str, Any]) -> list[str]:
    """A line for a run that was cut short; one that follows the clock, or its validation loss, has its own end."""
    steps, planned = results.get("train_steps", 0), results.get("planned_steps", 0)
    if not 0 < steps < planned or config.get("schedule_by_time") or results.get("stopped_early"):
        return []
    return [f"**Not finished: it was trained for {steps:,} of {planned:,} steps.**"]


def _text_of(config: dict[str, Any]) -> str:
    """The files, the data set, or the names of the texts of a mix."""
    return str(config.get("train_file") or ", ".join(config.get("train_mix") or ()) or config.get("dataset_name"))


def _results_of(name: str) -> list[tuple[str, str, str]]:
    """As `_RESULTS`, of one text of a mix."""
    return [
        (f"{label} {metric}", f"{prefix}_{name}_{metric}", text)
        for prefix, label in (("eval", "validation"), ("test", "test"))
        for metric, text in (("loss", "{:.4f}"), ("perplexity", "{:.2f}"))
    ]


def _sample_of(folder: Path) -> str | None:
    """The sample in a card that was written before; it cannot be had again without the model."""
    card = folder / CARD_NAME
    if not card.is_file():
        return None
    match = re.search(rf"^{_SAMPLE_HEADING}\n\n((?:>.*\n)+)", card.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return "\n".join(line[2:] for line in match[1].splitlines()) if match else None


def _table(rows: list[tuple[str, Any, str]]) -> str:
    return "\n".join(
        ["| result | value |", "|---|--:|", *(f"| {name} | {text.format(value)} |" for name, value, text in rows)]
    )


def _on_hub(config: dict[str, Any], name: str) -> str | None:
    """What an option names, if it can only be of the hub: no folder, neither here nor where the run was."""
    value: str | None = config.get(name)
    was_folder = name in config.get(PROVENANCE_KEY, {}).get("folders", ())
    if not value or value.count("/") > 1 or was_folder or CHECKPOINT_NAME.fullmatch(value):
        return None
    return value if is_hub_id(value) else None


def _metadata(config: dict[str, Any], results: dict[str, Any]) -> str:
    """The YAML header of a model card, as the hub reads it: tags, data set, base model, measured results."""
    from huggingface_hub import EvalResult, ModelCardData

    dataset = _on_hub(config, "dataset_name") if _text_of(config) == config.get("dataset_name") else None
    hub_dataset = dataset if dataset and "/" in dataset else None  # python-docs is none of the hub
    measured = [
        EvalResult(
            task_type="text-generation",
            dataset_type=hub_dataset or "text",
            dataset_name=printable(str(hub_dataset or Path(_text_of(config)).name)),
            dataset_config=config.get("dataset_config_name"),
            dataset_split=split,
            metric_type=metric,
            metric_name=f"{metric} per token",
            metric_value=results[f"{prefix}_{metric}"],
        )
        for prefix, split in (("eval", "validation"), ("test", "test"))
        for metric in ("loss", "perplexity")
        if f"{prefix}_{metric}" in results
    ]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["gpt2_hf"],
        datasets=[hub_dataset] if hub_dataset else None,
        base_model=_on_hub(config, "model_name_or_path"),
        metrics=["perplexity"] if measured else None,
        model_name="gpt2_hf" if measured else None,
        eval_results=measured or None,
    )
    return str(data.to_yaml()).strip()
