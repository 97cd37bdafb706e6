"""Train a GPT-2 in the Hugging Face world: exact, fast, and never lost.

Public names are imported on first use, so that `python -m gpt2_hf --help` need not wait for torch.
Importing the package registers its config and models with transformers' Auto classes.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

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
    "evaluate_model": "commands.evaluate",
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
    from .commands.evaluate import evaluate_model
    from .commands.export import export_to_gpt2, to_linear_layers
    from .commands.generate import generate_text, generate_texts
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


def register_auto_classes() -> None:
    """Make `AutoConfig`, `AutoModel` and `AutoModelForCausalLM` know `model_type: gpt2_hf`.

    Also marks the classes so that `save_pretrained` copies their source beside the weights: the saved model
    then loads with `trust_remote_code=True` where this package is not installed.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from .model.configuration_gpt2_hf import GPT2HFConfig
    from .model.modeling_gpt2_hf import GPT2HFForCausalLM, GPT2HFModel

    AutoConfig.register(GPT2HFConfig.model_type, GPT2HFConfig)
    AutoModel.register(GPT2HFConfig, GPT2HFModel)
    AutoModelForCausalLM.register(GPT2HFConfig, GPT2HFForCausalLM)
    GPT2HFConfig.register_for_auto_class()
    GPT2HFModel.register_for_auto_class("AutoModel")
    GPT2HFForCausalLM.register_for_auto_class("AutoModelForCausalLM")


# While `python -m gpt2_hf` looks for the module to run, sys.argv[0] is "-m" (documented in the sys module).
# Only then is registration left to the command, which does it once it knows that it needs a model.
if not (sys.argv[:1] == ["-m"] and __name__ in sys.orig_argv):
    register_auto_classes()
