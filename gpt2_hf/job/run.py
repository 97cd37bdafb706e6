"""One invocation of the main job, as its stages share it, and what surrounds it."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.utils import logging as transformers_logging

from ..checkpoints import folders
from ..checkpoints.event_files import event_folder_name
from ..errors import SaveError
from ..options.arguments import DataArguments, ModelArguments
from ..options.secrets import hide, remember
from ..options.training_arguments import GPT2HFTrainingArguments
from ..runtime import distributed
from ..runtime.stop_signals import SignalWatch
from ..runtime.stopwatch import Stopwatch
from .teachers import Teacher

if TYPE_CHECKING:
    from .sizing import Sizing


@dataclass
class Run:
    """One invocation of the main job.

    Attributes:
        model_args, data_args, args: what it was asked.
        watch: its stopwatch.
        signals: the signals that it received.
        given: options that were stated, and where (see `parsing.Parsed`).
        teachers: models to learn from, once they are loaded.
        sizing: what `--size auto` chose, once it has.
        details: what came out while it was built, for the record and for `--verbose`.
    """

    model_args: ModelArguments
    data_args: DataArguments
    args: GPT2HFTrainingArguments
    watch: Stopwatch
    signals: SignalWatch = field(default_factory=SignalWatch)
    given: dict[str, str] = field(default_factory=dict)
    teachers: list[Teacher] = field(default_factory=list)
    sizing: "Sizing | None" = None
    details: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for options in (self.model_args, self.data_args, self.args):
            remember(vars(options))

    def say(self, line: str) -> None:
        """Print a line once, whatever the number of processes, without secrets."""
        if self.is_first_process:
            print(hide(line), flush=True)

    @property
    def is_first_process(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.args.process_index == 0

    @property
    def output_dir(self) -> Path:
        """Where the run leaves everything."""
        return Path(str(self.args.output_dir))

    @property
    def name(self) -> str:
        """What TensorBoard calls the run: `--run_name`, or the name of its folder."""
        return event_folder_name(self.output_dir, self.args.run_name)


@contextlib.contextmanager
def surroundings(run: Run) -> Iterator[None]:
    """Watch for signals, keep libraries quiet, and say in one line what the disk refuses."""
    with _quiet_libraries():
        run.signals.install()
        try:
            yield
            distributed.barrier()  # a launcher may end the others when the first process is gone
        except SaveError:
            raise
        except OSError as error:  # what no stage has expected: a disk that fails under the report
            newest = folders.newest_intact(run.output_dir)
            kept = f"{newest} is intact, go on with --resume_from latest" if newest else "nothing was saved, restart"
            raise SaveError(f"the system refused a file ({error}); {kept} once that is fixed") from error
        finally:
            run.signals.restore()


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """No progress bars and warnings of transformers: what matters is said in our own lines."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
