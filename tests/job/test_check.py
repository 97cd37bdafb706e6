"""What can be wrong with the options is found before anything is written."""

import pytest
import torch

from gpt2_hf.__main__ import main
from gpt2_hf.trainer.gpt2_trainer import GPT2HFTrainer

from ..conftest import read_json
from ..runs import history


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--optim", "adamw_bnb_8bit"), "--optim adamw_bnb_8bit: "),
        (("--optim", "galore_adamw"), "--optim galore_adamw: "),
        (("--optim", "lomo"), "--optim lomo: "),
        (("--optim", "nonsense"), "--optim nonsense is not known; did you mean "),
        (("--lr_scheduler_type", "cosine_with_min_lr"), "--lr_scheduler_type cosine_with_min_lr: "),
        (("--lr_scheduler_type", "warmup_stable_decay"), "--lr_scheduler_type warmup_stable_decay: "),
        (("--lr_scheduler_kwargs", '{"nonsense": 1}'), "--lr_scheduler_type cosine: "),
        (
            ("--lr_scheduler_type", "polynomial", "--max_steps", "10", "--warmup_steps", "10"),
            "--lr_scheduler_type polynomial: all 10 steps are warmup; use fewer --warmup_steps",
        ),
        (("--torch_compile_mode", "nonsense"), "--torch_compile"),
        (("--num_workers", "1", "--dataloader_prefetch_factor", "-1"), "--dataloader"),
        (("--dataloader_multiprocessing_context", "spawn"), "--dataloader"),
        (("--accelerator_config", '{"nonsense": true}'), "unexpected keyword argument 'nonsense'"),
        (("--neftune_noise_alpha", "5"), "--neftune_noise_alpha goes by the length of a row"),
        (("--report_to", "mlflow"), "MLflowCallback requires mlflow"),
        *(
            (("--save_strategy", "best", *idle), f"--save_strategy best saves nothing with {' '.join(idle)}")
            for idle in (
                ("--eval_strategy", "no"),
                ("--eval_delay", "1000"),
                ("--metric_for_best_model", "none"),
            )
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_refused_command_writes_nothing(train_tiny, tmp_path, capsys, options, message):
    """Exit 2 and a line that says what is wrong; there is no folder that would be in the way of the corrected one."""
    assert train_tiny(tmp_path / "run", *options) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--optim", "galore_adamw"), "--optim galore_adamw: "),
        (("--lr_scheduler_type", "warmup_stable_decay"), "--lr_scheduler_type warmup_stable_decay: "),
    ],
)
def test_a_plan_is_refused_what_a_run_is(tiny_options, tmp_path, capsys, options, message):
    """By the same line, before any step."""
    assert main(["plan", *tiny_options, "--checkpoint_dir", str(tmp_path / "run"), *options]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


@pytest.mark.parametrize("place", ["gpt2_hf.job.check._forward_and_backward", "gpt2_hf.job.main_job.GPT2HFTrainer"])
def test_a_device_that_is_full_is_not_the_fault_of_an_option(train_tiny, tmp_path, capsys, monkeypatch, place):
    """Another program may have its memory."""

    def fail(*args, **kwargs):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    monkeypatch.setattr(place, fail)
    assert train_tiny(tmp_path / "run") == 2
    err = capsys.readouterr().err
    assert "the memory is too small to train" in err and "--attn_implementation" not in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [
        ("--optim", "adafactor", "--label_smoothing_factor", "0.1", "--attn_implementation", "eager"),
        ("--optim", "muon", "--schedule_by_time"),
        ("--optim", "muon", "--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", '{"min_lr": 1e-5}'),
        ("--optim", "muon", "--lr_scheduler_type", "polynomial"),
        ("--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", '{"min_lr": 1e-5}'),
        ("--lr_scheduler_type", "reduce_lr_on_plateau"),
    ],
)
def test_what_is_tried_before_changes_nothing(train_tiny, tmp_path, monkeypatch, options):
    """Optimizers and schedules are built twice; a run without the trial logs the same numbers."""
    short = ("--max_steps", "3", "--logging_steps", "1", "--sample_tokens", "0", "--do_predict", "false")
    without_test = ("--test_file", "none")
    options = (*options, *short, *without_test)
    assert train_tiny(tmp_path / "tried", *options) == 0
    monkeypatch.setattr("gpt2_hf.job.main_job.check_training", lambda run, trainer: None)
    assert train_tiny(tmp_path / "untried", *options) == 0
    tried, untried = (history(tmp_path / name) for name in ("tried", "untried"))
    assert len(tried) == 4 and tried == untried


def test_a_run_that_fails_at_its_first_step_leaves_the_folder_free(train_tiny, tmp_path, monkeypatch):
    """Whatever it was, the corrected command does not meet a run in its folder."""

    def fail(*args, **kwargs):
        raise RuntimeError("a kernel that is not there")

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(GPT2HFTrainer, "training_step", fail)
        with pytest.raises(RuntimeError, match="a kernel"):
            train_tiny(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]
    assert train_tiny(tmp_path / "run", "--max_steps", "1") == 0


def test_a_run_that_fails_later_keeps_what_it_has(train_tiny, tmp_path, monkeypatch):
    """After its first step its record stays, and nobody overwrites it."""
    step = GPT2HFTrainer.training_step

    def fail(self, *args, **kwargs):
        if self.state.global_step == 2:
            raise RuntimeError("later")
        return step(self, *args, **kwargs)

    monkeypatch.setattr(GPT2HFTrainer, "training_step", fail)
    with pytest.raises(RuntimeError, match="later"):
        train_tiny(tmp_path / "run")
    assert read_json(tmp_path / "run" / "resolved_config.json")["d_model"] == 32


def test_the_threads_are_recorded(finished_run):
    """With the number that this process computes with."""
    provenance = read_json(finished_run / "resolved_config.json")["provenance"]
    assert provenance["threads"] == torch.get_num_threads()
