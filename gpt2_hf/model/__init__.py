"""GPT-2 and what it computes with, on torch and transformers alone.

In: token ids, and where documents begin. Out: hidden states, loss, logits.
Flat, with imports of one dot only: these files travel with a saved model (`trust_remote_code=True`).
"""
