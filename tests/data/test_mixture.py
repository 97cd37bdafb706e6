"""gpt2_hf.options.mixture and what follows: several texts by weight, the same order on any number of processes."""

import json
import math
import pickle
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from gpt2_hf.__main__ import main
from gpt2_hf.commands.scoring import evaluate_model
from gpt2_hf.data import BlockSamples, DocumentSamples, EpochSampler, MixedSamples, load_data, train_sampler
from gpt2_hf.data.sampling import FILLER, TextByTextSampler, allot, offset_of
from gpt2_hf.data.tokenizer import load_tokenizer
from gpt2_hf.errors import UserError
from gpt2_hf.options.arguments import DataArguments
from gpt2_hf.options.mixture import read_mix, shares_of
from gpt2_hf.options.parsing import parse

from .. import ranks
from ..conftest import TINY_MODEL, read_json
from ..data_fixtures import documents_of

TEXTS = {"news": {"train_file": "news.txt", "weight": 3}, "books": {"dataset_name": "books", "weight": 1}}


# ---- what is stated ----


def test_a_mix_is_read_from_an_object_or_a_file(tmp_path):
    """In the order of the names, so that the order of writing changes nothing; the weight is 1 when left out."""
    (tmp_path / "mix.json").write_text(json.dumps(TEXTS))
    mix = read_mix(str(tmp_path / "mix.json"))
    assert mix == read_mix(dict(reversed(TEXTS.items()))) == read_mix(mix) and list(mix) == ["books", "news"]
    assert shares_of(mix) == {"books": 0.25, "news": 0.75}
    assert read_mix({"a": {"train_file": "a.txt"}})["a"]["weight"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "its brackets are nested too deeply"),
        ('{"a": {"weight": ' + "7" * 5000 + "}}", "an integer in it has too many digits"),
        ('{"a": 1, "a": 2}', "the key 'a' is given twice; keep one"),
        ('{"a": 1,}', "it is not JSON: .* in line 1"),
    ],
)
def test_a_file_that_is_no_json_is_refused(tmp_path, content, message):
    """One line that names the file."""
    (tmp_path / "mix.json").write_text(content)
    with pytest.raises(UserError, match=rf"--train_mix: .*mix\.json: {message}"):
        read_mix(str(tmp_path / "mix.json"))


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({}, "is empty"),
        ("[1]", "cannot be read"),
        ("a\0b", "cannot be read"),
        ({"train": {"train_file": "a"}}, "'train' cannot be the name"),
        ({"a b": {"train_file": "a"}}, "'a b' cannot be the name"),
        ({"ä": {"train_file": "a"}}, "'ä' cannot be the name"),
        ({"a": "a.txt"}, "a: an object is expected"),
        ({"a": {"train_flie": "a"}}, "a: unknown key 'train_flie'; did you mean train_file?"),
        ({"a": {"train_file": "a", "wieght": 2}}, "did you mean weight?"),
        ({"a": {"weight": 2}}, "no training text"),
        ({"a": {"train_file": "a", "dataset_name": "b"}}, "dataset_name has no effect"),
        ({"a": {"validation_file": "a", "dataset_name": "b"}}, "validation_file has no effect"),
        ({"a": {"train_file": "a", "dataset_config_name": "b"}}, "dataset_config_name has no effect"),
        ({"a": {"train_file": 3}}, "train_file must be a string"),
        ({"a": {"train_file": "a", "document_unit": "page"}}, "invalid choice for document_unit"),
        *(
            ({"a": {"train_file": "a", "weight": weight}}, "the weight must be a finite number above 0")
            for weight in (0, -1, math.nan, math.inf, True, "2", None, 10**400)
        ),
    ],
)
def test_a_mix_that_is_none_is_refused(mix, message):
    """One line that names the text and the key."""
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        read_mix(mix)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--train_file", "a.txt"], "--train_mix"),
        (["--dataset_name", "a"], "--dataset_name has no effect beside --train_mix"),
        (["--validation_file", "a.txt"], "--train_mix"),
        (["--streaming"], "--train_mix cannot be drawn by weight with --streaming"),
    ],
)
def test_another_text_beside_a_mix_is_a_contradiction(argv, message):
    """On the same layer; nothing is ignored."""
    with pytest.raises(UserError, match=message):
        parse([DataArguments], ["--train_mix", json.dumps(TEXTS), *argv])


def test_layers(tmp_path):
    """The command line's text takes the place of the config's mix, and the other way round."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"train_mix": TEXTS}))
    assert list(parse([DataArguments], [], str(config)).values[0].train_mix) == ["books", "news"]
    for option in ("--train_file", "--dataset_name"):
        (args,) = parse([DataArguments], [option, "a.txt"], str(config)).values
        assert args.train_mix is None and getattr(args, option[2:]) == "a.txt"
    config.write_text(json.dumps({"train_file": "a.txt", "validation_file": "b.txt"}))
    (args,) = parse([DataArguments], ["--train_mix", json.dumps(TEXTS)], str(config)).values
    assert args.train_mix and args.train_file is args.validation_file is args.dataset_name is None
    with pytest.raises(UserError, match="is given twice"):
        parse([DataArguments], ["--train_mix", '{"a": {"train_file": "a"}, "a": {"train_file": "b"}}'])


# ---- the order ----


@given(total=st.integers(0, 10_000), weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=9))
def test_allot(total, weights):
    """Shares become counts that sum to the total, none off by one or more."""
    shares = [weight / sum(weights) for weight in weights]
    counts = allot(total, shares)
    assert sum(counts) == total
    assert all(abs(count - total * share) < 1 for count, share in zip(counts, shares, strict=True))


@pytest.mark.parametrize("shuffle", [True, False])
def test_each_text_is_read_evenly(shuffle):
    """An epoch has the counts that are asked for; no sample is read twice as long as another one of its text waits."""
    mixture = [(7, 20), (30, 13), (4, 8)]
    sampler = EpochSampler(41, 3, mixture=mixture, shuffle=shuffle)
    reads = np.zeros(41, dtype=int)
    ends = np.cumsum([0, 7, 30, 4])
    for epoch in range(6):
        sampler.set_epoch(epoch)
        order = sampler.order()
        reads += np.bincount(order, minlength=41)
        for (_, count), first, end in zip(mixture, ends, ends[1:], strict=False):
            assert ((order >= first) & (order < end)).sum() == count
            assert np.ptp(reads[first:end]) <= 1


def test_a_pass_over_a_text_has_one_offset():
    """Also where it begins in one epoch and ends in the next: no token is left out of it."""
    mixture = [(7, 20), (34, 21)]
    plain, shifted = EpochSampler(41, 3, mixture=mixture), EpochSampler(41, 3, mixture=mixture, num_offsets=64)
    seen = []
    for epoch in range(6):
        plain.set_epoch(epoch), shifted.set_epoch(epoch)
        order = shifted.order()
        assert (order % 41 == plain.order()).all()
        seen += [(index % 41, offset_of(index, 41)) for index in order.tolist()]
    for sample in (3, 20):  # of each text
        offsets = Counter(offset for index, offset in seen if index == sample)
        others = Counter(offset for index, offset in seen if index == sample + 1)
        assert ((offsets - others) + (others - offsets)).total() <= 1  # of the last pass, which may not be over
        assert len(offsets) > 1


def test_the_order_is_of_seed_and_epoch():
    """It does not depend on what was drawn before, differs by seed and epoch, and mixes the texts."""

    def order(seed, epoch):
        sampler = EpochSampler(300, seed, mixture=[(100, 200), (200, 100)])
        for other in (4, epoch):
            sampler.set_epoch(other)
            list(sampler)
        return sampler.order().tolist()

    orders = {(seed, epoch): order(seed, epoch) for seed in (0, 42) for epoch in (0, 1, 2)}
    assert len(set(map(tuple, orders.values()))) == 6
    assert all(order(*key) == value for key, value in orders.items())
    assert 80 < sum(index < 100 for index in orders[0, 0][:150]) < 120


@pytest.mark.parametrize("bucketed", [False, True])
def test_steps_are_the_same_on_any_number_of_processes(bucketed):
    """The samples of a step are the same on 1, 2 and 4 processes, also with batches by length."""
    lengths = np.random.default_rng(0).integers(1, 100, 50)

    def steps(processes):
        shares = []
        for rank in range(processes):
            by_length = lengths if bucketed else None
            sampler = EpochSampler(50, 7, 8, by_length, step_size=8, mixture=[(10, 27), (40, 23)])
            loader = DataLoader(range(FILLER + 1), batch_size=8 // processes, sampler=sampler, collate_fn=list)
            loader = prepare_data_loader(
                loader, torch.device("cpu"), num_processes=processes, process_index=rank, put_on_device=False
            )
            sampler.set_epoch(2)
            shares.append(list(loader))
        return [sorted(index for share in step for index in share) for step in zip(*shares, strict=True)]

    assert steps(1) == steps(2) == steps(4)


@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=4), batch_size=st.integers(1, 8))
def test_no_evaluation_batch_has_two_texts(sizes, batch_size):
    """Every sample once, in order, and each batch of one text."""
    sampler = TextByTextSampler(sizes, batch_size)
    order = list(sampler)
    assert len(order) == len(sampler) and [index for index in order if index != FILLER] == list(range(sum(sizes)))
    texts = np.repeat(np.arange(len(sizes)), sizes)
    batches = np.repeat(np.arange(len(sizes)), sampler.batches())
    for text, first in zip(batches, range(0, len(order), batch_size), strict=True):
        assert {int(texts[i]) for i in order[first : first + batch_size] if i != FILLER} == {text}


# ---- samples ----


def mixed(mode, shares=None):
    texts = {
        "a": documents_of([[i] * (i + 2) for i in range(6)]),
        "b": documents_of([[100 + i] * 3 for i in range(20)]),
    }
    if mode == "blocks":
        return MixedSamples({name: BlockSamples(text, 8, 0, circular=True) for name, text in texts.items()}, shares)
    return MixedSamples({name: DocumentSamples(text, 4) for name, text in texts.items()}, shares)


@pytest.mark.parametrize("mode", ["blocks", "documents"])
def test_samples_of_all_texts(mode):
    """Each text's samples one after the other, with their lengths and sums; also in another process."""
    samples = mixed(mode)
    expected = [sample["input_ids"].tolist() for text in samples.texts.values() for sample in text[:]]
    for each in (samples, pickle.loads(pickle.dumps(samples))):
        assert [sample["input_ids"].tolist() for sample in each[:]] == expected
    assert samples.lengths.tolist() == [len(ids) - 1 for ids in expected]
    assert samples.accounting.rows == 26 and samples.accounting.scored_tokens == samples.lengths.sum()
    assert samples[-1]["input_ids"].tolist() == expected[-1] and samples[FILLER]["is_filler"]


@given(limit=st.integers(2, 40))
def test_a_limit_leaves_the_beginning_of_each_text(limit):
    """In proportion to its size, at least one sample."""
    whole, limited = mixed("documents"), mixed("documents")
    limited.limit(limit)
    assert len(limited) == min(limit, len(whole)) and min(limited.sizes) >= 1
    for size, before in zip(limited.sizes, whole.sizes, strict=True):
        assert size <= before and abs(size - before * len(limited) / len(whole)) <= 1
    assert limited.texts["b"][0]["input_ids"].tolist() == whole.texts["b"][0]["input_ids"].tolist()


# ---- a run ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory, documents):
    """news.txt, of which nothing is set aside yet, and books.txt with a validation and a test file of its own."""
    folder = tmp_path_factory.mktemp("mix")
    lines = [line for line in documents if len(line) > 20]
    parts = {"news": lines[:60], "books": lines[60:80], "books_valid": lines[80:91], "books_test": lines[91:96]}
    for name, part in parts.items():
        (folder / f"{name}.txt").write_text("\n".join(part) + "\n")
    return folder


@pytest.fixture(scope="module")
def mix(folder):
    """Weights that read books more than twice an epoch, and not all of news."""
    books = {"train_file": str(folder / "books.txt"), "validation_file": str(folder / "books_valid.txt")}
    return {
        "news": {"train_file": str(folder / "news.txt"), "weight": 0.4},
        "books": {**books, "test_file": str(folder / "books_test.txt"), "weight": 0.6},
    }


def data_of(mix, tokenizer_folder, splits=("train", "validation", "test"), **options):
    return load_data(DataArguments(train_mix=mix, **options), load_tokenizer(str(tokenizer_folder)), 32, splits)


@pytest.mark.parametrize("mode", ["padded", "padding_free", "blocks"])
def test_lines_and_splits(mix, tokenizer_folder, mode):
    """Every text is accounted for, how often it is read is said, and a validation split that is missing is cut."""
    data = data_of(mix, tokenizer_folder, sequence_mode=mode)
    text = "\n".join(data.lines)
    for name in mix:
        assert f"train of {name}: " in text and f"validation of {name}: " in text and f"train: {name} is read" in text
    assert "news: no validation split: 3 documents" in text and "test of news" not in text
    train = data.samples["train"]
    (books, drawn), (news, _) = train.mixture
    assert drawn == round(0.6 * len(train)) and books + news == len(train)
    assert f"books is read {drawn / books:.2f} times per epoch: {drawn:,} samples from {books:,} (weight 0.6)" in text
    summary = data.summary()
    assert "tokens, of books 60 %, news 40 %; validation " in summary and summary.count("each line of text") == 1
    assert "of books, news, news: 5 % of the documents set aside; test " in summary and summary.endswith(
        "of books; 1 file: each line of text is a document"
    )
    tokens = sum(len(part.documents["train"].lengths) for part in data.texts.values())
    assert len(data.documents["train"]) == tokens and data.accounting["train"].rows == 20 + 57
    batch = data.collator([train[0], train[-1]])
    assert (batch["shift_labels"] != -100).sum() == train.lengths[[0, -1]].sum()
    assert train.epoch_lengths.sum() == train.lengths[train_sampler_of(train).order()].sum()


def train_sampler_of(samples):
    """The first epoch of a run without batches by length."""

    class Args:
        order_seed, train_batch_size, world_size, samples_per_step = 1, 8, 1, 8
        train_sampling_strategy = "sequential"

    return train_sampler(Args(), samples)


@pytest.mark.parametrize(
    ("news", "books", "said"),
    [
        (
            {"train_file": "books.txt"},
            {},
            "1 of the train files of news, of which a part is set aside, is trained on too",
        ),
        ({"train_file": "books*.txt"}, {}, "1 of the validation files of books is trained on too (books_valid.txt): "),
        ({"train_file": "books*.txt"}, {}, "; 1 of the test files of books is trained on too (books_test.txt): the "),
        (
            {"train_file": "books*.txt"},
            {"train_file": "books.txt"},
            "1 of the train files of books, of which a part is set aside, is trained on too (books.txt): the "
            "validation loss of books is contaminated and will look too low",
        ),
        ({"train_file": "books.txt"}, {"train_file": "books.txt"}, ""),
        ({"train_file": "news.txt"}, {"train_file": "books.txt"}, ""),
    ],
)
def test_a_text_that_is_scored_and_trained_on_in_another(mix, folder, tokenizer_folder, news, books, said):
    """The summary says which files those are, unless the same documents are set aside from both."""
    news, books = ({key: str(folder / path) for key, path in text.items()} for text in (news, books))
    changed = {"news": {**news, "weight": 0.5}, "books": {**(books or mix["books"]), "weight": 0.5}}
    summary = data_of(changed, tokenizer_folder, ("train", "validation")).summary()
    assert said in summary and bool(said) == ("too low" in summary)


def test_fingerprints_cover_names_weights_and_texts(mix, folder, tokenizer_folder):
    """Of the training split all of them; weights change no validation; another scale of the weights nothing."""

    def prints(change=None, **options):
        changed = {name: {**text, **(change or {}).get(name, {})} for name, text in mix.items()}
        return data_of(changed, tokenizer_folder, ("train", "validation"), **options).fingerprints

    first = prints()
    assert prints({"news": {"weight": 4}, "books": {"weight": 6}}) == first
    assert prints({"news": {"weight": 0.3}}) == prints({"news": {"weight": 1}, "books": {"weight": 2}})  # of 0.6
    weight = prints({"news": {"weight": 0.5}})
    assert weight["train"] != first["train"] and weight["validation"] == first["validation"]
    assert prints({"news": {"train_file": str(folder / "books_test.txt")}})["train"] != first["train"]
    renamed = data_of({"x": mix["news"], "books": mix["books"]}, tokenizer_folder, ("train",)).fingerprints
    assert renamed["train"] != first["train"]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"news": {"train_file": "nowhere.txt"}}, {}, "--train_mix news: --train_file: no file matches"),
        ({"news": {"weight": 1e-4}}, {}, "--train_mix news: with weight 0.0001 there is no sample"),
        ({}, {"max_train_samples": 1}, "--max_train_samples 1: each of the 2 texts needs a sample"),
        ({"news": {"text_column": "words"}}, {}, "--train_mix news: --text_column"),
    ],
)
def test_what_is_wrong_with_a_text_names_it(mix, tokenizer_folder, change, options, message):
    """The name of the text stands before the line that a run with this text alone would give."""
    changed = {name: {**text, **change.get(name, {})} for name, text in mix.items()}
    with pytest.raises(UserError, match=message):
        data_of(changed, tokenizer_folder, **options)


def test_a_percentage_without_effect(mix, folder, tokenizer_folder):
    """It is refused where every text has a validation split, and acts where one has none."""
    assert data_of(mix, tokenizer_folder, validation_split_percentage=10).accounting["validation"].rows == 11 + 6
    news = {**mix["news"], "validation_file": str(folder / "books_test.txt")}
    with pytest.raises(UserError, match="--validation_split_percentage has no effect"):
        data_of({**mix, "news": news}, tokenizer_folder, validation_split_percentage=10)


def options_of(mix, tokenizer_folder):
    return [
        *("--train_mix", json.dumps(mix), *TINY_MODEL, "--tokenizer_name", str(tokenizer_folder)),
        *("--precision", "fp32", "--use_cpu", "--learning_rate", "3e-3", "--warmup_steps", "2"),
        *("--max_epochs", "2", "--eval_every", "7", "--save_every", "7", "--sample_tokens", "0"),
        *("--logging_steps", "3", "--save_total_limit", "9", "--batch_size", "16"),
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory, mix, tokenizer_folder):
    """A finished run of two epochs."""
    output_dir = tmp_path_factory.mktemp("mixed") / "run"
    assert main(["train", *options_of(mix, tokenizer_folder), "--checkpoint_dir", str(output_dir)]) == 0
    return output_dir


def history_of(run):
    """What was logged, without what the clock says and the mean over the steps of an invocation."""
    timed = ("runtime", "second", "hours", "gib", "memory", "train_loss")
    entries = read_json(run / "trainer_state.json")["log_history"]
    return [{k: v for k, v in entry.items() if not any(word in k for word in timed)} for entry in entries]


def last_of(run):
    return max(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def test_each_text_is_scored_and_all_together(run, mix, tokenizer_folder):
    """From one pass, exactly: as each text is scored by itself, and the sums over the tokens of all."""
    from gpt2_hf import GPT2HFForCausalLM

    results = read_json(run / "eval_results.json")
    data = data_of(mix, tokenizer_folder, ("validation",))
    model = GPT2HFForCausalLM.from_pretrained(run / "best_model")
    alone = {
        name: evaluate_model(model, text.samples["validation"], data.collator, batch_size=3)
        for name, text in data.texts.items()
    }
    assert list(alone) == ["books", "news"]
    for name, result in alone.items():
        assert results[f"eval_{name}_loss"] == pytest.approx(result["loss"], abs=1e-6)
        assert results[f"eval_{name}_perplexity"] == pytest.approx(math.exp(result["loss"]), rel=1e-5)
        assert results[f"eval_{name}_tokens"] == result["tokens"]
    tokens = sum(result["tokens"] for result in alone.values())
    assert results["eval_tokens"] == tokens
    assert results["eval_loss"] == pytest.approx(sum(result["nll"] for result in alone.values()) / tokens, abs=1e-6)
    assert results["eval_loss"] == min(entry["eval_loss"] for entry in history_of(run) if "eval_loss" in entry)
    assert {"test_loss", "test_books_loss"} <= read_json(run / "test_results.json").keys()
    assert "validation perplexity of books" in (run / "README.md").read_text()


def test_resumed_is_uninterrupted(run, mix, tokenizer_folder, tmp_path):
    """From the middle of an epoch over its end: the same weights bit for bit, and the same history."""
    start = str(run / "checkpoint-7")
    argv = ["train", *options_of(mix, tokenizer_folder), "--checkpoint_dir", str(tmp_path / "on")]
    assert main([*argv, "--resume_from", start]) == 0
    expected, found = (load_file(last_of(path) / "model.safetensors") for path in (run, tmp_path / "on"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert last_of(run).name == last_of(tmp_path / "on").name
    assert history_of(tmp_path / "on") == history_of(run)


def test_the_best_model_may_be_that_of_one_text(mix, tokenizer_folder, tmp_path, capsys):
    """`--metric_for_best_model` takes the loss of a text of the mix, and of no other."""
    run = tmp_path / "run"
    argv = ["train", *options_of(mix, tokenizer_folder), "--checkpoint_dir", str(run), "--max_steps", "14"]
    assert main([*argv, "--metric_for_best_model", "sport_loss"]) == 2
    assert "must be one of loss, perplexity, books_loss, books_perplexity, news_loss" in capsys.readouterr().err
    assert not run.exists()
    assert main([*argv, "--metric_for_best_model", "eval_news_loss"]) == 0
    best = read_json(run / "trainer_state.json")["best_metric"]
    assert best == min(entry["eval_news_loss"] for entry in history_of(run) if "eval_news_loss" in entry)
    assert best == read_json(run / "eval_results.json")["eval_news_loss"]


def test_a_changed_weight_is_refused_on_resume(run, mix, tokenizer_folder, tmp_path, capsys):
    """It would give other samples; another scale of all weights would not."""
    shutil.copytree(run, tmp_path / "run")
    heavier = {**mix, "news": {**mix["news"], "weight": 0.5}}
    argv = ["--checkpoint_dir", str(tmp_path / "run"), "--resume_from", "latest"]
    assert main(["train", *options_of(heavier, tokenizer_folder), *argv]) == 2
    assert "--train_mix had the shares" in capsys.readouterr().err
    scaled = {name: {**text, "weight": 10 * text["weight"]} for name, text in mix.items()}
    assert main(["train", *options_of(scaled, tokenizer_folder), *argv]) == 0
    assert "nothing is left to train" in capsys.readouterr().out


def test_the_record_gives_the_same_run(run, tmp_path):
    """resolved_config.json is a config file that holds the mix itself."""
    argv = ["--config", str(run / "resolved_config.json"), "--checkpoint_dir", str(tmp_path / "again")]
    assert main(["train", *argv, "--max_steps", "3", "--use_cpu"]) == 0
    assert history_of(tmp_path / "again")[0]["loss"] == history_of(run)[0]["loss"]


@pytest.mark.distributed
def test_two_processes_train_and_score_alike(mix, tokenizer_folder, tmp_path):
    """Loss and scores of each text to rounding, whatever the number of processes; each sample is scored once."""
    few = ["--max_epochs", "1", "--max_steps", "3", "--eval_every", "3", "--dropout", "0", "--batch_size"]
    argv = ["train", *options_of(mix, tokenizer_folder)[:-2], *few]
    assert main([*argv, "8", "--checkpoint_dir", str(tmp_path / "one")]) == 0
    ranks.run(2, [*argv, "4", "--checkpoint_dir", str(tmp_path / "two")], tmp_path / "log")
    one, two = (read_json(tmp_path / name / "all_results.json") for name in ("one", "two"))
    names = [f"eval_{text}{name}" for text in ("", "news_", "books_") for name in ("loss", "perplexity", "tokens")]
    assert [one[name] for name in names] == pytest.approx([two[name] for name in names], rel=1e-4)
    assert one["train_loss"] == pytest.approx(two["train_loss"], rel=1e-4)


@pytest.mark.parametrize("options", [[], ["--stride", "16", "--max_length", "32"]])
def test_the_command_scores_each_text(run, capsys, options):
    """And all of them together; the sum of the tokens is that of the texts."""
    assert main(["evaluate", "--model_path", str(run / "best_model"), "--split", "validation", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    report = json.loads(lines[-1])
    assert report["dataset"] == "books, news" and list(report["texts"]) == ["books", "news"]
    for unit in ("tokens", "words", "bytes"):
        assert report[unit] == sum(text[unit] for text in report["texts"].values())
    assert any(line.startswith("books: loss") for line in lines)
    if not options:
        results = read_json(run / "eval_results.json")
        assert report["loss"] == pytest.approx(results["eval_loss"], abs=1e-6)
        assert report["texts"]["news"]["loss"] == pytest.approx(results["eval_news_loss"], abs=1e-6)


def test_the_command_scores_another_text(run, folder, capsys):
    """A model that was trained on a mix is scored on any one text."""
    argv = ["--model_path", str(run / "best_model"), "--test_file", str(folder / "books_test.txt")]
    assert main(["evaluate", *argv]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "texts" not in report
    assert report["loss"] == pytest.approx(read_json(run / "test_results.json")["test_books_loss"], abs=1e-6)
