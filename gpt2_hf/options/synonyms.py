"""What people type who come from other programs, and what it is called here; for "did you mean".

Names of arguments that transformers had once, of its example `run_clm.py`, of nanoGPT's config, and everyday short
forms. A name may have a counterpart in one command and another one elsewhere: those that the command has are said.
None of these is accepted, because what they mean may differ in detail; only a person can tell.
"""

# What it is called here, and what is typed for it, where the first of these words comes from.
_MEANT = {
    # training
    "learning_rate": "lr",
    "distill_from": "teacher teachers teacher_model teacher_model_name_or_path",
    "weight_decay": "wd decay",
    "ema_decay": "ema use_ema ema_beta model_ema_decay",
    "batch_size": "bs bsz train_batch_size micro_batch_size per_gpu_train_batch_size",
    "global_batch_size": "total_batch_size",
    "max_epochs": "epoch epochs num_epochs n_epochs",
    "max_steps": (
        "steps num_steps num_train_steps max_train_steps total_steps iterations iters max_iters lr_decay_iters"
    ),
    "max_training_hours": "hours max_hours time_limit",
    "warmup_steps": "warmup warmup_iters warmup_ratio",
    "gradient_accumulation_steps": (
        "accumulation accumulate_grad_batches grad_accum grad_accum_steps accumulation_steps"
    ),
    "gradient_clip": "clip max_norm clip_grad_norm gradient_clip_val grad_clip",
    "optim": "optimizer adafactor",
    "lr_scheduler_type": "scheduler lr_scheduler lr_schedule decay_lr",
    "adam_beta1 adam_beta2": "betas",
    "adam_epsilon": "eps epsilon",
    "precision": "amp mixed_precision half dtype torch_dtype fp16_backend fp16_opt_level half_precision_backend",
    "use_cpu": "cpu no_cuda use_mps_device",
    "activation_checkpointing": "checkpointing",
    "num_workers": "workers",
    "run_name": "name wandb_run_name",
    "report_to": "wandb tensorboard wandb_log wandb_project",
    "seed": "random_seed manual_seed",
    # model
    "model_path model_name_or_path": "model model_name model_dir",
    "model_name_or_path": "pretrained",
    "model_path resume_from": "checkpoint ckpt",
    "num_layers": "n_layer n_layers num_hidden_layers depth layers",
    "num_heads": "n_head n_heads num_attention_heads heads",
    "d_model": "n_embd n_embed hidden_size embed_dim embedding_dim dim width",
    "d_ff": "n_inner intermediate_size ffn_dim",
    "max_length": (
        "block_size n_positions n_ctx context context_length seq_len seq_length sequence_length max_seq_len "
        "max_seq_length max_position_embeddings"
    ),
    "dropout": "resid_pdrop embd_pdrop attn_pdrop",
    "attn_implementation": "attention flash_attention use_flash_attention",
    # data
    "train_file dataset_name": "data data_path",
    "dataset_name train_file": "data_dir",
    "train_file": "data_file train train_data train_data_file train_files",
    "dataset_name": "dataset",
    "dataset_config_name": "dataset_config",
    "prompt train_file": "input",
    "prompt_file train_file": "input_file text_file",
    "validation_file": "valid_file val_file dev_file eval_file eval_data eval_data_file validation_data",
    "text_column": "text_column_name column",
    "vocab_size tokenizer_name": "vocab",
    "tokenizer_name": "vocab_size vocab_file tokenizer tokenizer_path",
    "sequence_mode document_unit": "line_by_line",
    "sequence_mode": "packing group_texts",
    # folders
    "output_dir output_file": "output out",
    "output_dir": "save_dir save_path run_dir out_dir logging_dir",
    "overwrite_output_dir": "overwrite force",
    "resume_from": "resume resume_training resume_checkpoint resume_from_latest continue",
    # nanoGPT
    "eval_every": "eval_interval",
    "logging_steps": "log_interval log_every",
    "save_every": "save_interval checkpoint_every",
    "max_eval_samples": "eval_iters max_val_samples",
    "model_name_or_path resume_from": "init_from",
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "lr_scheduler_kwargs": "min_lr",
    "ddp_backend": "backend xpu_backend",
    "use_cpu precision": "device",
    "torch_compile": "compile",
    "prompt": "start",
    # run_clm.py of transformers' examples
    "d_model num_layers num_heads": "config_name config_overrides",
    "hub_token": "token use_auth_token push_to_hub_token",
    # arguments that transformers had once
    "eval_strategy": "evaluation_strategy evaluate_during_training",
    "eval_batch_size": "per_gpu_eval_batch_size",
    "train_sampling_strategy": "group_by_length",
    "include_for_metrics": "include_inputs_for_metrics",
    "hub_model_id": "push_to_hub_model_id push_to_hub_organization",
    "accelerator_config": "dispatch_batches split_batches",
    "torch_compile_backend": "torchdynamo",
    "fsdp": "sharded_ddp",
    "fsdp_config": "fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap",
    # generation
    "max_new_tokens": "max_tokens",
    "max_new_tokens max_length": "length",
    "temperature": "temp",
    "top_k": "k",
    "top_p": "p nucleus",
    "num_samples": "num_return_sequences",
    "stop": "stop_token stop_strings",
    "prompt_file": "prompts prompts_file",
    # plan
    "nproc": "nproc_per_node gpus num_gpus",
    "nodes": "nnodes num_nodes",
}

SYNONYMS = {typed: tuple(meant.split()) for meant, words in _MEANT.items() for typed in words.split()}
