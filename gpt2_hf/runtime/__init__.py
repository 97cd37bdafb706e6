"""The machine that a run is on: devices, precision, processes, clock, signals, the hub.

In: what was asked for. Out: what this machine has of it, and a line about what it lacks.
Knows nothing of training; every subpackage above it may use it.
"""
