"""Scoring a model: exact whatever the batches, and by the protocol that was asked for."""

import contextlib
import json
import math
import os
import re
import shutil
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import DynamicCache, GPT2LMHeadModel, PreTrainedTokenizerFast

from gpt2_hf import load_tokenizer
from gpt2_hf.__main__ import main
from gpt2_hf.commands.sliding_windows import SlidingWindows
from gpt2_hf.commands.training_protocol import with_training_protocol
from gpt2_hf.errors import UserError
from gpt2_hf.model.chunked_loss import IGNORE_INDEX
from gpt2_hf.options.arguments import DataArguments
from gpt2_hf.runtime.precision import current_device_type

from .. import ranks
from ..conftest import read_json
from ..faults import harness
from ..tiny_models import make_stock
from .conftest import evaluate


@given(num_tokens=st.integers(2, 60), max_length=st.integers(2, 20), data=st.data())
@settings(max_examples=100)
def test_sliding_windows_score_each_token_at_most_once(num_tokens, max_length, data):
    """With stride < context every token but the first is scored once; with stride = context, window starts are not."""
    stride = data.draw(st.integers(1, max_length))
    stream = np.arange(num_tokens) + 100
    scored, reads = [], []

    def read(start, stop):
        reads.append(stop - start)
        return stream[start:stop]

    windows = SlidingWindows(read, num_tokens, max_length, stride)
    assert not reads and len(windows.first_targets) == len(windows)
    for window in windows:
        targets = window["shift_labels"]
        scored += targets[targets >= 0].tolist()
        assert len(window["input_ids"]) <= max_length
    expected = [token for i, token in enumerate(stream) if i and not (stride == max_length and i % max_length == 0)]
    assert sorted(scored) == expected
    assert max(reads) <= max_length and int(windows.lengths.sum()) == len(scored)


@pytest.fixture(scope="module")
def stock_folder(tmp_path_factory, tokenizer_folder):
    """A small random stock GPT-2 with a tokenizer, as `save_pretrained` leaves it."""
    folder = tmp_path_factory.mktemp("stock")
    make_stock(vocab_size=384, n_positions=32, bos_token_id=0, eos_token_id=0).save_pretrained(folder)
    for path in tokenizer_folder.iterdir():
        shutil.copy(path, folder)
    return folder


def perplexity_guide(model, ids, max_length, stride):
    """The figures of the guide in transformers' documentation, whose windows these are.

    Returns `(the guide's loss, the mean over the same targets with equal weights, number of targets)`. The guide
    weighs the mean loss of a window by its targets less one. One target is lost to the shift of the labels, but only
    where the window's first token is among them: in the first window, or in each if they do not overlap.
    """
    weighted, weights, total, targets, previous_end = 0.0, 0, 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + max_length, len(ids))
        labels = ids[begin:end].clone()
        labels[: -(end - previous_end)] = IGNORE_INDEX
        with torch.no_grad():
            mean = model(ids[None, begin:end], labels=labels[None]).loss.item()
        predicted = int((labels[1:] != IGNORE_INDEX).sum())
        total, targets = total + mean * predicted, targets + predicted
        weight = int((labels != IGNORE_INDEX).sum()) - 1
        weighted, weights = weighted + mean * weight, weights + weight
        previous_end = end
        if end == len(ids):
            break
    return weighted / weights, total / targets, targets


@pytest.mark.parametrize("stride", [32, 16])
def test_stock_gpt2_is_scored_as_in_the_perplexity_guide(stock_folder, tmp_path, capsys, stride):
    """Window and stride of the guide, on a stock folder: its figure without overlap, its exact mean with overlap."""
    text = "The statement is\na simple statement.\n\n" * 40
    (tmp_path / "text.txt").write_text(text)
    options = ["--test_file", str(tmp_path / "text.txt"), "--document_unit", "file", "--stride", str(stride)]
    printed = evaluate(capsys, "--model_path", str(stock_folder), *options)
    ids = load_tokenizer(str(stock_folder))(text, return_tensors="pt").input_ids[0]
    guide, exact, targets = perplexity_guide(GPT2LMHeadModel.from_pretrained(stock_folder).eval(), ids, 32, stride)
    assert printed["tokens"] == targets
    assert printed["loss"] == pytest.approx(exact, abs=1e-6)
    assert printed["loss"] == pytest.approx(guide, abs=1e-6 if stride == 32 else 0.02)


def test_no_cache_is_built_for_a_score(stock_folder, corpus_folder, capsys, monkeypatch):
    """It would cost time and memory for nothing."""
    monkeypatch.setattr(DynamicCache, "__init__", lambda *_, **__: pytest.fail("a cache was built"))
    text = ["--test_file", str(corpus_folder / "test.txt"), "--sequence_mode", "blocks"]
    assert evaluate(capsys, "--model_path", str(stock_folder), *text)["loss"] > 0


@pytest.mark.parametrize(
    "mode", [["--truncate", "true"], ["--max_eval_samples", "7"], ["--sequence_mode", "blocks"], []]
)
def test_words_and_bytes_are_those_of_the_scored_text(stock_folder, corpus_folder, capsys, mode):
    """Words, line ends and bytes of what was scored, and the figures that follow; checked against the text itself."""
    test_file = corpus_folder / "test.txt"
    printed = evaluate(capsys, "--model_path", str(stock_folder), "--test_file", str(test_file), *mode)
    tokenizer = load_tokenizer(str(stock_folder))
    words = line_ends = num_bytes = tokens = 0
    left = 7 if "--max_eval_samples" in mode else math.inf  # samples of 32 targets
    for line in test_file.read_text().splitlines(keepends=True):
        ids = tokenizer(line).input_ids
        first = 0 if "blocks" in mode else 1  # a separator is what the first token of a document is predicted from
        last = 33 if "--truncate" in mode else min(1 + 32 * left, len(ids))
        left -= -(-(min(last, len(ids)) - 1) // 32)
        before, scored = tokenizer.decode(ids[:first]), tokenizer.decode(ids[first:last])
        words += len((before + scored).split()) - len(before.split()) + scored.count("\n")
        line_ends += scored.count("\n")
        num_bytes += len(scored.encode())
        tokens += len(ids[first:last])
        if left <= 0:
            break
    separators = len(test_file.read_text().splitlines()) - 1 if "blocks" in mode else 0
    assert printed["tokens"] == tokens + separators
    assert (printed["words"], printed["line_ends"], printed["bytes"]) == (words, line_ends, num_bytes)
    nll = printed["loss"] * printed["tokens"]
    assert printed["word_perplexity"] == pytest.approx(math.exp(nll / words))
    assert printed["bits_per_byte"] == pytest.approx(nll / math.log(2) / num_bytes)


@pytest.mark.parametrize("options", [["--max_eval_samples", "9"], ["--stride", "20"]])
def test_the_figure_can_be_reproduced_from_the_output(finished_run, tmp_path, capsys, options):
    """The JSON says what was scored and how; its data options are a config that gives the same again."""
    first = evaluate(capsys, "--model_path", str(finished_run / "best_model"), *options)
    assert first["dataset"].endswith("test.txt") and len(first["fingerprint"]) == 32
    assert set(first["definitions"]) >= {"tokens", "words", "bytes", "perplexity"} and first["versions"]["torch"]
    config = {"model_path": first["model"], "max_length": first["context"], **first["data_options"]}
    config |= {name: first[name] for name in ("split", "stride", "precision")}
    (tmp_path / "again.json").write_text(json.dumps(config))
    assert evaluate(capsys, "--config", str(tmp_path / "again.json")) == first


def test_a_tokenizer_that_changes_the_text_gives_no_figures_per_word(tmp_path, corpus_folder, capsys):
    """Words and bytes are left out with a line where the text cannot be had back from the tokens."""
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "statement": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").save_pretrained(tmp_path)
    make_stock(vocab_size=3, bos_token_id=0, eos_token_id=0).save_pretrained(tmp_path)
    options = ["--model_path", str(tmp_path), "--test_file", str(corpus_folder / "test.txt")]
    assert main(["evaluate", *options]) == 0
    out = capsys.readouterr().out
    assert "no figures per word and per byte" in out
    printed = json.loads(out.splitlines()[-1])
    assert printed["words"] is printed["bits_per_byte"] is printed["word_perplexity"] is None
    assert printed["perplexity"] > 1


def test_a_text_without_spaces_is_valid_json(stock_folder, tmp_path, capsys):
    """One word of thousands of tokens has a perplexity that no number holds: `null`, which is JSON."""
    (tmp_path / "long.txt").write_text("ab" * 4000)
    text = ["--test_file", str(tmp_path / "long.txt"), "--sequence_mode", "blocks"]
    output = ["--output_file", str(tmp_path / "figures.json")]
    assert main(["evaluate", "--model_path", str(stock_folder), *text, *output]) == 0

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    *lines, last = capsys.readouterr().out.splitlines()
    assert "bits per byte over" in lines[-1] and not re.search(r"\d{20}|inf", lines[-1])
    for line in (last, (tmp_path / "figures.json").read_text()):
        report = json.loads(line, parse_constant=refuse)
        assert report["word_perplexity"] is None and report["perplexity"] > 1


def test_an_edited_config_beside_the_model_is_one_line(finished_run, tmp_path, capsys):
    """It is a config file, which people edit; and a home folder in an output's name is the user's."""
    shutil.copytree(finished_run / "best_model", tmp_path / "model")
    (tmp_path / "model" / "resolved_config.json").write_text('{"seed": 1,}')
    assert main(["evaluate", "--model_path", str(tmp_path / "model")]) == 2
    err = capsys.readouterr().err
    assert "resolved_config.json is not JSON (" in err and err.count("\n") == 1


def test_two_processes_score_the_same_as_one(finished_run, tmp_path, capsys):
    """The samples are divided among the processes; the sums are the same, and are printed once."""
    options = ["--model_path", str(finished_run / "best_model"), "--max_eval_samples", "17", "--batch_size", "4"]
    alone = evaluate(capsys, *options)
    printed = ranks.run(2, ["evaluate", *options], tmp_path / "log")
    together = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert len(together) == 1
    floats = {name for name, value in alone.items() if isinstance(value, float)}
    for name, value in alone.items():
        assert together[0][name] == (pytest.approx(value, abs=1e-6, rel=1e-6) if name in floats else value), name


@pytest.mark.parametrize("batch_size", ["1", "3", "8"])
def test_command_repeats_the_training_protocol(finished_run, tmp_path, capsys, batch_size):
    """Without further options `evaluate` measures what the run measured, to 1e-6, and prints it as JSON."""
    output_file = tmp_path / "result.json"
    model = str(finished_run / "best_model")
    options = ["--model_path", model, "--batch_size", batch_size, "--output_file", str(output_file)]
    assert main(["evaluate", *options]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == read_json(output_file)
    expected = read_json(finished_run / "test_results.json")
    assert printed["loss"] == pytest.approx(expected["test_loss"], abs=1e-6)
    assert printed["perplexity"] == pytest.approx(math.exp(printed["loss"]))
    assert (printed["tokens"], printed["protocol"]) == (expected["test_tokens"], "padding_free")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and links as POSIX has them")
def test_an_output_file_may_be_a_link_or_a_pipe(finished_run, tmp_path, capsys):
    """A link leads to the new file afterwards; a pipe is written and not replaced."""
    options = ["--model_path", str(finished_run / "best_model"), "--max_eval_samples", "9", "--output_file"]
    (tmp_path / "old.json").write_text("older\n")
    (tmp_path / "link").symlink_to("old.json")
    printed = evaluate(capsys, *options, str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink() and read_json(tmp_path / "old.json") == printed
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    assert evaluate(capsys, *options, str(tmp_path / "fifo")) == printed
    assert json.loads(os.read(reader, 65536)) == printed and (tmp_path / "fifo").is_fifo()
    os.close(reader)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "link", "old.json"]


def evaluate_into(path, *options):
    """`gpt2-hf evaluate ... >> path`, in a process of its own."""
    os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), 1)
    with open(1, "w", closefd=False) as sys.stdout:
        code = main(["evaluate", *options])
    os._exit(code)


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="Linux and macOS")
def test_standard_output_as_a_file_gets_the_result_once(finished_run, tmp_path):
    """`--output_file /dev/stdout >> FILE`: what was in the file stays.

    By a link, so that a command that replaced it would not replace the machine's /dev/stdout.
    """
    old, link = tmp_path / "old.txt", tmp_path / "stdout"
    old.write_text("older\n")
    link.symlink_to("/dev/stdout")
    options = ["--model_path", str(finished_run / "best_model"), "--max_eval_samples", "9"]
    process = harness.start_function(evaluate_into, old, *options, "--output_file", str(link))
    assert harness.join([process]) == [0]
    lines = old.read_text().splitlines()
    assert lines[0] == "older" and json.loads(lines[-1])["pieces"] and old.read_text().count('"pieces"') == 1
    assert link.is_symlink()


def test_a_file_that_cannot_be_written_is_refused_before_the_models_are_scored(
    finished_run, tmp_path, monkeypatch, capsys
):
    """Hours of scoring do not end at a folder."""
    monkeypatch.setattr("gpt2_hf.commands.evaluate.score_texts", lambda *args, **how: pytest.fail("it was scored"))
    (tmp_path / "file").touch()
    for output, problem in ((tmp_path, "Is a directory"), (tmp_path / "file" / "x.json", "Not a directory")):
        assert main(["evaluate", "--model_path", str(finished_run / "best_model"), "--output_file", str(output)]) == 2
        assert capsys.readouterr().err == f"error: --output_file: {output} cannot be written ({problem})\n"


def test_a_result_whose_file_fails_is_printed(finished_run, tmp_path, monkeypatch, capsys):
    """The disk may be full by then: the JSON is on standard output."""

    def fill(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gpt2_hf.commands.evaluate.write_json", fill)
    options = ["--max_eval_samples", "9", "--output_file", str(tmp_path / "x.json")]
    assert main(["evaluate", "--model_path", str(finished_run / "best_model"), *options]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["loss"] > 0 and "cannot be written (No space left on device)" in err


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("text.jsonl", ["--test_file", "text.jsonl"], "would replace the text of --test_file; choose another name"),
        ("text.jsonl", ["--test_file", "*.jsonl"], "would replace the text of --test_file; choose another name"),
        (
            "text.jsonl",
            ["--train_mix", '{"a": {"train_file": "a.txt", "test_file": "text.jsonl", "weight": 1}}'],
            "would replace the text of --test_file; choose another name",
        ),
        (
            "data/test.jsonl",
            ["--dataset_name", "data"],
            "would replace the text of --dataset_name; choose another name",
        ),
        ("run/test_results.json", [], "is a file of the run in that folder; choose another name"),
        ("run/written_files.json", [], "is a file of the run in that folder; choose another name"),
    ],
)
def test_neither_a_text_nor_a_file_of_the_run_is_replaced(
    finished_run, tmp_path, monkeypatch, capsys, output, options, message
):
    """Exit code 2, one line, and no byte is changed."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run, "run")
    (tmp_path / "data").mkdir()
    for name in ("text.jsonl", "data/test.jsonl"):
        (tmp_path / name).write_text('{"text": "The statement is a statement."}\n' * 3)
    before = (tmp_path / output).read_bytes()
    assert main(["evaluate", "--model_path", "run/best_model", *options, "--output_file", output]) == 2
    err = capsys.readouterr().err
    assert f"--output_file: {output} {message}" in err and err.count("\n") == 1
    assert (tmp_path / output).read_bytes() == before


def test_a_test_split_may_be_streamed(finished_run, capsys):
    """So that of a large dataset no other split is fetched; the score is the same."""
    options = ("--model_path", str(finished_run / "best_model"), "--split", "test")
    stored, streamed = evaluate(capsys, *options), evaluate(capsys, *options, "--streaming", "true")
    assert streamed["data_options"]["streaming"] and streamed["loss"] == stored["loss"]


def test_command_scores_another_text_with_sliding_windows(finished_run, tmp_path, capsys):
    """Another file, split and stride; the output says what was measured."""
    text = tmp_path / "other.txt"
    text.write_text("The assert statement is a convenient way to insert assertions.\n" * 5)
    options = ["--model_path", str(finished_run / "checkpoint-25"), "--test_file", str(text), "--stride", "16"]
    assert main(["evaluate", *options]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (printed["protocol"], printed["context"], printed["stride"]) == ("sliding windows", 32, 16)


@pytest.mark.parametrize("joined", ["true", "false"])
def test_windows_over_blocks_score_the_tokens_of_the_blocks(finished_run, capsys, joined):
    """The stream of the training protocol, separators included: tokens, words and bytes as without a stride."""
    protocol = ("--sequence_mode", "blocks", "--join_documents", joined)
    options = ("--model_path", str(finished_run / "best_model"), *protocol)
    blocks = evaluate(capsys, *options)
    windows = evaluate(capsys, *options, "--stride", "8")
    plain = evaluate(capsys, "--model_path", str(finished_run / "best_model"), "--stride", "8")
    for name in ("tokens", "words", "line_ends", "bytes"):
        assert windows[name] == blocks[name]
    assert windows["loss"] != blocks["loss"]
    documents = plain["line_ends"]  # the tiny corpus has a document a line
    assert windows["tokens"] - plain["tokens"] == (1 if joined == "true" else documents)


PROTOCOLS = [
    {"sequence_mode": "padded", "truncate": True, "pad_to_max_length": True},
    {"sequence_mode": "padding_free", "truncate": True, "streaming": True, "shuffle_buffer_size": 9},
    {"sequence_mode": "blocks", "join_documents": True},
    {"sequence_mode": "blocks", "streaming": True, "shuffle_buffer_size": 9},
]


@pytest.mark.parametrize("trained", PROTOCOLS)
@pytest.mark.parametrize("name", ["sequence_mode", "streaming"])
def test_what_the_training_run_had_and_does_not_act_is_passed_over(tmp_path, trained, name):
    """Its protocol is repeated as far as it goes with what is asked for; what does not act has its default."""
    (tmp_path / "resolved_config.json").write_text(json.dumps({"train_file": "a.txt", **trained}))
    assert asdict(with_training_protocol(DataArguments(), {}, str(tmp_path))).items() >= trained.items()
    for value in {"sequence_mode": ["padded", "padding_free", "blocks"], "streaming": [True, False]}[name]:
        asked = with_training_protocol(DataArguments(**{name: value}), {name: "command line"}, str(tmp_path))
        blocks, streaming = asked.sequence_mode == "blocks", asked.streaming
        assert getattr(asked, name) == value
        assert asked.truncate == (trained.get("truncate", False) and not blocks)
        assert asked.pad_to_max_length == ("pad_to_max_length" in trained and asked.sequence_mode == "padded")
        assert asked.join_documents == ("join_documents" in trained and blocks and not streaming)
        assert asked.shuffle_buffer_size == (9 if "shuffle_buffer_size" in trained and streaming else 10_000)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ({"truncate": True}, "--truncate has no effect with --sequence_mode blocks"),
        ({"dataset_config_name": "a"}, "--dataset_config_name has no effect: the model was trained on files; add"),
    ],
)
def test_what_is_typed_and_does_not_act_is_refused(tmp_path, typed, message):
    """Under the training run's protocol too, whatever else comes from it."""
    (tmp_path / "resolved_config.json").write_text(json.dumps({"train_file": "a.txt", **PROTOCOLS[2]}))
    with pytest.raises(UserError, match=message):
        with_training_protocol(DataArguments(**typed), dict.fromkeys(typed, "command line"), str(tmp_path))


def test_paragraphs_are_not_joined(tmp_path):
    """Of a model that was trained on joined lines they are scored each by itself."""
    (tmp_path / "resolved_config.json").write_text(json.dumps({"train_file": "a.txt", **PROTOCOLS[2]}))
    typed = {"test_file": "b.txt", "document_unit": "paragraph"}
    asked = with_training_protocol(DataArguments(**typed), dict.fromkeys(typed, "command line"), str(tmp_path))
    assert (asked.sequence_mode, asked.join_documents, asked.document_unit) == ("blocks", False, "paragraph")


def test_a_model_of_the_hub_is_scored_by_its_protocol(stock_folder, corpus_folder, tmp_path, monkeypatch, capsys):
    """As the same folder is, from the hub's cache; the files that its author trained on are not looked for here."""
    shutil.copytree(stock_folder, tmp_path / "local")
    config = {"train_file": "text.txt", "test_file": "text.txt", "sequence_mode": "blocks", "max_length": 16}
    (tmp_path / "local" / "resolved_config.json").write_text(json.dumps(config))
    repository = tmp_path / "models--someone--model"
    snapshot = repository / "snapshots" / "0123456789abcdef"
    shutil.copytree(tmp_path / "local", snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    shutil.copy(corpus_folder / "test.txt", "text.txt")
    text = ["--test_file", str(corpus_folder / "validation.txt")]
    local, hub = (evaluate(capsys, "--model_path", path, *text) for path in ("local", "someone/model"))
    assert (hub["protocol"], hub["context"], hub["model"]) == ("blocks", 16, "someone/model")
    assert hub["loss"] == local["loss"]
    assert main(["evaluate", "--model_path", "someone/model"]) == 2
    assert "someone/model was trained on a text that its author has; give one" in capsys.readouterr().err
    folder = {"dataset_name": "data/own", "provenance": {"folders": ["dataset_name"]}}
    (snapshot / "resolved_config.json").write_text(json.dumps(folder))
    assert main(["evaluate", "--model_path", "someone/model"]) == 2
    assert "someone/model was trained on a text that its author has" in capsys.readouterr().err
    (snapshot / "resolved_config.json").unlink()
    for is_known in (False, True):
        if is_known:  # that there is none on the hub
            (repository / ".no_exist" / snapshot.name).mkdir(parents=True)
            (repository / ".no_exist" / snapshot.name / "resolved_config.json").touch()
        assert main(["evaluate", "--model_path", "someone/model", *text]) == 0
        assert ("someone/model is scored by the defaults" in capsys.readouterr().out) != is_known


UNITS = [
    ("x.jsonl", "row", "y.txt", None),
    ("x.txt", "file", "y.jsonl", None),
    ("x.txt", "file", "*.csv.gz", None),
    ("x.txt", "file", "y.txt", "file"),
    ("x.txt", "file", "books/*.md.gz", "file"),
    ("x.jsonl", "line", "y.txt", "line"),
    ("x.txt", "paragraph", "y.jsonl", "paragraph"),
    ("x.jsonl", "row", None, "row"),
    ("x.txt", "file", None, "file"),
]


@pytest.mark.parametrize(("trained", "unit", "asked", "expected"), UNITS)
def test_document_unit_is_inherited_only_where_the_other_text_has_such_documents(
    tmp_path, trained, unit, asked, expected
):
    """Nobody is refused a --document_unit that only the training run named."""
    (tmp_path / "resolved_config.json").write_text(json.dumps({"train_file": trained, "document_unit": unit}))
    data_args, given = DataArguments(test_file=asked), {} if asked is None else {"test_file": "command line"}
    assert with_training_protocol(data_args, given, str(tmp_path)).document_unit == expected
    if asked is not None:
        named = DataArguments(test_file=asked, document_unit=unit)
        given["document_unit"] = "command line"
        assert with_training_protocol(named, given, str(tmp_path)).document_unit == unit


def test_another_data_set_has_its_own_documents(tmp_path):
    """`--document_unit file` of the training text is not inherited for a dataset."""
    (tmp_path / "resolved_config.json").write_text(json.dumps({"train_file": "x.txt", "document_unit": "file"}))
    given = {"dataset_name": "command line"}
    asked = with_training_protocol(DataArguments(dataset_name="a/b"), given, str(tmp_path))
    assert (asked.dataset_name, asked.train_file, asked.document_unit) == ("a/b", None, None)


def test_the_data_set_of_the_training_keeps_its_config(tmp_path):
    """Named again, it is the same text; another one has the default."""
    trained = {
        "dataset_name": "Salesforce/wikitext",
        "dataset_config_name": "wikitext-2-raw-v1",
        "text_column": "page",
    }
    (tmp_path / "resolved_config.json").write_text(json.dumps(trained))
    given = {"dataset_name": "command line"}
    same = with_training_protocol(DataArguments(), given, str(tmp_path))
    assert asdict(same).items() >= trained.items()
    other = with_training_protocol(DataArguments(dataset_name="a/b"), given, str(tmp_path))
    assert (other.dataset_config_name, other.text_column) == ("wikitext-2-v1", None)


@pytest.mark.parametrize("typed", [("dataset_config_name",), ("dataset_name", "dataset_config_name")])
def test_another_config_of_the_data_set_is_another_text(tmp_path, typed):
    """With columns and documents of its own, and nothing set aside for training."""
    trained = {"dataset_name": "a/b", "dataset_config_name": "en", "text_column": "page", "document_unit": "file"}
    record = {**trained, "validation_split_percentage": 5, "sequence_mode": "padded"}
    (tmp_path / "resolved_config.json").write_text(json.dumps(record))
    options = {"dataset_name": "a/b", "dataset_config_name": "de", "validation_split_percentage": 10.0}
    given = dict.fromkeys([*typed, "validation_split_percentage"], "command line")
    asked = with_training_protocol(DataArguments(**options), given, str(tmp_path))
    assert asdict(asked).items() >= options.items()
    assert (asked.text_column, asked.document_unit, asked.sequence_mode) == (None, None, "padded")
    options["dataset_config_name"] = "en"
    with pytest.raises(UserError, match="which set aside 5 %"):
        with_training_protocol(DataArguments(**options), given, str(tmp_path))


def test_the_share_that_training_set_aside_is_passed_over(stock_folder, tmp_path, capsys):
    """Beside a validation file there is nothing to set aside: only a share that is typed is refused."""
    model, text = tmp_path / "model", tmp_path / "text.txt"
    shutil.copytree(stock_folder, model)
    text.write_text("The statement is a statement.\n" * 3)
    (model / "resolved_config.json").write_text(
        json.dumps({"train_file": "a.txt", "validation_split_percentage": 1.0})
    )
    options = ["--model_path", str(model), "--validation_file", str(text), "--split", "validation"]
    assert evaluate(capsys, *options)["data_options"]["validation_split_percentage"] == 5
    assert main(["evaluate", *options, "--validation_split_percentage", "1"]) == 2
    assert "--validation_split_percentage has no effect" in capsys.readouterr().err


def test_a_share_of_the_training_text_is_the_one_that_was_set_aside(stock_folder, tmp_path, capsys):
    """Another one would score documents that were trained on."""
    model, text = tmp_path / "model", tmp_path / "text.txt"
    shutil.copytree(stock_folder, model)
    text.write_text("The statement is a statement.\n" * 40)
    trained = {"train_file": str(text), "validation_split_percentage": 5.0}
    (model / "resolved_config.json").write_text(json.dumps(trained))
    options = ["--model_path", str(model), "--split", "validation", "--validation_split_percentage"]
    assert evaluate(capsys, *options, "5")["line_ends"] == 2
    assert main(["evaluate", *options, "10"]) == 2
    assert "percentage 10 would score what the model was trained on, which set aside 5 %" in capsys.readouterr().err
    assert evaluate(capsys, *options, "10", "--train_file", str(text))["line_ends"] == 4


def test_the_training_split_of_a_streamed_run(stock_folder, tmp_path, capsys):
    """It is stored only if that is asked for: the line says how, and then it is scored."""
    model, text = tmp_path / "model", tmp_path / "text.txt"
    shutil.copytree(stock_folder, model)
    text.write_text("The statement is a statement.\n" * 30)
    trained = {"train_file": str(text), "streaming": True, "shuffle_buffer_size": 1000}
    (model / "resolved_config.json").write_text(json.dumps(trained))
    options = ["--model_path", str(model), "--split", "train", "--max_train_samples", "5"]
    assert main(["evaluate", *options]) == 2
    assert "--split train: the training text is streamed without end; add --streaming false" in capsys.readouterr().err
    assert evaluate(capsys, *options, "--streaming", "false")["line_ends"] == 5


def test_command_finds_checkpoints_by_name(finished_run, capsys, monkeypatch):
    """A checkpoint's name behind the run's path is a model path too; on a CPU, freed memory is kept."""
    asked = []
    keep = contextlib.nullcontext()
    monkeypatch.setattr("gpt2_hf.runtime.own_process.keep_freed_memory", lambda: asked.append(True) or keep)
    assert main(["evaluate", "--model_path", str(finished_run / "checkpoint_epoch_1"), "--split", "validation"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["loss"] == pytest.approx(read_json(finished_run / "eval_results.json")["eval_loss"], abs=1e-6)
    assert bool(asked) == (current_device_type(use_cpu=False) == "cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model_path", "./nowhere"], "--model_path: there is no checkpoint './nowhere'"),
        (["--stride", "0"], "--stride must be at least 1"),
        (["--stride", "64"], "--stride 64 exceeds --max_length 32"),
        (["--stride", "1", "--max_length", "1"], "--max_length must be at least 2, got 1"),
        (["--output_file", "/proc/nowhere/x.json"], "--output_file: /proc/nowhere/x.json cannot be written"),
        (["--output_file", "~nosuch/x.json", "--test_file", "nowhere.txt"], "no file matches 'nowhere.txt'"),
        (["--max_length", "64"], "--max_length 64 exceeds the model's 32 positions"),
        (["--max_train_samples", "5"], "--max_train_samples has no effect with --split test"),
        (["--split", "train", "--max_eval_samples", "5"], "--max_eval_samples has no effect with --split train"),
        (["--stride", "8", "--truncate", "true"], "--truncate has no effect with --stride"),
        (["--validation_split_percentage", "10"], "--validation_split_percentage has no effect with --split test"),
        (
            ["--split", "validation", "--streaming", "true", "--shuffle_buffer_size", "9"],
            "--shuffle_buffer_size has no effect with --split validation",
        ),
        (["--spilt", "test"], "unknown option --spilt; did you mean split"),
        (["--sequence_mode", "blocks", "--shift_blocks", "true"], "--shift_blocks has no effect: a text is scored"),
    ],
)
def test_bad_input_is_one_line(finished_run, capsys, options, message):
    """Exit code 2, and a line that names the option."""
    base = [] if "--model_path" in options else ["--model_path", str(finished_run / "best_model")]
    assert main(["evaluate", *base, *options]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_without_a_split_the_file_that_is_given_is_scored(finished_run, tmp_path, capsys, split):
    """It can only be meant."""
    text = tmp_path / "other.txt"
    text.write_text("The assert statement is a convenient way to insert assertions.\n" * 5)
    options = ["--model_path", str(finished_run / "best_model"), f"--{split}_file", str(text)]
    assert main(["evaluate", *options]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (printed["split"], printed["dataset"]) == (split, str(text))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--validation_file", "a.txt", "--test_file", "b.txt"],
            "add --split validation or --split test to say which",
        ),
        (["--validation_file", "TEXT", "--split", "test"], "--split test: no text is given for it; add --test_file"),
    ],
)
def test_a_split_that_cannot_be_known_is_asked_for(finished_run, tmp_path, capsys, options, message):
    """Exit code 2, and a line that names the options."""
    text = tmp_path / "other.txt"
    text.write_text("The assert statement is a convenient way to insert assertions.\n" * 5)
    options = [str(text) if option == "TEXT" else option for option in options]
    assert main(["evaluate", "--model_path", str(finished_run / "best_model"), *options]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and "None" not in err
