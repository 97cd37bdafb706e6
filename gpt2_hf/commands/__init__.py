"""What is done with a trained model: evaluate, generate, demo, export, import, report.

In: a model folder, a checkpoint name or a hub id. Out: a score, text, other formats, a model card.
Each command is in the module of its name, `import` in `import_model`. The Python function of `evaluate` is in
`scoring`.
"""
