"""Folders of a run that are complete or absent, and hold no pickle.

In: the state of a trainer, as plain data and tensors. Out: folders with a manifest, found again by name and checked.
Also which process may write there (`run_lock`), and whole weights of a sharded model (`sharding`).
"""
