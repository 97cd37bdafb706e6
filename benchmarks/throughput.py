"""gpt2_hf against what a user would run instead, on the same samples, interleaved in one run.

    python benchmarks/throughput.py --device cpu --quick                 # small models, under 3 minutes
    python benchmarks/throughput.py --dataset_name path/to/wikitext      # everything; 20 minutes on two CPU cores

Contestants:
    stock     transformers' GPT2LMHeadModel under its Trainer as the official run_clm example sets them up: fp32,
              no torch.compile; lines padded to the model's 1,024 positions (on a CPU accumulated two by two, because
              eight at once take more than 24 GiB)
    tuned     the same with all that a careful user would switch on: bf16 where the device has it, sdpa, fused AdamW,
              lines grouped by length and padded to the longest of the batch, torch_compile on a GPU; the groups come
              in random order, so that a few steps stand for all
    gpt2_hf   this package as `run_clm.py` runs it
    compiled  the same with --torch_compile, on a GPU
    tied      gpt2_hf with --tie_unused_tokens; its share counts the whole head all the same
    evaluated gpt2_hf's Trainer evaluating, no step
    bare      gpt2_hf's model in a loop without any Trainer: the same batches, autocast, clipping, optimizer, schedule,
              and allocator on a CPU

Each contestant is a process of its own that trains through its Trainer and stops before a step until it is its turn;
all others sleep meanwhile. A turn is timed from there to the beginning of the step after its last one, so loading,
logging and bookkeeping count. Every round gives one ratio; the table shows their median and range.

Tokens are those with a target: padding never counts. Arithmetic is 6 N + 12 L H Q T operations a token (Chowdhery et
al. 2022, arXiv:2204.02311, appendix B; N without position embeddings, T the context, for lines their mean length),
its share is of the rate at which this machine multiplies matrices of the model's own shapes for two seconds, in the
same rounds and precision; the best moment of a square product is printed beside it. Peak memory is the process's
resident set on a CPU, libraries included, and torch's own count on a GPU.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import platform
import random
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SIZES = {
    # d_model, layers, heads
    "124M": (768, 12, 12),
    "10M": (160, 6, 5),
    "small": (256, 4, 4),
}


@dataclass(frozen=True)
class Case:
    """What all contestants of one comparison have in common."""

    name: str
    contestants: tuple[str, ...]
    size: str
    batch_size: int
    mode: str = "blocks"  # blocks, lines or generation
    dropout: float = 0.1
    length: int = 1024
    new_tokens: int = 128


@dataclass(frozen=True)
class Entry:
    """One contestant of one case."""

    case: Case
    who: str
    device: str
    dataset_name: str
    dataset_config_name: str | None


class StopBenchmarkError(Exception):
    """The last turn is over."""


# ---- one contestant, in its own process ----


class Turns:
    """Waits for the next turn, and times it."""

    def __init__(self, pipe: Connection, device: str, batches_per_step: int = 1):
        self.pipe = pipe
        self.device = device
        self.batches_per_step = batches_per_step
        self.left: int | None = None
        self.batch_tokens: list[int] = []  # of each batch that was made, in order
        self.steps = 0

    def wait(self) -> None:
        """Called at the beginning of each step."""
        if self.left is not None:
            self.left -= 1
            self.steps += 1
            if self.left > 0:
                return
            synchronize(self.device)
            seconds = time.perf_counter() - self.start
            first, end = self.first * self.batches_per_step, self.steps * self.batches_per_step
            tokens = sum(self.batch_tokens[first:end])
            self.pipe.send({"seconds": seconds, "tokens": tokens, "peak_bytes": peak_bytes(self.device)})
        order = self.pipe.recv()
        if order is None:
            raise StopBenchmarkError
        self.left, self.first = order, self.steps
        reset_peak(self.device)
        synchronize(self.device)
        self.start = time.perf_counter()


def synchronize(device: str) -> None:
    """Wait for the accelerator."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def reset_peak(device: str) -> None:
    """Begin to watch the peak of memory anew, where the system can."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: str) -> int:
    """Peak memory since `reset_peak`."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    import psutil

    return psutil.Process().memory_info().rss


def contestant(entry: Entry, pipe: Connection) -> None:
    """The body of a contestant's process."""
    try:
        if entry.who == "matrix":
            multiply(entry, pipe)
        elif entry.case.mode == "generation":
            generate(entry, pipe)
        else:
            train(entry, Turns(pipe, entry.device, accumulation_of(entry)))
    except StopBenchmarkError:
        pipe.close()
    except BaseException:
        pipe.send({"error": traceback.format_exc()})
        raise


def accumulation_of(entry: Entry) -> int:
    """Batches of a step: those of stock lines do not fit into a desktop's memory at once."""
    case = entry.case
    whole_rows = entry.who == "stock" and case.mode == "lines" and entry.device == "cpu"
    return max(case.batch_size * case.length // 2048, 1) if whole_rows else 1


def precision_of(device: str) -> str:
    """The 16-bit format that gpt2_hf would choose, or fp32."""
    from gpt2_hf.runtime.precision import resolve_precision

    return resolve_precision("auto", device).name


def multiply(entry: Entry, pipe: Connection) -> None:
    """The machine's own rates in operations a second: sustained in a step's products, and the best of a burst."""
    import torch

    from gpt2_hf.runtime.precision import resolve_precision

    dtype = resolve_precision("auto", entry.device).dtype

    def matrices(m: int, k: int, n: int) -> tuple[Any, Any]:
        return tuple(torch.randn(shape, device=entry.device, dtype=dtype) for shape in ((m, k), (k, n)))

    def seconds(pairs: list[tuple[Any, Any]]) -> float:
        start = time.perf_counter()
        for a, b in pairs:
            torch.mm(a, b)
        synchronize(entry.device)
        return time.perf_counter() - start

    size = 8192 if entry.device == "cuda" else 2048
    burst = [matrices(size, size, size)]
    step = [matrices(*shape) for shape in products_of(entry.case)]
    operations = [2 * m * k * n for m, k, n in products_of(entry.case)]
    while pipe.recv() is not None:
        seconds(burst), seconds(step)
        best = max(2 * size**3 / seconds(burst) for _ in range(10))
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < 2.0:
            seconds(step)
            steps += 1
        pipe.send({"burst": best, "rate": steps * sum(operations) / (time.perf_counter() - start)})


def products_of(case: Case) -> list[tuple[int, int, int]]:
    """The matrix products of one layer and of a layer's share of the head, forward and backward: M, K, N of each."""
    width, layers, _ = SIZES[case.size]
    rows = case.batch_size * case.length if case.mode == "blocks" else 1024
    forward = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width), (width, 50257 // layers)]
    return [
        product
        for k, n in forward
        for product in ((rows, k, n), (rows, n, k), (k, rows, n))  # output, gradient of the input, of the weights
    ]


def load_samples(entry: Entry) -> tuple[Any, Any]:
    """Samples and collator of the package's data stage."""
    from gpt2_hf.data import load_data
    from gpt2_hf.data.tokenizer import load_tokenizer
    from gpt2_hf.options.arguments import DataArguments

    lines = entry.case.mode == "lines"
    args = DataArguments(
        dataset_name=entry.dataset_name,
        dataset_config_name=entry.dataset_config_name,
        sequence_mode="padding_free" if lines else "blocks",
        truncate=lines,
    )
    data = load_data(args, load_tokenizer(), entry.case.length, splits=("train",))
    return data.samples["train"], data.collator


class PaddedCollator:
    """What the official example's users write: ids, mask and labels, padded to the longest or to `pad_to`."""

    def __init__(self, positions: int, pad_to: int | None = None):
        self.positions = positions
        self.pad_to = pad_to

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        rows = [torch.as_tensor(sample["input_ids"][: self.positions]) for sample in samples]
        length = self.pad_to or max(len(row) for row in rows)
        batch = {
            "input_ids": torch.full((len(rows), length), 50256),
            "attention_mask": torch.zeros(len(rows), length, dtype=torch.long),
            "labels": torch.full((len(rows), length), -100),
        }
        for i, row in enumerate(rows):
            batch["input_ids"][i, : len(row)] = row
            batch["attention_mask"][i, : len(row)] = 1
            batch["labels"][i, : len(row)] = row
        return batch


def counting(collator: Any, turns: Turns) -> Any:
    """The collator, its batches' targets counted."""

    def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = collator(samples)
        shifted = batch["shift_labels"] if "shift_labels" in batch else batch["labels"][:, 1:]
        turns.batch_tokens.append(int((shifted != -100).sum()))
        return batch

    return collate


def train(entry: Entry, turns: Turns) -> None:
    """Train until the last turn is over."""
    import torch
    import transformers
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    from gpt2_hf import GPT2HFConfig, GPT2HFForCausalLM
    from gpt2_hf.data import EpochSampler
    from gpt2_hf.options.training_arguments import GPT2HFTrainingArguments
    from gpt2_hf.trainer.gpt2_trainer import GPT2HFTrainer

    transformers.utils.logging.set_verbosity_error()
    case = entry.case
    samples, collator = load_samples(entry)
    width, layers, heads = SIZES[case.size]
    shape = {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": case.length}
    dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), case.dropout)
    transformers.set_seed(42)

    class Gate(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            turns.wait()

    class EvaluationGate(TrainerCallback):
        def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            turns.wait()

    common = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": case.batch_size,
        "per_device_eval_batch_size": case.batch_size,
        "num_train_epochs": 1000,
        "learning_rate": 3e-4,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2000,
        "logging_steps": 100,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": [],
        "seed": 42,
        "use_cpu": entry.device == "cpu",
    }
    if entry.who in ("gpt2_hf", "compiled", "tied", "bare", "evaluated"):
        model: Any = GPT2HFForCausalLM(GPT2HFConfig(**shape, **dropouts))
        if entry.who == "tied":
            used = samples.documents.used_ids(model.config.num_tokens)
            model.tie_unused_tokens(torch.tensor([*used, model.config.eos_token_id]))
        compiled = entry.who == "compiled"
        args: Any = GPT2HFTrainingArguments(**common, max_training_hours=None, torch_compile=compiled)
        if entry.who == "bare":
            bare_loop(model, args, samples, counting(collator, turns), turns)
        gate = EvaluationGate() if entry.who == "evaluated" else Gate()
        trainer: Any = GPT2HFTrainer(
            model, args, data_collator=counting(collator, turns), train_dataset=samples, callbacks=[gate]
        )
        while entry.who == "evaluated":  # its gate ends the process
            trainer.evaluate(samples)
        trainer.train()
    tuned = entry.who == "tuned"
    precision = precision_of(entry.device) if tuned else "fp32"
    # The same samples in the order in which gpt2_hf takes them.
    grouped = tuned and case.mode == "lines"
    sampler = EpochSampler(len(samples), 42, case.batch_size, lengths=samples.lengths if grouped else None)
    listed = [{"input_ids": samples[int(i)]["input_ids"]} for i in sampler.order()]
    common["per_device_train_batch_size"] = case.batch_size // turns.batches_per_step
    args = TrainingArguments(
        **common,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        optim="adamw_torch_fused",
        torch_compile=tuned and entry.device == "cuda",
        train_sampling_strategy="sequential",
        gradient_accumulation_steps=turns.batches_per_step,
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    model = GPT2LMHeadModel._from_config(GPT2Config(**shape, **dropouts), attn_implementation="sdpa")
    padded = PaddedCollator(case.length, None if tuned or case.mode == "blocks" else case.length)
    collate = counting(padded, turns)
    trainer = Trainer(model, args, data_collator=collate, train_dataset=listed, callbacks=[Gate()])
    torch.manual_seed(42)
    trainer.train()


def bare_loop(model: Any, args: Any, samples: Any, collate: Any, turns: Turns) -> None:
    """What the Trainer does, without the Trainer."""
    import torch
    from torch.utils.data import DataLoader

    from gpt2_hf.data import EpochSampler
    from gpt2_hf.runtime.own_process import suit_changing_shapes

    device = str(args.device)
    model.to(device).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 2000, 1.0))
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(args.resolved_precision.name)
    sampler = EpochSampler(len(samples), 42, args.per_device_train_batch_size)
    loader = DataLoader(
        samples, args.per_device_train_batch_size, sampler=sampler, collate_fn=collate, pin_memory=device != "cpu"
    )
    with suit_changing_shapes(args.device.type, shapes_change=False):
        for batch in itertools.chain.from_iterable(itertools.repeat(loader)):
            turns.wait()
            batch = {k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in batch.items()}
            with torch.autocast(model.device.type, dtype=dtype, enabled=dtype is not None):
                loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


def generate(entry: Entry, pipe: Connection) -> None:
    """Greedy continuation of random prompts, in the precision that each side takes by default."""
    import torch
    import transformers
    from transformers import GPT2Config, GPT2LMHeadModel

    from gpt2_hf import GPT2HFConfig, GPT2HFForCausalLM
    from gpt2_hf.commands.packed_weights import packed_weights
    from gpt2_hf.runtime.precision import resolve_precision

    transformers.utils.logging.set_verbosity_error()
    case = entry.case
    width, layers, heads = SIZES[case.size]
    shape = {"n_embd": width, "n_layer": layers, "n_head": heads}
    transformers.set_seed(42)
    prompts = torch.randint(0, 50257, (case.batch_size, 32), device=entry.device)
    if entry.who == "gpt2_hf":
        dtype = resolve_precision("auto", entry.device).dtype
        model: Any = GPT2HFForCausalLM(GPT2HFConfig(**shape)).to(entry.device, dtype).eval()
    else:
        model = GPT2LMHeadModel(GPT2Config(**shape)).to(entry.device).eval()
    options = {
        "max_new_tokens": case.new_tokens,
        "min_new_tokens": case.new_tokens,
        "do_sample": False,
        "pad_token_id": 50256,
        "attention_mask": torch.ones_like(prompts),
    }
    # As the command `generate` does; the peer is stock.
    with packed_weights(model) if entry.who == "gpt2_hf" else contextlib.nullcontext():
        while (count := pipe.recv()) is not None:
            reset_peak(entry.device)
            synchronize(entry.device)
            start = time.perf_counter()
            for _ in range(count):
                model.generate(prompts, **options)
            synchronize(entry.device)
            seconds = time.perf_counter() - start
            tokens = count * case.batch_size * case.new_tokens
            pipe.send({"seconds": seconds, "tokens": tokens, "peak_bytes": peak_bytes(entry.device)})


# ---- the driver ----


class Process:
    """A contestant's process as the driver sees it."""

    def __init__(self, entry: Entry):
        context = multiprocessing.get_context("spawn")
        self.entry = entry
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=contestant, args=(entry, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.steps = 1
        self.turns: list[dict[str, float]] = []

    def turn(self, steps: int) -> dict[str, Any]:
        """Let it run so many steps."""
        self.pipe.send(steps)
        try:
            answer = self.pipe.recv()
        except EOFError:
            answer = {"error": f"the process ended with {self.process.exitcode}: too little memory?"}
        if "error" in answer:
            raise RuntimeError(f"{self.entry.case.name}, {self.entry.who}: {answer['error']}")
        return {**answer, "steps": steps}

    def stop(self) -> None:
        """End it."""
        if self.process.is_alive():
            self.pipe.send(None)
            self.process.join(10)
            self.process.kill()


def flops_per_token(case: Case, mean_length: float) -> float:
    """PaLM, appendix B; the tied head counts once, as the product that it is."""
    width, layers, _ = SIZES[case.size]
    parameters = 12 * layers * width**2 + 50257 * width
    context = min(mean_length, case.length)
    return 6 * parameters + 12 * layers * width * context


@contextlib.contextmanager
def leaving_out(process: Process, processes: list[Process], failures: dict[str, str]) -> Iterator[None]:
    """Go on without a contestant that fails, and keep its last line."""
    try:
        yield
    except RuntimeError as error:
        failures[process.entry.who] = str(error).strip().splitlines()[-1]
        process.process.kill()
        processes.remove(process)


def run_case(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """All rounds of one case."""
    entries = [
        Entry(case, who, options.device, options.dataset_name, options.dataset_config_name)
        for who in (*case.contestants, *(["matrix"] if case.mode != "generation" else []))
    ]
    processes = [Process(entry) for entry in entries]
    failures: dict[str, str] = {}
    try:
        for process in list(processes):  # one after the other: their first steps allocate and compile
            entry = process.entry
            with leaving_out(process, processes, failures):
                first = process.turn(options.warmup_steps if entry.who != "matrix" else 1)
                if "seconds" in first:
                    again = process.turn(1) if first["seconds"] / first["steps"] < 10 else first
                    process.steps = max(math.ceil(options.seconds * again["steps"] / again["seconds"]), 1)
        for _ in range(options.rounds):
            for process in random.sample(processes, len(processes)):
                with leaving_out(process, processes, failures):
                    process.turns.append(process.turn(process.steps))
        return summary(case, processes, failures)
    finally:
        for process in processes:
            process.stop()


def share_of(operations: float, matrix: float | None, who: str) -> float | None:
    """Of the machine's rate; an evaluation has a third of a training step's products."""
    return operations / (3 if who == "evaluated" else 1) / matrix if matrix else None


def summary(case: Case, processes: list[Process], failures: dict[str, str]) -> dict[str, Any]:
    """What the rounds say."""
    rates = {p.entry.who: [t["tokens"] / t["seconds"] for t in p.turns] for p in processes if p.entry.who != "matrix"}
    products = next((p.turns for p in processes if p.entry.who == "matrix"), [])
    matrix, burst = (statistics.median(t[key] for t in products) if products else None for key in ("rate", "burst"))
    contestants: dict[str, Any] = {}
    for process in processes:
        who = process.entry.who
        if who == "matrix":
            continue
        steps = [turn["seconds"] / turn["steps"] for turn in process.turns]
        tokens_per_row = statistics.mean(t["tokens"] / t["steps"] for t in process.turns) / case.batch_size
        rate = statistics.median(rates[who])
        contestants[who] = {
            "tokens_per_second": rate,
            "step_seconds_median": statistics.median(steps),
            "step_seconds_range": [min(steps), max(steps)],
            "steps_timed": sum(turn["steps"] for turn in process.turns),
            "peak_gib": max(turn["peak_bytes"] for turn in process.turns) / 2**30,
            "share_of_matrix_rate": share_of(rate * flops_per_token(case, tokens_per_row), matrix, who),
        }
    ratios = {}
    ours = "gpt2_hf"
    for other in rates:
        if ours in rates and other != ours:
            per_round = [a / b for a, b in zip(rates[ours], rates[other], strict=True)]
            ratios[other] = {
                "speed": statistics.median(per_round),
                "speed_range": [min(per_round), max(per_round)],
                "memory": contestants[ours]["peak_gib"] / contestants[other]["peak_gib"],
            }
    return {
        "case": asdict(case),
        "matrix_flops": matrix,
        "matrix_flops_burst": burst,
        "contestants": contestants,
        "ratios": ratios,
        "failures": failures,
    }


def print_case(result: dict[str, Any]) -> None:
    """One case as a table."""
    case = result["case"]
    matrix = ""
    if result["matrix_flops"]:
        sustained, burst = (result[key] / 1e9 for key in ("matrix_flops", "matrix_flops_burst"))
        matrix = f"; matrix products {sustained:,.0f} GFLOP/s sustained, {burst:,.0f} at best"
    print(f"\n{case['name']}: {case['size']}, batch {case['batch_size']}{matrix}")
    print(f"  {'':10}{'tokens/s':>12}{'step (s), median and range':>32}{'peak GiB':>10}{'share':>8}{'gpt2_hf is':>24}")
    for who, row in result["contestants"].items():
        low, high = row["step_seconds_range"]
        share = f"{row['share_of_matrix_rate']:.0%}" if row["share_of_matrix_rate"] else ""
        ratio = result["ratios"].get(who)
        times = f"{ratio['speed']:.2f}x ({ratio['speed_range'][0]:.2f}-{ratio['speed_range'][1]:.2f})" if ratio else ""
        step = f"{row['step_seconds_median']:.4f} ({low:.4f}-{high:.4f})"
        print(f"  {who:10}{row['tokens_per_second']:12,.1f}{step:>32}{row['peak_gib']:10.2f}{share:>8}{times:>24}")
    for who, problem in result["failures"].items():
        print(f"  {who:10}failed: {problem}")
    sys.stdout.flush()


def make_cases(options: argparse.Namespace) -> list[Case]:
    """The comparisons of docs/explanation/speed.md."""
    training = ("stock", "tuned", "gpt2_hf", *(["compiled"] if options.device == "cuda" else []))
    if options.quick:
        return [
            Case("lines", training, "small", 8, mode="lines", length=256),
            Case("blocks, dropout 0.1", training, "small", 4, length=256),
            Case("generation", ("stock", "gpt2_hf"), "small", 1, mode="generation", new_tokens=32),
        ]
    rows = 8 if options.device == "cuda" else 2
    return [
        Case("lines", training, "124M", 8, mode="lines"),
        Case("blocks, dropout 0.1", training, "124M", rows),
        Case("blocks, no dropout", (*training, "evaluated"), "124M", rows, dropout=0.0),
        Case("small blocks, dropout 0.1", training, "small", 8),
        Case("trainer overhead", ("bare", "gpt2_hf"), "10M", 8, length=256),
        Case("tied tokens, 10M", (*training, "tied"), "10M", 8, dropout=0.0, length=256),
        Case("tied tokens, 124M", ("gpt2_hf", "tied"), "124M", rows, dropout=0.0),
        Case("generation, batch 1", ("stock", "gpt2_hf"), "124M", 1, mode="generation"),
        Case("generation, batch 8", ("stock", "gpt2_hf"), "124M", 8, mode="generation"),
    ]


def source_of_the_package() -> str:
    """A name for the code that is measured: figures of other code are not continued."""
    digest = hashlib.sha256()
    for path in sorted((Path(__file__).resolve().parents[1] / "gpt2_hf").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def main() -> None:
    """Run the cases, print a table for each, and one JSON document as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda if there is one")
    parser.add_argument("--quick", action="store_true", help="small models, few rounds")
    parser.add_argument("--rounds", type=int, help="turns of each contestant")
    parser.add_argument("--seconds", type=float, help="length of a turn, about")
    parser.add_argument("--cases", nargs="+", help="only cases whose names begin so")
    parser.add_argument("--dataset_name", default="python-docs", help="as in training")
    parser.add_argument("--dataset_config_name", help="as in training")
    parser.add_argument("--output_file", help="also write the JSON here; cases that are in it are not run again")
    options = parser.parse_args()
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # the stock Trainer would use all cards of a machine

    import torch
    import transformers

    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; use --device cpu")
    options.warmup_steps = 10 if options.device == "cuda" else 1
    options.rounds = options.rounds or (2 if options.quick else 3)
    options.seconds = options.seconds or (2.0 if options.quick else 5.0)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    cases = [c for c in make_cases(options) if not options.cases or c.name.startswith(tuple(options.cases))]
    results: list[dict[str, Any]] = []
    document = {
        "results": results,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "precision": precision_of(options.device),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "dataset": options.dataset_name,
        "config": options.dataset_config_name,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "quick": options.quick,
        "source": source_of_the_package(),
    }
    if options.output_file and Path(options.output_file).is_file():  # of a call that was cut off
        before = json.loads(Path(options.output_file).read_text(encoding="utf-8"))
        same = all(before.get(name) == value for name, value in document.items() if name != "results")
        results += [result for result in before["results"] if same and not result.get("failures")]
    done = [result["case"]["name"] for result in results]
    if done:
        print(f"{len(done)} cases are in {options.output_file} already")
    for case in cases:
        if case.name in done:
            continue
        results.append(run_case(case, options))
        print_case(results[-1])
        if options.output_file:  # after each, for a run that is cut off
            Path(options.output_file).write_text(json.dumps(document, indent=2), encoding="utf-8")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
