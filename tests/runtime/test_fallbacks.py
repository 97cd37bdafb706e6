"""A machine that lacks a faster way: the run goes on, and one line says what is missing."""

import pytest
import torch

from gpt2_hf.model import variable_length_attention
from gpt2_hf.runtime import fallbacks
from gpt2_hf.runtime.fallbacks import (
    missing_for_attention,
    missing_for_compile,
    missing_for_packing,
    padding_to_the_longest,
)

from ..conftest import read_json


def test_what_is_there_is_not_missed(monkeypatch):
    """A compiler on the path is found; so is the one that CXX names; backends of torch need no package."""
    monkeypatch.setattr(fallbacks.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert missing_for_compile("cpu") is None
    for backend in ("sdpa", None):
        assert missing_for_attention(backend, "fp32", 0.1, "cuda") is None


def test_what_is_missing_is_named(monkeypatch):
    """The compiler of the device, or the package of the backend."""
    monkeypatch.setattr(fallbacks.shutil, "which", lambda name: None)
    monkeypatch.setenv("CXX", "my-compiler")
    assert "my-compiler" in missing_for_compile("cpu")
    monkeypatch.setattr(fallbacks.importlib.util, "find_spec", lambda name: None)
    assert "Triton" in missing_for_compile("cuda")


@pytest.mark.parametrize(
    ("capability", "precision", "missing"),
    [((6, 1), "fp16", "the GPU is too old"), ((7, 5), "fp16", "no C compiler"), ((8, 0), "bf16", "no C compiler")],
)
def test_a_card_and_its_compiler(monkeypatch, capability, precision, missing):
    """Triton needs Volta and a C compiler, flash attention needs Ampere and 16 bits, its third version no dropout."""
    monkeypatch.setattr(fallbacks.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(fallbacks.torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(fallbacks.sys, "platform", "linux")
    monkeypatch.setattr(fallbacks.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    assert missing in missing_for_compile("cuda")
    for version in (2, 3):
        monkeypatch.setattr(fallbacks, f"is_flash_attn_{version}_available", lambda: True)
        backend = f"flash_attention_{version}"
        assert "16 bits" in missing_for_attention(backend, "fp32", 0.1, "cuda")
        if capability < (8, 0):
            assert "the GPU is too old" in missing_for_attention(backend, precision, 0.1, "cuda")
        else:
            assert missing_for_attention(backend, precision, 0.0, "cuda") is None
            assert (missing_for_attention(backend, precision, 0.1, "cuda") is None) == (version == 2)


def test_flex_attention_is_not_trained_where_it_cannot_be(monkeypatch):
    """It knows no dropout, has gradients on CUDA alone, and is slow and large without its compiler."""
    monkeypatch.setattr(fallbacks, "missing_for_compile", lambda device_type: None)
    no_dropout = missing_for_attention("flex_attention", "bf16", 0.1, "cuda")
    assert "no dropout" in no_dropout and "--dropout 0" in no_dropout
    assert "no gradients on cpu" in missing_for_attention("flex_attention", "fp32", 0.0, "cpu")
    assert missing_for_attention("flex_attention", "bf16", 0.0, "cuda") is None


def test_what_packing_misses_is_named(monkeypatch):
    """Where attention could go without padding and cannot: the format, the card, the backend."""
    assert "16 bits" in missing_for_packing("sdpa", torch.float32, 64, "cuda")
    assert "eager" in missing_for_packing("eager", torch.bfloat16, 64, "cuda")
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    for capability, missing in (((7, 5), "too old"), ((9, 0), None)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        variable_length_attention._missing_on_the_card.cache_clear()
        said = missing_for_packing("sdpa", torch.bfloat16, 64, "cuda")
        assert said is None if missing is None else missing in said
    variable_length_attention._missing_on_the_card.cache_clear()
    for backend, device_type in (("sdpa", "cpu"), ("sdpa", "mps"), ("flash_attention_2", "cuda")):
        assert missing_for_packing(backend, torch.float32, 64, device_type) is None


def test_a_compiled_model_without_the_kernel_pads_to_the_longest(monkeypatch):
    """On a CPU, in fp32, with another backend; not where a kernel takes the lengths, and not uncompiled."""
    assert "cpu has no kernel" in padding_to_the_longest("sdpa", torch.bfloat16, 64, "cpu", compiles=True)
    assert "16 bits" in padding_to_the_longest("sdpa", torch.float32, 64, "cuda", compiles=True)
    assert "eager" in padding_to_the_longest("eager", torch.bfloat16, 64, "cuda", compiles=True)
    assert padding_to_the_longest("sdpa", torch.float32, 64, "cuda", compiles=False) is None
    assert padding_to_the_longest("flash_attention_2", torch.bfloat16, 64, "cuda", compiles=True) is None
    monkeypatch.setattr(variable_length_attention, "_missing_on_the_card", lambda: None)
    assert padding_to_the_longest("sdpa", torch.bfloat16, 64, "cuda", compiles=True) is None


def test_padding_of_a_compiled_model_is_announced(train_tiny, tmp_path, capsys):
    """One line that says what to do; none for blocks, and none without torch_compile."""
    compiled = ("--torch_compile", "--torch_compile_backend", "eager", "--max_steps", "1", "--eval_strategy", "no")
    lines = {}
    for name, options in {"compiled": compiled, "blocks": (*compiled, "--sequence_mode", "blocks")}.items():
        assert train_tiny(tmp_path / name, "--dry_run", *options) == 0
        lines[name] = [line for line in capsys.readouterr().out.splitlines() if "pads every document" in line]
    (line,) = lines["compiled"]
    assert "--torch_compile" in line and "--sequence_mode blocks" in line and not lines["blocks"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ("--torch_compile", "--torch_compile_backend", "inductor"),
            "--torch_compile is left out: there is no C++ compiler (no-such-compiler)",
        ),
        (("--torch_compile",), "--torch_compile is left out: there is no C++ compiler (no-such-compiler)"),
        (
            ("--attn_implementation", "flash_attention_2"),
            "--attn_implementation sdpa is used: flash_attention_2",
        ),
        (
            ("--attn_implementation", "flex_attention"),
            "--attn_implementation sdpa is used: flex_attention has no gradients on cpu",
        ),
    ],
)
def test_the_run_goes_on_without(train_tiny, tmp_path, capsys, monkeypatch, options, line):
    """One line each, and a trained model; the record tells what was really used."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(fallbacks, "is_flash_attn_2_available", lambda: False)
    assert train_tiny(tmp_path / "run", "--max_steps", "2", *options) == 0
    assert capsys.readouterr().out.count(line) == 1
    config = read_json(tmp_path / "run" / "resolved_config.json")
    assert (
        config["torch_compile"] is False if "--torch_compile" in options else config["attn_implementation"] == "sdpa"
    )
