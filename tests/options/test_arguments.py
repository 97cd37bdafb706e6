"""Options have the documented defaults, and the shipped config files are valid and say what they mean."""

import json

import pytest

from gpt2_hf.data.tokenizer_training import TokenizerTrainingArguments
from gpt2_hf.errors import UserError
from gpt2_hf.options import arguments
from gpt2_hf.options.arguments import DataArguments, ModelArguments, own_names
from gpt2_hf.options.fields import group_of
from gpt2_hf.options.parsing import parse
from gpt2_hf.options.training_arguments import GPT2HFTrainingArguments
from gpt2_hf.options.values import RANGES

from ..conftest import REPOSITORY

TYPES = [ModelArguments, DataArguments, GPT2HFTrainingArguments]
CONFIGS = sorted((REPOSITORY / "training_args").glob("*.json"))


def test_heads_and_inner_width_follow_the_width():
    """num_heads left out is d_model // 64."""
    assert ModelArguments(d_model=1024).heads == 16
    assert ModelArguments(d_model=32).heads == 1
    assert ModelArguments(d_model=64, num_heads=4).heads == 4


def test_base_json_states_the_defaults():
    """Running base.json and running without a config are the same thing."""
    base = parse(TYPES, [], str(REPOSITORY / "training_args" / "base.json")).values
    for from_file, default in zip(base, parse(TYPES, []).values, strict=True):
        for name in own_names(type(default)):
            assert getattr(from_file, name) == getattr(default, name), name


def test_base_json_states_every_default_of_the_design():
    """The design's numbers, literally."""
    content = json.loads((REPOSITORY / "training_args" / "base.json").read_text())
    expected = {
        **{"d_model": 768, "num_layers": 12, "dropout": 0.1, "max_length": 1024},
        **{"learning_rate": 3e-4, "adam_beta1": 0.9, "adam_beta2": 0.95, "adam_epsilon": 1e-8, "weight_decay": 0.01},
        **{"warmup_steps": 2000, "lr_scheduler_type": "cosine", "gradient_clip": 1.0, "batch_size": 8},
        **{"gradient_accumulation_steps": 1, "max_epochs": 10, "max_training_hours": 12.0, "logging_steps": 100},
        **{"eval_every": 500, "save_every": 1000, "report_to": ["tensorboard"], "precision": "auto"},
        **{"dataset_name": "Salesforce/wikitext", "dataset_config_name": "wikitext-2-v1"},
        **{"sequence_mode": "padding_free"},
    }
    assert expected.items() <= content.items()


def test_every_number_has_a_range():
    """Of those that a class states itself; --max_steps alone is a number of steps, or -1."""
    kinds = [kind for kind in vars(arguments).values() if hasattr(kind, "_argument_group_name")]
    options = [
        option
        for kind in (*kinds, GPT2HFTrainingArguments, TokenizerTrainingArguments)
        for option in group_of(kind).options
    ]
    numbers = {option.name for option in options if option.is_own and option.reader.__name__ in ("int", "float")}
    assert len(numbers) > 40 and numbers - RANGES.keys() == {"max_steps"}
    assert RANGES.keys() <= {option.name for option in options}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_parses(path):
    """No shipped file has an unknown key or a bad value."""
    parse(TYPES, [], str(path))


@pytest.mark.parametrize("name", ["base", "small", "large"])
def test_another_width_brings_its_own_heads(name):
    """A shipped file states no size that follows from the width."""
    args = parse(TYPES, ["--d_model", "256"], str(REPOSITORY / "training_args" / f"{name}.json")).values[0]
    assert args.heads == 4 and args.d_ff is None


def test_the_table_of_configs_is_complete():
    """training_args/README.md has a row for each file."""
    table = (REPOSITORY / "training_args" / "README.md").read_text()
    assert CONFIGS and all(f"| `{path.name}` |" in table for path in CONFIGS)


@pytest.mark.parametrize("key", ["output_dir", "checkpoint_dir"])
@pytest.mark.parametrize("name", ["$SCRATCH", "${SCRATCH}", "run-$SLURM_JOB_ID"])
def test_variables_in_the_output_folder(tmp_path, key, name):
    """A config file does not expand them: refused, unless there is a folder of that name."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({key: f"{tmp_path}/{name}/run"}))
    with pytest.raises(UserError) as caught:
        parse(TYPES, [], str(config))
    assert str(caught.value).startswith(
        f"--{key}: there is no folder {name}, and variables are not expanded here; write the path"
    )
    (tmp_path / name).mkdir()
    assert parse(TYPES, [], str(config)).values[2].output_dir == f"{tmp_path}/{name}/run"


@pytest.mark.parametrize("name", ["5$", "$5", "a$ b", "${}", "cost$"])
def test_dollars_that_are_no_variables(tmp_path, name):
    """They may stand in the name of a new folder."""
    assert parse(TYPES, ["--output_dir", str(tmp_path / name)]).values[2].output_dir == str(tmp_path / name)


def test_both_names_of_activation_checkpointing_work():
    """transformers renamed the option; both spellings switch it on."""
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        args = parse(TYPES, [f"--{name}"]).values[2]
        assert args.activation_checkpointing and args.gradient_checkpointing


@pytest.mark.parametrize(
    "content",
    [
        {"activation_checkpointing": True},
        {"gradient_checkpointing": True},
        {"activation_checkpointing": True, "gradient_checkpointing": True},  # as earlier versions wrote it
        {
            "activation_checkpointing": True,
            "activation_checkpointing_kwargs": {},
            "gradient_checkpointing_kwargs": None,
        },
    ],
)
def test_either_name_of_activation_checkpointing_overrules_a_file(tmp_path, content):
    """Whatever the file calls it; two values in one place are refused."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        args = parse(TYPES, [f"--{name}", "false"], str(path)).values[2]
        assert not args.activation_checkpointing and not args.gradient_checkpointing
    with pytest.raises(UserError, match="--gradient_checkpointing is an older name of --activation_checkpointing"):
        parse(TYPES, ["--activation_checkpointing", "--gradient_checkpointing", "false"])
    arguments = ["--gradient_checkpointing_kwargs", '{"use_reentrant": true}']
    assert parse(TYPES, arguments, str(path)).values[2].gradient_checkpointing_kwargs == {"use_reentrant": True}


def test_paths_of_programs_are_texts(tmp_path):
    """Also those in a mix and in a list, so that they are written down as any other value."""
    mix = DataArguments(train_mix={"news": {"train_file": tmp_path / "a.txt"}}).train_mix
    assert mix == {"news": {"train_file": str(tmp_path / "a.txt"), "weight": 1.0}}
    args = GPT2HFTrainingArguments(tmp_path, resume_from_checkpoint=tmp_path, distill_from=[tmp_path], use_cpu=True)
    assert (args.output_dir, args.resume_from_checkpoint, args.distill_from) == (*[str(tmp_path)] * 2, [str(tmp_path)])
