"""A model's generation config, which is saved with its weights: can it be saved?

In: the config, with the tokenizer's special tokens in it. Out: nothing, a line for the user, or an error.
"""

import tempfile

from transformers import GenerationConfig

from ..errors import UserError, in_one_line


def make_storable(config: GenerationConfig) -> str | None:
    """Let transformers save a generation config.

    It saves one that is as it was loaded, whatever is in it. One that has changed since, and the Trainer writes
    special tokens into it, may have no values for sampling without `do_sample`, as many published ones do. Then it is
    set: that is what the values were meant for.

    Returns:
        A line that says so; `None` if nothing was changed.

    Raises:
        UserError: if something else in it cannot be saved.
    """
    try:
        _save(config)
        return None
    except ValueError:
        config.do_sample = True
    try:
        _save(config)
    except ValueError as error:
        reason = in_one_line(error)
        raise UserError(f"the model's generation config cannot be saved: {reason}") from error
    return "generation config: do_sample is set, because transformers saves its values for sampling only with it"


def _save(config: GenerationConfig) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
