"""Two network namespaces as two machines: a run over torchrun's rendezvous, and a cut link."""

import os
import re
import shutil
import subprocess
import sys
import time

import pytest

from gpt2_hf.checkpoints import folders

from ..conftest import REPOSITORY

_ADDRESSES = ("10.231.77.1", "10.231.77.2")


def _ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def nodes():
    """Two namespaces that a cable joins; nothing in them reaches anything else. The name and the device of each."""
    names = tuple(f"gpt2hf-{os.getpid()}-{end}" for end in "ab")
    devices = tuple(f"g{os.getpid() % 10**7}{end}" for end in "ab")
    cable = ("netns", names[0], "type", "veth", "peer", "name", devices[1], "netns", names[1])
    try:
        try:
            for name in names:
                _ip("netns", "add", name)
            _ip("link", "add", devices[0], *cable)
            for name, device, address in zip(names, devices, _ADDRESSES, strict=True):
                _ip("-n", name, "address", "add", f"{address}/24", "dev", device)
                _ip("-n", name, "link", "set", device, "up")
                _ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here: {error.stderr.decode().strip()}")
        yield tuple(zip(names, devices, strict=True))
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(sys.platform != "linux" or shutil.which("ip") is None, reason="needs Linux and iproute2"),
]


def launch(popen, node, log, *options):
    """What is typed on one of two machines."""
    (name, device), rank, address = node
    command = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run"]
    command += ["--nnodes=2", "--nproc_per_node=1", f"--node_rank={rank}", f"--local_addr={address}"]
    command += [f"--master_addr={_ADDRESSES[0]}", "--master_port=29400", str(REPOSITORY / "run_clm.py"), *options]
    with open(log, "w") as file:
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": device}
        return popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)


def texts(logs):
    return "\n".join(log.read_text() for log in logs)


def exit_codes(running, logs):
    """Wait for both machines; of one that does not end, what both have said is shown."""
    try:
        return [process.wait(timeout=200) for process in running]
    except subprocess.TimeoutExpired:
        pytest.fail(f"a machine did not end within 200 s\n{texts(logs)}")


def wait_for_link(nodes):
    """A cable that was plugged in again carries nothing for a moment."""
    deadline = time.monotonic() + 30
    for name, device in nodes:
        while "state UP" not in subprocess.check_output(["ip", "-n", name, "link", "show", device], text=True):
            assert time.monotonic() < deadline, f"{device} has no carrier"
            time.sleep(0.1)


@pytest.mark.slow  # half a minute, most of it waiting
def test_a_run_over_two_machines_survives_a_cut_link(tiny_options, tmp_path, nodes, popen):
    """Both train; the link is cut: both end by themselves within the timeout, and the run goes on afterwards."""
    run = tmp_path / "run"
    options = [*tiny_options, "--checkpoint_dir", str(run), "--max_epochs", "100000", "--eval_every", "100000"]
    options += ["--save_every", "20"]
    logs = [tmp_path / "a.log", tmp_path / "b.log"]
    joined = list(zip(nodes, range(2), _ADDRESSES, strict=True))
    running = [
        launch(popen, node, log, *options, "--max_steps", "1000000", "--ddp_timeout", "10")
        for node, log in zip(joined, logs, strict=True)
    ]
    deadline = time.monotonic() + 240
    while "step 40/" not in logs[0].read_text():
        assert all(process.poll() is None for process in running) and time.monotonic() < deadline, texts(logs)
        time.sleep(0.1)
    name, device = nodes[1]
    _ip("-n", name, "link", "set", device, "down")
    cut = time.monotonic()
    codes = exit_codes(running, logs)
    print(f"ended {time.monotonic() - cut:.1f} s after the cut")
    assert codes == [1, 1], texts(logs)
    assert "error: another process of the run is gone or cannot be reached" in logs[0].read_text(), texts(logs)
    _ip("-n", name, "link", "set", device, "up")
    wait_for_link(nodes)

    newest, passed_over = folders.newest_valid(run)
    assert newest is not None and not passed_over
    end = folders.step_of(newest) + 10
    options += ["--resume_from", "latest", "--max_steps", str(end)]
    running = [launch(popen, node, log, *options) for node, log in zip(joined, logs, strict=True)]
    assert exit_codes(running, logs) == [0, 0], texts(logs)
    text = logs[0].read_text()
    assert f"resuming from {newest}" in text and "2 processes" in text and f"step {end:,}/{end:,}:" in text
    assert not re.search("^step", logs[1].read_text(), flags=re.MULTILINE)  # one set of log lines
