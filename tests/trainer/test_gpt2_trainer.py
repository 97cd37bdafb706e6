"""The Trainer's numerical promises, on a real tiny model and a real tiny corpus."""

import contextlib
import math
import time
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch.utils.data import DataLoader, Subset
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback, set_seed
from transformers.integrations import TensorBoardCallback, integration_utils

from gpt2_hf.checkpoints.state_files import save_state
from gpt2_hf.commands.generate import generate_text
from gpt2_hf.data import load_data
from gpt2_hf.data.collators import PaddingCollator
from gpt2_hf.data.samples import DocumentSamples, MixedSamples
from gpt2_hf.data.tokenizer import load_tokenizer
from gpt2_hf.model.chunked_loss import IGNORE_INDEX
from gpt2_hf.model.configuration_gpt2_hf import GPT2HFConfig
from gpt2_hf.model.modeling_gpt2_hf import GPT2HFForCausalLM
from gpt2_hf.options.arguments import DataArguments
from gpt2_hf.options.training_arguments import GPT2HFTrainingArguments
from gpt2_hf.runtime.own_process import suit_changing_shapes
from gpt2_hf.runtime.precision import Precision
from gpt2_hf.trainer.callbacks import ContinuousTensorBoardCallback
from gpt2_hf.trainer.checkpointing import CheckpointingTrainer
from gpt2_hf.trainer.distillation import Distillation
from gpt2_hf.trainer.gpt2_trainer import GPT2HFTrainer
from gpt2_hf.trainer.remaining import generation_seconds

from ..data_fixtures import documents_of

MAX_LENGTH = 32


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    return load_tokenizer(str(tokenizer_folder))


@pytest.fixture(scope="module")
def load(corpus_folder, tokenizer):
    """`load(mode)` gives the tiny corpus in a sequence mode."""

    def load_mode(mode):
        args = DataArguments(
            train_file=str(corpus_folder / "train.txt"),
            validation_file=str(corpus_folder / "validation.txt"),
            sequence_mode=mode,
        )
        return load_data(args, tokenizer, MAX_LENGTH)

    return load_mode


def make_model(tokenizer, dropout=0.0):
    """The same tiny model each time."""
    set_seed(0)
    rates = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    return GPT2HFForCausalLM(
        GPT2HFConfig(vocab_size=len(tokenizer), n_positions=MAX_LENGTH, n_embd=32, n_layer=2, n_head=2, **rates)
    )


def make_trainer(tmp_path, data, tokenizer, dropout=0.0, **options):
    """A trainer with quick defaults; `options` are training arguments."""
    defaults = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "precision": "fp32",
        "report_to": ["none"],
        "max_steps": 6,
        "warmup_steps": 0,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
        "max_training_hours": None,
        "disable_tqdm": True,
    }
    args = GPT2HFTrainingArguments(**{**defaults, **options})
    return GPT2HFTrainer(
        make_model(tokenizer, dropout),
        args,
        data.collator,
        data.samples["train"],
        data.samples["validation"],
        tokenizer,
    )


def trajectory(trainer):
    """Train; the logged losses, gradient norms, and final weights."""
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    return [entry["loss"] for entry in logs], [entry["grad_norm"] for entry in logs], weights


def brute_force_loss(model, data):
    """Sum of token losses over the number of scored tokens, one sample at a time, in float64."""
    total, tokens = 0.0, 0
    model.eval()
    for sample in data.samples["validation"]:
        ids = torch.tensor(sample["input_ids"])[None]
        with torch.no_grad():
            log_probabilities = model(ids[:, :-1]).logits.double().log_softmax(-1)
        total -= log_probabilities.gather(-1, ids[:, 1:, None]).sum().item()
        tokens += ids.shape[1] - 1
    return total / tokens, tokens


@pytest.mark.parametrize("mode", ["padded", "padding_free", "blocks"])
def test_eval_loss_is_exact_whatever_the_batch_size(tmp_path, load, tokenizer, mode):
    """eval_loss is the sum over tokens divided by their number, to 1e-6; perplexity is its exp."""
    data = load(mode)
    for batch_size in (1, 3, 8):
        trainer = make_trainer(tmp_path, data, tokenizer, per_device_eval_batch_size=batch_size)
        metrics = trainer.evaluate()
        expected, tokens = brute_force_loss(trainer.model, data)
        assert metrics["eval_loss"] == pytest.approx(expected, abs=1e-6)
        assert metrics["eval_perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
        assert metrics["eval_tokens"] == tokens == data.accounting["validation"].scored_tokens


def test_a_trainer_on_a_cpu_keeps_freed_memory(tmp_path, load, tokenizer, monkeypatch):
    """While it trains, and no longer: a trainer that is only made changes nothing of the process."""
    asked = []

    @contextlib.contextmanager
    def keep():
        asked.append(True)
        yield
        asked.append(False)

    monkeypatch.setattr("gpt2_hf.runtime.own_process.keep_freed_memory", keep)
    trainer = make_trainer(tmp_path, load("padded"), tokenizer, max_steps=1)
    assert asked == []
    trainer.train()
    assert asked == [True, False]


def test_a_loss_scale_is_left_behind_with_its_precision(tmp_path, load, tokenizer):
    """A run in fp16 can be resumed in another precision, as the remedies say."""
    trainer = make_trainer(tmp_path, load("padded"), tokenizer)
    save_state({"scale": 1.0}, tmp_path / "scaler.safetensors")
    trainer._load_scaler(str(tmp_path))
    assert getattr(trainer.accelerator, "scaler", None) is None


def test_a_best_model_that_could_not_be_saved_is_not_the_best(tmp_path, load, tokenizer, capsys):
    """The next one is compared with that which is there."""
    options = {"eval_strategy": "steps", "save_strategy": "steps", "on_save_error": "continue"}
    trainer = make_trainer(tmp_path, load("padded"), tokenizer, **options)
    trainer.state.best_metric, trainer.state.best_global_step, trainer.state.global_step = 3.0, 10, 20
    assert trainer._determine_best_metric({"eval_loss": 2.0}, None)
    assert (trainer.state.best_metric, trainer.state.best_global_step) == (2.0, 20)
    trainer._give_up_checkpoint(tmp_path, tmp_path / "checkpoint-20", OSError("no room"))
    assert (trainer.state.best_metric, trainer.state.best_global_step) == (3.0, 10)
    assert "training goes on" in capsys.readouterr().err


def test_padding_free_has_the_trajectory_of_padded(tmp_path, load, tokenizer):
    """The same batches without padding: losses, gradients and weights agree to 1e-5."""
    padded = trajectory(make_trainer(tmp_path, load("padded"), tokenizer))
    packed = trajectory(make_trainer(tmp_path, load("padding_free"), tokenizer))
    assert padded[0] == pytest.approx(packed[0], abs=1e-5)
    assert padded[1] == pytest.approx(packed[1], abs=1e-4)
    assert torch.allclose(padded[2], packed[2], atol=1e-4)


def test_accumulation_does_not_change_the_step(tmp_path, load, tokenizer):
    """8 samples at once, 4 times 2, and 8 times 1 are the same optimizer step."""
    data = load("padding_free")
    results = [
        trajectory(
            make_trainer(
                tmp_path, data, tokenizer, per_device_train_batch_size=batch, gradient_accumulation_steps=8 // batch
            )
        )
        for batch in (8, 2, 1)
    ]
    for losses, _, weights in results[1:]:
        assert losses == pytest.approx(results[0][0], abs=1e-5)
        assert torch.allclose(weights, results[0][2], atol=1e-4)


def test_logged_loss_is_the_mean_over_tokens(tmp_path, load, tokenizer):
    """The first logged loss is that of the whole first batch, over its tokens, not over its rows."""
    data = load("padding_free")
    trainer = make_trainer(tmp_path, data, tokenizer, max_steps=1)
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        expected = make_model(tokenizer).eval()(**batch).loss.item()
    trainer.train()
    (log,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert log["loss"] == pytest.approx(expected, abs=1e-6)
    assert log["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)


def test_evaluating_changes_nothing(tmp_path, load, tokenizer):
    """With dropout, evaluations, predictions and samples at each step leave the weights as they are without any."""
    data = load("padding_free")
    never = trajectory(make_trainer(tmp_path / "a", data, tokenizer, dropout=0.2))
    always = make_trainer(tmp_path / "b", data, tokenizer, dropout=0.2, eval_strategy="steps", eval_steps=1)
    samples = []

    def write_sample(model):
        samples.append(generate_text(model, tokenizer, "The", max_new_tokens=5, seed=len(samples)))
        torch.rand(3)
        return samples[-1][0]

    class Predicts(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            always.predict(data.samples["validation"])

    always.add_callback(Predicts())

    always.job.write_sample = write_sample
    assert torch.equal(never[2], trajectory(always)[2])
    assert len(samples) == 6


def test_the_time_of_samples_counts_in_the_budget(tmp_path, load, tokenizer):
    """An evaluation is reckoned with its sample, guessed and then as measured; the speed is without it."""
    options = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 4}
    trainer = make_trainer(tmp_path, load("padding_free"), tokenizer, **options)
    assert trainer.remaining_work().evaluation == math.inf  # before the third step
    for seconds in (60.0, 0.5, 0.4):  # the first one compiles
        trainer.watch.add("step", seconds)
    alone = trainer.remaining_work().evaluation
    num_steps = trainer.eval_dataset.lengths.sum() / (8 * trainer.train_dataset.lengths.mean())
    assert alone == pytest.approx(0.5 * 0.5 * num_steps)
    trainer.job.write_sample = lambda model: time.sleep(0.6) or "text"
    guessed = generation_seconds(trainer.args.sample_tokens, trainer.num_parameters)
    assert trainer.remaining_work().evaluation == alone + guessed > alone
    trainer.train()
    assert trainer.remaining_work().evaluation >= 0.6 + trainer.watch.longest("evaluate")
    speeds = [entry["tokens_per_second"] for entry in trainer.state.log_history if "tokens_per_second" in entry]
    tokens = trainer.train_dataset.lengths.mean() * 8
    assert all(tokens / speed < 0.6 for speed in speeds)


def test_the_time_of_a_split_goes_by_its_tokens(tmp_path, tokenizer):
    """Of one with longer documents too; by samples where each is padded to the same length."""
    text = {length: DocumentSamples(documents_of([[1] * (length + 1)] * 100), MAX_LENGTH) for length in (2, 4, 32)}
    data = SimpleNamespace(samples={"train": text[2], "validation": text[4]}, collator=PaddingCollator(0))
    trainer = make_trainer(tmp_path, data, tokenizer, eval_strategy="steps")
    trainer.job.test_dataset = text[32]
    for _ in range(3):
        trainer.watch.add("step", 1.0)
    before = trainer.remaining_work()
    assert before.evaluation == pytest.approx(0.5 * 2 * 100 / 8)
    assert before.test == pytest.approx(0.5 * 16 * 100 / 8)
    trainer.watch.add("evaluate", 10.0)
    trainer.state.log_history = [{"eval_runtime": 10.0}]
    assert trainer.remaining_work().test == trainer.seconds_in_history(text[32]) == pytest.approx(80.0)
    trainer.data_collator = PaddingCollator(0, pad_to_length=MAX_LENGTH)
    assert trainer.remaining_work().test == trainer.seconds_in_history(text[32]) == pytest.approx(10.0)


def test_the_speed_is_that_of_all_processes(tmp_path, load, tokenizer, monkeypatch):
    """Whether the tokens of a step are counted on all of them, or each counts its own."""
    for option, counted in ((True, 100.0), (False, 25.0)):
        trainer = make_trainer(tmp_path, load("padded"), tokenizer, average_tokens_across_devices=option)
        with monkeypatch.context() as four_processes:
            four_processes.setattr(GPT2HFTrainingArguments, "world_size", 4)
            for now in (1.0, 2.0):
                four_processes.setattr("time.monotonic", lambda now=now: now)
                trainer.speed.add(torch.tensor(counted))
                trainer.log(logs := {"loss": 1.0})
        assert logs["tokens_per_second"] == 100.0


def test_other_reporters_are_kept_and_see_every_log(tmp_path, load, tokenizer, monkeypatch):
    """--report_to with a name that transformers knows: its callback gets loss, perplexity and speed, as always."""
    seen = []

    class Reporter(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(dict(logs))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Reporter)
    options = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 4, "report_to": ["wandb", "tensorboard"]}
    trainer = make_trainer(tmp_path, load("padding_free"), tokenizer, **options)
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert Reporter in kinds and ContinuousTensorBoardCallback in kinds and TensorBoardCallback not in kinds
    trainer.train()
    names = set().union(*seen)
    assert {"loss", "perplexity", "learning_rate", "grad_norm", "tokens_per_second", "memory_gib"} <= names
    assert {"eval_loss", "eval_perplexity"} <= names and "mfu" not in names


def test_share_of_the_peak_where_the_device_is_known(tmp_path, load, tokenizer):
    """On a device of a known peak, each log has the speed's share of it."""
    trainer = make_trainer(tmp_path, load("padding_free"), tokenizer)
    trainer.speed.peak = 1e6
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "tokens_per_second" in entry]
    assert logs and all(entry["mfu"] == pytest.approx(entry["tokens_per_second"] / 1e6) for entry in logs)


class Rows(list):
    """A dataset of the user's own that has something called lengths."""

    lengths: ClassVar = [5, 5]


def test_the_peak_of_foreign_models_and_data(tmp_path, load, tokenizer, monkeypatch):
    """On a known card a model of another family has no share of the peak, and rows of the user's own no lengths."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    card = SimpleNamespace(device=torch.device("cuda"), resolved_precision=Precision("bf16", "test"), world_size=2)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    trainer = make_trainer(tmp_path, load("padded"), tokenizer)
    trainer.args = card
    exact = trainer.peak_tokens_per_second
    trainer.train_dataset = Rows()
    without_attention = trainer.peak_tokens_per_second
    assert without_attention > exact > 0
    trainer.distillation = Distillation([trainer.model], alpha=0.5, temperature=1.0)  # a forward pass more
    assert trainer.peak_tokens_per_second == pytest.approx(without_attention * 3 / 4)
    for model in (LlamaForCausalLM(LlamaConfig(**sizes)), torch.nn.Linear(1, 1)):
        trainer.model = model
        assert trainer.peak_tokens_per_second is None


def test_label_smoothing_trains_on_shifted_labels(tmp_path, load, tokenizer):
    """With smoothing the loss is torch's own smoothed cross-entropy of the same targets."""
    data = load("padded")
    trainer = make_trainer(tmp_path, data, tokenizer, max_steps=1, label_smoothing_factor=0.2)
    batch = next(iter(DataLoader(data.samples["validation"], batch_size=4, collate_fn=data.collator)))
    loss = trainer.compute_loss(trainer.model, dict(batch))
    logits = trainer.model(batch["input_ids"]).logits
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch["shift_labels"].flatten(), ignore_index=IGNORE_INDEX, label_smoothing=0.2
    )
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert trainer.train().training_loss > 0


def test_weight_decay_spares_biases_and_layer_norms(tmp_path, load, tokenizer):
    """Only matrices and embeddings decay."""
    trainer = make_trainer(tmp_path, load("padded"), tokenizer, weight_decay=0.1)
    decayed = trainer.get_decay_parameter_names(trainer.model)
    assert "transformer.h.0.attn.c_attn.weight" in decayed
    assert not any(name.endswith("bias") or ".ln_" in name for name in decayed)


def test_first_steps_speed_is_left_out(tmp_path, load, tokenizer):
    """Speed is reported from the second log on, in trained tokens per second."""
    trainer = make_trainer(tmp_path, load("padding_free"), tokenizer)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert "tokens_per_second" not in logs[0]
    assert all(entry["tokens_per_second"] > 0 for entry in logs[1:])


def engine_config(monkeypatch, device, settle=lambda trainer: None, **options):
    """What is asked of accelerate on a device that need not be there; `settle` stands for the base class."""
    monkeypatch.setattr(CheckpointingTrainer, "create_accelerator_and_postprocess", settle)
    monkeypatch.setattr("gpt2_hf.trainer.gpt2_trainer.check_engine", lambda *args: None)
    config = SimpleNamespace(non_blocking=False, dispatch_batches=None, gradient_accumulation_kwargs=None)
    options = {"dataloader_pin_memory": True, "torch_compile": False, "tf32": None, **options}
    options |= {"wants_fsdp": False, "world_size": 1, "data_seed": None, "order_seed": 1}
    trainer = object.__new__(GPT2HFTrainer)
    trainer.accelerator = None
    trainer.args = SimpleNamespace(device=torch.device(device), accelerator_config=config, **options)
    trainer.create_accelerator_and_postprocess()
    return config


def test_settings_of_a_cuda_device(monkeypatch):
    """Batches are copied while the device computes, and attention makes no plan for each shape; no card needed."""
    for device, pinned in (("cuda", True), ("cuda", False), ("cpu", True)):
        config = engine_config(monkeypatch, device, dataloader_pin_memory=pinned)
        assert config.non_blocking == (device == "cuda" and pinned)
    planned = torch.backends.cuda.cudnn_sdp_enabled()
    with suit_changing_shapes("cuda"):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled() == planned
    with suit_changing_shapes("cuda", shapes_change=False):
        assert torch.backends.cuda.cudnn_sdp_enabled() == planned


@pytest.mark.parametrize(("tf32", "expected"), [(None, "highest"), (False, "highest"), (True, "high")])
def test_a_compiler_brings_no_other_precision(monkeypatch, tf32, expected):
    """transformers switches TF32 on beside it, in one of torch's two settings; reading the other is an error then."""

    def switch_on(trainer):
        torch.backends.fp32_precision = "tf32"

    before = torch.backends.fp32_precision
    try:
        engine_config(monkeypatch, "cuda", switch_on, torch_compile=True, tf32=tf32)
        assert torch.get_float32_matmul_precision() == expected
        assert (torch.backends.cuda.matmul.fp32_precision == "tf32") == (expected == "high")
    finally:
        torch.backends.fp32_precision = before
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(("mode", "change"), [("padded", True), ("padding_free", True), ("blocks", False)])
def test_only_blocks_have_one_shape(tmp_path, load, tokenizer, monkeypatch, mode, change):
    """Which decides on attention's plans and on the compiler's graphs; rows padded to one length have one too."""
    suited = []
    suit = lambda device, changes: suited.append(changes) or contextlib.nullcontext()  # noqa: E731
    monkeypatch.setattr("gpt2_hf.trainer.gpt2_trainer.suit_changing_shapes", suit)
    data = load(mode)
    trainer = make_trainer(tmp_path, data, tokenizer, max_steps=1)
    trainer.train()
    assert suited == [change] and trainer.accelerator.state.dynamo_plugin.dynamic == (True if change else None)
    trainer.train_dataset = Subset(trainer.train_dataset, [0, 1])  # of a plan
    assert trainer.shapes_change == change
    trainer.train_dataset = MixedSamples({"one": data.samples["train"], "two": data.samples["train"]})
    assert trainer.shapes_change == change
    trainer.data_collator = PaddingCollator(0, pad_to_length=MAX_LENGTH)
    assert not trainer.shapes_change


def test_gradients_under_ddp_are_held_once(tmp_path, load, tokenizer):
    """They lie in the buckets that are sent, and no buffers are sent, unless asked for."""
    trainer = make_trainer(tmp_path, load("padded"), tokenizer)
    handler = trainer.accelerator.ddp_handler
    assert handler.gradient_as_bucket_view and not handler.broadcast_buffers
    handler = make_trainer(tmp_path, load("padded"), tokenizer, ddp_broadcast_buffers=True).accelerator.ddp_handler
    assert handler.broadcast_buffers
