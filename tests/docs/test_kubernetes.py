"""The example manifest agrees with itself and with the program; .ci/run checks it against Kubernetes' schema."""

import yaml

from gpt2_hf.errors import EXIT_DIVERGED, EXIT_PREEMPTED, EXIT_USER_ERROR
from gpt2_hf.options.arguments import DataArguments, ModelArguments
from gpt2_hf.options.parsing import Parser
from gpt2_hf.options.training_arguments import GPT2HFTrainingArguments

from ..conftest import REPOSITORY

SERVICE, CLAIM, JOB = yaml.safe_load_all((REPOSITORY / "examples" / "kubernetes" / "job.yaml").read_text())
POD = JOB["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
ENVIRONMENT = {entry["name"]: entry.get("value") for entry in CONTAINER["env"]}


def test_every_process_finds_the_first_one():
    """As many processes as pods, and the address of pod 0 is one that the headless service gives it."""
    spec = JOB["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(ENVIRONMENT["WORLD_SIZE"])
    assert SERVICE["spec"]["clusterIP"] == "None"
    assert SERVICE["spec"]["selector"] == {"job-name": JOB["metadata"]["name"]}
    service = SERVICE["metadata"]["name"]
    assert POD["subdomain"] == service
    assert ENVIRONMENT["MASTER_ADDR"] == f"{JOB['metadata']['name']}-0.{service}"
    assert int(ENVIRONMENT["MASTER_PORT"]) == SERVICE["spec"]["ports"][0]["port"]


def test_exit_codes_mean_what_the_program_means_by_them():
    """A preempted pod is made again; wrong input and divergence end the job."""
    rules = {rule["action"]: rule["onExitCodes"] for rule in JOB["spec"]["podFailurePolicy"]["rules"][:2]}
    assert rules["FailJob"]["values"] == [EXIT_USER_ERROR, EXIT_DIVERGED]
    assert rules["Ignore"]["values"] == [EXIT_PREEMPTED]
    assert all(rule["containerName"] == CONTAINER["name"] for rule in rules.values())
    assert POD["restartPolicy"] == "Never"  # what a failure policy needs


def test_options_and_folders_exist():
    """The arguments are the program's, the checkpoints lie on the shared volume."""
    known = Parser([ModelArguments, DataArguments, GPT2HFTrainingArguments], add_help=False)._option_string_actions
    arguments = CONTAINER["args"]
    assert all(argument in known or argument == "--config" for argument in arguments if argument.startswith("--"))
    assert (REPOSITORY / arguments[arguments.index("--config") + 1]).is_file()
    mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert arguments[arguments.index("--checkpoint_dir") + 1].startswith(mounts["run"] + "/")
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    assert volumes.keys() == mounts.keys()
    assert volumes["run"]["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]
    assert int(arguments[arguments.index("--global_batch_size") + 1]) % JOB["spec"]["completions"] == 0
