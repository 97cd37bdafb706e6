"""Text from a trained model: one prompt, a file of prompts, or a conversation with a terminal.

In: a model, its tokenizer, prompts. Out: continuations, as strings, as lines of jsonl, or on the terminal while they
are made.
"""

import contextlib
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer
from transformers.utils import logging as transformers_logging

from ..data.encoding import errors_of_tokenizer
from ..errors import UserError, printable
from ..options.arguments import GenerationArguments
from ..options.fields import default_value
from ..runtime.own_process import unplanned_attention
from ..runtime.precision import current_device_type, resolve_precision
from ..runtime.random_state import preserved_rng
from ..runtime.temporary import evaluation_mode
from .model_loading import load_trained
from .output_files import is_same_file, is_stdout, partial_of, replacing, require_writable
from .packed_weights import packed_weights
from .prompts import argument_text, as_json, read_prompts, require_text

_DEFAULT_NEW_TOKENS = 128
_POINTLESS_WHEN_GREEDY = ("top_k", "top_p", "seed", "num_samples")


def generate_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, **options: Any
) -> list[str]:
    """Continue one prompt; the options are those of `generate_texts`.

    Returns:
        The prompt with its continuation, `num_samples` times.
    """
    (completions,) = generate_texts(model, tokenizer, [prompt], **options)
    return [prompt + completion for completion in completions]


def generate_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int | None = None,
    min_new_tokens: int = 0,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 0.95,
    num_samples: int = 1,
    seed: int = 42,
    stop: Sequence[str] = (),
    batch_size: int = 8,
    streamer: TextStreamer | None = None,
) -> Iterator[list[str]]:
    """Continue prompts, in batches that are padded on the left.

    Greedy text (temperature 0) of a model in fp32 does not depend on the batches; in 16 bits the rounding does.
    Sampled text depends on them: each batch draws its random numbers together, from `seed` plus the number of texts
    before its first. So the same texts come again from the same seed, prompts and batch size. The random numbers of
    the caller are left alone.

    A batch holds prompts that may be continued by equally many tokens: with `max_new_tokens` any of them, without it
    those after which there is room for 128, and of longer ones those of one length. With stop strings, a model without
    an end-of-text token continues one text at a time.

    Args:
        model: any causal language model of transformers.
        tokenizer: the tokenizer it was trained with.
        prompts: texts to continue; an empty one starts from the end-of-text token.
        max_new_tokens: tokens to generate; 128, or as many as fit after the prompt, when left out.
        min_new_tokens: the model cannot end the text before so many.
        temperature: divides the logits; 0 takes the likeliest token each time.
        top_k: number of candidates to keep; 0 keeps all.
        top_p: keep the likeliest candidates of this total probability.
        num_samples: texts for each prompt; at temperature 0 they are the same.
        seed: seed of the sampling.
        stop: a text ends with the token that completes one of these strings.
        batch_size: texts that are generated at a time.
        streamer: gets the tokens while they are made; nothing if they do not fit into one batch.

    Returns:
        An iterator that generates while it is read: the continuations of one prompt, without it; prompt after prompt.

    Raises:
        UserError: at once, if a prompt with its continuation does not fit into the model's positions, or a string is
            no text because it holds half of a surrogate pair.
    """
    for text in (*prompts, *stop):
        require_text(text, "a prompt or a stop string")
    rows = _rows([_encode(tokenizer, prompt) for prompt in prompts], max_new_tokens, model)
    options: dict[str, Any] = {"do_sample": temperature != 0, "num_return_sequences": 1, "streamer": streamer}
    if temperature != 0:
        options |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    if min_new_tokens:
        options |= {"min_new_tokens": min_new_tokens}
    if stop:
        options |= {"stop_strings": list(stop), "tokenizer": tokenizer}
        if model.generation_config.eos_token_id is None:
            batch_size = 1  # transformers would go on with rows that have stopped
    if temperature == 0:
        return ([text] * num_samples for text in _generate(model, tokenizer, rows, batch_size, seed, options))
    texts = _generate(model, tokenizer, [row for row in rows for _ in range(num_samples)], batch_size, seed, options)
    return ([next(texts) for _ in range(num_samples)] for _ in rows)


def can_stream(model: PreTrainedModel) -> bool:
    """Whether tokens are final when they are made: not with beam search, which a generation config may ask for."""
    return model.generation_config.num_beams in (None, 1)


@dataclass(frozen=True)
class _Row:
    """The token ids of a prompt `[T]`, and how many tokens to generate after them."""

    ids: torch.Tensor
    new_tokens: int


def _rows(prompts: list[torch.Tensor], wanted: int | None, model: PreTrainedModel) -> list[_Row]:
    """Each prompt with the tokens to generate after it; an error if they do not fit."""
    # a model without learned positions, such as BLOOM, has no limit
    positions = getattr(model.config, "max_position_embeddings", sys.maxsize)
    rows = []
    for number, ids in enumerate(prompts, 1):
        room = positions - len(ids)
        which = f"prompt {number}" if len(prompts) > 1 else "the prompt"
        if wanted is None and room < 1:
            raise UserError(
                f"{which} has {len(ids)} tokens, which leave no room in the model's {positions} positions; shorten it"
            )
        if wanted is not None and room < wanted:
            raise UserError(
                f"{which} has {len(ids)} tokens and --max_new_tokens is {wanted}, but the model has {positions} "
                "positions; shorten one of them"
            )
        rows.append(_Row(ids, min(_DEFAULT_NEW_TOKENS, room) if wanted is None else wanted))
    return rows


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[_Row],
    batch_size: int,
    seed: int,
    options: dict[str, Any],
) -> Iterator[str]:
    """The continuation of each row, in their order."""
    padding_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if padding_id is None and model.generation_config.eos_token_id is not None:
        batch_size = 1  # no token could stand for "nothing here" after a text that has ended; a mask hides that before
    waiting: dict[int, str] = {}  # number of a row to its continuation, until those before it are there
    place = 0
    batches = _batches(rows, batch_size)
    if len(batches) > 1:
        options = options | {"streamer": None}  # which would take the next prompt for a token
    for numbers in batches:
        batch = [rows[number].ids for number in numbers]
        # Each token changes the shapes.
        with evaluation_mode(model), _own_random_numbers(model.device, seed + numbers[0]), unplanned_attention():
            output = model.generate(
                _left_padded(batch, padding_id or 0).to(model.device),
                attention_mask=_left_padded([torch.ones_like(ids) for ids in batch], 0).to(model.device),
                pad_token_id=padding_id,
                max_new_tokens=rows[numbers[0]].new_tokens,
                **options,
            )
        longest = max(map(len, batch))
        for number, ids, tokens in zip(numbers, batch, output, strict=True):
            # Decoded with the prompt, because some tokenizers drop the space before a text's first word.
            whole = tokenizer.decode(torch.cat([ids, tokens[longest:].cpu()]), skip_special_tokens=True)
            waiting[number] = whole[len(tokenizer.decode(ids, skip_special_tokens=True)) :]
        while place in waiting:
            yield waiting.pop(place)
            place += 1


def _batches(rows: list[_Row], batch_size: int) -> list[list[int]]:
    """Numbers of rows that are generated together, equally many tokens each; in the order of their first ones.

    A row whose continuation is longer than that of another cannot share its batch: padded on the left, it would leave
    the model's positions.
    """
    alike: dict[int, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        alike[row.new_tokens].append(number)
    batches = (group[i : i + batch_size] for group in alike.values() for i in range(0, len(group), batch_size))
    return sorted(batches)


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: str) -> torch.Tensor:
    with errors_of_tokenizer():
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
    if not ids:
        ids = [tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0]
    return torch.tensor(ids)


def _left_padded(rows: list[torch.Tensor], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value, padding_side="left")


@contextlib.contextmanager
def _own_random_numbers(device: torch.device, seed: int) -> Iterator[None]:
    # torch.manual_seed would restart the numbers of every device, those of a training on another one too
    is_cuda = device.type == "cuda"
    with torch.cuda.device(device) if is_cuda else contextlib.nullcontext(), preserved_rng(device):
        torch.default_generator.manual_seed(seed)
        if device.type != "cpu":
            torch.get_device_module(device).manual_seed(seed)
        yield


# ---- the command ----


def run_generation(args: GenerationArguments, given: dict[str, str]) -> int:
    """The command `generate`: print or write the texts, or answer a terminal prompt by prompt."""
    reads_stdin = args.prompt is None and args.prompt_file is None
    if reads_stdin and sys.stdin is None:
        raise UserError("there is no standard input; give --prompt or --prompt_file")
    interactive = reads_stdin and sys.stdin.isatty()
    _check_pointless(args, given, interactive)
    if args.output_file is not None:
        _check_output(args, Path(os.path.expanduser(args.output_file)))
    args.stop = [argument_text(text, "--stop") for text in args.stop or ()]
    records = [] if interactive else read_prompts(args)
    num_prompts = 1 if interactive else len(records)
    if given.get("batch_size") == "command line" and num_prompts * args.num_samples < 2:
        raise UserError("--batch_size has no effect on a single text; leave it out")
    transformers_logging.disable_progress_bar()
    model, tokenizer, _ = load_trained(args.model_path)
    device = current_device_type(use_cpu=False)
    # Generation reads every weight once a token, so half the bytes are nearly half the time.
    model.to(device, dtype=resolve_precision(args.precision, device).dtype)
    session = _Session(args, model, tokenizer)
    with packed_weights(model):
        if interactive:
            _converse(session)
        elif args.output_file is not None:
            session.write(records, Path(os.path.expanduser(args.output_file)))
        else:
            session.show([record["prompt"] for record in records])
    return 0


def _check_pointless(args: GenerationArguments, given: dict[str, str], interactive: bool) -> None:
    if args.temperature == 0:
        for name in (name for name in _POINTLESS_WHEN_GREEDY if name in given):
            if (given[name], given["temperature"]) != ("config", "command line"):
                raise UserError(
                    f"--{name} has no effect with --temperature 0, which always gives the same text; leave it out"
                )
            # a file's choice gives way to the command line's
            setattr(args, name, default_value(GenerationArguments, name))
    if interactive and args.output_file is not None:
        raise UserError("--output_file has no effect at a terminal; add --prompt or --prompt_file")


def _check_output(args: GenerationArguments, output: Path) -> None:
    """Refuse an output file that would replace the prompts, by itself or while it is written, or has no place."""
    prompts: Path | int | None = None
    origin = "--prompt_file"
    if args.prompt_file is not None:
        prompts = Path(os.path.expanduser(args.prompt_file))
    elif args.prompt is None:
        origin = "standard input"
        with contextlib.suppress(OSError):  # a stream without a file, which another program has put in its place
            prompts = sys.stdin.fileno()
    if prompts is not None and any(is_same_file(prompts, path) for path in (output, partial_of(output))):
        raise UserError(f"--output_file: {output} would replace the prompts of {origin}; choose another name")
    require_writable(output)


@dataclass
class _Session:
    """A loaded model with what the command says about the sampling."""

    args: GenerationArguments
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def texts(
        self, prompts: list[str], streamer: TextStreamer | None = None, texts_before: int = 0
    ) -> Iterator[list[str]]:
        """Continue prompts, with other seeds than those of the texts before."""
        names = ("max_new_tokens", "temperature", "top_k", "top_p", "num_samples", "stop", "batch_size")
        options = {name: getattr(self.args, name) for name in names}
        seed = self.args.seed + texts_before
        return generate_texts(self.model, self.tokenizer, prompts, seed=seed, streamer=streamer, **options)

    def show(self, prompts: list[str], texts_before: int = 0) -> None:
        """Print texts; a single one while it is made."""
        total, shown = len(prompts) * self.args.num_samples, 0
        if total == 1 and can_stream(self.model):
            streamer = TextStreamer(self.tokenizer, skip_special_tokens=True)
            list(self.texts(prompts, streamer, texts_before))
            return
        for prompt, completions in zip(prompts, self.texts(prompts, texts_before=texts_before), strict=True):
            for completion in completions:
                shown += 1
                heading = f"--- {shown} of {total} ---\n" if total > 1 else ""
                print(f"{heading}{prompt}{completion}", flush=True)

    def write(self, records: list[dict[str, Any]], path: Path) -> None:
        """Write a line of JSON for each text: what came with the prompt, the sample's number, the continuation.

        The file is replaced when all texts are there. If the run breaks off, those that are finished stay beside it;
        see `replacing`.
        """
        to_stdout = is_stdout(path)
        texts = self.texts([record["prompt"] for record in records])
        try:
            with replacing(path) as file:
                for record, completions in zip(records, texts, strict=True):
                    for sample, completion in enumerate(completions):
                        line = {**record, "sample": sample, "completion": completion}
                        file.write(as_json(line))
                    file.flush()
        except OSError as error:
            if to_stdout and isinstance(error, BrokenPipeError):
                raise  # as of what is printed
            raise UserError(f"--output_file: {path} cannot be written ({error.strerror})") from error
        where = sys.stderr if to_stdout else sys.stdout  # which holds nothing but the lines
        print(f"{len(records) * self.args.num_samples:,} texts in {printable(str(path))}", file=where)


def _converse(session: _Session) -> None:
    """Answer each line of a terminal until Ctrl-D; each text has a seed of its own."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives the line a history, where the platform has it)
    print("One prompt per line; Ctrl-D ends.")
    for turn in range(sys.maxsize):
        try:
            session.show([argument_text(input("> "), "the prompt")], texts_before=turn * session.args.num_samples)
        except EOFError:
            print()
            return
        except UnicodeDecodeError as error:
            print(f"error: the prompt cannot be read ({error.reason}); type UTF-8", file=sys.stderr)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
