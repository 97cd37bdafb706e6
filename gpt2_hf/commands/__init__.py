"""What is done with a trained model: evaluate, generate, demo, export, import, report.

In: a model folder, a checkpoint name or a hub id. Out: a score, text, other formats, a model card.
Each module with a command's name holds that command and its Python function.
"""
