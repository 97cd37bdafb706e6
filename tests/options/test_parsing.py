"""Defaults, a JSON file and the command line become arguments; nothing is accepted and ignored."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from gpt2_hf.__main__ import main
from gpt2_hf.data.tokenizer_training import TokenizerTrainingArguments
from gpt2_hf.errors import UserError
from gpt2_hf.options.arguments import (
    ClusterArguments,
    DataArguments,
    EvaluationArguments,
    GenerationArguments,
    ModelArguments,
    Preferred,
    ReportArguments,
)
from gpt2_hf.options.fields import group_of
from gpt2_hf.options.parsing import Parser, parse
from gpt2_hf.options.source import TOKENIZER_TRAINING, TRAINING, ClassInSource, group_in_source
from gpt2_hf.options.synonyms import _MEANT, SYNONYMS
from gpt2_hf.options.training_arguments import GPT2HFTrainingArguments

from ..docs.documents import ARGUMENTS

TYPES = [ModelArguments, DataArguments, GPT2HFTrainingArguments]


@pytest.fixture
def config(tmp_path):
    """Write a config file: `config({...})` returns its path."""

    def write(content):
        path = tmp_path / "config.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def test_command_line_wins_over_file_and_file_over_default(config):
    """default < JSON < command line."""
    path = config({"batch_size": 4, "learning_rate": 1e-4})
    parsed = parse(TYPES, ["--learning_rate", "2e-4"], path)
    _, _, args = parsed.values
    assert (args.per_device_train_batch_size, args.learning_rate, args.adam_beta2) == (4, 2e-4, 0.95)
    assert parsed.given == {"per_device_train_batch_size": "config", "learning_rate": "command line"}


@pytest.mark.parametrize(
    ("alias", "name", "value"),
    [
        ("max_epochs", "num_train_epochs", 3.0),
        ("batch_size", "per_device_train_batch_size", 2),
        ("gradient_clip", "max_grad_norm", 0.5),
        ("eval_every", "eval_steps", 7.0),
        ("save_every", "save_steps", 9.0),
        ("num_workers", "dataloader_num_workers", 1),
        ("checkpoint_dir", "output_dir", "x"),
        ("resume_from", "resume_from_checkpoint", "latest"),
    ],
)
def test_both_spellings_work_in_both_places(config, alias, name, value):
    """The user's names and transformers' names are the same option."""
    for key in (alias, name):
        assert getattr(parse(TYPES, [f"--{key}", str(value)]).values[2], name) == value
        assert getattr(parse(TYPES, [], config({key: value})).values[2], name) == value


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--d_modle", "64"], "unknown option --d_modle; did you mean d_model"),
        (["--batch_size", "eight"], "--batch_size: invalid int value: 'eight'"),
        (["--dropout", "1.5"], "--dropout must be below 1, got 1.5"),
        (["--dropout", "-0.5"], "--dropout must be at least 0, got -0.5"),
        (
            ["--d_model", "100", "--num_heads", "12"],
            "--num_heads 12 does not divide --d_model 100; use --num_heads 5 or 10",
        ),
        (["--learning_rate", "0"], "--learning_rate must be above 0"),
        (["--batch_size", "0"], "--batch_size must be at least 1"),
        (["--adam_beta2", "1"], "--adam_beta2 must be below 1, got 1"),
        (["--max_training_hours", "0"], "--max_training_hours must be above 0"),
        (["--max_steps", "0"], "--max_steps must be at least 1, or -1, got 0"),
        (["--sequence_mode", "packed"], "--sequence_mode: invalid choice: 'packed'"),
        (["--lr_scheduler_type", "cosin"], "--lr_scheduler_type: invalid choice: 'cosin'"),
        (["--train_sampling_strategy", "sequental"], "--train_sampling_strategy: invalid choice: 'sequental'"),
        (["--log_level", "foo"], "--log_level: invalid choice: 'foo'"),
        (["--validation_split_percentage", "100"], "--validation_split_percentage must be below 100, got 100"),
        (["--truncate", "--sequence_mode", "blocks"], "--truncate has no effect with --sequence_mode blocks"),
        (["--pad_to_max_length"], "--pad_to_max_length has no effect with --sequence_mode padding_free"),
        (["--eval_every", "5", "--eval_strategy", "epoch"], "--eval_every has no effect with --eval_strategy epoch"),
        (["--save_every", "5", "--save_strategy", "no"], "--save_every has no effect with --save_strategy no"),
        (["--warmup_steps", "5", "--lr_scheduler_type", "constant"], "type constant; constant_with_warmup has one"),
        (["--warmup_steps", "5", "--lr_scheduler_type", "greedy"], "has no effect with --lr_scheduler_type greedy"),
        (["--warmup_steps", "5", "--lr_scheduler_type", "reduce_lr_on_plateau"], "_on_plateau; leave it out"),
        *(
            (["--lr_scheduler_kwargs", '{"min_lr": 0}', *options], rf"has no effect with {' '.join(options)}; leave")
            for options in (
                ["--lr_scheduler_type", "constant"],
                ["--lr_scheduler_type", "constant_with_warmup"],
                ["--schedule_by_time"],
            )
        ),
        (["--eval_delay", "5", "--eval_strategy", "no"], "--eval_delay has no effect with --eval_strategy no"),
        (["--save_total_limit", "2", "--save_strategy", "no"], "--save_total_limit has no effect"),
        (["--checkpoint_dir", "none"], "--checkpoint_dir cannot be none; leave it out for checkpoints"),
        (["--hub_private_repo"], "--hub_private_repo has no effect without --push_to_hub"),
        (["--report_to", "wandb", "--project", "x"], "--project has no effect .* trackio; for W&B .* WANDB_PROJECT"),
        (["--trackio_space_id", "x"], "--trackio_space_id has no effect without --report_to trackio; leave it out"),
        (["--remove_unused_columns", "false"], "--remove_unused_columns has no effect"),
        (["--eval_accumulation_steps", "4"], "--eval_accumulation_steps has no effect: an evaluation here has loss"),
        (["--dataset_name", "x", "--validation_file", "y"], "--dataset_name has no effect beside --validation_file"),
        (["--do_train"], "--do_train has no effect"),
        (["--optim", "adamw"], "--optim adamw is not known; did you mean adamw_"),
        (["--dataloader_drop_last"], "--dataloader_drop_last has no effect"),
        (["--seed", "5000000000"], "--seed must be below 2,147,483,648"),
        (["--data_seed", "-1"], "--data_seed must be at least 0, got -1"),
        (["--batch_size", "1000000000"], "--batch_size must be at most 1,048,576, got 1,000,000,000"),
        (["--per-device-train-batch-size", "0"], "--per-device-train-batch-size must be at least 1, got 0"),
        (["--use_liger_kernel"], "--use_liger_kernel has no effect"),
        (["--model_name_or_path", "gpt2", "--d_model", "64"], "--d_model has no effect beside --model_name_or_path"),
        (["--fp16", "--use_cpu"], "--precision fp16 needs a CUDA device"),
        (["--bf16", "--fp16"], "--fp16 and --bf16 exclude each other"),
        (["--bf16", "--precision", "fp32"], "--bf16 contradicts --precision fp32"),
        (["train.json"], "unexpected argument 'train.json'"),
        (["--text_column", "a", "b"], "unexpected argument 'b'"),
        *(
            (
                [option, "a.txt", "b.txt", "c.txt", "--seed", "1"],
                rf"'b.txt' follows; quote a pattern: {option} 'data/\*",
            )
            for option in ("--train_file", "--validation-file", "--test_file")
        ),
        (["--batch_size", "8.5"], "--batch_size: invalid int value: '8.5'"),
        (["--max_steps", "inf"], "--max_steps: invalid int value: 'inf'"),
        *(
            (["--lr_scheduler_kwargs", text], f"--lr_scheduler_kwargs: invalid value: .*{problem}")
            for text, problem in (
                ('{"a": ' + "[" * 100_000, r"\.\.\.': its brackets are nested too deeply"),
                ('{"a": ' + "7" * 5000 + "}", r"\.\.\.': an integer in it has too many digits"),
                ("{a: 1}", "'{a: 1}': it is not JSON: "),
                ('{"a": 1, "a": 2}', "the key 'a' is given twice; keep one"),
            )
        ),
        *(
            ([f"--{name}", ""], f"--{name} is empty; give a value")
            for name in (
                *("train_file", "validation_file", "test_file", "dataset_name", "text_column", "tokenizer_name"),
                *("model_name_or_path", "output_dir", "resume_from_checkpoint", "distill_from"),
            )
        ),
        (["--d_model"], "--d_model: expected one argument"),
        (["--hub_model_id", "me/x"], "--hub_model_id has no effect without --push_to_hub"),
        (["--gradient_checkpointing_kwargs", "{}"], "_kwargs has no effect without --activation_checkpointing; leave"),
        (["--fsdp_config", "{}"], "--fsdp_config has no effect without --fsdp; leave it out"),
        (["--run_name=--"], "--run_name: -- is not taken as a value here; give it in a config file"),
        (["--distill_from=--"], "--distill_from: -- is not taken as a value here"),
        (["--optim", "adafactor", "--adam_beta2", "0.99"], "--adam_beta2 has no effect with --optim adafactor"),
        (["--global_batch_size", "1000000000"], "--global_batch_size must be at most 8,388,608, got 1,000,000,000"),
        (["--optim_args", "foo=1"], "--optim_args has no effect with --optim adamw_torch_fused"),
        (
            ["--optim", "muon", "--optim_target_modules", "c_fc"],
            "--optim_target_modules has no effect with --optim muon",
        ),
    ],
)
def test_bad_command_lines_get_one_clear_line(argv, message):
    """Each error names the option, is one line, and says what to do."""
    with pytest.raises(UserError, match=message) as caught:
        parse(TYPES, argv)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"d_modle": 64}, "unknown key 'd_modle'; did you mean d_model"),
        ({"batch_size": "eight"}, "--batch_size: invalid int value: 'eight'"),
        ({"d_model": True}, "true and false are not expected"),
        ({"d_model": [64]}, "a list is not expected"),
        ({"d_model": []}, "a list is not expected"),
        ({"report_to": [True]}, "--report_to: true is not expected in a list"),
        ({"distill_from": [["a", "b"]]}, r'--distill_from: \["a", "b"\] is not expected in a list'),
        ({"distill_from": [None]}, "--distill_from: null is not expected in a list"),
        ({"d_model": None}, "d_model cannot be null"),
        ({"batch_size": 8, "per_device_train_batch_size": 4}, "both set per_device_train_batch_size"),
        ('{"d_model": 64, "d_model": 32}', "is given twice"),
        ('{"d_model": 64,}', "is not JSON: .* in line 1"),
        ("[1]", "must hold one JSON object"),
        ('{"seed": ' + "[" * 100_000 + "]" * 100_000 + "}", "its brackets are nested too deeply; take some away"),
        ('{"seed": ' + "7" * 5000 + "}", "an integer in it has too many digits; write a smaller one"),
        ({"batch_size": 8.5}, "--batch_size: invalid int value: '8.5'"),
    ],
)
def test_bad_files_get_one_clear_line(config, content, message):
    """Each error names the file and the key."""
    with pytest.raises(UserError, match=message) as caught:
        parse(TYPES, [], config(content))
    assert "\n" not in str(caught.value) and "--config" in str(caught.value)


def test_files_of_other_editors(tmp_path):
    """A byte-order mark is passed over; what is not UTF-8, as an old PowerShell writes, is said to be."""
    (tmp_path / "marked.json").write_text('{"d_model": 64}', encoding="utf-8-sig")
    assert parse(TYPES, [], str(tmp_path / "marked.json")).values[0].d_model == 64
    (tmp_path / "wide.json").write_text('{"d_model": 64}', encoding="utf-16")
    for option in ("--config", "--train_mix"):
        message = (
            rf"{option}: .*wide\.json cannot be read \(it is not UTF-8\); convert it with iconv -f UTF-16 -t UTF-8 "
        )
        with pytest.raises(UserError, match=message):
            wide = str(tmp_path / "wide.json")
            parse(TYPES, [], wide) if option == "--config" else parse(TYPES, [option, wide])
    (tmp_path / "narrow.json").write_text('{"run_name": "größer"}', encoding="latin-1")
    with pytest.raises(
        UserError, match=r"is not UTF-8\); convert it with iconv -f LATIN1 -t UTF-8 FILE > NEW \(LATIN1 or"
    ):
        parse(TYPES, [], str(tmp_path / "narrow.json"))


def test_whole_numbers_may_be_written_as_floats(config):
    """As JSON writers and people do: 8.0 and 1e5 where an integer is wanted, in a file and on the command line."""
    content = {"max_steps": 1e5, "batch_size": 8.0, "num_heads": "6.0", "save_total_limit": 2.0}
    files = parse(TYPES, [], config(content)).values
    typed = parse(TYPES, [f"--{name}={value}" for name, value in content.items()]).values
    for model_args, _, args in (files, typed):
        values = (args.max_steps, args.per_device_train_batch_size, model_args.num_heads, args.save_total_limit)
        assert values == (100_000, 8, 6, 2) and all(isinstance(value, int) for value in values)
    assert parse(TYPES, ["--seed", "2147483647"]).values[2].seed == 2**31 - 1  # not by way of a float


def test_missing_file_is_named():
    """A config that is not there is a one-line error."""
    with pytest.raises(UserError, match=r"--config: nowhere\.json cannot be read"):
        parse(TYPES, [], "nowhere.json")


def test_optional_values_can_be_taken_away(config):
    """`none` on the command line and null in a file unset an optional option."""
    argv = ["--max_training_hours", "none", "--save_total_limit", "none"]
    _, _, args = parse(TYPES, argv).values
    assert args.max_training_hours is None and args.save_total_limit is None
    _, _, args = parse(TYPES, [], config({"max_training_hours": None, "save_total_limit": None})).values
    assert args.max_training_hours is None and args.save_total_limit is None
    assert parse([GenerationArguments], ["--stop", "none"], config({"stop": ["END"]})).values[0].stop is None


def test_what_a_run_writes_down_can_be_read(config):
    """Nothing to report to is an empty list there, and FSDP is a truth value."""
    assert parse(TYPES, ["--report_to", "none"]).values[2].report_to == []
    _, _, args = parse(TYPES, [], config({"report_to": [], "fsdp": False})).values
    assert args.report_to == [] and not args.wants_fsdp
    assert parse(TYPES, ["--use_cpu"], config({"fsdp": True})).values[2].wants_fsdp


def test_choosing_weights_on_the_command_line_overrules_sizes_in_the_file(config):
    """base.json states sizes; --model_name_or_path beside it takes the weights' own."""
    parsed = parse(TYPES, ["--model_name_or_path", "somewhere"], config({"d_model": 64, "num_heads": 4}))
    assert "d_model" not in parsed.given


def test_epochs_on_the_command_line_overrule_the_steps_of_the_file(config):
    """They would have no effect beside them; in one layer the steps decide."""
    path = config({"max_epochs": 10, "max_steps": 200})
    args = parse(TYPES, ["--max_epochs", "20"], path).values[2]
    assert (args.num_train_epochs, args.max_steps) == (20, -1)
    assert parse(TYPES, [], path).values[2].max_steps == 200
    assert parse(TYPES, ["--max_epochs", "20", "--max_steps", "5"], path).values[2].max_steps == 5


def test_choosing_a_file_on_the_command_line_overrules_the_data_set_of_the_file(config):
    """--train_file beside a config with a dataset_name is no contradiction, but the later choice."""
    parsed = parse(TYPES, ["--train_file", "a.txt"], config({"dataset_name": "x/y"}))
    assert "dataset_name" not in parsed.given
    with pytest.raises(UserError, match="--dataset_name has no effect beside --train_file"):
        parse(TYPES, ["--train_file", "a.txt", "--dataset_name", "x/y"])


@pytest.mark.parametrize(
    ("argv", "content"),
    [
        (
            ["--sequence_mode", "padding_free"],
            {"sequence_mode": "blocks", "shift_blocks": True, "join_documents": True},
        ),
        (["--sequence_mode", "blocks"], {"sequence_mode": "padded", "truncate": True, "pad_to_max_length": True}),
        (["--eval_strategy", "no"], {"early_stopping_patience": 3}),
        (["--lr_scheduler_type", "constant"], {"schedule_by_time": True}),
        (["--streaming", "false"], {"streaming": True, "shuffle_buffer_size": 9}),
        (["--do_predict", "false"], {"train_file": "a.txt", "test_file": "b.txt"}),
        (["--precision", "fp32"], {"bf16": True}),
        (["--bf16", "--use_cpu"], {"precision": "fp32", "fp16": True}),
        (["--streaming", "true"], {"shift_blocks": True, "join_documents": True, "max_train_samples": 5}),
        (["--document_unit", "paragraph"], {"join_documents": True}),
        (["--metric_for_best_model", "none"], {"early_stopping_patience": 3}),
        (["--size", "auto"], {"truncate": True, "pad_to_max_length": True, "sequence_mode": "padded"}),
    ],
)
def test_what_the_command_line_makes_pointless_in_the_file_is_left_out(config, monkeypatch, argv, content):
    """It was right with what the file itself chooses, and nobody has typed it."""
    monkeypatch.setattr("gpt2_hf.runtime.precision.cpu_bf16_instructions", lambda: ["amx_bf16"])
    parsed = parse(TYPES, argv, config(content))
    typed = {option.lstrip("-") for option in argv[::2]}
    assert {name for name, layer in parsed.given.items() if layer == "config"} - typed <= {"train_file"}


def test_what_only_acts_under_other_values_may_stay_in_the_file(config):
    """A file that holds every default states it; on the command line it is refused."""
    path = config({"sample_tokens": 0, "eval_steps": 7})
    args = parse(TYPES, ["--eval_strategy", "no"], path).values[2]
    assert (args.sample_tokens, args.eval_steps) == (0, 7)
    with pytest.raises(UserError, match="--sample_tokens has no effect with --eval_strategy no; leave it out"):
        parse(TYPES, ["--sample_tokens", "0", "--eval_strategy", "no"])
    (args,) = parse([GenerationArguments], ["--prompt_file", "a.txt"], config({"prompt": "b"})).values
    assert (args.prompt_file, args.prompt) == ("a.txt", None)
    with pytest.raises(UserError, match="--prompt_file has no effect beside --prompt"):
        GenerationArguments(prompt="b", prompt_file="a.txt")


def test_a_config_name_beside_the_files_of_a_config_is_refused(config):
    """It would be the name of nothing; another data set on the command line takes the files' place."""
    files = config({"train_file": "a.txt"})
    with pytest.raises(UserError, match="--dataset_config_name has no effect beside the config's train_file"):
        parse(TYPES, ["--dataset_config_name", "z"], files)
    argv = ["--dataset_name", "x/y", "--dataset_config_name", "z"]
    assert parse(TYPES, argv, files).values[1].dataset_config_name == "z"


def test_a_size_on_the_command_line_overrules_the_sizes_of_the_file(config):
    """All that it chooses; beside it in the same layer they stay."""
    content = {"d_model": 64, "learning_rate": 0.1, "eval_every": 7, "seed": 3}
    assert set(parse(TYPES, ["--size", "auto"], config(content)).given) == {"size", "seed"}
    joined = {"sequence_mode": "blocks", "join_documents": True}
    parsed = parse(TYPES, ["--size", "auto"], config(joined))  # which will be blocks too
    assert parsed.values[1].join_documents and set(parsed.given) == {"size", "join_documents"}
    argv = ["--size", "auto", "--d_model", "128"]
    assert set(parse(TYPES, argv, config(content)).given) == {"size", "d_model", "seed"}
    assert set(parse(TYPES, [], config({**content, "size": "auto"})).given) == {"size", *content} - {"eval_every"} | {
        "eval_steps"
    }


def test_another_data_set_does_not_keep_the_config_name(config):
    """That of the default or of the file is only a hint for a data set that is named on the command line."""
    both = config({"dataset_name": "x/y", "dataset_config_name": "z"})
    typed = ["--dataset_name", "a/b"]
    for argv, path, name, preferred in (
        (typed, None, "wikitext-2-v1", True),
        (typed, both, "z", True),
        ([], both, "z", False),
        ([*typed, "--dataset_config_name", "z"], both, "z", False),
    ):
        found = parse(TYPES, argv, path).values[1].dataset_config_name
        assert (found, isinstance(found, Preferred)) == (name, preferred)


def test_a_precision_that_is_denied(config, monkeypatch):
    """On the command line it is a contradiction where it would be taken; a file of all defaults leaves the choice."""
    monkeypatch.setattr("gpt2_hf.runtime.precision.cpu_bf16_instructions", lambda: ["amx_bf16"])
    with pytest.raises(
        UserError, match="--bf16 false contradicts --precision auto, which takes bf16 here; use --prec"
    ):
        parse(TYPES, ["--bf16", "false", "--use_cpu"])
    assert not parse(TYPES, ["--bf16", "false", "--precision", "fp32", "--use_cpu"]).values[2].bf16
    args = parse(TYPES, ["--use_cpu"], config({"bf16": False})).values[2]
    assert args.bf16 and "bf16" not in args.stated


def test_lists_of_models(config):
    """`none` stands alone: in a list it would be a model that is not there. Where one is needed there is one."""
    message = "--distill_from: none is not expected beside other values"
    with pytest.raises(UserError, match=message):
        parse(TYPES, ["--distill_from", "a", "none"])
    with pytest.raises(UserError, match=message):
        parse(TYPES, [], config({"distill_from": ["a", "none"]}))
    assert parse(TYPES, [], config({"distill_from": ["none"]})).values[2].distill_from is None
    with pytest.raises(UserError, match="--against: none is not expected beside other values"):
        parse([EvaluationArguments], ["--against", "a", "none"])
    for argv in (["--against", "a", "--model_path=b", "--against", "c", "d"], ["--against=a", "--against", "c", "d"]):
        with pytest.raises(UserError, match=r"--against is given twice; put all values after one: --against a c d$"):
            parse([EvaluationArguments], argv)
    (args,) = parse([EvaluationArguments], ["--against", "a", "b"], config({"against": "c"})).values
    assert args.against == ["a", "b"]
    for kind, name in ((EvaluationArguments, "model_path"), (ReportArguments, "runs")):
        with pytest.raises(UserError, match=f"--{name} is an empty list; give "):
            parse([kind], [], config({name: []}))


def test_dictionary_options_survive_the_file(config):
    """Options that are objects in transformers are objects in the file."""
    content = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-5}}
    assert parse(TYPES, [], config(content)).values[2].lr_scheduler_kwargs == {"min_lr": 1e-5}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lr", "learning_rate"),
        ("epochs", "max_epochs"),
        ("num-epochs", "max_epochs"),
        ("block_size", "max_length"),
        ("no_cuda", "use_cpu"),
        ("fp16_opt_level", "precision"),
        ("wd", "weight_decay"),
        ("bs", "batch_size"),
        ("n_layer", "num_layers"),
        ("n_embd", "d_model"),
        ("n_head", "num_heads"),
        ("vocab", "tokenizer_name"),
        ("vocab_size", "tokenizer_name"),
        ("data", "train_file or dataset_name"),
        ("output", "output_dir"),
        ("model", "model_name_or_path"),
        ("overwrite", "overwrite_output_dir"),
        ("resume", "resume_from"),
        ("evaluation_strategy", "eval_strategy"),
        ("warmup_ratio", "warmup_steps"),
        ("max_iters", "max_steps"),
        ("eval_interval", "eval_every"),
        ("grad_clip", "gradient_clip"),
        ("max_seq_length", "max_length"),
        ("learning_rat", "learning_rate"),
    ],
)
def test_names_of_other_programs_get_ours_as_a_suggestion(config, typed, meant):
    """nanoGPT's, those of transformers' example and of its former arguments; as an option and as a key."""
    for arguments in (([f"--{typed}", "1"],), ([f"--{typed}=1"],), ([], config({typed.replace("-", "_"): 1}))):
        with pytest.raises(UserError) as caught:
            parse(TYPES, *arguments)
        assert f"did you mean {meant}?" in str(caught.value)


def test_only_what_can_be_typed_or_written_is_suggested(config):
    """A file names no other file; what is refused whatever its value is no remedy."""
    with pytest.raises(UserError, match=r"did you mean config\?"):
        parse(TYPES, ["--confg", "1"])
    for arguments in ((["--do_tran"],), ([], config({"do_tran": True})), ([], config({"confg": 1}))):
        with pytest.raises(UserError) as caught:
            parse(TYPES, *arguments)
        assert not re.search(r"mean (do_train|config)\?", str(caught.value))


def test_suggestions_are_options_of_the_command():
    """What a name means may differ from command to command; each means something in one, and is no option of train."""
    parsers = {command: Parser(types) for command, types in ARGUMENTS.items()}
    known = {option.lstrip("-") for parser in parsers.values() for option in parser._option_string_actions}
    assert len(SYNONYMS) == sum(len(words.split()) for words in _MEANT.values())  # no word stands there twice
    for synonym, meanings in SYNONYMS.items():
        assert set(meanings) <= known, synonym
        assert f"--{synonym}" not in parsers["plan"]._option_string_actions, synonym
    suggestions = [parsers[command].suggestion("--model") for command in ("plan", "evaluate", "generate")]
    assert [text.split("mean ")[1] for text in suggestions] == ["model_name_or_path?", "model_path?", "model_path?"]


FINITE = [
    (dataclass_type, option.name)
    for dataclass_type in (*TYPES, ClusterArguments, EvaluationArguments, GenerationArguments)
    for option in group_of(dataclass_type).options
    if option.reader.__name__ == "float"
]


@pytest.mark.parametrize(("dataclass_type", "name"), FINITE)
def test_every_number_is_finite(config, dataclass_type, name):
    """Infinity and nan are refused by name: on the command line, in a file, and in Python."""
    assert len(FINITE) > 20
    for text, value in (("inf", float("inf")), ("-Infinity", float("-inf")), ("nan", float("nan")), ("1e999", None)):
        message = f"--{name} must be a finite number"
        with pytest.raises(UserError, match=message):
            parse([dataclass_type], [f"--{name}={text}"])
        if value is not None:
            with pytest.raises(UserError, match=message):
                parse([dataclass_type], [], config({name: value}))
            with pytest.raises(UserError, match=message):
                dataclass_type(**{name: value})


def test_numbers_inside_an_object_are_finite(config):
    """The arguments of a schedule, for example."""
    for value in ({"min_lr": float("nan")}, '{"min_lr": Infinity}'):
        with pytest.raises(UserError, match="--lr_scheduler_kwargs must be a finite number"):
            parse(TYPES, [], config({"lr_scheduler_kwargs": value}))


@pytest.mark.parametrize(
    ("places", "dataclass_type"),
    [(TRAINING, GPT2HFTrainingArguments), (TOKENIZER_TRAINING, TokenizerTrainingArguments)],
)
def test_the_source_says_what_the_class_says(places, dataclass_type):
    """Names, aliases, defaults, help and kinds of value, so that what is shown before an import is true after it."""
    read, imported = group_in_source(*places), group_of(dataclass_type)
    assert (read.title, read.base) == (imported.title, imported.base)
    for option, true in zip(read.options, imported.options, strict=True):
        assert dataclasses.replace(option, hint=true.hint, choices=true.choices) == true
        reader, true_reader = option.reader, true.reader
        for kind in ("optional", "takes_bool", "takes_list", "takes_one", "takes_object", "reads_bool", "is_readable"):
            assert getattr(reader, kind) == getattr(true_reader, kind), (option.name, kind)
        assert reader.__name__ == true_reader.__name__
        assert reader.choices in ({}, true_reader.choices)  # never narrower


def test_without_a_source_the_class_is_imported(monkeypatch, capsys):
    """As in a program that is packed into one file: later, and the same."""
    assert group_in_source(ClassInSource("Nothing", "options/nowhere.py")) is None
    assert group_in_source(ClassInSource("Nothing", "errors.py")) is None
    assert group_in_source(TRAINING[0], ClassInSource("Nothing", "nothing.py", "no_such_package")) is None
    monkeypatch.setattr("gpt2_hf.options.source.group_in_source", lambda *places: None)
    assert main(["train", "--lr", "1"]) == 2
    assert "did you mean learning_rate?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "--help-all shows" in capsys.readouterr().out


def test_a_backend_of_communication_needs_several_processes():
    """Otherwise nothing would use it."""
    with pytest.raises(UserError, match="--ddp_backend has no effect in a run of one process"):
        parse(TYPES, ["--ddp_backend", "gloo"])


def test_a_broken_config_is_read_once(config, monkeypatch):
    """It may be a pipe: a second look would wait for ever, or find nothing and say that."""
    reads = []
    read_text = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, **options: reads.append(path) or read_text(path, **options))
    path = config({})
    Path(path).write_text('{"seed": 1,}')
    with pytest.raises(UserError, match="is not JSON"):
        parse(TYPES, [], path)
    assert len(reads) == 1
