"""Train GPT-2 with Hugging Face tools: exact evaluation, crash-safe checkpoints, a time budget.

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
    "compare_runs": "commands.report",
    "evaluate_model": "commands.scoring",
    "export_to_gpt2": "commands.export",
    "generate_text": "commands.generate",
    "generate_texts": "commands.generate",
    "load_data": "data.pipeline",
    "load_tokenizer": "data.tokenizer",
    "load_trained": "commands.model_loading",
    "to_linear_layers": "commands.export",
    "train": "job.main_job",
    "train_tokenizer": "data.tokenizer_training",
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
    "compare_runs",
    "evaluate_model",
    "export_to_gpt2",
    "generate_text",
    "generate_texts",
    "load_data",
    "load_tokenizer",
    "load_trained",
    "to_linear_layers",
    "train",
    "train_tokenizer",
]

if TYPE_CHECKING:
    from .commands.export import export_to_gpt2, to_linear_layers
    from .commands.generate import generate_text, generate_texts
    from .commands.model_loading import load_trained
    from .commands.report import compare_runs
    from .commands.scoring import evaluate_model
    from .data.pipeline import load_data
    from .data.tokenizer import load_tokenizer
    from .data.tokenizer_training import train_tokenizer
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
