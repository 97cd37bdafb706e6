"""A web page on which people write with a model, and see what surprises it.

In: one or two models. Out: a page that this machine serves, made with gradio, or a folder that is a Hugging Face Space
with the same page. The page loads nothing from other hosts and reports to nobody.
"""

import contextlib
import functools
import importlib.util
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ..checkpoints.new_folder import require_new_folder
from ..errors import UserError
from ..model.modeling_gpt2_hf import GPT2HFForCausalLM
from ..options.arguments import DemoArguments
from ..runtime.command_lines import as_typed
from ..runtime.own_process import unplanned_attention
from ..runtime.precision import current_device_type, resolve_precision
from .model_loading import load_trained
from .packed_weights import packed_weights
from .space import write_space
from .surprisal import CLASSES, Token, class_of, token_surprisals
from .text_streaming import stream_texts

if TYPE_CHECKING:
    import gradio as gr

_MAX_SAMPLES = 4
_COLORS = ("#2e7d32", "#9e9d24", "#f9a825", "#ef6c00", "#c62828")  # of the classes of surprisal, green to red
# without gradio's gaps between tokens, so that words can be read
_CSS = ".textfield .token {margin: 0 !important; padding: 2px 0 !important} .textfield .text {padding: 0 !important}"
_NO_TOKEN = "Click on a token: what did the model expect there?"
_SETTINGS = ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "num_samples")


@dataclass(frozen=True)
class DemoModel:
    """A model that people can try.

    Attributes:
        name: the folder or hub id, as it was given.
        source: the folder or hub id that was loaded.
    """

    name: str
    source: str
    model: GPT2HFForCausalLM
    tokenizer: PreTrainedTokenizerBase

    def write(self, prompt: str, **settings: Any) -> Iterator[list[str]]:
        """The texts so far, prompts included, after each token; see `stream_texts`."""
        for texts in stream_texts(self.model, self.tokenizer, prompt, **settings):
            yield [prompt + text for text in texts]

    def read(self, text: str) -> list[Token]:
        """The tokens of a text with their surprisals."""
        return token_surprisals(self.model, self.tokenizer, text)


def run_demo(args: DemoArguments, given: dict[str, str]) -> int:
    """The command `demo`."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError("demo needs gradio: pip install 'gpt2_hf[demo]'")
    transformers_logging.disable_progress_bar()
    if args.space_dir is not None:
        for name in ("host", "port"):
            if given.get(name) == "command line":
                raise UserError(f"--{name} has no effect with --space_dir, which serves nothing; leave it out")
        target = require_new_folder(args.space_dir, "--space_dir")
        write_space([load_demo_model(path) for path in args.model_path], target)
        upload = as_typed("hf", "upload", "USER/NAME", str(target), ".", "--repo-type", "space")
        print(f"written: {target}; try it: {as_typed('cd', str(target))} && python app.py")
        print(f"publish it: hf repos create USER/NAME --type space --space-sdk gradio && {upload}")
        return 0
    _require_free_port(args.host, args.port)
    serve(args.model_path, args.host, args.port)
    return 0


def load_demo_model(path: str) -> DemoModel:
    """Load a model and its tokenizer, in fp32 on the CPU.

    Raises:
        UserError: if there is no model, or it has no tokenizer.
    """
    model, tokenizer, source = load_trained(path)
    return DemoModel(path, source, model, tokenizer)


def serve(model_paths: Sequence[str], host: str | None = None, port: int | None = None) -> None:
    """Serve the page until Ctrl-C, on the device there is.

    Args:
        model_paths: folders, checkpoint names or hub ids.
        host: address to listen at; gradio's choice when left out, which a Space sets in its environment.
        port: likewise.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # it is read when gradio is imported
    _pass_by_proxies(host)
    models = [load_demo_model(path) for path in model_paths]
    with _ready(models):
        page = build_page(models)
        page.launch(server_name=host, server_port=port, share=False, show_error=True, footer_links=[], css=_CSS)


def _pass_by_proxies(host: str | None) -> None:
    """Let gradio reach its own server where the environment names a proxy: it asks for the page before it is there."""
    excepted = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    hosts = ",".join(filter(None, [excepted, "localhost", "127.0.0.1", "::1", host]))
    os.environ.update(no_proxy=hosts, NO_PROXY=hosts)


@contextlib.contextmanager
def _ready(models: Sequence[DemoModel]) -> Iterator[None]:
    """Move the models to the device, in its precision, as `generate` does."""
    device = current_device_type(use_cpu=False)
    with contextlib.ExitStack() as stack:
        stack.enter_context(unplanned_attention())  # each text has a length of its own
        for one in models:
            one.model.to(device, dtype=resolve_precision("auto", device).dtype)
            stack.enter_context(packed_weights(one.model))
        yield


def _require_free_port(host: str, port: int) -> None:
    """Raise a `UserError` if nothing can listen there, before a model is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            if os.name == "posix":  # elsewhere it would allow a port that is taken
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port}: {error.strerror}; give another --port, or an address of this machine"
        ) from error


# ---- the page ----


def build_page(models: Sequence[DemoModel]) -> "gr.Blocks":
    """The page, not yet served."""
    import gradio as gr

    names = " and ".join(f"`{one.name}`" for one in models)
    with gr.Blocks(title="gpt2_hf demo", analytics_enabled=False) as page:
        gr.Markdown(f"# Write with a model, and see what surprises it\n\n{names}")
        with gr.Tab("Write"):
            _writing(models)
        with gr.Tab("Read"):
            _reading(models)
    return page


def _writing(models: Sequence[DemoModel]) -> None:
    """Prompt, settings, and a box for each sample of each model."""
    import gradio as gr

    positions = min(one.model.config.n_positions for one in models)
    prompt = gr.Textbox(label="Prompt", lines=3, elem_id="prompt")
    with gr.Row():
        new_tokens = gr.Slider(1, positions - 1, min(128, positions // 2), step=1, label="max_new_tokens")
        temperature = gr.Slider(0, 2, 0.8, step=0.05, label="temperature", info="0: the likeliest token each time")
        top_k = gr.Slider(0, 200, 0, step=1, label="top_k", info="0: no limit")
    with gr.Row():
        top_p = gr.Slider(0.05, 1, 0.95, step=0.05, label="top_p", info="1: no limit")
        seed = gr.Slider(0, 10_000, 42, step=1, label="seed")
        samples = gr.Slider(1, _MAX_SAMPLES, 1, step=1, label="samples")
    with gr.Row():
        start = gr.Button("Write", variant="primary", elem_id="write")
        stop = gr.Button("Stop", elem_id="stop")
    boxes = []
    with gr.Row():
        for m, one in enumerate(models):
            with gr.Column():
                if len(models) > 1:
                    gr.Markdown(f"`{one.name}`")
                with gr.Row():
                    boxes += [
                        gr.Textbox(
                            label=f"sample {i + 1}", lines=8, interactive=False, visible=i == 0, buttons=["copy"],
                            elem_id=f"text-{m}-{i}", min_width=240,
                        )
                        for i in range(_MAX_SAMPLES)
                    ]  # fmt: skip
    settings = [new_tokens, temperature, top_k, top_p, seed, samples]
    samples.change(
        lambda n: [gr.update(visible=i < n) for _ in models for i in range(_MAX_SAMPLES)], samples, boxes,
        queue=False, show_progress="hidden",
    )  # fmt: skip
    write = functools.partial(write_all, models)
    # one text at a time: the models share the device and its random numbers
    event = gr.on(
        [start.click, prompt.submit], _saying_errors(write), [prompt, *settings], boxes, concurrency_id="model"
    )
    stop.click(None, cancels=[event])


def write_all(models: Sequence[DemoModel], prompt: str, *values: float) -> Iterator[list[str]]:
    """Let each model continue the prompt, one after the other, with the same settings.

    Args:
        models: what writes.
        prompt: the text to continue.
        values: `max_new_tokens, temperature, top_k, top_p, seed, num_samples`.

    Yields:
        The text of each box of the page so far, `_MAX_SAMPLES` for each model.
    """
    settings: dict[str, Any] = dict(zip(_SETTINGS, values, strict=True))
    settings |= {name: int(settings[name]) for name in _SETTINGS if name not in ("temperature", "top_p")}
    shown = [""] * (len(models) * _MAX_SAMPLES)
    for m, one in enumerate(models):
        for texts in one.write(prompt, **settings):
            first = m * _MAX_SAMPLES
            shown[first : first + len(texts)] = texts
            yield list(shown)


def _reading(models: Sequence[DemoModel]) -> None:
    """A text, and how each model takes it."""
    import gradio as gr

    def token_clicked(tokens: list[Token], event: gr.SelectData) -> str:
        return describe(Token(*tokens[event.index]))

    text = gr.Textbox(label="Text", lines=6, elem_id="text")
    button = gr.Button("Read", variant="primary", elem_id="read")
    outputs: list[Any] = []
    with gr.Row():
        for m, one in enumerate(models):
            with gr.Column():
                summary = gr.Markdown(f"`{one.name}`" if len(models) > 1 else "", elem_id=f"summary-{m}")
                colored = gr.HighlightedText(
                    label="Surprisal of each token",
                    color_map=dict(zip((name for name, _ in CLASSES), _COLORS, strict=True)),
                    show_legend=True, combine_adjacent=False, elem_id=f"colors-{m}",
                )  # fmt: skip
                expected = gr.Markdown(_NO_TOKEN, elem_id=f"expected-{m}")
                tokens = gr.State([])
                colored.select(token_clicked, tokens, expected, queue=False)
                outputs += [summary, colored, expected, tokens]
    read = functools.partial(read_all, models)
    button.click(_saying_errors(read), text, outputs, concurrency_id="model")


def read_all(models: Sequence[DemoModel], text: str) -> list[Any]:
    """For each model: a line about the whole text, the tokens with their classes, a hint, and the tokens."""
    outputs: list[Any] = []
    for one in models:
        tokens = one.read(text)
        nats = [token.nats for token in tokens if token.nats is not None]
        mean = f"{sum(nats) / len(nats):.3f} nats per token on average" if nats else "no token to predict"
        summary = f"`{one.name}`: {len(tokens):,} tokens, {mean}"
        outputs += [summary, colored(tokens), _NO_TOKEN, tokens]
    return outputs


def colored(tokens: Sequence[Token]) -> list[tuple[str, str | None]]:
    """Each token with the class of its surprisal; a token inside a character is shown as ‹›."""
    return [(token.text or "‹›", None if token.nats is None else class_of(token.nats)) for token in tokens]


def describe(token: Token) -> str:
    """A token, its surprisal, and a table of what the model expected, as Markdown."""
    if token.nats is None:
        return f"{_code(token.text)} is the first token: nothing predicts it."
    rows = [f"| {_code(text)} | {probability:.2%} |" for text, probability in token.alternatives]
    return "\n".join(
        [f"{_code(token.text)}: {token.nats:.2f} nats", "", "| expected | probability |", "|---|--:|", *rows]
    )


def _code(text: str) -> str:
    """A text between backquotes that shows its blanks, for a table of Markdown."""
    shown = repr(text)[1:-1].replace("`", "\u02cb").replace("|", "\u2223").replace(" ", "\u00b7")
    return f"`{shown or '‹›'}`"


def _saying_errors(function: Any) -> Any:
    """The function, whose `UserError` becomes a message on the page."""
    import gradio as gr

    @contextlib.contextmanager
    def said() -> Iterator[None]:
        try:
            yield
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def generator(*values: Any) -> Iterator[Any]:
        with said():
            result = function(*values)
            if isinstance(result, list):
                yield result
            else:
                yield from result

    return generator
