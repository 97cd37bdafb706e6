"""examples/slurm/train.sbatch with a stand-in for SLURM's commands, real processes and a real SIGUSR1."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from ..conftest import REPOSITORY, read_json
from ..faults import harness

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(shutil.which("bash") is None or sys.platform == "win32", reason="SLURM's scripts need bash"),
]

# Starts the tasks here, gives each its number, hands SIGUSR1 on, and ends with the highest of their exit codes. With
# --kill-on-bad-exit=1 it ends the others as soon as one has ended with a code, as SLURM does; with --wait so many
# seconds after the first has ended.
_SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys, time
options = dict(argument[2:].split("=") for argument in sys.argv[1:] if argument.startswith("--") and "=" in argument)
first = next(place for place, argument in enumerate(sys.argv) if place and not argument.startswith("--"))
command, count = sys.argv[first:], int(os.environ["STAND_IN_TASKS"])
numbers = [{{"SLURM_PROCID": str(n), "SLURM_LOCALID": str(n), "SLURM_NTASKS": str(count)}} for n in range(count)]
tasks = [subprocess.Popen(command, env=os.environ | of_task) for of_task in numbers]
signal.signal(signal.SIGUSR1, lambda *_: [task.send_signal(signal.SIGUSR1) for task in tasks])
ended = None
while any(task.poll() is None for task in tasks):
    if any(task.poll() is not None for task in tasks):
        ended = ended or time.monotonic()
    bad = options["kill-on-bad-exit"] == "1" and any(task.poll() for task in tasks)
    if bad or ended and time.monotonic() > ended + float(os.environ.get("STAND_IN_WAIT", options["wait"])):
        [task.terminate() for task in tasks if task.poll() is None]
    time.sleep(0.05)
sys.exit(max(task.returncode if task.returncode >= 0 else 128 - task.returncode for task in tasks))
"""
_SCONTROL = """#!/bin/sh
case $1 in
  show) [ "$2" = hostnames ] && echo 127.0.0.1 && echo another ;;
  *) echo "$@" >> "$STAND_IN/scontrol.log" ;;
esac
"""
_SQUEUE = """#!/bin/sh
date --date '+ 35 minutes' +%Y-%m-%dT%H:%M:%S
"""


def _job_whose_port_is_free() -> int:
    """Its number; the script makes the port from it."""
    while True:
        number = random.randrange(20_000)
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("localhost", 20_000 + number))
            return number


@pytest.fixture
def cluster(tmp_path):
    """SLURM's commands in a folder, and the environment of a job."""
    for name, text in (("srun", _SRUN), ("scontrol", _SCONTROL), ("squeue", _SQUEUE)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "python").chmod(0o755)
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("SLURM")},
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "STAND_IN": str(tmp_path),
        "STAND_IN_TASKS": "2",
        "SLURM_SUBMIT_DIR": str(REPOSITORY),
        "SLURM_JOB_ID": str(_job_whose_port_is_free()),
        "SLURM_JOB_NODELIST": "n[1-2]",
    }


@pytest.fixture
def submit(popen):
    """What sbatch does with the script, once the job has its nodes."""

    def run(options, log, environment):
        script = str(REPOSITORY / "examples" / "slurm" / "train.sbatch")
        with open(log, "a") as file:
            return popen(["bash", script, *options], env=environment, stdout=file, stderr=subprocess.STDOUT)

    return run


@pytest.mark.slow  # three trainers in processes of their own; what the script does is below
def test_a_preempted_job_is_requeued_and_goes_on(tiny_options, tmp_path, cluster, submit):
    """SIGUSR1 to the batch shell reaches both processes: 75, back into the queue; with one, it goes on."""
    log, run = tmp_path / "log", tmp_path / "run"
    options = [*tiny_options, "--checkpoint_dir", str(run), "--eval_every", "100000", "--save_every", "100000"]
    options += ["--save_strategy", "steps", "--max_steps", "4000", "--max_epochs", "100000"]
    options += ["--global_batch_size", "16", "--schedule_by_time"]
    job = submit(options, log, cluster)
    harness.wait_for(log, "step 20/", 240, job)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=240) == 75, log.read_text()
    assert (tmp_path / "scontrol.log").read_text() == f"requeue {cluster['SLURM_JOB_ID']}\n"
    first = log.read_text()
    assert first.count("SIGUSR1 received") == 2 and "2 processes" in first and first.count("stopped at step") == 1

    reached = int(first.split("stopped at step ")[1].split(";")[0].replace(",", ""))
    again = [*options, "--max_steps", str(reached + 5)]
    assert submit(again, log, {**cluster, "STAND_IN_TASKS": "1"}).wait(timeout=240) == 0, log.read_text()
    second = log.read_text()[len(first) :]
    assert f"resuming from {run}/checkpoint-{reached}" in second
    assert read_json(run / "trainer_state.json")["global_step"] == reached + 5
    assert (tmp_path / "scontrol.log").read_text() == f"requeue {cluster['SLURM_JOB_ID']}\n"


@pytest.mark.parametrize("code", [0, 2, 3])
def test_only_a_preempted_job_is_requeued(tmp_path, cluster, submit, code):
    """Finished, wrong input, diverged: the job ends with the code of its processes."""
    (tmp_path / "python").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\nexit {code}\n')
    job = submit(["--config", "a file.json"], tmp_path / "log", {**cluster, "CHAIN": "1", "STAND_IN_TASKS": "1"})
    assert job.wait(timeout=200) == code
    assert not (tmp_path / "scontrol.log").exists()
    expected = "run_clm.py --config a file.json --resume_from latest --max_training_hours none\n"
    assert (tmp_path / "arguments").read_text() == expected


@pytest.mark.parametrize(("end", "hours"), [(None, 0.5), (3900, 1.0)])
def test_the_hours_are_those_until_the_signal(tmp_path, cluster, submit, end, hours):
    """Five minutes before the limit, which squeue tells, or newer versions of SLURM by themselves; in any language."""
    (tmp_path / "python").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\n')
    german = f'{shutil.which("awk")} "$@" | if [ "$LC_ALL" = C ]; then cat; else tr . ,; fi'
    (tmp_path / "awk").write_text(f"#!/bin/sh\n{german}\n")
    (tmp_path / "awk").chmod(0o755)
    known = {} if end is None else {"SLURM_JOB_END_TIME": str(int(time.time()) + end)}
    own = {name: value for name, value in cluster.items() if name != "LC_ALL"}
    assert submit([], tmp_path / "log", {**own, **known, "STAND_IN_TASKS": "1"}).wait(timeout=60) == 0
    *_, option, given = (tmp_path / "arguments").read_text().split()
    assert option == "--max_training_hours" and hours - 0.05 < float(given) <= hours


# A process of a job that is asked to stop: the first is still writing when the second has already left.
_PROCESS = """#!/bin/bash
trap 'stop=1' USR1
echo started >> "$STAND_IN/started"
until [[ -n ${stop:-} ]]; do sleep 0.1; done
[[ $RANK == 0 ]] && sleep 0.8
exit 75
"""


@pytest.mark.parametrize("signals", [1, 3])
def test_processes_that_leave_one_after_another_are_requeued(tmp_path, cluster, submit, signals):
    """A process that has left with 75 does not end the others, and a second signal does not end the shell."""
    (tmp_path / "python").write_text(_PROCESS)
    job = submit([], tmp_path / "log", {**cluster, "CHAIN": "1"})
    harness.wait_for(tmp_path / "started", "started\nstarted\n", 60, job)
    for number in range(signals):
        time.sleep(0.15 * bool(number))
        job.send_signal((signal.SIGUSR1, signal.SIGTERM)[number % 2])
    assert job.wait(timeout=60) == 75, (tmp_path / "log").read_text()
    assert (tmp_path / "scontrol.log").read_text() == f"requeue {cluster['SLURM_JOB_ID']}\n"


def test_a_lost_process_ends_the_job(tmp_path, cluster, submit):
    """One that has failed is waited for by the others: they are ended, and the job is not put back."""
    (tmp_path / "python").write_text("#!/bin/bash\n[[ $RANK == 1 ]] && exit 1\nexec sleep 100\n")
    job = submit([], tmp_path / "log", {**cluster, "CHAIN": "1", "STAND_IN_WAIT": "0.5"})
    assert job.wait(timeout=60) == 143
    assert not (tmp_path / "scontrol.log").exists()
