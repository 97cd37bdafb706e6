"""What can be wrong with the options of a training and is only seen when it runs: tried before anything is written.

In: a trainer that is ready. Out: nothing, or one line that names the option. A twin of the model, one block on a few
tokens, makes one step with the optimizer, the schedule, the attention and the precision of the run.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ..errors import UserError, first_line, in_one_line
from ..model.configuration_gpt2_hf import GPT2HFConfig
from ..model.modeling_gpt2_hf import GPT2HFForCausalLM
from ..options.training_arguments import plain_value
from ..planning.steps import make_schedule
from ..runtime import distributed
from ..runtime.random_state import preserved_rng
from ..runtime.temporary import temporarily
from ..runtime.utilization import is_out_of_memory
from ..trainer.distillation import Distillation
from ..trainer.gpt2_trainer import GPT2HFTrainer
from ..trainer.remaining import num_samples_of
from .run import Run

_TOKENS = 16


def check_training(run: Run, trainer: GPT2HFTrainer) -> None:
    """Build what a training is made of, and make a step with a tiny model.

    While `--size auto` has still to choose, the schedule is left out: it depends on what is chosen.

    Raises:
        UserError: if something cannot be built or does not work; one line that names the option.
    """
    args = run.args
    name, schedule = plain_value(args.optim), plain_value(args.lr_scheduler_type)
    with preserved_rng(args.device):
        with _named("--num_workers and the --dataloader options"):
            _build_loader(args)
        twin = tiny_twin(trainer.model.config).to(args.device)
        if args.torch_compile:
            with _named(f"--torch_compile_backend {args.torch_compile_backend}, --torch_compile_mode"):
                torch.compile(twin, backend=args.torch_compile_backend or "inductor", mode=args.torch_compile_mode)
        with _put_back(trainer):
            with _named(f"--optim {name}"):
                optimizer = trainer.create_optimizer(twin)
            if run.model_args.size is None:
                steps = make_schedule(args, num_samples_of(trainer.train_dataset)).total_steps
                with _named(f"--lr_scheduler_type {schedule}", _schedule_remedy):
                    trainer.create_scheduler(steps, optimizer)
            if twin.config._attn_implementation != "flex_attention":  # which takes a compiler and a minute
                with _named(f"--attn_implementation {twin.config._attn_implementation}"):
                    _forward_and_backward(trainer, twin)
                    if trainer.distillation is not None:
                        _ask_teachers(trainer, trainer.distillation)
                if "lomo" not in str(name):  # which makes its step within the backward pass
                    with _named(f"--optim {name}"):
                        if hasattr(optimizer, "train"):  # of schedule_free
                            optimizer.train()
                        optimizer.step()


def begin_reports(run: Run, trainer: GPT2HFTrainer) -> None:
    """Let the trackers of `--report_to` begin, with the name of the run: one may ask for a login, or for its server.

    They would begin with the training, when there are files already. What has begun does not begin again then, and
    ends no training any more if it fails.

    Raises:
        UserError: on all processes, if one of them does not begin; one line that names it.
    """
    names = {callback: name for name, callback in INTEGRATION_TO_CALLBACK.items()}
    with temporarily(run.args, run_name=run.name):
        distributed.decided_by_first(lambda: _begin_all(trainer, names))
    for callback in trainer.callback_handler.callbacks:
        if type(callback) in names:
            _outlive(callback, names[type(callback)], run.say)


def _outlive(tracker: TrainerCallback, name: str, say: Callable[[str], None]) -> None:
    """Let a tracker fail without the run: it is said once, and what comes later may reach its server again."""
    has_failed = False

    def surviving(event: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal has_failed
            try:
                return event(*args, **kwargs)
            except Exception as error:
                if not has_failed:
                    say(f"warning: --report_to {name}: {first_line(error)}; the run goes on, and is incomplete there")
                has_failed = True

        return call

    for event in dir(tracker):
        if event.startswith("on_"):
            setattr(tracker, event, surviving(getattr(tracker, event)))


def _begin_all(trainer: GPT2HFTrainer, names: dict[type, str]) -> None:
    for callback in trainer.callback_handler.callbacks:
        if hasattr(callback, "setup") and not getattr(callback, "_initialized", True):
            with _named(f"--report_to {names.get(type(callback), type(callback).__name__)}", _tracker_remedy):
                callback.on_train_begin(
                    trainer.args,
                    trainer.state,
                    trainer.control,
                    model=trainer.model,
                    processing_class=trainer.processing_class,
                )


def tiny_twin(config: GPT2HFConfig) -> GPT2HFForCausalLM:
    """A model with one block and one head of the same size, and everything else as in the real one."""
    tiny = copy.deepcopy(config)
    tiny.n_embd = config.head_size
    tiny.n_layer = tiny.n_head = 1
    tiny.n_inner = None
    tiny.n_positions = min(_TOKENS, config.n_positions)
    tiny.vocab_size, tiny.n_vocab_padding = 64, 0
    tiny.bos_token_id = tiny.eos_token_id = tiny.pad_token_id = None
    tiny._attn_implementation = config._attn_implementation
    return GPT2HFForCausalLM(tiny).train()


def _forward_and_backward(trainer: GPT2HFTrainer, twin: GPT2HFForCausalLM) -> None:
    ids = torch.arange(twin.config.n_positions, device=trainer.args.device).unsqueeze(0)
    with trainer.accelerator.autocast():
        smoothing = trainer.args.label_smoothing_factor
        smoothing = {"label_smoothing": smoothing} if smoothing else {}
        twin(ids, labels=ids, return_logits=False, **smoothing).loss.backward()


def _ask_teachers(trainer: GPT2HFTrainer, distillation: Distillation) -> None:
    with trainer.accelerator.autocast():
        distillation.read({"input_ids": torch.zeros(1, 2, dtype=torch.long, device=trainer.args.device)})


def _build_loader(args: Any) -> None:
    """With the options that decide how batches are prepared; it starts no processes."""
    DataLoader(
        [0],
        num_workers=args.dataloader_num_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        persistent_workers=args.dataloader_persistent_workers,
        multiprocessing_context=args.dataloader_multiprocessing_context,
    )


@contextlib.contextmanager
def _put_back(trainer: GPT2HFTrainer) -> Iterator[None]:
    """Let the trainer build a second time, for the real model."""
    optimizer, scheduler, schedule = trainer.optimizer, trainer.lr_scheduler, trainer.time_budget.schedule
    try:
        yield
    finally:
        trainer.optimizer, trainer.lr_scheduler = optimizer, scheduler
        trainer.time_budget.schedule = schedule


def _schedule_remedy(message: str) -> str:
    return f"{message}; --lr_scheduler_kwargs takes what it needs as a JSON object, such as '{{\"min_lr\": 1e-5}}'"


def _tracker_remedy(message: str) -> str:
    return (
        f"{message.rstrip('.')}; log in or set it up as its documentation says (WANDB_MODE=offline: without a login), "
        "or leave it out: --report_to tensorboard"
    )


@contextlib.contextmanager
def _named(option: str, remedy: Callable[[str], str] = str) -> Iterator[None]:
    """Name the option with whatever a library has against it, in one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise  # whatever the option, the device is full
        message = in_one_line(error)
        raise UserError(remedy(f"{option}: {message}")) from error
