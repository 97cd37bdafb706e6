"""The benchmarks count what they say, and run."""

import ast
import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from gpt2_hf import GPT2HFConfig, GPT2HFForCausalLM
from gpt2_hf.data import DocumentSamples, PaddingCollator
from gpt2_hf.options.arguments import DataArguments, ModelArguments
from gpt2_hf.options.parsing import parse
from gpt2_hf.options.training_arguments import GPT2HFTrainingArguments

from ..conftest import REPOSITORY, read_json
from ..data_fixtures import documents_of
from .scripts import load_script


@pytest.fixture(scope="module")
def throughput():
    """The comparison with other programs."""
    return load_script("throughput")


@pytest.fixture(scope="module")
def sweep():
    """The search on WikiText-2."""
    return load_script("wikitext2_sweep")


def test_what_the_scripts_import_is_there():
    """Also inside functions that run on a card only."""
    for path in sorted((REPOSITORY / "benchmarks").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gpt2_hf"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), (path.name, node.lineno)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_script_for_a_card_is_well_formed():
    """bash can read it, and every script that it calls is there."""
    script = REPOSITORY / "benchmarks" / "gpu.sh"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    called = re.findall(r"\b(\w+\.py)\b", script.read_text(encoding="utf-8"))
    assert called and all((script.parent / name).is_file() for name in called)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("part", ["kernels", "memory", "throughput"])
def test_the_script_for_a_card_runs_dry_on_a_cpu(tmp_path, part):
    """Every command of a part, with tiny models; what it writes says that each has trained."""
    environment = {**os.environ, "DRY_RUN": "1", "OUT": str(tmp_path)}
    python = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = ["bash", "benchmarks/gpu.sh", part]
    if part == "throughput":  # whose quick cases have a test of their own
        command += ["", "generation"]
    result = subprocess.run(
        command, cwd=REPOSITORY, env={**environment, "PATH": python}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    document = read_json(tmp_path / f"{part}.json")
    if part == "throughput":
        (case,) = document["results"]
        assert not case["failures"] and case["ratios"]["stock"]["speed"] > 0
    else:
        assert len(document) == 7 and all(run["trains"] and run["losses"] for run in document.values()), document


def test_operations_of_a_token_are_those_of_the_palm_paper(throughput):
    """GPT-2 124M at 1,024 tokens: 0.85 GFLOP, as 6 N + 12 L H Q T gives by hand."""
    case = throughput.Case("any", (), "124M", 1)
    by_hand = 6 * (12 * 12 * 768**2 + 50257 * 768) + 12 * 12 * 12 * 64 * 1024
    assert throughput.flops_per_token(case, 1024) == by_hand
    assert throughput.flops_per_token(case, 100) == by_hand - 12 * 12 * 768 * 924


def test_the_matrix_rate_is_of_the_products_of_a_step(throughput):
    """Those of a layer and its share of the head, forward and twice backward: 6 N operations a token."""
    case = throughput.Case("any", (), "124M", 2, length=128)
    operations = sum(2 * m * k * n for m, k, n in throughput.products_of(case))
    by_hand = 6 * (12 * 12 * 768**2 + 50257 * 768) * 256
    assert 12 * operations == pytest.approx(by_hand, rel=1e-3)


def test_the_parts_of_a_step_are_told_apart():
    """A profile of a small step: products, head, attention and optimizer are found, and sum to everything."""
    profile_step = load_script("profile_step")
    config = GPT2HFConfig(n_embd=16, n_layer=1, n_head=2, n_positions=32, vocab_size=50)
    model = GPT2HFForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.zeros(1, 32, dtype=torch.long)
    with torch.profiler.profile() as profiler:
        model(ids, labels=ids).loss.backward()
        with torch.profiler.record_function("optimizer"):
            optimizer.step()
    shares = profile_step.shares(profiler.events(), "cpu")
    assert sum(shares.values()) == pytest.approx(1.0)
    kernels = [SimpleNamespace(name=name, device_type=DeviceType.CUDA) for name in ("gemm", "optimizer")]
    assert profile_step.shares([*profiler.events(), *kernels], "cpu") == shares  # they are counted where they began
    assert {"head: products", "products of the blocks", "attention", "optimizer", "the rest"} <= set(shares)


def test_a_contestant_that_fails_is_left_out(throughput):
    """In whatever turn it runs out of memory, the others go on."""
    process = SimpleNamespace(entry=SimpleNamespace(who="stock"), process=SimpleNamespace(kill=lambda: None))
    processes, failures = [process, "other"], {}
    with throughput.leaving_out(process, processes, failures):
        raise RuntimeError("traceback\nout of memory")
    assert processes == ["other"] and failures == {"stock": "out of memory"}


def test_evaluations_go_on_when_the_text_ends(throughput, monkeypatch):
    """A short text is scored again and again until the last turn is over."""
    samples = DocumentSamples(documents_of([[1] * 9] * 3), 16)
    monkeypatch.setitem(throughput.SIZES, "tiny", (16, 1, 2))
    monkeypatch.setattr(throughput, "load_samples", lambda entry: (samples, PaddingCollator(0)))
    orders, answers = iter([2] * 5 + [None]), []
    pipe = SimpleNamespace(recv=lambda: next(orders), send=answers.append)
    case = throughput.Case("any", (), "tiny", 2, length=16)
    with pytest.raises(throughput.StopBenchmarkError):
        throughput.train(throughput.Entry(case, "evaluated", "cpu", "any", None), throughput.Turns(pipe, "cpu"))
    assert len(answers) == 5 and all(answer["tokens"] for answer in answers)


def test_cases_that_are_done_are_not_run_again(throughput, tmp_path, monkeypatch):
    """A call that was cut off goes on in the next one, if it asks for the same."""
    ran = []
    monkeypatch.setattr(throughput, "run_case", lambda case, options: ran.append(case) or {"case": asdict(case)})
    monkeypatch.setattr(throughput, "print_case", lambda result: None)
    command = ["throughput.py", "--device", "cpu", "--quick", "--output_file", str(tmp_path / "out.json")]
    counts = []
    for further in ([], [], ["--rounds", "5"]):
        monkeypatch.setattr(sys, "argv", [*command, *further])
        throughput.main()
        counts.append(len(ran))
    assert counts == [counts[0], counts[0], 2 * counts[0]] and counts[0] > 0


def test_padding_is_never_counted(throughput):
    """Peers' batches count the targets of their lines, whatever they are padded to."""
    turns = throughput.Turns(pipe=None, device="cpu")
    collate = throughput.counting(throughput.PaddedCollator(16, 16), turns)
    batch = collate([{"input_ids": [1, 2, 3, 4]}, {"input_ids": [5, 6, 7]}])
    assert batch["input_ids"].shape == (2, 16)
    assert turns.batch_tokens == [3 + 2]


def test_every_variant_is_a_run_that_may_be(sweep):
    """Each one's options, with the shipped recipe, are accepted, and differ from it."""
    path = REPOSITORY / "training_args" / "wikitext2_best.json"
    config = read_json(path)
    assert sweep.variants_of(config) == sweep.VARIANTS
    for name, variant in sweep.VARIANTS.items():
        options = sweep.options_of(config, variant)
        classes = (ModelArguments, DataArguments, GPT2HFTrainingArguments)
        parsed = parse(classes, ["--use_cpu", *sweep.command_line(options)], str(path))
        assert not options or any(config.get(key) != value for key, value in options.items()), name
        chosen = {key: value for part in parsed.values for key, value in vars(part).items()}
        chosen["max_epochs"] = chosen["num_train_epochs"]
        assert all(chosen[key] == value for key, value in options.items()), name


def test_a_multiple_is_of_what_the_config_says(sweep):
    """And keeps its type."""
    options = sweep.options_of({"learning_rate": 2e-3, "batch": 16}, {"learning_rate": sweep.Times(0.5), "batch": 8})
    assert options == {"learning_rate": 1e-3, "batch": 8}
    assert sweep.options_of({"batch": 16}, {"batch": sweep.Times(0.5)}) == {"batch": 8}


def test_every_config_has_its_variants(sweep, monkeypatch, capsys):
    """A multiple of an option that the config does not state is no variant of it."""
    monkeypatch.setattr(sys, "argv", ["sweep", "--config", "training_args/base.json", "--list"])
    sweep.main()
    listed = capsys.readouterr().out
    assert "dropout 0.3" in listed and "batch * 2" not in listed


def test_a_sweep_of_another_recipe_needs_a_file_of_its_own(sweep, monkeypatch, tmp_path):
    """Its scores would be taken for those of this one."""
    output = tmp_path / "out.json"
    words = ["sweep", "--output_file", str(output), "--variants", "as it is"]
    monkeypatch.setattr(sys, "argv", words)
    first = sweep.Sweep(sweep.parse_arguments())
    first.keep("as it is", {"seed": 1})
    assert sweep.Sweep(sweep.parse_arguments()).results == {"as it is": {"seed": 1}}
    for further in (["--config", "training_args/base.json"], ["--stride", "32"], ["--", "--dropout", "0"]):
        monkeypatch.setattr(sys, "argv", [*words, *further])
        with pytest.raises(SystemExit, match="give another --output_file"):
            sweep.Sweep(sweep.parse_arguments())
    assert json.loads(output.read_text())["runs"] == {"as it is": {"seed": 1}}


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_ended(tmp_path, corpus_folder):
    """Two variants, then three: only the third is run; then two seeds with the test split."""
    config = tmp_path / "tiny.json"
    sizes = {"d_model": 32, "num_layers": 1, "num_heads": 1, "max_length": 32, "global_batch_size": 8}
    rates = {"optim": "muon", "learning_rate": 1e-2, "muon_learning_rate": 1e-2, "warmup_steps": 1}
    further = {"sequence_mode": "blocks", "max_steps": 5, "eval_every": 5, "report_to": ["none"]}
    config.write_text(json.dumps({**sizes, **rates, **further}))
    output = tmp_path / "out.json"
    command = [sys.executable, "benchmarks/wikitext2_sweep.py", "--config", str(config), "--minutes", "30"]
    command += ["--dataset_name", str(corpus_folder), "--dataset_config_name", "", "--stride", "16", "--output_file"]

    def call(*options):
        result = subprocess.run(
            [*command, str(output), *options, "--", "--use_cpu"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=1800,
        )
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.strip().splitlines()[-1])["runs"], result.stdout

    first, _ = call("--variants", "as it is", "adamw")
    assert all("problem" not in run and run["validation"]["tokens"] for run in first.values()), first
    second, _ = call("--variants", "as it is", "adamw", "dropout 0")
    assert {name: second[name] for name in first} == first and "validation" in second["dropout 0"]
    last, printed = call("--final", "--seeds", "1", "2")
    assert last["final, seed 1"]["test"]["loss"] != last["final, seed 2"]["test"]["loss"]
    assert "2 seeds" in printed


@pytest.mark.slow
def test_a_quick_run_ends_in_one_json_document(tmp_path):
    """Contestants in turns, a table, and JSON as the last line and in the file."""
    command = [sys.executable, "benchmarks/throughput.py", "--device", "cpu", "--quick", "--rounds", "1"]
    command += ["--seconds", "0.1", "--output_file", str(tmp_path / "out.json")]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout.strip().splitlines()[-1])
    assert document == json.loads((tmp_path / "out.json").read_text())
    for case in document["results"]:
        assert not case["failures"] and case["ratios"]["stock"]["speed"] > 0
