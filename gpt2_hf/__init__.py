"""Train a GPT-2 in the Hugging Face world: exact, fast, and never lost.

Public names are imported on first use, so that `python -m gpt2_hf --help` need not wait for torch.
Importing the package registers its config and models with transformers' Auto classes.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_MODULE_OF = {
    "GPT2HFConfig": "configuration_gpt2_hf",
    "GPT2HFForCausalLM": "modeling_gpt2_hf",
    "GPT2HFModel": "modeling_gpt2_hf",
    "GPT2HFTrainer": "trainer",
    "GPT2HFTrainingArguments": "training_arguments",
    "DataArguments": "arguments",
    "ModelArguments": "arguments",
    "Perplexity": "metrics",
    "evaluate_model": "evaluation",
    "export_to_gpt2": "export",
    "generate_text": "generation",
    "generate_texts": "generation",
    "load_tokenizer": "tokenizer",
    "train": "training",
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
    "train",
]

if TYPE_CHECKING:
    from .arguments import DataArguments, ModelArguments
    from .configuration_gpt2_hf import GPT2HFConfig
    from .evaluation import evaluate_model
    from .export import export_to_gpt2
    from .generation import generate_text, generate_texts
    from .metrics import Perplexity
    from .modeling_gpt2_hf import GPT2HFForCausalLM, GPT2HFModel
    from .tokenizer import load_tokenizer
    from .trainer import GPT2HFTrainer
    from .training import train
    from .training_arguments import GPT2HFTrainingArguments


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

    from .configuration_gpt2_hf import GPT2HFConfig
    from .modeling_gpt2_hf import GPT2HFForCausalLM, GPT2HFModel

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
