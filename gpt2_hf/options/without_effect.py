"""transformers' options that are refused, whatever their value, and what to do instead."""

# Fields of TrainingArguments that this package's trainer does not act on, and what to do instead.
WITHOUT_EFFECT = {
    "do_train": "a run always trains; leave it out",
    "do_eval": "evaluation is on unless --eval_strategy no; leave it out",
    "use_liger_kernel": "there are no Liger kernels for this model, which has a chunked loss of its own; leave it out",
    "enable_jit_checkpoint": "the main job (gpt2_hf.train) always saves on SIGTERM, SIGINT, SIGUSR1, SIGUSR2 and "
    "SIGHUP; a Trainer alone handles no signals: use gpt2_hf.train, or a smaller --save_steps",
    "restore_callback_states_from_checkpoint": "callbacks of this package always restore their state; leave it out",
    "save_on_each_node": "a checkpoint is written once, into a folder that all hosts share; leave it out",
    "liger_kernel_config": "there are no Liger kernels for this model; leave it out",
    "hub_always_push": "nothing is uploaded while it trains; leave it out",
    "parallelism_config": "processes hold copies of the model, or shards of it with --fsdp; leave it out",
    "bf16_full_eval": "weights stay in fp32, and evaluation computes in --precision; leave it out",
    "fp16_full_eval": "weights stay in fp32, and evaluation computes in --precision; leave it out",
    "auto_find_batch_size": "it would change which samples a step sees; choose --batch_size yourself",
}

_OF_METRICS = "an evaluation here has loss and perplexity; metrics of your own need GPT2HFTrainer and compute_metrics"

# Fields that act in Python, but not in the job, whose data and metrics are its own.
WITHOUT_EFFECT_IN_A_JOB = {
    "greater_is_better": "a lower loss and a lower perplexity are better; leave it out",
    "save_only_model": "a run could not go on from such checkpoints; leave it out and take best_model",
    "dataloader_drop_last": "the last batch of an epoch is completed with samples that have no targets; leave it out",
    "ignore_data_skip": "a resumed run always goes on at its place in the data; leave it out",
    **dict.fromkeys(("prediction_loss_only", "include_for_metrics", "batch_eval_metrics"), _OF_METRICS),
    **dict.fromkeys(("eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object"), _OF_METRICS),
    "label_names": "the samples of a run have the same columns always; leave it out",
    "length_column_name": "the lengths of samples are known; leave it out",
}
