"""The main job from end to end: options in, a trained model and a report out.

In: the filled options of a run. Out: its folder, and an exit code.
`main_job` reads from top to bottom; `resuming` and `resolved_config` are what it looks up on the way.
"""
