"""transformers' Trainer is, on the installed version, what this package relies on."""

import inspect
import re
from pathlib import Path

import transformers
from packaging.version import Version
from transformers import Trainer

import gpt2_hf
from gpt2_hf import GPT2HFTrainer

from .contract import OVERRIDDEN, SINCE, USED

OURS = [kind for kind in GPT2HFTrainer.__mro__ if kind.__module__.startswith("gpt2_hf")]
ADVICE = "look at the Trainer of this transformers, then at tests/trainer/contract.py"


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def source_of(name):
    return inspect.getsource(getattr(Trainer, name))


def callers_of(name):
    """Methods of the Trainer whose source calls a method or hands it on."""
    methods = {other: member for other, member in vars(Trainer).items() if inspect.isfunction(member)}
    calls = re.compile(rf"self\.{name}\b")
    return {other for other, method in methods.items() if calls.search(inspect.getsource(method))}


def test_the_list_of_overridden_methods_is_whole():
    """Every private method of the Trainer that is overridden stands in it, and no other."""
    overridden = {name for kind in OURS for name in vars(kind) if is_private(name) and hasattr(Trainer, name)}
    assert overridden == OVERRIDDEN.keys()


def test_the_list_of_used_names_is_whole():
    """Every private name of the Trainer that is used or asked for besides stands in it, and no other."""
    ours = {inspect.getsourcefile(kind) for kind in OURS}
    used, own = set(), {name for kind in OURS for name in vars(kind)} | OVERRIDDEN.keys()
    for path in Path(gpt2_hf.__file__).parent.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        used.update(re.findall(r"""[."'](_[a-z]\w*)""", source))
        if str(path) not in ours:  # attributes of other classes, which may have a name of the Trainer's
            own.update(re.findall(r"self\.(_[a-z]\w*) = ", source))
    whole = inspect.getsource(Trainer)
    of_trainer = {name for name in used - own if hasattr(Trainer, name) or re.search(rf"self\.{name}\b", whole)}
    installed = Version(transformers.__version__)
    assert of_trainer == USED.keys() | {name for name, (since, _) in SINCE.items() if installed >= Version(since)}


def test_overridden_methods_have_the_parameters_that_are_relied_on():
    """A new one would be passed by nobody, a lost one would be missing."""
    for name, hook in OVERRIDDEN.items():
        parameters = tuple(inspect.signature(getattr(Trainer, name)).parameters)[1:]
        assert parameters == hook.parameters, f"{name}: {ADVICE}"


def test_overridden_methods_are_called_where_they_were():
    """A method that is called no more, or from elsewhere, breaks a promise in silence."""
    for name, hook in OVERRIDDEN.items():
        assert callers_of(name) == set(hook.callers), f"{name}: {ADVICE}"


def test_the_order_of_a_step_is_the_one_relied_on():
    """The gradient is looked at before the weights change; an evaluation comes before its checkpoint."""
    step = source_of("_run_epoch")
    assert step.index("_clip_grad_norm(") < step.index("_get_grad_norm(") < step.index("optimizer.step()")
    what_is_due = source_of("_maybe_log_save_evaluate")
    assert what_is_due.index("._evaluate(") < what_is_due.index("._determine_best_metric(")
    assert what_is_due.index("._determine_best_metric(") < what_is_due.index("._save_checkpoint(")
    loop = source_of("_inner_training_loop")
    assert loop.index("._init_training_state(") < loop.index("._prepare_for_training(")


def test_the_constructor_takes_what_the_trainers_takes():
    """The same parameters in the same order, with `job` and `teachers` after them."""
    ours, theirs = (list(inspect.signature(kind.__init__).parameters) for kind in (GPT2HFTrainer, Trainer))
    assert ours == [*theirs, "job", "teachers"]


def test_overridden_public_methods_take_what_the_trainers_take():
    """By their names too, so that a caller of the Trainer finds every parameter."""
    for kind in OURS:
        for name, method in vars(kind).items():
            if is_private(name) or name == "__init__" or not inspect.isfunction(getattr(Trainer, name, None)):
                continue
            ours, theirs = (inspect.signature(member).parameters for member in (method, getattr(Trainer, name)))
            takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in ours.values())
            assert takes_any or list(ours) == list(theirs), name
