"""A subclass of transformers' Trainer: exact evaluation, safe checkpoints, a time budget.

In: a model, arguments, samples. Out: a trained model and its checkpoints.
`checkpointing` ─► `loss` ─► `exact_evaluation` ─► `gpt2_trainer`, each a subclass of the one before; `callbacks` watch
the run. `tests/trainer/contract.py` lists what is relied on inside transformers' Trainer.
"""
