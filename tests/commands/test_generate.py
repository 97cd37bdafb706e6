"""Text: what `generate` gives equals stock GPT-2's, and our own function keeps its promises."""

import io
import json
import os
import shutil
import sys

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    CompileConfig,
    ContinuousBatchingConfig,
    GenerationConfig,
    PreTrainedTokenizerFast,
    StaticCache,
    TextStreamer,
    pipeline,
)

from gpt2_hf import generate_text, generate_texts, load_tokenizer
from gpt2_hf.__main__ import main
from gpt2_hf.commands import generate as generate_command
from gpt2_hf.errors import UserError

from ..tiny_models import (
    LENGTHS,
    N_POSITIONS,
    attention_backend,
    make_model,
    make_stock,
    padded_batch,
    random_ids,
    twin_of,
)

WAYS = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 20, "top_p": 0.9, "temperature": 1.5},
    "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "beam_sampling": {"do_sample": True, "num_beams": 2},
    "repetition": {"do_sample": False, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    "lookup": {"do_sample": False, "prompt_lookup_num_tokens": 2},
}


def generate(model, inputs, seed=0, **options):
    """New tokens, from a fixed seed."""
    torch.manual_seed(seed)
    return model.generate(**inputs, max_new_tokens=12, pad_token_id=96, eos_token_id=96, **options)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    """That of the tiny corpus: a command reads it in a moment."""
    return tiny_tokenizer


# --- transformers' generate ---


@pytest.mark.parametrize("prompt", ["batch", "left"])
@pytest.mark.parametrize(
    ("way", "use_cache"),
    # Looking drafts up in the prompt is defined with a cache only.
    [(way, use_cache) for way in WAYS for use_cache in (True, False) if use_cache or way != "lookup"],
)
def test_generate_equals_stock(way, prompt, use_cache):
    """Greedy, sampled and beam output equal stock's token by token, with and without padding and cache."""
    stock = make_stock()
    rows = 1 if way == "lookup" else 3
    inputs = {"input_ids": random_ids(3, 8)} if prompt == "batch" else padded_batch("left")
    inputs = {name: value[:rows] for name, value in inputs.items() if name != "position_ids"}
    expected = generate(stock, inputs, use_cache=use_cache, **WAYS[way])
    assert torch.equal(generate(twin_of(stock), inputs, use_cache=use_cache, **WAYS[way]), expected)


@pytest.mark.parametrize("backend", ["eager", "flex_attention"])
@pytest.mark.parametrize("way", ["greedy", "beams"])
def test_generate_equals_stock_on_other_backends(backend, way):
    """The other backends write the same text."""
    stock = make_stock()
    inputs = padded_batch("left")
    with attention_backend(backend):
        assert torch.equal(
            generate(twin_of(stock, backend), inputs, **WAYS[way]), generate(stock, inputs, **WAYS[way])
        )


@pytest.mark.parametrize("prompt", ["batch", "left"])
@pytest.mark.parametrize(
    ("backend", "way"),
    [("sdpa", "greedy"), ("sdpa", "sampling"), ("sdpa", "beams"), ("eager", "greedy")],
)
def test_static_cache_equals_dynamic(backend, way, prompt):
    """A static cache changes no token."""
    model = make_model(backend)
    inputs = {"input_ids": random_ids(3, 8)} if prompt == "batch" else padded_batch("left")
    static = generate(model, inputs, cache_implementation="static", **WAYS[way])
    assert torch.equal(static, generate(model, inputs, **WAYS[way]))


def test_flex_attention_with_a_static_cache_is_refused():
    """The one combination that would give wrong text is refused, in generate and by hand."""
    model = make_model("flex_attention")
    with pytest.raises(ValueError, match="flex_attention cannot use a static cache"):
        model.generate(random_ids(1, 5), max_new_tokens=3, cache_implementation="static")
    with pytest.raises(ValueError, match="flex_attention cannot use a static cache"):
        model(random_ids(1, 5), past_key_values=StaticCache(config=model.config, max_cache_len=8))


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)], ids=["traced", "inductor"]
)
def test_compiled_static_decoding(backend):
    """Decoding compiled as one graph over a static cache writes the same text."""
    torch._dynamo.reset()
    model = make_model(n_layer=2)
    inputs = {"input_ids": random_ids(2, 8)}
    mode = "default" if backend == "inductor" else None
    compile_config = CompileConfig(backend=backend, mode=mode, fullgraph=True)
    compile_config._compile_all_devices = True  # generate compiles on accelerators only, unless told
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled = generate(model, inputs, do_sample=False, cache_implementation="static", compile_config=compile_config)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs + 1
    assert torch.equal(compiled, generate(model, inputs, do_sample=False))


@pytest.mark.parametrize("assistant", ["stock", "ours"])
def test_assisted_decoding_changes_no_token(assistant):
    """A smaller model that drafts, or stock GPT-2 with the same weights, leaves greedy text as it is."""
    stock = make_stock()
    model = twin_of(stock)
    drafting = stock if assistant == "stock" else make_model(n_layer=1)
    inputs = {"input_ids": random_ids(1, 8)}
    expected = generate(model, inputs, do_sample=False)
    assert torch.equal(generate(model, inputs, do_sample=False, assistant_model=drafting), expected)
    if assistant == "stock":
        assert torch.equal(generate(stock, inputs, do_sample=False, assistant_model=model), expected)


@pytest.mark.parametrize("rest", [2, 14])
def test_drafts_end_with_the_last_position(rest):
    """Text drafted from the prompt fills n_positions as greedy text does; a draft could run over the end."""
    model = make_model()
    model.generation_config.eos_token_id = None
    ids = torch.full((1, N_POSITIONS - rest), 5)
    expected = model.generate(ids, max_new_tokens=rest, do_sample=False)
    drafted = model.generate(ids, max_new_tokens=rest, do_sample=False, prompt_lookup_num_tokens=10)
    assert torch.equal(drafted, expected)


def test_generation_from_embeddings():
    """A prompt given as embeddings is continued like its ids."""
    model = make_model()
    ids = random_ids(1, 8)
    embeddings = model.get_input_embeddings()(ids)
    expected = generate(model, {"input_ids": ids}, do_sample=False)[:, 8:]
    assert torch.equal(generate(model, {"inputs_embeds": embeddings}, do_sample=False), expected)


def test_continuing_from_a_cache():
    """A conversation continued from the cache that generate returned equals the whole prompt at once."""
    model = make_model()
    first = generate(model, {"input_ids": random_ids(1, 5)}, do_sample=False, return_dict_in_generate=True)
    longer = torch.cat([first.sequences, random_ids(1, 2, seed=4)], dim=1)
    again = generate(model, {"input_ids": longer, "past_key_values": first.past_key_values}, do_sample=False)
    assert torch.equal(again, generate(model, {"input_ids": longer}, do_sample=False))


def test_checkpointing_in_training_mode_writes_the_same_text_or_none():
    """Layers that are recomputed take no cache, and each new token would see itself alone."""
    model = make_model()
    ids = random_ids(1, 8)
    expected = model.generate(ids, max_new_tokens=6, do_sample=False)
    cache = model(ids, use_cache=True).past_key_values
    model.gradient_checkpointing_enable()
    model.train()
    assert torch.equal(model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=False), expected)
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first, or generate with use_cache=False"):
        model.generate(ids, max_new_tokens=6, do_sample=False)
    with pytest.raises(ValueError, match="no cache in training mode"):
        model(random_ids(1, 1), past_key_values=cache)


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize(
    "by", ["prompt", "max_new_tokens", "max_length", "embeddings", "embeddings and ids", "beams", "padded"]
)
def test_beyond_the_positions_is_refused_before_the_model_runs(by, cache):
    """A prompt or a length beyond n_positions is a ValueError with both numbers, and not one forward pass is made."""
    model = make_model()
    ids = random_ids(1, 30)
    options = {
        "prompt": {"input_ids": random_ids(1, N_POSITIONS)},  # with the first new token
        "max_new_tokens": {"input_ids": ids, "max_new_tokens": 3},
        "max_length": {"input_ids": ids, "max_length": 33},
        "embeddings": {"inputs_embeds": model.get_input_embeddings()(ids), "max_new_tokens": 3},
        "embeddings and ids": {
            "input_ids": ids[:, :2],
            "inputs_embeds": model.get_input_embeddings()(ids),
            "position_ids": torch.arange(30)[None],
            "max_length": 35,  # the ids count, and the embeddings count beside them
        },
        "beams": {"input_ids": ids, "max_new_tokens": 3, "num_beams": 2},
        "padded": {
            "input_ids": F.pad(ids, (10, 0)),
            "attention_mask": F.pad(torch.ones_like(ids), (10, 0)),
            "max_new_tokens": 3,
        },
    }[by]
    model.register_forward_pre_hook(lambda *args: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match=r"33 tokens but the model has 32 positions \(n_positions\)"):
        model.generate(**options, cache_implementation=cache, do_sample=False)


@torch.no_grad()
@pytest.mark.parametrize("ids", ["new", "all"])
def test_beyond_the_positions_from_a_cache_is_refused_before_the_model_runs(ids):
    """What the cache holds counts, whether the ids are the new ones alone or all; n_positions can be filled."""
    model, tokens = make_model(), random_ids(2, 13)
    model.generation_config.eos_token_id = None
    cache = model(tokens[:, :10], use_cache=True).past_key_values
    options = {
        "input_ids": tokens[:, 10:] if ids == "new" else tokens,
        "attention_mask": torch.ones_like(tokens),
        "past_key_values": cache,
        "do_sample": False,
    }
    handle = model.register_forward_pre_hook(lambda *args: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match="33 tokens but the model has 32 positions"):
        model.generate(**options, max_new_tokens=20)
    handle.remove()
    continued = model.generate(**options, max_new_tokens=19)
    whole = model.generate(tokens, max_new_tokens=19, do_sample=False)
    assert torch.equal(continued[:, -19:], whole[:, -19:]) and whole.shape[1] == N_POSITIONS


@pytest.mark.parametrize("cache", [None, "static"])
def test_the_last_position_can_be_used(cache):
    """Prompt and continuation may fill n_positions exactly, also when only the default length is given."""
    model = make_model()
    model.generation_config.eos_token_id = None
    ids = random_ids(1, 30)
    assert model.generate(ids, max_new_tokens=2, cache_implementation=cache).shape[1] == N_POSITIONS
    assert model.generate(ids, cache_implementation=cache).shape[1] == N_POSITIONS


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"use_cache": False}])
def test_padding_takes_no_position(options):
    """A batch that is padded on the left to n_positions is continued as by stock."""
    stock = make_stock()
    padding = (N_POSITIONS - max(LENGTHS), 0)
    inputs = {name: F.pad(given, padding) for name, given in padded_batch("left").items() if name != "position_ids"}
    expected = generate(stock, inputs, do_sample=False, **options)
    assert torch.equal(generate(twin_of(stock), inputs, do_sample=False, **options), expected)


@torch.no_grad()
def test_a_static_cache_by_hand():
    """A loop with a StaticCache gives the logits of the whole sequence."""
    model = make_model()
    ids = random_ids(2, 10)
    cache = StaticCache(config=model.config, max_cache_len=N_POSITIONS)
    logits = [model(piece, past_key_values=cache).logits for piece in ids.split([4, 1, 1, 4], dim=1)]
    assert (torch.cat(logits, dim=1) - model(ids).logits).abs().max() <= 1e-5


@pytest.mark.parametrize("graphs", [False, True])
def test_continuous_batching(graphs):
    """generate_batch, the engine of `transformers serve`, gives each prompt its own greedy continuation.

    With CUDA graphs it calls the padded batch of all requests one length, which may be beyond n_positions.
    """
    engine = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64, page_size=16)
    model = make_model()
    if graphs:
        lengths = {"max_length_q": 2 * N_POSITIONS}
        model.transformer.register_forward_pre_hook(lambda _, args, kwargs: (args, kwargs | lengths), with_kwargs=True)
    prompts = [random_ids(length, seed=length).tolist() for length in (5, 9)]
    config = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=96, pad_token_id=96)
    outputs = model.generate_batch(prompts, config, continuous_batching_config=engine, progress_bar=False)
    generated = [output.generated_tokens for output in outputs.values()]
    for prompt, tokens in zip(prompts, generated, strict=True):
        alone = model.generate(torch.tensor([prompt]), generation_config=config)
        assert tokens == alone[0, len(prompt) :].tolist()


def test_pipeline(tokenizer):
    """pipeline("text-generation") writes what generate writes."""
    model = make_model(vocab_size=len(tokenizer), n_positions=64)
    generator = pipeline("text-generation", model=model, tokenizer=tokenizer)
    text = generator("The language", max_new_tokens=6, do_sample=False)[0]["generated_text"]
    ids = tokenizer("The language", return_tensors="pt").input_ids
    expected = model.generate(ids, max_new_tokens=6, do_sample=False)
    assert text == tokenizer.decode(expected[0], skip_special_tokens=True)


# --- our own function ---


def model_for(tokenizer):
    end = tokenizer.eos_token_id
    return make_model(vocab_size=len(tokenizer), n_positions=64, bos_token_id=end, eos_token_id=end)


@pytest.fixture(scope="module")
def model(tokenizer):
    return model_for(tokenizer)


@pytest.fixture(scope="module")
def gpt2():
    """GPT-2's tokenizer, whose tokens are words and not bytes, and a model with as many tokens."""
    tokenizer = load_tokenizer()
    return model_for(tokenizer), tokenizer


def test_a_seed_gives_one_text_and_leaves_the_callers_numbers_alone(model, tokenizer):
    """The same seed gives the same text, another seed another; the global generator does not move."""
    options = {"max_new_tokens": 8, "temperature": 1.0}
    state = torch.random.get_rng_state()
    texts = [generate_text(model, tokenizer, "The", seed=seed, **options) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_other_devices_keep_their_random_numbers(model, tokenizer, monkeypatch):
    """A training on a GPU draws on as before while a model on the CPU writes."""
    seeded = []
    for device in (torch.cuda, torch.mps, torch.xpu):
        for name in {"manual_seed", "manual_seed_all"} & {*dir(device)}:
            monkeypatch.setattr(device, name, lambda seed, name=f"{device.__name__}.{name}": seeded.append(name))
    generate_text(model, tokenizer, "The", max_new_tokens=2, temperature=1.0)
    assert not seeded
    torch.manual_seed(1)  # which would be noticed
    assert len(seeded) == 3


def test_attention_is_not_planned_anew_for_each_token(model, tokenizer):
    """On a GPU a plan takes longer than the token; the caller's setting is as it was."""
    planned, seen = torch.backends.cuda.cudnn_sdp_enabled(), []
    hook = model.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cuda.cudnn_sdp_enabled()))
    generate_text(model, tokenizer, "The", max_new_tokens=2)
    hook.remove()
    assert seen and not any(seen) and torch.backends.cuda.cudnn_sdp_enabled() == planned


def test_samples_differ_and_greedy_ones_do_not(model, tokenizer):
    """num_samples texts come back, each with the prompt; at temperature 0 they are all the likeliest one."""
    sampled = generate_text(model, tokenizer, "The", num_samples=3, max_new_tokens=8, temperature=1.0)
    assert len(set(sampled)) == 3 and all(text.startswith("The") for text in sampled)
    greedy = generate_text(model, tokenizer, "The", num_samples=2, max_new_tokens=8, temperature=0)
    ids = tokenizer("The", return_tensors="pt").input_ids
    expected = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert greedy == [tokenizer.decode(expected[0], skip_special_tokens=True)] * 2
    assert generate_text(model, tokenizer, "The", max_new_tokens=8, top_k=1, seed=5) == greedy[:1]


def test_stock_gpt2_is_served_as_well(tokenizer):
    """generate_text takes any causal language model of transformers."""
    stock = make_stock(vocab_size=len(tokenizer), n_positions=64)
    options = {"max_new_tokens": 8, "temperature": 0}
    assert generate_text(stock, tokenizer, "A", **options) == generate_text(twin_of(stock), tokenizer, "A", **options)


def test_an_empty_prompt_starts_a_text(model, tokenizer):
    """Without a prompt the text starts from the end-of-text token, which is not shown."""
    (text,) = generate_text(model, tokenizer, "", max_new_tokens=8, temperature=1.0)
    assert text and "<|endoftext|>" not in text


def test_too_long_a_request_is_refused_with_its_numbers(model, tokenizer):
    """Prompt and continuation beyond the positions are a UserError that names option and numbers."""
    with pytest.raises(UserError, match=r"the prompt has 1 tokens and --max_new_tokens is 64.* 64 positions"):
        generate_text(model, tokenizer, "The", max_new_tokens=64)
    generate_text(model, tokenizer, "The", max_new_tokens=63)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_kept(model, tokenizer, training):
    """The model and each part of it come back in the mode they were in, also when generation fails."""
    model.train(training)
    model.transformer.h[0].eval()  # frozen
    before = [module.training for module in model.modules()]
    generate_text(model, tokenizer, "The", max_new_tokens=2)
    assert [module.training for module in model.modules()] == before
    with pytest.raises(ValueError, match="temperature"):
        generate_text(model, tokenizer, "The", max_new_tokens=2, temperature=-1.0)
    assert [module.training for module in model.modules()] == before
    model.eval()


PROMPTS = ["The", "", "A statement is", "One two three four five six"]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_greedy_text_does_not_depend_on_the_batches(model, tokenizer, batch_size):
    """Prompts of different length in left-padded batches: in fp32 each is continued as alone."""
    alone = [generate_text(model, tokenizer, prompt, max_new_tokens=8, temperature=0) for prompt in PROMPTS]
    together = generate_texts(model, tokenizer, PROMPTS, max_new_tokens=8, temperature=0, batch_size=batch_size)
    assert [[prompt + text for text in texts] for prompt, texts in zip(PROMPTS, together, strict=True)] == alone


def test_sampled_texts_come_again_from_seed_prompts_and_batch_size(model, tokenizer):
    """The same call gives the same texts; all of them differ, also between batches and equal prompts."""
    options = {"max_new_tokens": 8, "temperature": 1.0, "num_samples": 2, "batch_size": 3}
    texts = list(generate_texts(model, tokenizer, ["The", "The", "A"], **options))
    assert list(generate_texts(model, tokenizer, ["The", "The", "A"], **options)) == texts
    assert len({text for pair in texts for text in pair}) == 6


def test_left_out_the_length_is_what_fits(model, tokenizer):
    """128 tokens, or the room after the prompt; a prompt that fills the model is refused."""
    prompt = "The " * 20
    room = 64 - len(tokenizer(prompt).input_ids)
    shorter, whole = (
        generate_text(model, tokenizer, prompt, temperature=0, max_new_tokens=tokens) for tokens in (room - 1, room)
    )
    assert shorter != whole == generate_text(model, tokenizer, prompt, temperature=0)
    for tokens in (64, 65):
        message = f"prompt 2 has {tokens} tokens, which leave no room in the model's 64 positions; shorten it"
        with pytest.raises(UserError, match=message):
            generate_texts(model, tokenizer, ["The", "The" * tokens])


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_long_prompt_shortens_no_other_text(model, tokenizer, batch_size):
    """Left out, the length is that of each prompt alone, and the texts come in the order of the prompts."""
    prompts = ["The" * 60, "A", "The" * 62, "One", "A" * 60]
    alone = [generate_text(model, tokenizer, prompt, temperature=0) for prompt in prompts]
    together = generate_texts(model, tokenizer, prompts, temperature=0, batch_size=batch_size)
    assert [[prompt + text for text in texts] for prompt, texts in zip(prompts, together, strict=True)] == alone
    assert min(len(tokenizer(text).input_ids) for (text,) in (alone[1], alone[3])) > 32
    sampled = list(generate_texts(model, tokenizer, prompts, num_samples=2, batch_size=batch_size))
    assert [len(texts) for texts in sampled] == [2] * 5 and sampled[1][0] != sampled[1][1]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_stop_strings_end_each_text(gpt2, batch_size):
    """A text ends with the token that completes the string; the others of the batch go on."""
    model, tokenizer = gpt2
    options = {"max_new_tokens": 8, "temperature": 0, "batch_size": batch_size}
    free = [texts[0] for texts in generate_texts(model, tokenizer, PROMPTS, **options)]
    stop = tokenizer.decode(tokenizer(free[0]).input_ids[2:4])
    stopped = [texts[0] for texts in generate_texts(model, tokenizer, PROMPTS, stop=[stop], **options)]
    for whole, part in zip(free, stopped, strict=True):
        assert whole.startswith(part)
        assert (stop in part) if stop in whole else (part == whole)
    assert len(stopped[0]) < len(free[0])


def test_stop_strings_end_each_text_of_a_model_without_an_end(gpt2, monkeypatch):
    """Where the model has no end-of-text token, a text in a batch is as long as alone."""
    model, tokenizer = gpt2
    monkeypatch.setattr(model.generation_config, "eos_token_id", None)
    options = {"max_new_tokens": 8, "temperature": 0}
    (free,) = generate_text(model, tokenizer, PROMPTS[0], **options)
    options["stop"] = [tokenizer.decode(tokenizer(free.removeprefix(PROMPTS[0])).input_ids[2:4])]
    alone = [generate_text(model, tokenizer, prompt, **options) for prompt in PROMPTS]
    together = generate_texts(model, tokenizer, PROMPTS, batch_size=4, **options)
    assert [[prompt + text for text in texts] for prompt, texts in zip(PROMPTS, together, strict=True)] == alone
    assert len(alone[0][0]) < len(free)


def test_batches_need_no_padding_where_no_text_ends(tokenizer, monkeypatch):
    """Tokenizer and model without an end-of-text token: what is padded is hidden, and the texts are those alone."""
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    model = make_model(vocab_size=len(tokenizer), n_positions=64, bos_token_id=None, eos_token_id=None)
    sizes = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda ids, **more: sizes.append(len(ids)) or generate(ids, **more))
    options = {"max_new_tokens": 8, "temperature": 0}
    alone = [generate_text(model, bare, prompt, **options) for prompt in PROMPTS]
    together = generate_texts(model, bare, PROMPTS, batch_size=4, **options)
    assert [[prompt + text for text in texts] for prompt, texts in zip(PROMPTS, together, strict=True)] == alone
    assert sizes == [1, 1, 1, 1, 4]


def test_a_model_without_positions_has_no_limit(tokenizer):
    """Any causal language model: one without learned positions takes any length."""
    bloom = BloomForCausalLM(BloomConfig(vocab_size=len(tokenizer), hidden_size=16, n_layer=1, n_head=2)).eval()
    assert not hasattr(bloom.config, "max_position_embeddings")
    (text,) = generate_text(bloom, tokenizer, "The", temperature=0, min_new_tokens=128)
    assert len(tokenizer(text).input_ids) > 64


def test_a_tokenizer_without_an_end_takes_text_after_text(model, tokenizer):
    """Where no token can stand for padding, the texts are generated one at a time, and are the same."""
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    assert bare.pad_token_id is bare.eos_token_id is None
    options = {"max_new_tokens": 8, "temperature": 0}
    prompts = [prompt for prompt in PROMPTS if prompt]
    assert list(generate_texts(model, bare, prompts, **options)) == list(
        generate_texts(model, tokenizer, prompts, **options)
    )


# --- the command ---


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    """A saved model with its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def gpt2_folder(gpt2, tmp_path_factory):
    """The same with GPT-2's tokenizer."""
    folder = tmp_path_factory.mktemp("gpt2")
    for each in gpt2:
        each.save_pretrained(folder)
    return str(folder)


def use_stdin(monkeypatch, text, terminal):
    """Let the command read its standard input from here."""
    stdin = io.StringIO(text)
    stdin.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stdin", stdin)


def test_the_command(folder, capsys):
    """`generate` prints one text per sample; a prompt that is too long exits with 2 and one line."""
    command = ["generate", "--model_path", folder, "--max_new_tokens", "4"]
    assert main([*command, "--prompt", "The", "--num_samples", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("--- 1 of 2 ---\nThe") and "--- 2 of 2 ---\nThe" in printed
    assert main([*command, "--prompt", "The " * 70]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error and "64 positions" in error


@pytest.mark.parametrize("seed", [1, 2])
def test_a_single_text_is_streamed(gpt2, gpt2_folder, monkeypatch, capsys, seed):
    """It is printed while it is made, piece by piece, and is the text that generate_text gives."""
    pieces = []
    put = TextStreamer.on_finalized_text
    monkeypatch.setattr(
        TextStreamer, "on_finalized_text", lambda self, text, **end: pieces.append(text) or put(self, text, **end)
    )
    command = ["generate", "--model_path", gpt2_folder, "--prompt", "The", "--temperature", "1", "--seed", str(seed)]
    assert main([*command, "--max_new_tokens", "24"]) == 0
    (expected,) = generate_text(*gpt2, "The", temperature=1.0, seed=seed, max_new_tokens=24)
    assert capsys.readouterr().out == expected + "\n"
    assert len([piece for piece in pieces if piece]) > 3


def test_beams_and_sequences_of_the_generation_config(folder, model, tokenizer, tmp_path, capsys):
    """A text of beam search is printed when it is done; one sample is one text, whatever number the config has."""
    copy = shutil.copytree(folder, tmp_path / "model")
    end = tokenizer.eos_token_id
    config = {"num_beams": 4, "num_return_sequences": 2, "eos_token_id": end, "pad_token_id": end}
    (copy / "generation_config.json").write_text(json.dumps(config))
    command = ["generate", "--model_path", str(copy), "--prompt", "The", "--temperature", "0", "--precision", "fp32"]
    assert main([*command, "--max_new_tokens", "4"]) == 0
    ids = tokenizer("The", return_tensors="pt").input_ids
    expected = model.generate(ids, max_new_tokens=4, num_beams=4, do_sample=False)
    assert capsys.readouterr().out == tokenizer.decode(expected[0], skip_special_tokens=True) + "\n"


def test_without_standard_input_a_prompt_is_asked_for(folder, monkeypatch, capsys):
    """`<&-`, as a service may have it."""
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["generate", "--model_path", folder]) == 2
    assert capsys.readouterr().err == "error: there is no standard input; give --prompt or --prompt_file\n"
    assert main(["generate", "--model_path", folder, "--prompt", "The", "--max_new_tokens", "2"]) == 0


def test_a_pipe_is_the_prompt(folder, model, tokenizer, monkeypatch, capsys):
    """Standard input that is no terminal is one prompt, line ends inside it kept."""
    use_stdin(monkeypatch, "One\ntwo\n", terminal=False)
    assert main(["generate", "--model_path", folder, "--temperature", "0", "--max_new_tokens", "4"]) == 0
    (expected,) = generate_text(model, tokenizer, "One\ntwo", temperature=0, max_new_tokens=4)
    assert capsys.readouterr().out == expected + "\n"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("is_text", [True, False])
def test_a_pipe_loses_one_line_end(folder, model, tokenizer, monkeypatch, capsys, end, is_text):
    """The end of the last line is none of the prompt; empty lines before it are, in every form of a line end."""
    piped = f"One{end}{end}{end}"
    if is_text:
        use_stdin(monkeypatch, piped, terminal=False)
    else:
        pipe(monkeypatch, piped.encode())
    assert main(["generate", "--model_path", folder, "--temperature", "0", "--max_new_tokens", "4"]) == 0
    (expected,) = generate_text(model, tokenizer, "One\n\n", temperature=0, max_new_tokens=4)
    assert capsys.readouterr().out == expected + "\n"


def test_a_terminal_is_answered_line_by_line(folder, model, tokenizer, monkeypatch, capsys):
    """Each line is a prompt with a seed of its own; one that is too long is an error and no end; Ctrl-D ends."""
    use_stdin(monkeypatch, "\n".join(["The", "The", "The " * 70, "A"]) + "\n", terminal=True)
    assert main(["generate", "--model_path", folder, "--temperature", "1", "--max_new_tokens", "6"]) == 0
    out, err = capsys.readouterr()
    texts = [
        generate_text(model, tokenizer, prompt, temperature=1.0, max_new_tokens=6, seed=42 + turn)[0]
        for turn, prompt in ((0, "The"), (1, "The"), (3, "A"))
    ]
    assert texts[0] != texts[1]
    assert out.replace("> ", "") == "One prompt per line; Ctrl-D ends.\n" + "\n".join(texts) + "\n\n"
    assert err.count("\n") == 1 and "64 positions" in err


def test_a_terminal_can_have_several_texts_in_batches(folder, monkeypatch, capsys):
    """Four texts for each prompt, two at a time; a single one has no batches."""
    command = ["generate", "--model_path", folder, "--max_new_tokens", "3", "--batch_size", "2"]
    use_stdin(monkeypatch, "The\n", terminal=True)
    assert main([*command, "--num_samples", "4"]) == 0
    assert "--- 4 of 4 ---" in capsys.readouterr().out
    assert main(command) == 2
    assert "--batch_size has no effect on a single text" in capsys.readouterr().err


def test_a_terminal_repeats_no_text(folder, model, tokenizer, monkeypatch, capsys):
    """With several texts a turn, those of the next one have seeds of their own."""
    use_stdin(monkeypatch, "The\nThe\n", terminal=True)
    sampling = ["--temperature", "1", "--max_new_tokens", "6", "--num_samples", "2", "--batch_size", "1"]
    assert main(["generate", "--model_path", folder, *sampling, "--precision", "fp32"]) == 0
    printed = capsys.readouterr().out
    texts = [
        text
        for seed in (42, 44)
        for text in generate_text(
            model, tokenizer, "The", temperature=1.0, max_new_tokens=6, num_samples=2, batch_size=1, seed=seed
        )
    ]
    assert len(set(texts)) == 4
    assert [printed.index(text) for text in texts] == sorted(printed.index(text) for text in texts)


def test_ctrl_c_ends_cleanly(folder, monkeypatch, capsys):
    """Exit code 130 and no traceback."""
    use_stdin(monkeypatch, "", terminal=True)

    def interrupt(prompt):
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupt)
    assert main(["generate", "--model_path", folder]) == 130
    assert capsys.readouterr().err == "\n"


@pytest.mark.parametrize("form", ["txt", "jsonl", "NDJSON"])
def test_a_file_of_prompts(folder, model, tokenizer, tmp_path, capsys, form):
    """Prompts of a file, texts to jsonl: what stands beside a prompt is kept, each sample is a line, in order."""
    prompts = tmp_path / f"prompts.{form}"
    records = [{"prompt": "The", "id": 7}, {"prompt": "A\u2028statement is", "id": 8}, {"prompt": "Ünder", "id": 9}]
    if form == "txt":
        records = [{"prompt": record["prompt"]} for record in records]
        prompts.write_text("\n\n".join(record["prompt"] for record in records), encoding="utf-8")
    else:
        prompts.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    sampling = {"num_samples": 2, "max_new_tokens": 5, "batch_size": 4, "seed": 3}
    options = [f"--{name}={value}" for name, value in sampling.items()]
    output = tmp_path / "new" / "texts.jsonl"
    command = ["generate", "--model_path", folder, "--prompt_file", str(prompts), *options]
    assert main([*command, "--output_file", str(output)]) == 0
    assert f"6 texts in {output}" in capsys.readouterr().out
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").split("\n")[:-1]]
    texts = generate_texts(model, tokenizer, [record["prompt"] for record in records], **sampling)
    assert lines == [
        {**record, "sample": sample, "completion": completion}
        for record, completions in zip(records, texts, strict=True)
        for sample, completion in enumerate(completions)
    ]
    assert main(command) == 0
    assert f"--- 6 of 6 ---\nÜnder{lines[-1]['completion']}\n" in capsys.readouterr().out


@pytest.mark.parametrize("written", ["prompts.jsonl", "link.jsonl", "sub/../prompts.jsonl", "partial"])
def test_the_prompts_are_not_replaced(folder, tmp_path, monkeypatch, capsys, written):
    """An output that is the file of prompts under any name, or would be while it is written, is refused."""
    monkeypatch.chdir(tmp_path)
    prompts = tmp_path / ("texts.jsonl.partial" if written == "partial" else "prompts.jsonl")
    prompts.write_text('{"prompt": "The"}\n')
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.jsonl").symlink_to("prompts.jsonl")
    output = "texts.jsonl" if written == "partial" else written
    command = ["generate", "--model_path", folder, "--prompt_file", prompts.name, "--output_file", output]
    assert main(command) == 2
    err = capsys.readouterr().err
    assert f"--output_file: {output} would replace the prompts of --prompt_file" in err and err.count("\n") == 1
    assert prompts.read_text() == '{"prompt": "The"}\n'


def test_prompts_from_standard_input_are_not_replaced(folder, tmp_path, monkeypatch, capsys):
    """`< FILE --output_file FILE` as little as a file that is named."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("The\n")
    with open(prompts) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main(["generate", "--model_path", folder, "--output_file", str(prompts)]) == 2
    assert "would replace the prompts of standard input; choose another name" in capsys.readouterr().err
    assert prompts.read_text() == "The\n"


def test_standard_output_is_not_replaced(folder, tmp_path, monkeypatch, capsys):
    """As `--output_file /dev/stdout >> FILE` it gets the lines after what is there, and nothing else."""
    output = tmp_path / "all.jsonl"
    output.write_text('{"older": 1}\n')
    command = ["generate", "--model_path", folder, "--prompt", "The", "--num_samples", "2", "--max_new_tokens", "2"]
    with open(output, "a") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main([*command, "--output_file", str(output)]) == 0
    older, *lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert older == {"older": 1} and [line["sample"] for line in lines] == [0, 1]
    assert capsys.readouterr().err == f"2 texts in {output}\n"


@pytest.mark.parametrize(("asked", "begin"), [(None, "Привет".encode()), ("cp1252", b"??????")])
def test_a_text_in_a_file_is_utf8(folder, tmp_path, monkeypatch, asked, begin):
    """Whatever the system's encoding; only one that was asked for is kept. Afterwards the stream is as it was."""
    if asked is None:
        monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    else:
        monkeypatch.setenv("PYTHONIOENCODING", asked)
    output = tmp_path / "texts.txt"
    with open(output, "w", encoding="cp1252") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["generate", "--model_path", folder, "--prompt", "Привет", "--max_new_tokens", "2"]) == 0
        assert (stdout.encoding, stdout.errors) == ("cp1252", "strict")
    assert output.read_bytes().startswith(begin)


@pytest.mark.parametrize("key", ["completion", "sample"])
def test_what_came_with_a_prompt_is_not_overwritten(folder, tmp_path, capsys, key):
    """Files of trl have a completion: it stays, or the line is named. Where nothing is written it does no harm."""
    prompts = tmp_path / "trl.jsonl"
    prompts.write_text('{"prompt": "The"}\n' + json.dumps({"prompt": "A", key: " reference"}) + "\n")
    command = ["generate", "--model_path", folder, "--prompt_file", str(prompts), "--max_new_tokens", "2"]
    assert main([*command, "--output_file", str(tmp_path / "new.jsonl")]) == 2
    err = capsys.readouterr().err
    assert f"trl.jsonl, line 2 has the key '{key}', which --output_file writes; rename it" in err
    assert err.count("\n") == 1 and not (tmp_path / "new.jsonl").exists()
    assert main(command) == 0


class Breaking:
    """`generate_texts` that breaks off before a prompt."""

    def __init__(self, error, at):
        self.error = error
        self.at = at

    def __call__(self, model, tokenizer, prompts, **options):
        for number, prompt in enumerate(prompts):
            if number == self.at:
                raise self.error
            yield [f" after {prompt}"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("no more"), OSError(28, "No space left on device")])
@pytest.mark.parametrize("at", [0, 2])
def test_a_run_that_breaks_off_loses_nothing(folder, tmp_path, monkeypatch, capsys, error, at):
    """The older file stays as it was, finished texts stay beside it, a line says so; the next run replaces both."""
    prompts, output, partial = (tmp_path / name for name in ("in.txt", "texts.jsonl", "texts.jsonl.partial"))
    prompts.write_text("The\nA\nOne\n")
    output.write_text("older\n")
    command = ["generate", "--model_path", folder, "--prompt_file", str(prompts), "--output_file", str(output)]
    monkeypatch.setattr(generate_command, "generate_texts", Breaking(error, at))
    assert main(command) == (130 if isinstance(error, KeyboardInterrupt) else 2)
    out, err = capsys.readouterr()
    assert out == "" and output.read_text() == "older\n"
    assert (f"the texts that are finished are in {partial}\n" in err) == partial.exists() == (at > 0)
    if at:
        lines = [json.loads(line) for line in partial.read_text().splitlines()]
        assert [line["completion"] for line in lines] == [" after The", " after A"]
    monkeypatch.setattr(generate_command, "generate_texts", Breaking(error, None))
    assert main(command) == 0
    assert output.read_text().count("\n") == 3 and not partial.exists()


def test_an_output_file_may_be_a_link_or_a_pipe(folder, tmp_path):
    """A link leads to the new file afterwards; a pipe is written and not replaced."""
    command = ["generate", "--model_path", folder, "--prompt", "The", "--max_new_tokens", "2", "--output_file"]
    (tmp_path / "old.jsonl").write_text("older\n")
    (tmp_path / "link").symlink_to("old.jsonl")
    assert main([*command, str(tmp_path / "link")]) == 0
    assert (tmp_path / "link").is_symlink() and '"completion"' in (tmp_path / "old.jsonl").read_text()
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    assert main([*command, str(tmp_path / "fifo")]) == 0
    assert b'"completion"' in os.read(reader, 65536) and (tmp_path / "fifo").is_fifo()
    os.close(reader)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "link", "old.jsonl"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with files of prompts, good and bad ones; no test writes to it."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "void").mkdir()
    make_stock().save_pretrained(folder / "no_words")
    contents = {
        "EMPTY.txt": "\n \n",
        "good.txt": "The\nA\n",
        "array.json": '[{"prompt": "A"}]',
        "bad.jsonl": '{"prompt": "A"}\n{"prompt"\n',
        "other.jsonl": '{"text": "A"}\n',
    }
    for name, content in contents.items():
        (folder / name).write_text(content)
    (folder / "latin.txt").write_bytes("Über".encode("latin-1"))
    for name in ("packed.jsonl.gz", "table.PARQUET"):
        (folder / name).write_bytes(b"\x1f\x8b\x08\xff")
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt_file", "EMPTY.txt"], "EMPTY.txt is empty; write one prompt per line"),
        (["--prompt_file", "nowhere.txt"], "nowhere.txt cannot be read (No such file or directory)"),
        (["--prompt_file", "~nosuch/prompts.txt"], "~nosuch/prompts.txt cannot be read (No such file or directory)"),
        (["--prompt_file", "bad.jsonl"], "bad.jsonl, line 2 is not JSON"),
        (["--prompt_file", "array.json"], "array.json: .json is not read here; write one prompt per line, or .jsonl"),
        (["--prompt_file", "packed.jsonl.gz"], "packed.jsonl.gz: .gz is not read here; write one prompt per line"),
        (["--prompt_file", "table.PARQUET"], "table.PARQUET: .parquet is not read here; write one prompt per line"),
        (["--prompt_file", "good.txt", "--output_file", "void"], "--output_file: void cannot be written"),
        (["--prompt_file", "~nosuch/x", "--output_file", "void"], "--output_file: void cannot be written"),
        (["--prompt", "A", "--output_file", "~nosuch/x.jsonl", "--model_path", "./void"], "void holds no model"),
        (["--num_samples", "1000000000"], "--num_samples must be at most 1,048,576"),
        (["--prompt_file", "other.jsonl"], 'line 1 must be an object like {"prompt": "..."}'),
        (["--prompt_file", "latin.txt"], "latin.txt cannot be read (it is not UTF-8)"),
        (["--prompt_file", "good.txt", "--prompt", "A"], "--prompt has no effect beside --prompt_file"),
        (["--prompt_file", "good.txt", "--output_file", "good.txt/x"], "--output_file: good.txt/x cannot be written"),
        (["--prompt", "A", "--batch_size", "2"], "--batch_size has no effect on a single text"),
        (["--prompt", "A", "--temperature", "0", "--top_p", "0.9"], "--top_p has no effect with --temperature 0"),
        (["--prompt", "A", "--temperature", "0", "--seed", "1"], "--seed has no effect with --temperature 0"),
        (["--prompt", "A", "--seed", "18446744073709551616"], "--seed must be below 2,147,483,648"),
        (["--prompt", "A", "--temperature", "nan"], "--temperature must be a finite number, got nan"),
        (["--prompt", "A", "--top_p", "1.5"], "--top_p must be at most 1, got 1.5"),
        (["--prompt", "A", "--stop", ""], "--stop must not be empty"),
        (["--prompt", "A", "--max_new_tokens", "0"], "--max_new_tokens must be at least 1"),
        (["--prompt", "A", "--model_path", "./void"], "--model_path: void holds no model (config.json is missing)"),
        (["--prompt", "A", "--model_path", "./no_words"], "no_words has no tokenizer and its 97 ids are not GPT-2's"),
    ],
)
def test_bad_input_is_one_line(folder, files, monkeypatch, capsys, options, message):
    """Exit code 2, and a line that names the option."""
    monkeypatch.chdir(files)
    capsys.readouterr()
    assert main(["generate", "--model_path", folder, *options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1


def test_output_needs_prompts(folder, monkeypatch, capsys):
    """At a terminal there is nothing to write to a file."""
    use_stdin(monkeypatch, "", terminal=True)
    assert main(["generate", "--model_path", folder, "--output_file", "x.jsonl"]) == 2
    assert "--output_file has no effect at a terminal; add --prompt or --prompt_file" in capsys.readouterr().err


def test_a_config_gives_way_to_the_command_line(folder, tmp_path, capsys):
    """--temperature 0 on the command line overrules the sampling of a config file; in one layer it is an error."""
    config = tmp_path / "sampling.json"
    options = {"model_path": folder, "prompt": "The", "top_p": 0.9, "num_samples": 4, "max_new_tokens": 2}
    config.write_text(json.dumps({**options, "batch_size": 4}))
    assert main(["generate", "--config", str(config), "--temperature", "0"]) == 0
    assert capsys.readouterr().out.count("The") == 1
    config.write_text(json.dumps({"model_path": folder, "prompt": "The", "top_p": 0.9, "temperature": 0}))
    assert main(["generate", "--config", str(config)]) == 2
    assert "--top_p has no effect" in capsys.readouterr().err


# ---- prompts that are no text ----


def pipe(monkeypatch, raw):
    """Let the command read these bytes from a pipe, whatever the locale says of them."""
    stdin = io.TextIOWrapper(io.BytesIO(raw), encoding="ascii", errors="surrogateescape")
    stdin.isatty = lambda: False
    monkeypatch.setattr(sys, "stdin", stdin)


def test_a_pipe_is_utf8_whatever_the_locale(folder, model, tokenizer, monkeypatch, capsys):
    """A prompt in UTF-8 is read as such under LC_ALL=C too; line ends of Windows are line ends."""
    pipe(monkeypatch, "\ufeffÜber\r\ndie Fähre 🙂\r\n".encode())
    assert main(["generate", "--model_path", folder, "--temperature", "0", "--max_new_tokens", "4"]) == 0
    (expected,) = generate_text(model, tokenizer, "Über\ndie Fähre 🙂", temperature=0, max_new_tokens=4)
    assert capsys.readouterr().out == expected + "\n"


def test_arguments_are_utf8_whatever_the_locale(folder, model, tokenizer, capsys):
    """The bytes of --prompt and --stop that the locale could not decode are UTF-8."""
    escaped = "Über".encode().decode("ascii", "surrogateescape")
    command = ["generate", "--model_path", folder, "--temperature", "0", "--max_new_tokens", "4"]
    assert main([*command, "--prompt", escaped, "--stop", escaped]) == 0
    (expected,) = generate_text(model, tokenizer, "Über", temperature=0, max_new_tokens=4, stop=["Über"])
    assert capsys.readouterr().out == expected + "\n"


@pytest.mark.parametrize(
    ("options", "raw", "message"),
    [
        (
            [],
            "café".encode("latin-1"),
            "the prompt from standard input cannot be read (it is not UTF-8); byte 0xe9 at",
        ),
        (["--prompt", "caf\udce9"], b"", "--prompt cannot be read (it is not UTF-8); byte 0xe9 at byte 3"),
        (["--prompt", "\ud83d ferry"], b"", "--prompt holds half of a surrogate pair"),
        (["--prompt", "A", "--stop", "\udce9"], b"", "--stop cannot be read (it is not UTF-8)"),
        (["--prompt_file", "pair.jsonl"], b"", "pair.jsonl, line 2: the prompt holds half of a surrogate pair"),
        (["--prompt_file", "latin.jsonl"], b"", "latin.jsonl cannot be read (it is not UTF-8)"),
        (["--prompt_file", "deep.jsonl"], b"", "deep.jsonl, line 1 has too many brackets inside each other"),
        (["--prompt_file", "no \udcff.txt"], b"", "no \\udcff.txt cannot be read (No such file or directory)"),
    ],
)
def test_a_prompt_that_is_no_text_is_one_line(folder, tmp_path, monkeypatch, capsys, options, raw, message):
    """Exit code 2, where the prompt came from and why it is none; no traceback."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pair.jsonl").write_text('{"prompt": "The"}\n{"prompt": "\\ud83d ferry"}\n')
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "café"}\n'.encode("latin-1"))
    (tmp_path / "deep.jsonl").write_text('{"prompt": "The", "x": ' + "[" * 20_000 + "]" * 20_000 + "}\n")
    pipe(monkeypatch, raw)
    assert main(["generate", "--model_path", folder, *options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1 and err[:-1].isprintable()


def test_what_stands_beside_a_prompt_is_passed_on(folder, tmp_path):
    """Numbers of any length, NaN and halves of pairs in other fields come out as they went in."""
    fields = f'"n": {"7" * 5000}, "pair": "\\ud83d", "name": "Fähre"'
    (tmp_path / "in.jsonl").write_text(f'{{"prompt": "The", {fields}}}\n', encoding="utf-8")
    command = [
        "generate",
        "--model_path",
        folder,
        "--prompt_file",
        str(tmp_path / "in.jsonl"),
        "--max_new_tokens",
        "2",
    ]
    assert main([*command, "--output_file", str(tmp_path / "out \udcff.jsonl")]) == 0
    line = (tmp_path / "out \udcff.jsonl").read_text(encoding="utf-8")
    assert "7" * 5000 in line and "\\ud83d" in line and json.loads(line, parse_int=str)["name"] == "Fähre"
    with pytest.raises(ValueError, match="limit"):
        int("7" * 5000)


def test_the_library_refuses_what_is_no_text(model, tokenizer):
    """In Python too a prompt with half of a pair is an error of the user, before anything is generated."""
    with pytest.raises(UserError, match="half of a surrogate pair"):
        generate_texts(model, tokenizer, ["good", "\ud83d bad"])


def test_a_text_can_be_kept_from_ending(gpt2):
    """With `min_new_tokens` a model that wants to end at once goes on."""
    _, tokenizer = gpt2
    model = make_model(vocab_size=50257, eos_token_id=50256)
    with torch.no_grad():
        model.transformer.ln_f.bias.copy_(100 * model.lm_head.weight[50256])
    options = {"temperature": 0, "max_new_tokens": 8}
    assert generate_text(model, tokenizer, "The value", **options) == ["The value"]
    (text,) = generate_text(model, tokenizer, "The value", min_new_tokens=5, **options)
    assert len(tokenizer(text).input_ids) >= len(tokenizer("The value").input_ids) + 4 and text != "The value"
