"""Registers the package's classes with transformers' Auto classes, without importing transformers for it.

`AutoConfig.register` needs the class itself, and importing that takes seconds (torch). So `import gpt2_hf` only adds
a finder to Python's import system, which finds nothing of its own: it watches imports of transformers and of
`gpt2_hf.model`. When the outermost of these has ended and the Auto classes are there, they are told of ours. Not
earlier: `transformers.modeling_layers`, which our model needs, itself imports the Auto classes while it is half
imported.
"""

import copy
import functools
import importlib
import importlib.abc
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_WATCHED = ("transformers.", f"{__package__}.model.")
_CONFIG_MODULE = f"{__package__}.model.configuration_gpt2_hf"
_MODEL_MODULE = f"{__package__}.model.modeling_gpt2_hf"


def register_when_imported() -> None:
    """Register with the Auto classes that are imported already, and with the others as soon as they are."""
    if not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        watcher = _Watcher()
        sys.meta_path.insert(0, watcher)
        watcher.register()


class _Watcher(importlib.abc.MetaPathFinder):
    """Calls `register` after each outermost import of a watched module."""

    def __init__(self) -> None:
        self._depth = threading.local()
        # What starts a registration, once: the module of an Auto class, or ours.
        self._steps = {
            "transformers.models.auto.configuration_auto": _register_config,
            "transformers.models.auto.modeling_auto": _register_models,
            _CONFIG_MODULE: _register_config,
            _MODEL_MODULE: _register_models,
        }

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the other finders give, with a loader that tells when it is done."""
        if not fullname.startswith(_WATCHED):
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(fullname, path, target) if finder is not self else None
            if spec is not None and spec.loader is not None:
                spec.loader = copy.copy(spec.loader)  # a zip file has one loader for all its modules
                # a method of this one object is exchanged, not of its class
                spec.loader.exec_module = functools.partial(  # type: ignore[method-assign]
                    self._execute, spec.loader.exec_module
                )
                return spec
        return None

    def _execute(self, exec_module: Callable[[ModuleType], None], module: ModuleType) -> None:
        outer = getattr(self._depth, "value", 0)
        self._depth.value = outer + 1
        try:
            exec_module(module)
        finally:
            self._depth.value = outer
        if outer == 0:
            self.register()

    def register(self) -> None:
        """Take the steps whose module has been imported; when none is left, watch no longer."""
        for name in [name for name in self._steps if name in sys.modules]:
            step = self._steps.pop(name, None)  # before it is taken, because it imports further modules
            if step is not None:
                step()
        if not self._steps and self in sys.meta_path:
            sys.meta_path.remove(self)


def _register_config() -> None:
    from transformers import AutoConfig

    config_class = importlib.import_module(_CONFIG_MODULE).GPT2HFConfig
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    config_class.register_for_auto_class()


def _register_models() -> None:
    """Register the models, and mark them so that `save_pretrained` copies their source beside the weights.

    A saved model then loads with `trust_remote_code=True` where this package is not installed.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    models = importlib.import_module(_MODEL_MODULE)
    for auto_class, model in ((AutoModel, models.GPT2HFModel), (AutoModelForCausalLM, models.GPT2HFForCausalLM)):
        auto_class.register(model.config_class, model, exist_ok=True)
        model.register_for_auto_class(auto_class.__name__)
