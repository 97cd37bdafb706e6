"""What the user may set: names, defaults and limits, but for training (see `training_arguments`).

A dataclass for each stage or command. `parsing` fills them from defaults, a JSON file and the command line.
Names follow transformers' examples where they have one; the user's guide's names are aliases.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import UserError
from .fields import default_value, spellings
from .mixture import DATA_FILES, read_mix
from .values import check_values, without_paths

DEFAULT_HEAD_SIZE = 64

# What `train --help` and `plan --help` show; `--help-all` shows the rest.
COMMON = {
    *("model_name_or_path", "size", "d_model", "num_layers", "num_heads", "dropout", "max_length"),
    *("dataset_name", "dataset_config_name", "train_file", "validation_file", "test_file", "train_mix", "text_column"),
    *("document_unit", "tokenizer_name", "sequence_mode", "max_train_samples"),
    *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "num_train_epochs", "max_steps"),
    *("max_training_hours", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("weight_decay", "warmup_steps", "activation_checkpointing", "precision", "logging_steps", "eval_steps"),
    *("save_steps", "report_to", "run_name", "verbose", "seed"),
    *("nproc", "nodes", "link_gb_per_second", "network_gb_per_second"),
}


# What `--size auto` chooses where it is not stated, and so what it overrules in a config file beneath it.
CHOSEN_BY_SIZE = (
    *("d_model", "num_layers", "num_heads", "d_ff", "dropout", "max_length", "attn_implementation"),
    *("tie_unused_tokens", "sequence_mode", "shift_blocks"),
    *("num_train_epochs", "max_steps", "schedule_by_time", "per_device_train_batch_size"),
    *("per_device_eval_batch_size", "gradient_accumulation_steps", "global_batch_size"),
    *("optim", "learning_rate", "muon_learning_rate", "weight_decay", "muon_weight_decay"),
    *("warmup_steps", "lr_scheduler_type"),
    *("eval_strategy", "eval_steps", "save_strategy", "save_steps", "logging_steps"),
)

# Learning-rate schedules that have no warmup, and those that take no arguments.
WITHOUT_WARMUP = ("constant", "greedy", "reduce_lr_on_plateau")
WITHOUT_ARGUMENTS = ("constant", "constant_with_warmup")
# Those that can follow the clock; `trainer.schedule` has their formulas.
DECAYS_BY_TIME = ("cosine", "linear")

# Options that only act in some of the values of `sequence_mode`.
ACTS_IN_MODE = {
    "truncate": ("padding_free", "padded"),
    "pad_to_max_length": ("padded",),
    "join_documents": ("blocks",),
    "shift_blocks": ("blocks",),
}


class Preferred(str):
    """A name that is taken where the dataset has it, and passed over where it has not."""


def option(default: Any, help: str, *aliases: str) -> Any:
    """A dataclass field with the help text and further names that the command line shows."""
    metadata: dict[str, Any] = {"help": help}
    if aliases:
        metadata["aliases"] = [spelling for name in aliases for spelling in spellings(name)]
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ModelArguments:
    """The model: its size, or the weights to start from."""

    _argument_group_name = "model"

    model_name_or_path: str | None = option(
        None, "Start from these weights (a folder or hub id of a GPT-2 or gpt2_hf model) instead of from scratch."
    )
    size: Literal["auto"] | None = option(
        None,
        "auto: choose the size, and how it is trained, to suit the text, this machine and max_training_hours; "
        "options stated beside it, typed or in the same config file, are kept.",
    )
    d_model: int = option(768, "Width of the residual stream, in channels.")
    num_layers: int = option(12, "Number of transformer blocks.")
    num_heads: int | None = option(None, f"Attention heads; d_model // {DEFAULT_HEAD_SIZE} when left out.")
    d_ff: int | None = option(None, "Width of the MLP, in channels; 4 * d_model when left out.")
    dropout: float = option(0.1, "Dropout rate on embeddings, attention and residual branches, in [0, 1).")
    max_length: int = option(1024, "Longest sequence, in tokens; a new model gets this many positions.")
    attn_implementation: str | None = option(
        None, "Attention backend: eager, sdpa, flex_attention, flash_attention_2, ...; sdpa when left out."
    )
    tie_unused_tokens: bool = option(
        False,
        "One common embedding for all tokens that the training text does not use: the same loss for less work.",
    )

    def __post_init__(self) -> None:
        vars(self).update(without_paths(vars(self)))
        check_values(vars(self))
        if self.tie_unused_tokens and self.model_name_or_path is not None:
            raise UserError(
                "--tie_unused_tokens is for new models: the embeddings of --model_name_or_path differ; leave it out"
            )
        if self.model_name_or_path is None and self.size is None and self.d_model % self.heads:
            divisors = [heads for heads in range(1, self.d_model + 1) if self.d_model % heads == 0]
            nearest = sorted(divisors, key=lambda heads: abs(heads - self.heads))[:2]
            raise UserError(
                f"--num_heads {self.heads} does not divide --d_model {self.d_model}; "
                f"use --num_heads {' or '.join(map(str, sorted(nearest)))}, or another --d_model"
            )

    @property
    def heads(self) -> int:
        """The number of attention heads, derived from the width when it was left out."""
        return self.num_heads if self.num_heads is not None else max(self.d_model // DEFAULT_HEAD_SIZE, 1)


@dataclass
class DataArguments:
    """The text, and how it becomes batches."""

    _argument_group_name = "data"

    dataset_name: str | None = option(
        "Salesforce/wikitext",
        "A hub id, a local folder in the hub's layout, or python-docs (the text that comes with Python).",
    )
    dataset_config_name: str | None = option(
        Preferred("wikitext-2-v1"), "Config of the dataset; its default when left out."
    )
    train_file: str | None = option(
        None,
        "Training text: a txt, md, json(l), csv, tsv or parquet file, or a quoted glob; "
        "all but parquet also as .gz, .zst, .bz2 or .xz.",
    )
    validation_file: str | None = option(None, "Validation text, likewise.")
    test_file: str | None = option(None, "Test text, likewise.")
    train_mix: dict[str, Any] | str | None = option(
        None,
        "Several texts instead, each with a name and a weight: a JSON file, or the object itself, such as "
        '{"news": {"train_file": "news.txt", "weight": 0.7}, "books": {"dataset_name": "books", "weight": 0.3}}.',
    )
    text_column: str | None = option(None, "Column that holds the text; text or content when left out.")
    document_unit: Literal["line", "paragraph", "file", "row"] | None = option(
        None,
        "What is one document; when left out a line of a txt file, a whole md file, and a row of anything else.",
    )
    tokenizer_name: str | None = option(
        None, "Tokenizer: a folder, a hub id, or a sentencepiece .model file; GPT-2's (offline) when left out."
    )
    sequence_mode: Literal["padding_free", "padded", "blocks"] = option(
        "padding_free",
        "padded: one document per row; padding_free: the same batches in one row, without padding; "
        "blocks: one stream cut into rows of max_length.",
    )
    join_documents: bool = option(
        False,
        "blocks: no <|endoftext|> between documents, and blank lines stay; for texts whose lines continue each other, "
        "such as WikiText.",
    )
    shift_blocks: bool = option(False, "blocks: start the blocks at a different random offset in each epoch.")
    truncate: bool = option(False, "Cut documents at max_length instead of continuing them in further samples.")
    pad_to_max_length: bool = option(False, "padded: pad every row to max_length, not to the longest of the batch.")
    max_train_samples: int | None = option(None, "Largest number of training samples to use.")
    max_eval_samples: int | None = option(None, "Largest number of samples to use of each evaluation split.")
    validation_split_percentage: float = option(
        5.0,
        "Share of the training documents set aside if there is no validation split, in percent; with streaming, of "
        "the first 100,000.",
    )
    preprocessing_num_workers: int | None = option(None, "Threads that tokenise; one for each core when left out.")
    streaming: bool = option(
        False, "Do not store token ids: read, shuffle and tokenise the training text while training."
    )
    shuffle_buffer_size: int = option(10_000, "streaming: number of documents that are shuffled together.")

    def __post_init__(self) -> None:
        vars(self).update(without_paths(vars(self)))
        check_values(vars(self))
        files = [name for name in DATA_FILES if getattr(self, name)]
        if self.train_mix is not None:
            self._check_mix(files)
        if files or self.train_mix is not None:
            self.dataset_name = self.dataset_config_name = None
        elif self.dataset_name is None:
            raise UserError("there is no data: give --dataset_name or --train_file")
        for name, modes in ACTS_IN_MODE.items():
            if getattr(self, name) and self.sequence_mode not in modes:
                raise UserError(
                    f"--{name} has no effect with --sequence_mode {self.sequence_mode}; leave it out, or use "
                    f"--sequence_mode {' or '.join(modes)}"
                )
        if self.join_documents and self.document_unit == "paragraph":
            raise UserError(
                "--join_documents keeps blank lines, which belong to no paragraph; use --document_unit line"
            )
        if self.join_documents and self.streaming:
            raise UserError("--join_documents has no meaning with --streaming, which shuffles them; leave it out")
        if self.shift_blocks and self.streaming:
            raise UserError("--shift_blocks has no effect with --streaming; leave it out")
        if self.streaming and self.max_train_samples is not None:
            raise UserError("--max_train_samples has no effect with --streaming; limit the run with --max_steps")
        default = default_value(type(self), "shuffle_buffer_size")
        if not self.streaming and self.shuffle_buffer_size != default:
            raise UserError(
                "--shuffle_buffer_size has no effect without --streaming, which shuffles all; leave it out"
            )

    def _check_mix(self, files: list[str]) -> None:
        if files:
            raise UserError(f"--{files[0]} has no effect beside --train_mix; leave one of them out")
        if self.streaming:
            raise UserError(
                "--train_mix cannot be drawn by weight with --streaming, which reads in order; leave one of them out"
            )
        self.train_mix = dict(read_mix(self.train_mix))


@dataclass
class ClusterArguments:
    """Devices that a plan is made for."""

    _argument_group_name = "cluster"

    nproc: int = option(1, "plan: devices of a machine, each with a process.")
    nodes: int = option(1, "plan: machines.")
    link_gb_per_second: float = option(50.0, "plan: what a device sends to others of its machine, in GB/s.")
    network_gb_per_second: float = option(12.5, "plan: what a machine sends to others, in GB/s; 12.5 is 100 Gbit/s.")

    def __post_init__(self) -> None:
        check_values(vars(self))
        for name, count, remedy in (
            ("link_gb_per_second", self.nproc, "--nproc"),
            ("network_gb_per_second", self.nodes, "--nodes"),
        ):
            if count == 1 and getattr(self, name) != default_value(type(self), name):
                raise UserError(f"--{name} has no effect with {remedy} 1; leave it out, or add {remedy}")

    @property
    def devices(self) -> int:
        """Devices of all machines together."""
        return self.nproc * self.nodes


@dataclass
class GenerationArguments:
    """How text is sampled."""

    _argument_group_name = "generation"

    model_path: str = option("checkpoints/best_model", "Model folder, checkpoint name or path, or hub id.")
    prompt: str | None = option(
        None, "Text to continue. Without prompt and prompt_file: standard input, or line by line at a terminal."
    )
    prompt_file: str | None = option(None, "File of prompts: one per line, or jsonl with the key prompt.")
    output_file: str | None = option(
        None, "Write prompts and completions to this jsonl file, which is replaced at the end, instead of printing."
    )
    batch_size: int = option(8, "Texts to generate at a time, if there are several.")
    max_new_tokens: int | None = option(None, "Tokens to generate; 128, or what fits after the prompt, when left out.")
    temperature: float = option(0.8, "Softmax temperature; 0: greedy decoding.")
    top_k: int = option(0, "Sample from the k most likely tokens; 0: no limit.")
    top_p: float = option(
        0.95, "Nucleus sampling: sample from the smallest set of tokens with this total probability; 1: no limit."
    )
    num_samples: int = option(1, "Texts to generate for each prompt.")
    seed: int = option(42, "Seed of the sampling; texts also depend on the order of the prompts and on batch_size.")
    stop: list[str] | None = option(None, "End a text after any of these strings.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto", "Dtype of the weights; auto: 16 bit where supported; fp32: exact greedy output."
    )

    def __post_init__(self) -> None:
        check_values(vars(self), may_be_empty=("prompt", "stop"))
        if self.prompt is not None and self.prompt_file is not None:
            raise UserError("--prompt_file has no effect beside --prompt; leave one of them out")
        if "" in (self.stop or ()):
            raise UserError("--stop must not be empty; in most shells a line end is $'\\n'")


@dataclass
class DemoArguments:
    """Which models a web page lets people try, and where it is served."""

    _argument_group_name = "demo"

    model_path: list[str] = option(
        ["checkpoints/best_model"],
        "Model folder, checkpoint name or path, or hub id. Two are shown beside each other.",
    )
    host: str = option(
        "127.0.0.1", "Address to listen at; 0.0.0.0: reachable from other machines, without a password."
    )
    port: int = option(7860, "Port to listen at.")
    space_dir: str | None = option(
        None, "Write a Hugging Face Space with the page and the models to this new folder, and serve nothing."
    )

    def __post_init__(self) -> None:
        check_values(vars(self))
        if not 1 <= len(self.model_path) <= 2:
            raise UserError(f"--model_path takes one or two models, got {len(self.model_path)}")


Split = Literal["train", "validation", "test"]


@dataclass
class EvaluationArguments:
    """Which model is scored, and how."""

    _argument_group_name = "evaluation"

    model_path: list[str] = option(
        ["checkpoints/best_model"],
        "Model folder, checkpoint name or path, or hub id. Of several, which need the same tokenizer, the "
        "probabilities are averaged.",
    )
    against: list[str] | None = option(
        None,
        "Compare with this model, or with the average of these: the difference on the same tokens, and whether it is "
        "statistically significant.",
    )
    split: Split = option("test", "Split to score; when left out the one whose file is given, if there is one.")
    stride: int | None = option(
        None, "Sliding windows of max_length tokens that move on by this number; the training protocol when left out."
    )
    max_length: int | None = option(
        None, "Context in tokens; what the model was trained with when left out, of several models the smallest."
    )
    batch_size: int = option(8, "Samples in a batch; it does not change the result beyond rounding.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "fp32", "Precision of matrix multiplications (autocast)."
    )
    output_file: str | None = option(
        None, "Also write the result as JSON to this file, which is replaced, with the losses of segments of the text."
    )

    def __post_init__(self) -> None:
        check_values(vars(self))
        if not self.model_path:
            raise UserError("--model_path is an empty list; give a model")


@dataclass
class ExportArguments:
    """Which model is exported, and where to."""

    _argument_group_name = "export"

    model_path: str = option("checkpoints/best_model", "Model folder, checkpoint name or path, or hub id.")
    output_dir: str = option("exported", "New folder for the exported model, with its tokenizer.")
    format: Literal["hf", "gguf", "onnx"] = option(
        "hf",
        "hf: transformers' GPT2LMHeadModel; gguf: one file for llama.cpp and ollama; "
        "onnx: for onnxruntime and the browser.",
    )
    outtype: Literal["f32", "f16", "q8_0"] = option("f16", "gguf: dtype of the weight matrices.")

    def __post_init__(self) -> None:
        check_values(vars(self))


@dataclass
class ImportArguments:
    """Which checkpoint of another program is imported, and where to."""

    _argument_group_name = "import"

    model_path: str = option("out/ckpt.pt", "A nanoGPT checkpoint (ckpt.pt) or an llm.c model (.bin, fp32 or bf16).")
    output_dir: str = option("imported", "New folder for the model, with its tokenizer.")
    tokenizer_name: str | None = option(
        None, "Tokenizer to save beside it, a folder or hub id; GPT-2's where the vocabulary is GPT-2's when left out."
    )
    activation_function: Literal["gelu", "gelu_new"] | None = option(
        None, "nanoGPT: gelu, or gelu_new for a model of before June 2023; gelu when left out."
    )

    def __post_init__(self) -> None:
        check_values(vars(self))


@dataclass
class ReportArguments:
    """Which runs are drawn."""

    _argument_group_name = "report"

    runs: list[str] = option(
        ["checkpoints"],
        "Folders of runs; also right after the command, without --runs. One: its model card and curves are written "
        "again. Several: one picture and a table compare them; where evaluate --output_file has left files of one "
        "name in them, a line says whether the difference is statistically significant.",
    )
    output_file: str = option(
        "comparison.png",
        "Picture that compares several runs: png, svg or pdf; an existing file, unless an earlier comparison, is "
        "overwritten only if you name it here.",
    )

    def __post_init__(self) -> None:
        check_values(vars(self))
        if not self.runs:
            raise UserError("--runs is an empty list; give the folder of a run")


def names_of(dataclass_type: type) -> set[str]:
    """The option names of an arguments class."""
    return {f.name for f in dataclasses.fields(dataclass_type) if f.init}


def own_names(dataclass_type: type) -> list[str]:
    """The options that the class itself states, in its order, without those it merely inherits."""
    return [name for name in dataclass_type.__annotations__ if name in names_of(dataclass_type)]
