"""One invocation of the main job, as its stages share it."""

from dataclasses import dataclass
from pathlib import Path

from ..options.arguments import DataArguments, ModelArguments
from ..options.training_arguments import GPT2HFTrainingArguments
from ..runtime.stop_signals import SignalWatch
from ..runtime.stopwatch import Stopwatch


@dataclass
class Run:
    """One invocation of the main job: what it was asked, and what it has built so far."""

    model_args: ModelArguments
    data_args: DataArguments
    args: GPT2HFTrainingArguments
    watch: Stopwatch
    signals: SignalWatch
    given: dict[str, str]

    def say(self, line: str) -> None:
        """Print a line once, whatever the number of processes."""
        if self.args.process_index == 0:
            print(line, flush=True)

    @property
    def output_dir(self) -> Path:
        """Where the run leaves everything."""
        return Path(str(self.args.output_dir))
