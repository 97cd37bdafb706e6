"""transformers' training loop on a fake accelerator: `python -m tests.fake_training`.

The device is that of `fake_accelerator`: its tensors have shape, type and place, and no numbers. `train()` of
`GPT2HFTrainer` runs whole on it: loaders and copies of batches, transformers' loop, autocast, the loss scaler,
accelerate's optimizer, DDP with its buckets, schedules, callbacks and logs. Put in the place of others are a process
group that sends nothing (torch's own for such tests), and DDP's looks at memory, which it takes once. That batches lie
in pinned memory, so that a copy need not be waited for, is taken for granted.

A number that is read is made up: 1, or −1 for an integer.
"""

import contextlib
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.state import AcceleratorState
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools import fake_collectives  # noqa: F401  # exchanges of tensors without numbers
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore, _create_fake_pg
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from transformers import TrainerCallback

from gpt2_hf import GPT2HFTrainer, GPT2HFTrainingArguments
from gpt2_hf.data import DocumentSamples, FlatteningCollator
from gpt2_hf.runtime import distributed
from gpt2_hf.runtime.precision import Precision

from .data_fixtures import documents_of, streamed_lines
from .fake_accelerator import DEVICE, FakeBackend, Waits, caller, move
from .tiny_models import make_model

DROPOUT = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.1)
AUTOCAST = "AutocastPrivateUse1"
LOWERED = ("linear", "addmm", "mm", "bmm", "matmul", "baddbmm")
EXCHANGES = ("all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "all_gather_single", "barrier")
EXCHANGES += ("broadcast", "broadcast_object_list", "gather", "gather_object", "reduce", "reduce_scatter", "scatter")


class Variant(NamedTuple):
    """A way to train, and what it cannot do without in each step."""

    data: str
    optim: str
    precision: str
    processes: int = 1
    accumulated: int = 1
    waits: tuple[str, ...] = ()
    # That are looked at; before them is the first, which makes the optimizer's state, and after them one.
    steps: int = 5


VARIANTS = {
    "stored lines, AdamW, fp32": Variant("stored", "adamw_torch_fused", "fp32"),
    "stored lines, AdamW, fp16": Variant("stored", "adamw_torch_fused", "fp16"),
    "streaming, unequal lines, Muon, bf16": Variant("streamed, unequal", "muon", "bf16"),
    "stored lines, AdamW, bf16, accumulation, DDP": Variant("stored", "adamw_torch_fused", "bf16", 2, 2),
    "streaming, Muon, fp16, DDP": Variant("streamed", "muon", "fp16", 2),
    # An optimizer that cannot skip a step on the device: somebody must decide on the host whether it steps. With fp16
    # torch's loss scaler reads its `found_inf`, which accelerate calls; else the guard against bad gradients the norm.
    "AdamW that is not fused, fp16": Variant(
        "stored", "adamw_torch", "fp16", waits=("a number is read: accelerate/optimizer.py step",)
    ),
    "AdamW that is not fused, bf16": Variant(
        "stored", "adamw_torch", "bf16", waits=("a number is read: gpt2_hf/trainer/callbacks/non_finite.py observe",)
    ),
}


class Exchanges:
    """Counts what processes exchange, by the package that asks for it."""

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count inside."""
        with contextlib.ExitStack() as stack:
            for name in EXCHANGES:
                if hasattr(dist, name):
                    stack.enter_context(mock.patch.object(dist, name, self._wrapped(name, getattr(dist, name))))
            yield

    def _wrapped(self, name: str, original: Callable) -> Callable:
        def exchange(*args: Any, **kwargs: Any) -> Any:
            self.found.append(f"{caller().split('/')[0]}: {name}")
            return original(*args, **kwargs)

        return exchange


class Watch(TrainerCallback):
    """What was found between the log of the first step and the last step, which is logged again."""

    def __init__(self, waits: Waits, exchanges: Exchanges):
        self.waits, self.exchanges = waits.found, exchanges.found
        self.steps = 0  # whole ones between them

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            self.waits.clear()
            self.exchanges.clear()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if 1 < state.global_step < state.max_steps:
            self.steps += 1
        if state.global_step == state.max_steps - 1:
            self.waits, self.exchanges = list(self.waits), list(self.exchanges)


class Reader(TrainerCallback):
    """What must not be: it reads a number of the device, and copies another one."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        weight = kwargs["model"].transformer.wpe.weight
        bool(weight[0, 0] > 0)
        weight[0].cpu()


def make_data(kind: str, folder: Path) -> Any:
    """Documents that are stored, or streamed from a file."""
    if kind == "stored":
        return DocumentSamples(documents_of([[1] * 10] * 400), 32)  # of one length: known shapes are quickly made
    return streamed_lines(folder, [5 + n % 3 if "unequal" in kind else 9 for n in range(400)])


def lower_products() -> list[torch.library.Library]:
    """Autocast as GPUs have it: matrix products in 16 bits, the rest as it comes."""
    everything, products = (
        torch.library.Library("_", "IMPL", AUTOCAST),
        torch.library.Library("aten", "IMPL", AUTOCAST),
    )
    everything.fallback(torch.library.fallthrough_kernel)
    for name in LOWERED:
        products.impl(name, lowered(getattr(torch.ops.aten, name)))
    return [everything, products]


def lowered(operation: Any) -> Callable:
    """An operation in autocast's format."""

    def run(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype(DEVICE)
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(AUTOCAST)):
            cast = [x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in args]
            return operation(*cast, **kwargs)

    return run


class FakeDDP(DistributedDataParallel):
    """DDP that looks at no memory: not at the parameters of the other processes, nor at the order of gradients."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        where = "torch.nn.parallel.distributed."
        looks = (where + "_verify_param_shape_across_processes", where + "_sync_module_states")
        with mock.patch(looks[0]), mock.patch(looks[1]):
            super().__init__(*args, **kwargs)
        self.register_comm_hook(None, self._send)
        self.reducer = _WithoutRebuilding(self.reducer)

    @staticmethod
    def _send(state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        dist.distributed_c10d.all_reduce(bucket.buffer())  # which is not counted
        sent: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        sent.set_result(bucket.buffer())
        return sent


class _WithoutRebuilding:
    def __init__(self, reducer: Any):
        self._reducer = reducer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reducer, name)

    def _rebuild_buckets(self) -> bool:
        return False


@contextlib.contextmanager
def processes(number: int) -> Iterator[None]:
    """As the first of so many processes."""
    PartialState._reset_state()
    AcceleratorState._reset_state()
    if number == 1:
        yield
        return
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number)}
    dist.init_process_group("silent", store=FakeStore(), rank=0, world_size=number)
    agree = mock.patch.object(distributed, "_cpu_group", lambda world: world)  # that sends nothing either
    ddp = mock.patch("torch.nn.parallel.DistributedDataParallel", FakeDDP)
    with mock.patch.dict(os.environ, rank), agree, ddp:
        yield
    dist.destroy_process_group()


@contextlib.contextmanager
def on_the_device(args: GPT2HFTrainingArguments) -> Iterator[Waits]:
    """Let a run on a CPU, of which nothing is made yet but the arguments, take place on the fake device."""
    _ = args.device  # or it would be chosen later
    vars(args)["_setup_devices"] = PartialState._shared_state["device"] = torch.device(DEVICE)
    real = {"largest_of_each": distributed.largest_of_each}

    def largest_of_each(*values: float) -> tuple[float, ...]:  # of numbers that the host has
        with _disable_current_modes():
            return real["largest_of_each"](*values)

    with contextlib.ExitStack() as stack:
        # what is said of a CPU or a card is decided by names of devices
        stack.enter_context(mock.patch.object(GPT2HFTrainer, "_copies_unseen", True))
        stack.enter_context(mock.patch("gpt2_hf.trainer.callbacks.stopping.largest_of_each", largest_of_each))
        stack.enter_context(mock.patch.object(FakeTensorMode, "avoid_device_init", True))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield stack.enter_context(Waits())


def choose_precision(trainer: GPT2HFTrainer, name: str) -> None:
    """As accelerate does for a card."""
    engine = trainer.accelerator
    engine.state._mixed_precision = "no" if name == "fp32" else name
    engine.native_amp = name != "fp32"
    engine.scaler = torch.amp.GradScaler(DEVICE) if name == "fp16" else None
    trainer.args.resolved_precision = Precision(name, "asked for")


def make_arguments(folder: str, variant: Variant) -> GPT2HFTrainingArguments:
    """Of a run of some steps that neither evaluates nor saves."""
    quiet = {"report_to": "none", "eval_strategy": "no", "save_strategy": "no", "max_training_hours": 1.0}
    last = variant.steps + 2
    logs = {"logging_first_step": True, "logging_steps": last}
    return GPT2HFTrainingArguments(
        folder,
        use_cpu=True,
        precision="fp32",
        optim=variant.optim,
        max_steps=last,
        warmup_steps=0,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=variant.accumulated,
        **quiet,
        **logs,
    )


def train(variant: Variant, *callbacks: TrainerCallback) -> Watch:
    """Train; what was found between the first log and the last."""
    with tempfile.TemporaryDirectory() as folder, processes(variant.processes):
        args, samples = make_arguments(folder, variant), make_data(variant.data, Path(folder))
        model, exchanges = make_model(n_layer=1, **DROPOUT).train(), Exchanges()
        with on_the_device(args) as waits, exchanges.counted():
            move(model)
            model.to = lambda *args, **kwargs: model  # is there
            trainer = GPT2HFTrainer(model, args, FlatteningCollator(), samples, callbacks=[*callbacks])
            choose_precision(trainer, variant.precision)
            watch = Watch(waits, exchanges)
            trainer.add_callback(watch)
            with contextlib.redirect_stdout(sys.stderr):
                trainer.train()
    return watch


def check(variant: Variant) -> None:
    """Nothing waits but what must, and each process asks the others once a step, and transformers once for tokens."""
    watch, steps = train(variant), variant.steps
    assert watch.steps == steps
    assert Counter(watch.waits) == dict.fromkeys(variant.waits, steps), Counter(watch.waits)
    asked = {"gpt2_hf: all_reduce": steps, "accelerate: all_gather": steps} if variant.processes > 1 else {}
    assert Counter(watch.exchanges) == asked, Counter(watch.exchanges)


def main() -> None:
    """Train each variant; a line for each."""
    _setup_privateuseone_for_python_backend(DEVICE, backend_module=FakeBackend())
    dist.Backend.register_backend("silent", _create_fake_pg, extended_api=True, devices=["cpu", DEVICE])
    libraries = lower_products()
    for name, variant in VARIANTS.items():
        check(variant)
        print(name)
    variant = VARIANTS["stored lines, AdamW, fp16"]
    found = Counter(train(variant, Reader()).waits)
    assert set(found.values()) == {variant.steps} and len(found) == 2, found
    print("a number that is read, and a copy, would be found")
    del libraries


if __name__ == "__main__":
    main()
