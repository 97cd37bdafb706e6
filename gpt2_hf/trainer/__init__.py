"""A subclass of transformers' Trainer: exact evaluation, safe checkpoints, a time budget.

In: a model, arguments, samples. Out: a trained model and its checkpoints.
`checkpointing` ─► `exact_evaluation` ─► `gpt2_trainer`, each a subclass of the one before; `callbacks` watch the run.
"""
