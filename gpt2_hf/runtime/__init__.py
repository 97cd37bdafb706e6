"""The machine that a run is on: devices, number formats, processes, clock, signals, the hub.

In: what was asked for. Out: what this machine has of it, and a line about what it lacks.
Knows nothing of training; every room above may use it.
"""
