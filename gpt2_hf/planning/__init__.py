"""What a run will be, before an hour is spent on it.

In: the options, data and model of a run. Out: steps, memory, time and disk, and advice that names flags.
`probe` measures some real steps; `plan` makes sentences of it; `parallel_plan` estimates several devices.
"""
