"""`evaluate` with several models: averaged probabilities, a comparison, and what does not go together."""

import json
import math
import shutil
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import GPT2LMHeadModel

from gpt2_hf import DataArguments, GPT2HFForCausalLM, load_tokenizer
from gpt2_hf.__main__ import main
from gpt2_hf.commands import scoring
from gpt2_hf.commands.model_loading import SavedModel
from gpt2_hf.commands.significance import paired_difference
from gpt2_hf.data import load_data

from ..conftest import REPOSITORY, needs_bf16, read_json
from ..tiny_models import make_stock
from .conftest import evaluate


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer_folder):
    """Three small random stock models with one tokenizer, the last one with fewer positions and layers."""
    found = []
    for number, sizes in enumerate([{}, {"n_embd": 48}, {"n_positions": 24, "n_layer": 1}]):
        folder = tmp_path_factory.mktemp("models") / f"model{number}"
        model = make_stock(**{"vocab_size": 384, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0, **sizes})
        with torch.no_grad():
            generator = torch.Generator().manual_seed(number)
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(folder)
        shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
        found.append(str(folder))
    return found


@pytest.fixture(scope="module")
def text_file(tmp_path_factory, documents):
    """Some 5,000 tokens in lines of different lengths, some of them blank, one longer than the models' context."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    lines = [line for document in documents[:120] for line in (document[: len(document) * 2 // 3], "")]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def log_probabilities(folder, rows):
    """ln p of each token but the first of each row, from all of the logits of transformers' model, in float64."""
    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    with torch.no_grad():
        for ids in rows:
            log_probs = model(torch.tensor(ids[:-1])[None]).logits[0].double().log_softmax(dim=1)
            yield log_probs.gather(1, torch.tensor(ids[1:])[:, None]).squeeze(1)


def mean_probability(each):
    """ln of the mean, over the models, of what `[models, tokens]` holds the logarithms of."""
    return each.exp().mean(dim=0).log()


@pytest.mark.parametrize("mode", ["padded", "padding_free", "blocks"])
def test_averaged_probabilities_are_exact(folders, text_file, capsys, mode):
    """Loss of the average and of each model, to 1e-6, against transformers' logits, at each batch size."""
    tokenizer = load_tokenizer(folders[0])
    with open(text_file, encoding="utf-8") as lines:
        documents = [tokenizer(line).input_ids for line in lines if line.strip()]
    if mode == "blocks":
        documents = [[token for ids in documents for token in (0, *ids)]]
    rows = [ids[i : i + 33] for ids in documents for i in range(0, len(ids) - 1, 32)]
    each = torch.stack([torch.cat(list(log_probabilities(folder, rows))) for folder in folders[:2]])
    average = -mean_probability(each).mean().item()
    for batch_size in ("1", "3", "8"):
        options = ["--test_file", text_file, "--sequence_mode", mode, "--batch_size", batch_size]
        printed = evaluate(capsys, "--model_path", *folders[:2], *options)
        assert printed["loss"] == pytest.approx(average, abs=1e-6)
        assert [model["model"] for model in printed["models"]] == folders[:2]
        assert [model["loss"] for model in printed["models"]] == pytest.approx((-each.mean(dim=1)).tolist(), abs=1e-6)
        assert printed["tokens"] == each.shape[1]
        assert printed["perplexity"] == pytest.approx(math.exp(printed["loss"]))
        nll = printed["loss"] * printed["tokens"]
        assert printed["word_perplexity"] == pytest.approx(math.exp(nll / printed["words"]))


def test_averaged_probabilities_in_windows(folders, text_file, capsys):
    """With a stride each token is averaged with the context that it has in its window, the same for all models."""
    options = ["--test_file", text_file, "--stride", "12", "--document_unit", "file"]
    printed = evaluate(capsys, "--model_path", *folders, *options)
    with open(text_file, encoding="utf-8") as file:
        ids = load_tokenizer(folders[0])(file.read()).input_ids
    windows = [ids[start : start + 24] for start in range(0, len(ids) - 12, 12)]
    each = []
    for folder in folders:
        first, *others = log_probabilities(folder, windows)
        each.append(torch.cat([first, *(window[11:] for window in others)]))  # 12 of 24 were scored before
    average = mean_probability(torch.stack(each))
    assert printed["tokens"] == len(average) == len(ids) - 1
    assert printed["loss"] == pytest.approx(-average.mean().item(), abs=1e-6)
    assert printed["context"] == 24  # the smallest of the models'


@needs_bf16
def test_averaged_probabilities_in_bf16(folders, text_file, capsys):
    """The mean of the probabilities that the models have in bf16, from all of the logits, to 1e-6."""
    options = ["--test_file", text_file, "--sequence_mode", "blocks", "--precision", "bf16", "--batch_size", "4"]
    printed = evaluate(capsys, "--model_path", *folders[:2], *options)
    tokenizer = load_tokenizer(folders[0])
    data = load_data(DataArguments(test_file=text_file, sequence_mode="blocks"), tokenizer, 32, ("test",))
    each = []
    for folder in folders[:2]:
        model, parts = GPT2HFForCausalLM.from_pretrained(folder).eval(), []
        for batch in DataLoader(data.samples["test"], batch_size=4, collate_fn=data.collator):
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                log_probs = model(batch["input_ids"], use_cache=False).logits.double().log_softmax(dim=2)
            parts.append(log_probs[batch["shift_labels"] >= 0].gather(1, targets_of(batch)).squeeze(1))
        each.append(torch.cat(parts))
    average = mean_probability(torch.stack(each))
    assert printed["loss"] == pytest.approx(-average.mean().item(), abs=1e-6)
    exact = evaluate(capsys, "--model_path", *folders[:2], *options[:4])
    assert printed["loss"] != exact["loss"] and printed["loss"] == pytest.approx(exact["loss"], abs=0.01)


def targets_of(batch):
    """The ids of a batch that are scored, int64 `[n, 1]`."""
    return batch["shift_labels"][batch["shift_labels"] >= 0][:, None]


def test_a_model_with_itself(folders, text_file, capsys):
    """Averaged with itself a model is what it is, and no better than itself; one model says nothing of others."""
    alone = evaluate(capsys, "--model_path", folders[0], "--test_file", text_file)
    twice = evaluate(capsys, "--model_path", folders[0], folders[0], "--test_file", text_file, "--against", folders[0])
    assert twice["loss"] == pytest.approx(alone["loss"], abs=1e-12)
    assert (alone["model"], twice["against"]["model"]) == (folders[0], folders[0])
    assert twice["against"]["difference"] == pytest.approx(0, abs=1e-12)
    assert not {"models", "against", "pieces"} & alone.keys() and "model" not in twice


def test_models_are_loaded_one_after_the_other(folders, text_file, capsys, monkeypatch):
    """None is in memory any more when the next one is loaded; one that has been scored is not loaded again."""
    loaded, load = [], SavedModel.load

    def watched(saved):
        assert not [model for model in loaded if model() is not None]
        model = load(saved)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(SavedModel, "load", watched)
    evaluate(capsys, "--model_path", *folders[:2], "--against", *folders[1:], "--test_file", text_file)
    assert len(loaded) == 4
    evaluate(capsys, "--model_path", *folders[:2], "--against", folders[1], "--test_file", text_file)
    assert len(loaded) == 6


@pytest.mark.parametrize("mode", [[], ["--stride", "8"], ["--sequence_mode", "blocks"], ["--max_eval_samples", "150"]])
def test_a_comparison(folders, text_file, tmp_path, capsys, mode):
    """The difference of the losses, an interval around it, and a sentence; the pieces in the file give it again."""
    output = tmp_path / "result.json"
    options = ["--test_file", text_file, "--output_file", str(output), *mode]
    rival = evaluate(capsys, "--model_path", folders[1], *options)
    assert main(["evaluate", "--model_path", *folders[:2], "--against", folders[1], *options]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    printed = json.loads(last)
    against, tokens = printed["against"], printed["pieces"]["tokens"]
    assert printed == read_json(output)
    assert against["loss"] == pytest.approx(rival["loss"], abs=1e-12)
    assert against["difference"] == pytest.approx(printed["loss"] - rival["loss"], abs=1e-12)
    low, high = against["interval"]
    assert low < against["difference"] < high and against["beyond_chance"] == (not low <= 0 <= high)
    assert lines[-1] == against["in_words"] and lines[-1].startswith("the average of 2 models is better than ")
    assert 20 <= against["pieces"] == len(tokens) <= 40
    assert tokens == rival["pieces"]["tokens"] and sum(tokens) == rival["tokens"] == printed["tokens"]
    losses = [np.array(one["pieces"]["nll"]) for one in (printed, rival)]
    assert paired_difference(*losses, np.array(tokens)).interval == pytest.approx(against["interval"])


def test_several_processes_make_the_same_pieces(folders, text_file, tmp_path, capsys, monkeypatch):
    """The samples of three processes, scored one after the other in this one, add up to the pieces of one process."""
    options = ["--model_path", *folders[:2], "--test_file", text_file, "--sequence_mode", "blocks"]
    options += ["--output_file", str(tmp_path / "pieces.json")]
    whole = evaluate(capsys, *options)
    parts = []
    monkeypatch.setattr(scoring, "num_processes", lambda: 3)
    monkeypatch.setattr(scoring, "is_distributed", lambda: True)
    monkeypatch.setattr(scoring, "_sum_over_processes", lambda values, dtype, device: values)
    for rank in range(3):
        monkeypatch.setattr(scoring, "process_index", lambda rank=rank: rank)
        parts.append(evaluate(capsys, *options)["pieces"])
    assert np.sum([part["tokens"] for part in parts], axis=0).tolist() == whole["pieces"]["tokens"]
    assert np.sum([part["nll"] for part in parts], axis=0) == pytest.approx(whole["pieces"]["nll"], abs=1e-4)


@pytest.mark.slow
def test_two_processes_average_and_compare_as_one(folders, text_file, capsys):
    """Under torchrun: every figure of the average, its models and the comparison, printed once."""
    options = ["--model_path", *folders[:2], "--against", folders[2], "--test_file", text_file, "--stride", "16"]
    alone = evaluate(capsys, *options)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*torchrun, "-m", "gpt2_hf", "evaluate", *options]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    (together,) = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert together["tokens"] == alone["tokens"] and together["loss"] == pytest.approx(alone["loss"], abs=1e-6)
    for mine, other in zip(together["models"], alone["models"], strict=True):
        assert mine["model"] == other["model"] and mine["loss"] == pytest.approx(other["loss"], abs=1e-6)
    assert together["against"]["interval"] == pytest.approx(alone["against"]["interval"], abs=1e-6)
    assert together["against"]["difference"] == pytest.approx(alone["against"]["difference"], abs=1e-6)


def test_the_average_can_be_measured_again(folders, text_file, tmp_path, capsys):
    """The output names the models, text and protocol; they are a config that gives the same figures."""
    first = evaluate(capsys, "--model_path", *folders, "--test_file", text_file, "--stride", "8")
    config = {"model_path": [model["model"] for model in first["models"]], "max_length": first["context"]}
    config |= first["data_options"] | {name: first[name] for name in ("split", "stride", "precision")}
    (tmp_path / "again.json").write_text(json.dumps(config))
    assert evaluate(capsys, "--config", str(tmp_path / "again.json")) == first


def test_the_average_over_several_texts(folders, corpus_folder, capsys):
    """Of a mix each text is averaged, and compared as one."""
    parts = {"first": "train", "second": "validation"}
    mix = {name: {"train_file": str(corpus_folder / f"{part}.txt")} for name, part in parts.items()}
    options = ["--train_mix", json.dumps(mix), "--split", "train", "--max_train_samples", "300"]
    printed = evaluate(capsys, "--model_path", *folders[:2], "--against", folders[1], *options)
    losses = {name: text["loss"] * text["tokens"] for name, text in printed["texts"].items()}
    assert printed["loss"] * printed["tokens"] == pytest.approx(sum(losses.values()))
    single = evaluate(capsys, "--model_path", folders[1], *options)
    assert printed["models"][1]["loss"] == pytest.approx(single["loss"], abs=1e-12)
    assert printed["against"]["difference"] == pytest.approx(printed["loss"] - single["loss"], abs=1e-12)
    assert printed["against"]["pieces"] >= 20


def test_wikitexts_own_count_of_words(folders, tmp_path, capsys):
    """Blank rows of the split are counted, and perplexity per word with their line ends, unless a part is left out."""
    rows = ["The statement is\n", "", "a simple statement.\n", "", ""] * 5  # as on the hub
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    options = [
        "--model_path",
        folders[0],
        "--test_file",
        str(text),
        "--sequence_mode",
        "blocks",
        "--join_documents",
        "true",
    ]
    printed = evaluate(capsys, *options)
    assert printed["blank_rows"] == 15
    assert printed["words"] + printed["blank_rows"] == sum(len(row.split()) for row in rows) + len(rows)
    nll = printed["loss"] * printed["tokens"]
    assert printed["word_perplexity_with_blank_rows"] == pytest.approx(math.exp(nll / (printed["words"] + 15)))
    part = evaluate(capsys, *options, "--max_eval_samples", "1")
    assert part["blank_rows"] is part["word_perplexity_with_blank_rows"] is None
    by_rows = (*options[:4], "--truncate", "true")
    assert evaluate(capsys, *by_rows)["blank_rows"] == 15  # nothing was cut
    cut = evaluate(capsys, *by_rows, "--max_length", "4")
    assert cut["blank_rows"] is cut["word_perplexity_with_blank_rows"] is None


def test_contexts_that_differ_are_told(folders, text_file, capsys):
    """The smallest is taken, and a line says which model has it; a larger one is refused, with the model's name."""
    options = ["--model_path", *folders, "--test_file", text_file]
    assert main(["evaluate", *options]) == 0
    trained = f"{folders[0]} 32, {folders[1]} 32, {folders[2]} 24"
    expected = f"context: 24 tokens, the smallest that a model was trained with ({trained})"
    out = capsys.readouterr().out
    assert expected in out and json.loads(out.splitlines()[-1])["context"] == 24
    assert evaluate(capsys, *options, "--max_length", "16")["context"] == 16
    assert main(["evaluate", *options, "--max_length", "32"]) == 2
    assert f"--max_length 32 exceeds {folders[2]}'s 24 positions" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--model_path", "--against"])
def test_models_that_do_not_go_together(folders, text_file, tmp_path, capsys, monkeypatch, option):
    """Another tokenizer, a damaged or a missing model: one line that names it, before any model is scored."""
    other, cut = tmp_path / "other", tmp_path / "cut"
    shutil.copytree(folders[1], other)
    definition = read_json(other / "tokenizer.json")
    definition["model"]["merges"].pop()
    (other / "tokenizer.json").write_text(json.dumps(definition))
    shutil.copytree(folders[1], cut)
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-100])
    monkeypatch.setattr(SavedModel, "load", None)  # nothing is loaded
    messages = {
        str(other): f"{option}: {other} has another tokenizer than {folders[0]}",
        str(cut): f"{option}: the weights {cut / 'model.safetensors'} are damaged",
        "./nowhere": f"{option}: there is no checkpoint './nowhere'",
    }
    for path, message in messages.items():
        models = ["--model_path", folders[0], *(["--against", path] if option == "--against" else [path])]
        assert main(["evaluate", *models, "--test_file", text_file]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
