"""Text from a trained model: one prompt, a file of prompts, or a conversation with a terminal.

In: a model, its tokenizer, prompts. Out: continuations, as strings, as lines of jsonl, or on the terminal while they
are made.
"""

import contextlib
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer
from transformers.utils import logging as transformers_logging

from ..checkpoints.written import sync
from ..data.readers import with_line_feeds
from ..errors import UserError, printable, to_utf8
from ..options.arguments import GenerationArguments
from ..runtime.own_process import suit_changing_shapes
from ..runtime.precision import current_device_type, resolve_precision
from .model_loading import load_trained
from .packed_weights import packed_weights

_DEFAULT_NEW_TOKENS = 128
_POINTLESS_WHEN_GREEDY = ("top_k", "top_p", "seed", "num_samples")
# Endings of what other commands read, but not this one.
_OTHER_FORMATS = (".json", ".csv", ".tsv", ".parquet", ".gz", ".zst", ".bz2", ".xz", ".zip")
_PARTIAL_SUFFIX = ".partial"


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

    Greedy text (temperature 0) does not depend on the batches. Sampled text does: each batch draws its random numbers
    together, from `seed` plus the number of texts before its first. So the same texts come again from the same seed,
    prompts and batch size. The random numbers of the caller are left alone.

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
        streamer: gets the tokens while they are made; for a single text only.

    Returns:
        An iterator that generates while it is read: the continuations of one prompt, without it; prompt after prompt.

    Raises:
        UserError: at once, if a prompt with its continuation does not fit into the model's positions, or a string is
            no text because it holds half of a surrogate pair.
    """
    for text in (*prompts, *stop):
        _require_text(text, "a prompt or a stop string")
    rows = _rows([_encode(tokenizer, prompt) for prompt in prompts], max_new_tokens, model)
    options: dict[str, Any] = {"do_sample": temperature != 0, "streamer": streamer}
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


@dataclass(frozen=True)
class _Row:
    """The token ids of a prompt `[T]`, and how many tokens to generate after them."""

    ids: torch.Tensor
    new_tokens: int


def _rows(prompts: list[torch.Tensor], wanted: int | None, model: PreTrainedModel) -> list[_Row]:
    """Each prompt with the tokens to generate after it; an error if they do not fit."""
    positions = model.config.max_position_embeddings
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
    if padding_id is None:
        batch_size = 1  # no token could stand for "nothing here"
    waiting: dict[int, str] = {}  # number of a row to its continuation, until those before it are there
    place = 0
    for numbers in _batches(rows, batch_size):
        batch = [rows[number].ids for number in numbers]
        with _evaluation_mode(model), _own_random_numbers(model.device, seed + numbers[0]):
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
    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    if not ids:
        ids = [tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0]
    return torch.tensor(ids)


def _require_text(text: str, where: str) -> str:
    """Refuse what has no characters: half of a surrogate pair, of JSON or of another program."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = text[error.start : error.start + 1]
        raise UserError(f"{where} holds half of a surrogate pair ({half!r}), which is no text; repair it") from error
    return text


def _left_padded(rows: list[torch.Tensor], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value, padding_side="left")


@contextlib.contextmanager
def _evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextlib.contextmanager
def _own_random_numbers(device: torch.device, seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


# ---- the command ----


def run_generation(args: GenerationArguments, given: dict[str, str]) -> int:
    """The command `generate`: print or write the texts, or answer a terminal prompt by prompt."""
    interactive = args.prompt is None and args.prompt_file is None and sys.stdin.isatty()
    _check_pointless(args, given, interactive)
    _require_other_file(args)
    args.stop = [_argument(text, "--stop") for text in args.stop]
    records = [] if interactive else _read_prompts(args)
    num_prompts = 1 if interactive else len(records)
    if "batch_size" in given and num_prompts * args.num_samples < 2:
        raise UserError("--batch_size has no effect on a single text; leave it out")
    transformers_logging.disable_progress_bar()
    model, tokenizer, _ = load_trained(args.model_path)
    device = current_device_type(use_cpu=False)
    # Generation reads every weight once a token, so half the bytes are nearly half the time.
    model.to(device, dtype=resolve_precision(args.precision, device).dtype)
    session = _Session(args, model, tokenizer)
    # On a CPU, a cache that grows by each token would leave gaps in memory that is kept.
    settings = suit_changing_shapes(device) if device == "cuda" else contextlib.nullcontext()
    with settings, packed_weights(model):
        if interactive:
            _converse(session)
        elif args.output_file is not None:
            session.write(records, Path(args.output_file).expanduser())
        else:
            session.show([record["prompt"] for record in records])
    return 0


def _check_pointless(args: GenerationArguments, given: dict[str, str], interactive: bool) -> None:
    if args.temperature == 0:
        for name in _POINTLESS_WHEN_GREEDY:
            # a file's choice gives way to the command line's
            if name in given and (given[name], given["temperature"]) != ("config", "command line"):
                raise UserError(
                    f"--{name} has no effect with --temperature 0, which always gives the same text; leave it out"
                )
    if interactive and args.output_file is not None:
        raise UserError("--output_file has no effect at a terminal; add --prompt or --prompt_file")


def _require_other_file(args: GenerationArguments) -> None:
    """Refuse an output file that would replace the prompts, by itself or while it is written."""
    if args.output_file is None or args.prompt_file is None:
        return
    prompts, output = Path(args.prompt_file).expanduser(), Path(args.output_file).expanduser()
    for path in (output, _partial_of(output)):
        if os.path.isfile(prompts) and os.path.isfile(path) and os.path.samefile(prompts, path):
            raise UserError(f"--output_file: {output} would replace the prompts of --prompt_file; choose another name")


def _read_prompts(args: GenerationArguments) -> list[dict[str, Any]]:
    """What to continue: records with the key `prompt`."""
    if args.prompt is not None:
        return [{"prompt": _argument(args.prompt, "--prompt")}]
    if args.prompt_file is None:
        return [{"prompt": _piped_prompt()}]
    path = Path(args.prompt_file).expanduser()
    ending = path.suffix.lower()
    if ending in _OTHER_FORMATS:
        raise UserError(f"--prompt_file: {path}: {ending} is not read here; write one prompt per line, or .jsonl")
    try:
        raw = path.read_bytes()
        text = _decoded(raw, f"--prompt_file: {path} cannot be read (it", to_utf8(raw))
    except OSError as error:
        raise UserError(f"--prompt_file: {path} cannot be read ({error.strerror}); give a file of prompts") from error
    numbered = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not numbered:
        raise UserError(f"--prompt_file: {path} is empty; write one prompt per line")
    if ending not in (".jsonl", ".ndjson"):
        return [{"prompt": line} for _, line in numbered]
    with _integers_of_any_length():
        return [_read_record(line, f"--prompt_file: {path}, line {number}") for number, line in numbered]


def _argument(text: str, option: str) -> str:
    """A text of the command line. Bytes that the locale has no characters for (LC_ALL=C) are read as UTF-8.

    Python passes such bytes on as lone surrogates (PEP 383).
    """
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        try:
            raw = os.fsencode(text)
        except UnicodeEncodeError:  # half of a surrogate pair, from a config file
            return _require_text(text, option)
    return _decoded(raw, f"{option} cannot be read (it", normal_line_ends=False)


def _piped_prompt() -> str:
    """Standard input, which is UTF-8 whatever the locale says, without the one line end that ends its last line."""
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:  # a stream of text that another program has put in its place
        text = with_line_feeds(_require_text(sys.stdin.read(), "the prompt from standard input"))
    else:
        text = _decoded(stream.read(), "the prompt from standard input cannot be read (it")
    return text.removesuffix("\n")


def _decoded(raw: bytes, problem: str, remedy: str = "give it in UTF-8", normal_line_ends: bool = True) -> str:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x} at byte {error.start}"
        raise UserError(f"{problem} is not UTF-8); {byte}: {remedy}") from error
    return with_line_feeds(text) if normal_line_ends else text


@contextlib.contextmanager
def _integers_of_any_length() -> Iterator[None]:
    """Lift Python's limit of 4,300 digits, for what stands beside a prompt and is passed on as it is."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(before)


def _read_record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error.msg}") from error
    except RecursionError as error:
        raise UserError(f"{where} has too many brackets inside each other to be passed on; leave them out") from error
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise UserError(f'{where} must be an object like {{"prompt": "..."}}')
    _require_text(record["prompt"], f"{where}: the prompt")
    return record


def _as_json(record: dict[str, Any]) -> str:
    """A line of JSON, in plain characters as far as there are some for it."""
    with _integers_of_any_length():
        line = json.dumps(record, ensure_ascii=False)
        try:
            line.encode("utf-8")
        except UnicodeEncodeError:  # what stands beside the prompt may hold half of a surrogate pair
            line = json.dumps(record)
    return line + "\n"


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
        if len(prompts) * self.args.num_samples == 1:
            streamer = TextStreamer(self.tokenizer, skip_special_tokens=True)
            list(self.texts(prompts, streamer, texts_before))
            return
        total, shown = len(prompts) * self.args.num_samples, 0
        for prompt, completions in zip(prompts, self.texts(prompts, texts_before=texts_before), strict=True):
            for completion in completions:
                shown += 1
                print(f"--- {shown} of {total} ---\n{prompt}{completion}", flush=True)

    def write(self, records: list[dict[str, Any]], path: Path) -> None:
        """Write a line of JSON for each text: what came with the prompt, the sample's number, the continuation.

        The file is replaced when all texts are there. If the run breaks off, those that are finished stay beside it;
        see `_replacing`.
        """
        texts = self.texts([record["prompt"] for record in records])
        try:
            with _replacing(path) as file:
                for record, completions in zip(records, texts, strict=True):
                    for sample, completion in enumerate(completions):
                        line = {**record, "sample": sample, "completion": completion}
                        file.write(_as_json(line))
                    file.flush()
        except OSError as error:
            raise UserError(f"--output_file: {path} cannot be written ({error.strerror})") from error
        print(f"{len(records) * self.args.num_samples:,} texts in {printable(str(path))}")


def _partial_of(path: Path) -> Path:
    """Where the lines of a file stand until all are there; beside what a link leads to."""
    return Path(os.path.realpath(path) + _PARTIAL_SUFFIX)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    """Replace a file in one step by the lines that are written to the stream that this gives.

    Until then they stand beside it in NAME.partial, which replaces that of an earlier run. If the run breaks off, by
    Ctrl-C or an error, the file is left as it was, the partial one stays if there is a line in it, and a line on
    standard error says so. A pipe or a device is no file to replace: it is written at once.
    """
    if path.exists() and not path.is_file():
        with open(path, "w", encoding="utf-8") as stream:
            yield stream
        return
    partial = _partial_of(path)
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.unlink(missing_ok=True)
    try:
        with open(partial, "x", encoding="utf-8") as stream:
            yield stream
        sync(partial)
        os.replace(partial, os.path.realpath(path))
    except BaseException:
        if partial.is_file() and partial.stat().st_size > 0:
            print(f"the texts that are finished are in {printable(str(partial))}", file=sys.stderr, flush=True)
        else:
            partial.unlink(missing_ok=True)
        raise


def _converse(session: _Session) -> None:
    """Answer each line of a terminal until Ctrl-D; each text has a seed of its own."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives the line a history, where the platform has it)
    print("One prompt per line; Ctrl-D ends.")
    for turn in range(sys.maxsize):
        try:
            session.show([_argument(input("> "), "the prompt")], texts_before=turn * session.args.num_samples)
        except EOFError:
            print()
            return
        except UnicodeDecodeError as error:
            print(f"error: the prompt cannot be read ({error.reason}); type UTF-8", file=sys.stderr)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
