"""What a run will be, before an hour is spent on it.

In: the options, data and model of a run. Out: steps, memory, time and disk, and advice that names flags.
`steps` counts them, `probe` measures some, and `plan` makes sentences of both; `parallel_plan` estimates several
devices.
"""
