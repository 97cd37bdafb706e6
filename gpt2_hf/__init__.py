"""Train a GPT-2 in the Hugging Face world: exact, fast, and never lost.

Public names are imported on first use, so that `gpt2-hf --help` need not wait for torch. Importing the package makes
transformers' Auto classes know its config and models (see `auto_classes`), and changes nothing else of the process.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .auto_classes import register_when_imported

__version__ = "0.1.0"

_MODULE_OF = {
    "GPT2HFConfig": "model.configuration_gpt2_hf",
    "GPT2HFForCausalLM": "model.modeling_gpt2_hf",
    "GPT2HFModel": "model.modeling_gpt2_hf",
    "GPT2HFTrainer": "trainer.gpt2_trainer",
    "GPT2HFTrainingArguments": "options.training_arguments",
    "DataArguments": "options.arguments",
    "ModelArguments": "options.arguments",
    "Perplexity": "metrics",
    "evaluate_model": "commands.scoring",
    "export_to_gpt2": "commands.export",
    "generate_text": "commands.generate",
    "generate_texts": "commands.generate",
    "load_tokenizer": "data.tokenizer",
    "to_linear_layers": "commands.export",
    "train": "job.main_job",
}

__all__ = [
    "DataArguments",
    "GPT2HFConfig",
    "GPT2HFForCausalLM",
    "GPT2HFModel",
    "GPT2HFTrainer",
    "GPT2HFTrainingArguments",
    "ModelArguments",
    "Perplexity",
    "__version__",
    "evaluate_model",
    "export_to_gpt2",
    "generate_text",
    "generate_texts",
    "load_tokenizer",
    "to_linear_layers",
    "train",
]

if TYPE_CHECKING:
    from .commands.export import export_to_gpt2, to_linear_layers
    from .commands.generate import generate_text, generate_texts
    from .commands.scoring import evaluate_model
    from .data.tokenizer import load_tokenizer
    from .job.main_job import train
    from .metrics import Perplexity
    from .model.configuration_gpt2_hf import GPT2HFConfig
    from .model.modeling_gpt2_hf import GPT2HFForCausalLM, GPT2HFModel
    from .options.arguments import DataArguments, ModelArguments
    from .options.training_arguments import GPT2HFTrainingArguments
    from .trainer.gpt2_trainer import GPT2HFTrainer


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


register_when_imported()
