"""Every option can be written down, and what is written down can be read: the promise of resolved_config.json."""

import json

import pytest

from gpt2_hf.errors import UserError
from gpt2_hf.job.resolved_config import _plain, plain_value
from gpt2_hf.options.arguments import DataArguments, ModelArguments
from gpt2_hf.options.fields import group_of
from gpt2_hf.options.parsing import parse
from gpt2_hf.options.training_arguments import GPT2HFTrainingArguments
from gpt2_hf.options.without_effect import WITHOUT_EFFECT, WITHOUT_EFFECT_IN_A_JOB

from ..conftest import needs_bf16

TYPES = [ModelArguments, DataArguments, GPT2HFTrainingArguments]
OPTIONS = {option.name: option for dataclass_type in TYPES for option in group_of(dataclass_type).options}

# Options that are refused whatever their value, here or on a machine without CUDA, and one that only Python can give.
ONLY_IN_PYTHON = {"parallelism_config"}
REFUSED = {*WITHOUT_EFFECT, *WITHOUT_EFFECT_IN_A_JOB, "deepspeed", "fp16"} - ONLY_IN_PYTHON

# Options whose value means something beside its type.
VALUES = {
    "accelerator_config": {"split_batches": False, "non_blocking": True, "gradient_accumulation_kwargs": None},
    "debug": ["underflow_overflow"],
    "include_num_input_tokens_seen": "non_padding",
    "lr_scheduler_kwargs": {"num_cycles": 2, "text": "1e-5"},
    "metric_for_best_model": "perplexity",
    "num_heads": 6,
    "optim": "adafactor",
    "optim_target_modules": ["attn"],
    "tf32": False,
    "train_mix": {"news": {"train_file": "news.txt", "weight": 0.7}},
    "trackio_static_space_id": False,
}
# What must stand beside an option.
BESIDE = {
    "optim_args": {"optim": "adamw_torch_8bit"},
    "optim_target_modules": {"optim": "galore_adamw"},
    "dataloader_prefetch_factor": {"dataloader_num_workers": 1},
    "join_documents": {"sequence_mode": "blocks"},
    "pad_to_max_length": {"sequence_mode": "padded"},
    "shift_blocks": {"sequence_mode": "blocks"},
    "shuffle_buffer_size": {"streaming": True},
}


def other_value(option):
    """A value that is not the default."""
    reader = option.reader
    if option.name in VALUES:
        return VALUES[option.name]
    if reader.choices:
        return next(choice for choice in reader.choices if choice != plain_value(option.default))
    if reader.takes_list:
        return ["some", "--words"]
    if reader.takes_bool:
        return option.default is not True
    if reader.takes_object:
        return {"a": 1, "b": [True, "x"]}
    return {"int": 7, "float": 0.25}.get(reader.__name__, "words")


def read(tmp_path, content):
    """The options that a config file sets."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    return {name: value for part in parse(TYPES, [], str(path)).values for name, value in vars(part).items()}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=needs_bf16) if name == "bf16" else name
        for name in sorted(set(OPTIONS) - REFUSED - ONLY_IN_PYTHON - {"ddp_backend"})
    ],
)
def test_a_written_value_is_read_again(tmp_path, name):
    """From a file to the arguments, to resolved_config.json, and back: the same value, and the same file."""
    value = other_value(OPTIONS[name])
    assert value != plain_value(OPTIONS[name].default)
    beside = BESIDE.get(name, {})
    written = _plain({name: plain_value(read(tmp_path, {name: value, **beside})[name])})
    expected = {**written[name], **value} if name == "accelerator_config" else value  # filled up by accelerate
    assert written == {name: expected}
    assert _plain({name: plain_value(read(tmp_path, {**written, **beside})[name])}) == written


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_refused_option_is_read_and_refused_by_name(tmp_path, name):
    """The reason is the option's, not that its value cannot be read."""
    with pytest.raises(UserError, match=f"--({'precision ' if name == 'fp16' else ''}){name}"):
        read(tmp_path, {name: other_value(OPTIONS[name])})


@pytest.mark.parametrize("name", ["disable_tqdm", "tf32", "hub_private_repo", "ddp_broadcast_buffers"])
@pytest.mark.parametrize("value", [True, False, None])
def test_three_valued_options_on_the_command_line(name, value):
    """`true`, `false` and `none`; the option alone means true."""
    assert OPTIONS[name].reader(str(value)) is value
    beside = ["--push_to_hub"] if name == "hub_private_repo" else []
    if value is not None and name != "tf32":  # which this machine may lack
        assert getattr(parse(TYPES, [f"--{name}", str(value).lower(), *beside]).values[2], name) is value
        assert getattr(parse(TYPES, [f"--{name}", *beside]).values[2], name) is True


def test_values_that_look_like_options_are_values_in_a_file(tmp_path):
    """A list in a file holds what it holds."""
    assert read(tmp_path, {"distill_from": ["--seed", "none of it"]})["distill_from"] == ["--seed", "none of it"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"lr_scheduler_kwargs": "{1: 2}"}, "--lr_scheduler_kwargs: invalid value"),
        ({"run_name": {"a": 1}}, "--run_name: an object is not expected"),
        ({"seed": {"a": 1}}, "--seed: an object is not expected"),
        ({"liger_kernel_config": "[1]"}, "a JSON object is expected"),
        ({"debug": ["nothing"]}, "--debug: invalid choice: 'nothing'"),
        ({"no_do_predict": True}, "unknown key 'no_do_predict'; say \"do_predict\": false"),
        ({"config": "x"}, "unknown key 'config'; a config file cannot name another"),
        ({"dry_run": True}, "unknown key 'dry_run'; --help-all lists the options"),
        ({"help_all": True}, "unknown key 'help_all'"),
    ],
)
def test_a_value_of_another_kind_is_refused(tmp_path, content, message):
    """The error names the option and what is expected."""
    with pytest.raises(UserError, match=message):
        read(tmp_path, content)


def test_the_record_of_a_run_is_a_config_file(train_tiny, tmp_path):
    """With the options that could not be read again among them."""
    options = ["--disable_tqdm", "true", "--ddp_broadcast_buffers", "false", "--max_steps", "1"]
    options += ["--fp16", "false", "--accelerator_config", '{"non_blocking": true}', "--debug", "underflow_overflow"]
    assert train_tiny(tmp_path / "run", *options) == 0
    record = tmp_path / "run" / "resolved_config.json"
    written = json.loads(record.read_text())
    assert "fp16" not in written  # it would be true where --precision auto takes it
    assert "activation_checkpointing" in written and "gradient_checkpointing" not in written  # which are one option
    _, _, args = parse(TYPES, [], str(record)).values
    assert (args.disable_tqdm, args.ddp_broadcast_buffers) == (True, False)
    assert args.accelerator_config.non_blocking and args.debug == ["underflow_overflow"] and args.max_steps == 1
