"""The plan of a run on the command line: what `train` would do, from the same options, and nothing written."""

import functools

from ..errors import EXIT_OK, UserError
from ..options.arguments import ClusterArguments, DataArguments, ModelArguments
from ..options.training_arguments import GPT2HFTrainingArguments
from ..planning import parallel_plan
from ..planning.plan import make_plan
from ..planning.steps import make_schedule
from ..runtime import distributed
from ..runtime.stopwatch import Stopwatch
from .check import check_training
from .preparation import announce, build
from .results import closing_seconds, sample_writer
from .run import Run, surroundings


def plan(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: GPT2HFTrainingArguments,
    cluster: ClusterArguments,
    given: dict[str, str] | None = None,
    watch: Stopwatch | None = None,
) -> int:
    """Print what a run will be, measured on some real steps.

    Args:
        model_args, data_args, args: the options of the run.
        cluster: devices that the plan is made for.
        given: options that were stated, and where (see `parsing.Parsed`).
        watch: stopwatch of the invocation.

    Returns:
        The exit code.

    Raises:
        UserError: if the input is wrong.
    """
    run = Run(model_args, data_args, args, watch or Stopwatch(age_at_start=0.0), given=given or {})
    with surroundings(run):
        if data_args.streaming:
            raise UserError("a plan counts samples, which --streaming does not; leave it out for the plan")
        if args.resume_from_checkpoint is not None:
            raise UserError("--resume_from has no effect: a plan is that of a whole run; leave it out for the plan")
        args.parts_on(cluster.devices)  # refuses what cannot be divided, before anything is measured
        distributed.set_timeout(distributed.PATIENCE_SECONDS)
        tokenizer, data, model = build(run)
        distributed.set_timeout(args.ddp_timeout)
        if run.sizing is not None:
            for line in run.sizing.table():
                run.say(line)
        announce(run, model, data)
        start = run.watch.elapsed
        run.say("probing: a few real steps, then an evaluation; nothing is left in the checkpoint folder")
        write_sample = sample_writer(run, tokenizer, data, args.sample_tokens)
        teachers = [teacher.model for teacher in run.teachers]
        check = functools.partial(check_training, run)
        made = make_plan(args, model, data, start, closing_seconds(run, model), write_sample, check, teachers)
        for line in made.lines():
            run.say(line)
        if cluster.devices > 1:
            there = "this one process" if args.world_size == 1 else f"these {args.world_size} processes"
            steps = make_schedule(args, made.num_samples, cluster.devices).total_steps
            run.say(f"the figures above are those of {there}; on {cluster.devices} devices: {steps:,} steps")
            on_a_device = args.samples_per_step / args.world_size
            per_sample = made.measured.step_seconds / on_a_device if made.measured else None
            for line in parallel_plan.describe(args, cluster, model, per_sample, made.teacher_bytes):
                run.say(line)
        return EXIT_OK
