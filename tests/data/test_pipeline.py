"""gpt2_hf.data as a whole: arguments in, batches out, and every row and token accounted for."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from gpt2_hf import GPT2HFConfig, GPT2HFForCausalLM
from gpt2_hf.__main__ import main
from gpt2_hf.data import load_data
from gpt2_hf.data.samples import padded_share
from gpt2_hf.data.sampling import EpochSampler
from gpt2_hf.errors import UserError
from gpt2_hf.options.arguments import DataArguments

from ..conftest import REPOSITORY
from ..data_fixtures import WIKITEXT, file_arguments

MODES = ("padded", "padding_free", "blocks")
# Rows, documents and text tokens of WikiText-2 v1 as the hub serves it.
WIKITEXT_COUNTS = {
    "train": (36_718, 23_767, 2_422_480),
    "validation": (3_760, 2_461, 256_061),
    "test": (4_358, 2_891, 292_943),
}

wikitext = [pytest.mark.wikitext, pytest.mark.usefixtures("shared_wikitext_cache")]


def wikitext_arguments(**options) -> DataArguments:
    return DataArguments(dataset_name=str(WIKITEXT), dataset_config_name="wikitext-2-v1", **options)


def write(path: Path, lines) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


class TestWikitext:
    """The real thing."""

    pytestmark = wikitext

    @pytest.mark.parametrize("mode", MODES)
    def test_accounting(self, gpt2, mode):
        """All three modes account for WikiText-2 exactly: rows, blank rows, text tokens; nothing is dropped."""
        data = load_data(wikitext_arguments(sequence_mode=mode), gpt2, 1024)
        for split, (rows, documents, tokens) in WIKITEXT_COUNTS.items():
            accounting = data.accounting[split]
            assert (accounting.rows, accounting.blank_rows) == (rows, rows - documents)
            assert (accounting.text_tokens, accounting.kept_tokens, accounting.dropped_tokens) == (tokens, tokens, 0)
            assert accounting.separator_tokens == (documents if mode == "blocks" else 0)
            assert accounting.scored_tokens == (tokens + documents - 1 if mode == "blocks" else tokens - documents)
            if mode != "padded":  # whose samples are those of padding_free
                scored = sum(len(data.samples[split][i]["input_ids"]) - 1 for i in range(len(data.samples[split])))
                assert scored == accounting.scored_tokens
        assert data.lines[0].startswith("train: 36,718 rows, 12,951 blank, 0 too short to train on, 0 longer")
        assert "2,422,480 text tokens, 2,422,480 kept, 0 dropped" in data.lines[0]

    @pytest.mark.parametrize(("truncate", "word"), [(False, "continued"), (True, "cut")])
    def test_accounting_of_long_rows(self, gpt2, truncate, word):
        """Rows beyond max_length are counted as continued or cut, and kept and dropped tokens make up all."""
        data = load_data(wikitext_arguments(sequence_mode="padded", truncate=truncate), gpt2, 128)
        accounting = data.accounting["train"]
        kept = sum(len(data.samples["train"][i]["input_ids"]) - 1 for i in range(len(data.samples["train"])))
        assert accounting.kept_tokens == kept + 23_767  # each document's first token is context only
        assert accounting.kept_tokens + accounting.dropped_tokens == 2_422_480
        assert (accounting.dropped_tokens > 0) == truncate
        assert accounting.continued_rows > 5000 and word in data.lines[0]

    def test_second_start_in_two_seconds(self, gpt2, wikitext_cache):
        """In a new process, the data of the first step takes at most 2 s of a core once the tokens are cached."""
        load_data(wikitext_arguments(), gpt2, 1024)
        code = (
            "import time, sys\n"
            "from gpt2_hf.options.arguments import DataArguments\n"
            "from gpt2_hf.data import load_data\n"
            "from gpt2_hf.data.tokenizer import load_tokenizer\n"
            "tokenizer = load_tokenizer()\n"
            "begin, start = time.monotonic(), time.process_time()\n"
            "data = load_data(DataArguments(dataset_name=sys.argv[1]), tokenizer, 1024)\n"
            "data.collator([data.samples['train'][i] for i in range(8)])\n"
            "print(time.process_time() - start, time.monotonic() - begin)\n"
        )
        environment = {**os.environ, "HF_DATASETS_CACHE": str(wikitext_cache)}
        result = subprocess.run(
            [sys.executable, "-c", code, str(WIKITEXT)], env=environment, capture_output=True, text=True, timeout=120
        )
        assert result.returncode == 0, result.stderr
        cores, clock = map(float, result.stdout.split())
        assert cores < 2 and clock < 8  # nothing is waited for, such as the hub

    def test_share_of_a_padded_batch(self, gpt2):
        """The share of text that the line gives is that of the batches of an epoch, to half a percent."""
        data = load_data(wikitext_arguments(sequence_mode="padded"), gpt2, 1024, splits=("train",), batch_size=8)
        lengths = data.samples["train"].lengths
        order = EpochSampler(len(lengths), 0).order()
        batches = lengths[order[: len(order) // 8 * 8]].reshape(-1, 8)
        measured = batches.sum() / (batches.max(axis=1).sum() * 8)
        assert data.accounting["train"].batch_share == pytest.approx(measured, abs=0.005)
        assert f"{data.accounting['train'].batch_share:.1%} of a batch is text" in data.lines[0]

    def test_padding_free_is_padded(self, gpt2):
        """Over 20 optimizer steps on real batches both layouts give one trajectory: losses, gradients, weights."""
        runs = [_trajectory(gpt2, mode) for mode in ("padded", "padding_free")]
        for (loss, gradient), (other_loss, other_gradient) in zip(runs[0][0], runs[1][0], strict=True):
            assert loss == pytest.approx(other_loss, abs=1e-5)
            assert (gradient - other_gradient).abs().max() <= 1e-5
        assert (runs[0][1] - runs[1][1]).abs().max() <= 1e-5
        assert runs[0][0][0][0] - runs[0][0][-1][0] > 0.2, "it learns"

    @pytest.mark.slow
    @pytest.mark.parametrize("processes", [1, 2])
    def test_padding_free_is_padded_in_the_main_job(self, tmp_path, processes, wikitext_cache):
        """The same through the main job, on one process and on two: the logged loss and gradient norm of 20 steps."""
        histories = []
        for mode in ("padded", "padding_free"):
            histories.append(_run_main_job(tmp_path / mode, mode, processes, wikitext_cache))
        assert len(histories[0]) == 20
        for step, other in zip(*histories, strict=True):
            assert step["loss"] == pytest.approx(other["loss"], abs=1e-5)
            assert step["grad_norm"] == pytest.approx(other["grad_norm"], abs=1e-4)


def _trajectory(tokenizer, mode):
    """Loss and gradient of each of 20 steps of AdamW, and the weights at the end."""
    data = load_data(wikitext_arguments(sequence_mode=mode), tokenizer, 128)
    torch.manual_seed(0)
    config = GPT2HFConfig(
        n_embd=16, n_layer=2, n_head=2, n_positions=128, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    model = GPT2HFForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    samples = data.samples["train"]
    sampler = EpochSampler(len(samples), 0, 4)
    steps = []
    for batch in DataLoader(samples, 4, sampler=sampler, collate_fn=data.collator):
        targets = int((batch["shift_labels"] >= 0).sum())
        loss = model(**batch, num_items_in_batch=targets).loss
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        steps.append((loss.item(), gradient))
        optimizer.step()
        optimizer.zero_grad()
        if len(steps) == 20:
            return steps, torch.cat([p.detach().flatten() for p in model.parameters()])
    raise AssertionError("fewer than 20 batches")


def _run_main_job(folder: Path, mode: str, processes: int, cache: Path) -> list[dict]:
    options = {
        "dataset_name": WIKITEXT,
        "sequence_mode": mode,
        "max_length": 128,
        "d_model": 16,
        "num_layers": 2,
        "num_heads": 2,
        "dropout": 0,
        "batch_size": 8 // processes,
        "learning_rate": 3e-3,
        "warmup_steps": 0,
        "max_steps": 20,
        "max_eval_samples": 8,
        "logging_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
        "precision": "fp32",
        "report_to": "none",
        "checkpoint_dir": folder,
    }
    flags = [token for name, value in options.items() for token in (f"--{name}", str(value))]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), str(REPOSITORY / "run_clm.py"), *flags]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(cache)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr[-3000:]
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "grad_norm" in entry]


# ---- the cut ----


def test_validation_is_cut_off(tmp_path, gpt2):
    """Without a validation split one is cut off by document, the same at every start, and a line says so."""
    path = write(tmp_path / "a.txt", [f"Number {i} of the lines.\n" for i in range(100)])
    data = load_data(file_arguments(path), gpt2, 64)
    again = load_data(file_arguments(path), gpt2, 64)
    assert (len(data.samples["train"]), len(data.samples["validation"])) == (95, 5)
    assert data.fingerprints == again.fingerprints
    assert (
        "5 documents, evenly spaced, are set aside, 95 are left (5 %, --validation_split_percentage)" in data.lines[0]
    )
    assert data.accounting["train"].rows + data.accounting["validation"].rows == 200
    for splits in (("train",), ("validation",)):
        part = load_data(file_arguments(path), gpt2, 64, splits=splits)
        assert part.fingerprints == {split: data.fingerprints[split] for split in splits}


def test_known_validation_text_is_told(tmp_path, gpt2):
    """A text whose documents stand in it twice gives a loss that is too low, and the line says so."""
    once = [" ".join(f"{word} {i}" for word in range(20)) + "\n" for i in range(100)]
    single = load_data(file_arguments(write(tmp_path / "once.txt", once)), gpt2, 64)
    twice = load_data(file_arguments(write(tmp_path / "twice.txt", [*once, *once[7:], *once[:7]])), gpt2, 64)
    assert single.remarks["validation"] == ["5 % of the documents set aside"]
    assert "100% OF IT IN DOCUMENTS THAT THE TRAINING TEXT HAS TOO" in twice.summary()


def test_given_validation_is_not_cut(tmp_path, gpt2):
    """With a validation file the training text stays whole."""
    path = write(tmp_path / "a.txt", [f"Number {i} of the lines." for i in range(100)])
    data = load_data(file_arguments(path, validation_file=str(path)), gpt2, 64)
    assert len(data.samples["train"]) == len(data.samples["validation"]) == 100
    assert not any("set aside" in line for line in data.lines)


@pytest.mark.parametrize("streaming", [False, True])
def test_one_document_cannot_be_cut(tmp_path, gpt2, streaming):
    """A single document is not divided; the error names both ways out."""
    path = write(tmp_path / "a.md", ["Only one document."])
    with pytest.raises(
        UserError, match=r"--validation_split_percentage: 1 document .*--validation_file.*--document_unit"
    ):
        load_data(file_arguments(path, streaming=streaming), gpt2, 64)


# ---- the accounting of small corpora ----


@settings(max_examples=8)
@given(texts=st.lists(st.sampled_from(["", " ", "a", "two words", "a line of six words here"]), min_size=1))
def test_rows_and_tokens_add_up(tmp_path_factory, gpt2, texts):
    """In every mode rows are blank, short or used, and tokens kept or dropped, of any text."""
    path = tmp_path_factory.mktemp("texts") / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, "always two words"]))
    tokens = [gpt2(text).input_ids for text in [*texts, "always two words"] if text.strip()]
    for mode in MODES:
        arguments = file_arguments(path, validation_file=str(path), sequence_mode=mode)
        data = load_data(arguments, gpt2, 4, splits=("train",))
        accounting = data.accounting["train"]
        assert accounting.rows == len(texts) + 1
        assert accounting.blank_rows == sum(not text.strip() for text in texts)
        assert accounting.text_tokens == sum(map(len, tokens))
        short = [ids for ids in tokens if len(ids) == 1]
        assert accounting.short_rows == accounting.dropped_tokens == (0 if mode == "blocks" else len(short))


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30), batch=st.integers(1, 6))
def test_share_of_text_is_the_mean_over_all_batches(lengths, batch):
    """The formula gives what drawing a great many batches gives."""
    lengths = np.array(lengths)
    batches = np.random.default_rng(0).choice(lengths, (20_000, batch))
    measured = batches.sum() / (batches.max(axis=1).sum() * batch)
    assert padded_share(lengths, batch) == pytest.approx(measured, rel=0.03)
    assert padded_share(lengths, batch, 100) == pytest.approx(lengths.mean() / 100)


ROWS = ["one two three four five six seven"] * 9 + ["a", ""]


@pytest.mark.parametrize(
    ("options", "train"),
    [
        ({}, "train 63 of 64 tokens (1 DROPPED: 1 row too short)"),
        ({"truncate": True}, "train 45 of 64 tokens (19 DROPPED: 9 rows cut, 1 row too short)"),
        ({"sequence_mode": "blocks"}, "train 64 tokens"),
        ({"max_train_samples": 5}, "train 63 of 64 tokens (1 DROPPED: 1 row too short), only 5 of 18 samples used "),
    ],
)
def test_the_summary_says_at_once_what_was_dropped(tmp_path, gpt2, options, train):
    """The tokens of each split; text that is not used is counted with the reason. Some blank rows are not unusual."""
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path, rows in zip(paths, (ROWS, ["one two three"] * 2), strict=True):
        path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    summary = load_data(file_arguments(paths[0], validation_file=str(paths[1]), **options), gpt2, 4).summary()
    assert summary.startswith(train) and "; validation 6 tokens; 1 file: column 'text' of " in summary
    assert summary.count("DROPPED") == ("DROPPED" in train) and "blank" not in summary
    paths[1].write_text('{"text": ""}\n{"text": null}\n{"text": "one two three"}\n')
    summary = load_data(file_arguments(paths[0], validation_file=str(paths[1]), **options), gpt2, 4).summary()
    assert "; validation 3 tokens, 2 of 3 rows are blank; " in summary


def test_the_summary_names_columns_that_differ(tmp_path, gpt2):
    """What is taken for the text is said once, or for each split."""
    table = tmp_path / "a.csv"
    table.write_text("id;content\n" + "".join(f"{i};one two three\n" for i in range(40)))
    column = "1 file: column 'content' of csv is the text, the delimiter is a semicolon, the first row is the header"
    cut = load_data(file_arguments(table), gpt2, 8).summary()
    assert cut == f"train 114 tokens; validation 6 tokens, 5 % of the documents set aside; {column}"
    lines = write(tmp_path / "b.txt", ["one two three"])
    differing = load_data(file_arguments(table, validation_file=str(lines)), gpt2, 8).summary()
    assert differing.endswith(f"; train: {column}; validation: 1 file: each line of text is a document")


@pytest.mark.parametrize("option", ["max_train_samples", "max_eval_samples"])
def test_limits_are_said(tmp_path, gpt2, option):
    """A limit on samples is in a line of its own with the tokens that are left."""
    path = write(tmp_path / "a.txt", [f"Number {i} of the lines." for i in range(100)])
    data = load_data(file_arguments(path, validation_file=str(path), **{option: 7}), gpt2, 64)
    split = "train" if option == "max_train_samples" else "validation"
    assert len(data.samples[split]) == 7
    scored = sum(len(data.samples[split][i]["input_ids"]) - 1 for i in range(7))
    assert f"{split}: only the first 7 samples are used, {scored:,} scored tokens (--{option})" in data.lines


@pytest.mark.parametrize("options", [{}, {"sequence_mode": "blocks", "join_documents": True}])
@pytest.mark.parametrize("content", ["\n\n", " \n\t\n"])
def test_blank_text(tmp_path, gpt2, content, options):
    """Text of white space only is refused with the rows that were read."""
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(UserError, match=r"the train split has no text to use .2 rows, 2 blank"):
        load_data(file_arguments(tmp_path / "a.txt", **options), gpt2, 64)


def test_joined_lines_are_the_text_of_the_file(tmp_path, gpt2):
    """Blank lines too: what is between paragraphs is text where lines continue each other, and only there."""
    texts = {"train": "a b c\n\nd e f\n", "validation": "\n \ng\n\n\n\th\n"}
    for split, text in texts.items():
        (tmp_path / f"{split}.txt").write_text(text)
    files = {"validation_file": str(tmp_path / "validation.txt"), "sequence_mode": "blocks"}
    apart = load_data(file_arguments(tmp_path / "train.txt", **files), gpt2, 4)
    joined = load_data(file_arguments(tmp_path / "train.txt", join_documents=True, **files), gpt2, 4)
    for split, text in texts.items():
        samples = [joined.samples[split][i]["input_ids"] for i in range(len(joined.samples[split]))]
        assert gpt2.decode(np.concatenate([samples[0][:1], *(ids[1:] for ids in samples)])) == "<|endoftext|>" + text
    assert (apart.accounting["train"].blank_rows, joined.accounting["train"].blank_rows) == (1, 0)
    assert "blank" in apart.summary() and "blank" not in joined.summary()


def test_joined_rows_without_text(tmp_path, gpt2):
    """Blank rows, such as those of WikiText, have nothing that could be joined."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in (" = Title = \n", "", " Text . \n", None)))
    files = {"validation_file": str(path), "sequence_mode": "blocks"}
    apart = load_data(file_arguments(path, **files), gpt2, 4)
    joined = load_data(file_arguments(path, join_documents=True, **files), gpt2, 4)
    assert apart.fingerprints == joined.fingerprints and joined.accounting["train"].blank_rows == 2


def test_split_without_documents(tmp_path, gpt2):
    """A split without documents is refused by its name."""
    path = write(tmp_path / "a.txt", ["some text"] * 9)
    (tmp_path / "b.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(UserError, match="the validation split has no text to use"):
        load_data(file_arguments(path, validation_file=str(tmp_path / "b.jsonl")), gpt2, 64)


def _bad_inputs(folder: Path) -> dict[str, list[str]]:
    """Options of the main job with bad text of every kind."""
    contents = {
        "latin1.txt": "Größe\n".encode("latin-1"),
        "nul.txt": b"one\0two\n",
        "long.txt": b"x" * 9_000_000,
        "empty.txt": b"",
        "blank.txt": b"\n \n",
        "broken.jsonl": b'{"text": "a"}\n{"text": \n',
        "corrupt.txt.gz": b"\x1f\x8b\x08\x00garbage",
        "columns.csv": b"id,story\n1,text\n",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "good.txt").write_text("Good text.\n" * 50)
    (folder / "empty").mkdir()
    train = {name: ["--train_file", str(folder / name)] for name in contents}
    return {
        **train,
        "missing": ["--train_file", str(folder / "missing.txt")],
        "wrong column": ["--train_file", str(folder / "columns.csv"), "--text_column", "text"],
        "blank validation": ["--train_file", str(folder / "good.txt"), "--validation_file", str(folder / "blank.txt")],
        "directory without data": ["--dataset_name", str(folder / "empty")],
        "unit": ["--train_file", str(folder / "good.txt"), "--document_unit", "sentence"],
    }


def test_bad_input_through_the_command(tmp_path, capsys, cache_folder):
    """Whatever is wrong with the text, the main job exits with 2 and one line, and leaves neither run nor cache."""
    for name, options in _bad_inputs(tmp_path).items():
        code = main(["train", *options, "--checkpoint_dir", str(tmp_path / "run"), "--report_to", "none"])
        captured = capsys.readouterr()
        lines = captured.err.splitlines()
        assert code == 2 and len(lines) == 1, (name, captured)
        assert lines[0].startswith("error: ") and ("--" in lines[0]) and len(lines[0]) < 400, (name, lines)
        assert not (tmp_path / "run").exists()
    root = cache_folder / "gpt2_hf"
    # a slow machine remembers the hash of a file that was written seconds ago
    left = {path for path in root.iterdir() if path.suffix != ".lock" and path.name != "file-hashes"}
    assert {path.name for path in left} == {record.parent.name for record in root.glob("*/record.json")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"document_unit": "file", "sequence_mode": "blocks", "truncate": True}, "--truncate has no effect"),
        ({"pad_to_max_length": True}, "--pad_to_max_length has no effect"),
        ({"join_documents": True}, "--join_documents has no effect"),
        ({"shift_blocks": True}, "--shift_blocks has no effect with --sequence_mode padding_free"),
        (
            {"shift_blocks": True, "sequence_mode": "blocks", "streaming": True},
            "--shift_blocks has no effect with --streaming",
        ),
        ({"join_documents": True, "sequence_mode": "blocks", "streaming": True}, "--join_documents has no meaning"),
        (
            {"join_documents": True, "sequence_mode": "blocks", "document_unit": "paragraph"},
            "--join_documents keeps blank lines, .*use --document_unit line",
        ),
        ({"shuffle_buffer_size": 5}, "--shuffle_buffer_size has no effect"),
        ({"streaming": True, "max_train_samples": 5}, "--max_train_samples has no effect"),
        ({"validation_split_percentage": 0}, "--validation_split_percentage"),
        ({"preprocessing_num_workers": 0}, "--preprocessing_num_workers"),
        ({"train_file": ""}, "--train_file is empty"),
    ],
)
def test_options_without_effect(options, message):
    """An option that would be ignored, or is out of range, is refused by name."""
    with pytest.raises(UserError, match=message):
        DataArguments(**options)


def test_samples_in_workers(tmp_path, gpt2):
    """Worker processes, started anew, give the same batches as the main one."""
    path = write(tmp_path / "a.txt", [f"Number {i} of the lines." for i in range(60)])
    data = load_data(file_arguments(path), gpt2, 64)
    batches = [
        list(
            DataLoader(
                data.samples["train"],
                8,
                collate_fn=data.collator,
                num_workers=workers,
                multiprocessing_context="spawn" if workers else None,
            )
        )
        for workers in (0, 1)
    ]
    assert len(batches[0]) == len(batches[1])
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(*batches, strict=True))


def test_the_cache_is_where_datasets_says(tmp_path, gpt2, cache_folder, monkeypatch):
    """Everything that is stored is below the cache folder of the datasets library."""
    path = write(tmp_path / "a.txt", [f"Number {i} of the lines." for i in range(60)])
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = time.time()
    load_data(file_arguments(path), gpt2, 64)
    assert {each.name for each in tmp_path.iterdir()} == {path.name, cache_folder.name, temporary.name}
    assert not any(temporary.iterdir())
    assert Path(datasets.config.HF_DATASETS_CACHE) == cache_folder
    assert len(list((cache_folder / "gpt2_hf").rglob("*.arrow"))) == 2
    assert path.stat().st_mtime <= before


def test_a_run_on_names_of_any_kind(tmp_path, corpus_folder, train_tiny, capsys):
    """A run on a folder and files whose names are no text and look like patterns is trained, saved and described."""
    folder = tmp_path / "my data [v1] \udcff\n*"
    try:
        folder.mkdir()
    except (OSError, UnicodeEncodeError):
        pytest.skip("this system has no such names")
    for split in ("train", "validation", "test"):
        shutil.copy(corpus_folder / f"{split}.txt", folder / f"{split}.txt")
    files = [f"--{split}_file={folder / split[:-1]}*.txt" for split in ("train", "validation", "test")]
    assert train_tiny(tmp_path / "run [1]", *files, "--max_steps", "2") == 0
    assert "my data [v1] \\udcff\\n*" in (tmp_path / "run [1]" / "README.md").read_text(encoding="utf-8")
    capsys.readouterr()
    assert train_tiny(tmp_path / "run \udcff", "--max_steps", "2") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --checkpoint_dir: ") and "not UTF-8" in error and error.count("\n") == 1
    assert not (tmp_path / "run \udcff").exists()
