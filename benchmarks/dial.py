"""Does `--size auto` choose well? Fixed sizes and its own choice, on texts of different kinds, for different times.

    python benchmarks/dial.py --wikitext path/to/wikitext                  # what is missing in the results, in turns
    python benchmarks/dial.py --texts python-docs --minutes 3              # a part of the grid
    python benchmarks/dial.py --table                                      # the grid as far as it goes, and a plot
    python benchmarks/dial.py --fit                                        # the numbers of gpt2_hf/planning/size.py

Each run is `run_clm.py --size auto --max_training_hours H`; the fixed sizes state `--d_model` and `--num_layers` and
have the rest chosen too, so that only the size differs. Scores are on the validation split. The third text is the
Python source of Django, 18 MB, which pip fetches. Results are written after each run, and the same call goes on.

The rule is fitted to the fixed sizes: weights in use, tokens that were read, and the loss that was reached. `--fit`
also fits it without each text in turn, and says what its choices there would have cost.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_hf.planning.size import LossRule, Size

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results" / "dial.json"
PLOT = REPOSITORY / "docs" / "explanation" / "size-auto.png"
MINUTES = (3.0, 10.0, 30.0)
FIXED = ("64x2", "64x4", "128x4", "192x6", "256x6")
AUTO = "auto"
DJANGO = "django==5.2"
TEXTS = ("python-docs", "wikitext", "django")
# Around what others have found for alpha and beta (Hoffmann et al. 2022: 0.34 and 0.28), and for what repeating is
# worth (Muennighoff et al. 2023: 15): so few runs do not tell one from another.
LIMITS = ((0.25, 0.45), (0.2, 0.4), (4.0, 20.0))


def text_options(name: str, folder: Path, wikitext: str) -> list[str]:
    """How `run_clm.py` is given a text; what has to be fetched is put into a folder."""
    if name == "python-docs":
        return ["--dataset_name", "python-docs"]
    if name == "wikitext":
        return ["--dataset_name", wikitext, "--dataset_config_name", "wikitext-2-v1"]
    path = folder / "django.jsonl"
    if not path.is_file():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*command, "--no-build-isolation", "--dest", str(folder), DJANGO], check=True)
        (archive,) = folder.glob("[Dd]jango-*.tar.gz")
        with tarfile.open(archive) as tar, path.open("w", encoding="utf-8") as lines:
            for member in sorted(tar.getmembers(), key=lambda member: member.name):
                file = tar.extractfile(member) if member.name.endswith(".py") and member.size else None
                if file is not None:
                    content = file.read().decode("utf-8", errors="replace")
                    lines.write(json.dumps({"text": content}) + "\n")
    return ["--train_file", str(path), "--validation_split_percentage", "2"]


def run(text: list[str], minutes: float, size: str, output: Path, seed: int) -> dict[str, Any]:
    """Train once; what the run's own files say of it."""
    command = ["run_clm.py", *text, "--size", "auto", "--max_training_hours", str(minutes / 60), "--seed", str(seed)]
    if size != AUTO:
        width, layers = size.split("x")
        command += ["--d_model", width, "--num_layers", layers]
    command += ["--do_predict", "false", "--checkpoint_dir", str(output), "--report_to", "none"]
    subprocess.run([sys.executable, *command], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    read = {name: json.loads((output / name).read_text()) for name in ("resolved_config.json", "trainer_state.json")}
    record, history = read["resolved_config.json"], read["trainer_state.json"]["log_history"]
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    sizing = record["provenance"]["size"]
    name = f"{record['d_model']}x{record['num_layers']}"
    measured = next(each for each in sizing["candidates"] if each["size"] == name)
    return {
        "size": name,
        "parameters": measured["parameters"],
        "tokens_per_second": measured["tokens_per_second"],
        "expected_tokens": round(measured["tokens"]),
        "expected_loss": measured["loss"],
        "tokens": history[-1]["step"] * record["per_device_train_batch_size"] * record["max_length"],
        "text_tokens": sizing["text_tokens"],
        "loss": round(min(losses), 4),
        "losses": [round(loss, 4) for loss in losses],
        "threads": record["provenance"]["threads"],
        "date": record["provenance"]["date"],
    }


# ---- the fit ----


def weights(result: dict[str, Any]) -> float:
    """What the rule takes for the number of weights of a run."""
    width, layers = result["size"].split("x")
    return Size(int(width), int(layers)).capacity(result["parameters"])


def fit(runs: list[dict[str, Any]]) -> tuple[LossRule, float]:
    """The rule with the least squared error, and the root of its mean, in nats per token; a constant for each text.

    The exponents and what repeating is worth are looked for on a grid within `LIMITS`, which is then refined; the
    rest is linear.
    """
    texts = sorted({each["text"] for each in runs})
    loss = np.array([each["loss"] for each in runs])
    columns = [[float(each["text"] == text) for each in runs] for text in texts]

    def solve(alpha: float, beta: float, repeats: float) -> tuple[float, np.ndarray]:
        rule = LossRule(0.0, 1.0, alpha, 1.0, beta, repeats)
        of_size = [weights(each) ** -alpha for each in runs]
        of_data = [rule.fresh(each["tokens"], each["text_tokens"]) ** -beta for each in runs]
        matrix = np.array([*columns, of_size, of_data]).T
        scale = np.abs(matrix).max(axis=0)
        solution = np.linalg.lstsq(matrix / scale, loss, rcond=None)[0] / scale
        if solution[-1] <= 0 or solution[-2] <= 0:
            return np.inf, solution
        return float(np.mean((matrix @ solution - loss) ** 2)), solution

    grids = tuple(np.geomspace(*limits, 10) for limits in LIMITS)
    best = min(itertools.product(*grids), key=lambda point: solve(*point)[0])
    for width in (0.5, 0.2, 0.08, 0.03):
        around = [
            np.unique((value * np.exp(np.linspace(-width, width, 7))).clip(*limits))
            for value, limits in zip(best, LIMITS, strict=True)
        ]
        best = min(itertools.product(*around), key=lambda point: solve(*point)[0])
    error, solution = solve(*best)
    floor = solution[texts.index("wikitext")] if "wikitext" in texts else solution[0]
    alpha, beta, repeats = (float(f"{value:.4g}") for value in best)
    numbers = [float(f"{value:.4g}") for value in (floor, solution[-2], solution[-1])]
    return LossRule(numbers[0], numbers[1], alpha, numbers[2], beta, repeats), float(np.sqrt(error))


def regrets(runs: list[dict[str, Any]], rule: LossRule) -> dict[tuple[str, float], float]:
    """For each cell, how much more the fixed size has that a rule would choose than the best of them."""
    lost = {}
    for cell in sorted({(each["text"], each["minutes"]) for each in runs}):
        fixed = [each for each in runs if (each["text"], each["minutes"]) == cell and each["asked"] != AUTO]
        if len(fixed) > 1:
            choice = min(fixed, key=lambda each: rule.loss(weights(each), each["tokens"], each["text_tokens"]))
            lost[cell] = choice["loss"] - min(each["loss"] for each in fixed)
    return lost


def without_choices(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that a rule is fitted to, which must not have been chosen by it."""
    return [each for each in document["runs"] if each["asked"] != AUTO]


def of_seed(document: dict[str, Any], seed: int) -> dict[str, Any]:
    """The runs of one seed alone: a run of another is no other size, and is not compared with them."""
    return {**document, "runs": [each for each in document["runs"] if each["seed"] == seed]}


def describe_fit(document: dict[str, Any]) -> Iterable[str]:
    """The rule as it stands in the source, its error, and what it is worth on texts that it has not seen."""
    runs, fitted = document["runs"], without_choices(document)
    rule, error = fit(fitted)
    yield f"RULE = {rule}"
    yield f"{len(fitted)} runs, root of the mean squared error {error:.3f} nats per token"
    texts = sorted({each["text"] for each in runs})
    for text in texts if len(texts) > 1 else []:
        unseen = [each for each in fitted if each["text"] != text]
        lost = {cell: loss for cell, loss in regrets(runs, fit(unseen)[0]).items() if cell[0] == text}
        figures = ", ".join(f"{minutes:g} min {loss:.3f}" for (_, minutes), loss in lost.items())
        yield f"fitted without {text}, its choice there is worse than the best fixed size by: {figures}"


# ---- the table ----


def cells(runs: list[dict[str, Any]]) -> dict[tuple[str, float], dict[str, dict[str, Any]]]:
    """The runs by text and time, then by what was asked for."""
    found: dict[tuple[str, float], dict[str, dict[str, Any]]] = {}
    for each in runs:
        found.setdefault((each["text"], each["minutes"]), {})[each["asked"]] = each
    return found


def table(runs: list[dict[str, Any]]) -> Iterable[str]:
    """Markdown: a row for each text and time, a column for each size, the choice last."""
    yield (
        "| text | minutes | " + " | ".join(size.replace("x", " × ") for size in FIXED) + " | auto | against the best |"
    )
    yield "|---|--:|" + "--:|" * (len(FIXED) + 2)
    for (text, minutes), row in cells(runs).items():
        fixed = {size: row[size]["loss"] for size in FIXED if size in row}
        best = min(fixed.values(), default=float("nan"))
        losses = [
            "" if size not in fixed else f"**{fixed[size]:.3f}**" if fixed[size] == best else f"{fixed[size]:.3f}"
            for size in FIXED
        ]
        auto = row.get(AUTO)
        choice = f"{auto['loss']:.3f} ({auto['size'].replace('x', ' × ')})" if auto else ""
        verdict = f"{auto['loss'] - best:+.3f}" if auto and fixed else ""
        yield f"| {text} | {minutes:g} | " + " | ".join([*losses, choice, verdict]) + " |"


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    """A panel for each text: loss by size, a line for each time, the choice as a star."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    texts = [text for text in TEXTS if any(each["text"] == text for each in runs)]
    figure, axes = plt.subplots(1, len(texts), figsize=(4 * len(texts), 3.4), layout="constrained", squeeze=False)
    for axis, text in zip(axes[0], texts, strict=True):
        for (name, minutes), row in cells(runs).items():
            if name != text:
                continue
            fixed = sorted((row[size] for size in FIXED if size in row), key=lambda each: each["parameters"])
            parameters = [each["parameters"] / 1e6 for each in fixed]
            (line,) = axis.plot(parameters, [each["loss"] for each in fixed], "o-", label=f"{minutes:g} min")
            if AUTO in row:
                auto = row[AUTO]
                axis.plot(auto["parameters"] / 1e6, auto["loss"], "*", color=line.get_color(), markersize=14)
        axis.set(xscale="log", xlabel="parameters in use, millions", title=text)
        least, most = axis.get_xlim()
        axis.set_xticks([tick for tick in (0.5, 1, 2, 5, 10) if least <= tick <= most])
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
        axis.legend(title="fixed sizes; star: auto", fontsize=8, title_fontsize=8)
    axes[0][0].set_ylabel("validation loss, nats per token")
    figure.savefig(path, dpi=110)


# ---- the command line ----


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", nargs="+", choices=TEXTS, default=list(TEXTS), help="only these")
    parser.add_argument("--minutes", nargs="+", type=float, default=list(MINUTES), help="only these times")
    parser.add_argument("--sizes", nargs="+", default=[*FIXED, AUTO], help="only these: WIDTHxLAYERS, or auto")
    parser.add_argument("--wikitext", default="Salesforce/wikitext", help="WikiText-2: a hub id or a folder")
    parser.add_argument("--folder", type=Path, help="where fetched texts are kept; a temporary one when left out")
    parser.add_argument("--seed", type=int, default=1, help="of the runs, and of those that are shown")
    parser.add_argument("--results", type=Path, default=RESULTS, help="of this call and of those before")
    parser.add_argument("--table", action="store_true", help="only show the results, and draw them")
    parser.add_argument("--plot", type=Path, default=PLOT, help="where --table draws")
    parser.add_argument("--fit", action="store_true", help="only fit the rule to the results")
    return parser.parse_args()


def main() -> None:
    """Run what is missing, or show what is there."""
    arguments = parse_arguments()
    document: dict[str, Any] = {"runs": []}
    if arguments.results.is_file():
        document = json.loads(arguments.results.read_text(encoding="utf-8"))
    runs = document["runs"]
    shown = of_seed(document, arguments.seed)
    if arguments.fit:
        print("\n".join(describe_fit(shown)))
    if arguments.table:
        print("\n".join(table(shown["runs"])))
        plot(shown["runs"], arguments.plot)
    if arguments.fit or arguments.table:
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for minutes, text, size in itertools.product(arguments.minutes, arguments.texts, arguments.sizes):
            asked = {"text": text, "minutes": minutes, "asked": size, "seed": arguments.seed}
            if any(asked.items() <= each.items() for each in runs):
                continue
            options = text_options(text, folder, arguments.wikitext)
            with tempfile.TemporaryDirectory() as output:
                result = {**asked, **run(options, minutes, size, Path(output, "run"), arguments.seed)}
            runs.append(result)
            arguments.results.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            print(
                f"{text:12} {minutes:4g} min  {size:7} {result['size']:7} {result['tokens']:12,} tokens  "
                f"loss {result['loss']:.4f} (expected {result['expected_loss']:.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
