"""Each file of cluster/ parses, has what its reader requires, and agrees with the others. Nothing is started."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from copy import deepcopy
from importlib.metadata import distribution
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from mucs_ray.cli.app import app

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
NAMES = sorted(path.name for path in CLUSTER.iterdir() if path.is_file())
LAUNCHER = ["ray-aws.yaml", "ray-gcp.yaml"]
KUBERAY = ["raycluster.yaml", "rayjob.yaml"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
PYTHON = "3.11"


def text(name: str) -> str:
    return (CLUSTER / name).read_text()


def document(name: str) -> dict[str, Any]:
    return yaml.safe_load(text(name))


def values(node: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Yield every leaf of a document with its path."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from values(value, f"{path}.{key}")
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from values(value, f"{path}[{number}]")
    else:
        yield path, node


def without_comments(name: str) -> str:
    return re.sub(r"(?m)(^|\s)#(?!SBATCH|!).*$", "", text(name))


def test_the_files_of_the_table_are_all_there_are():
    listed = set(re.findall(r"\| `cluster/([\w.-]+)` \|", text("README.md")))
    others = {"README.md", "Dockerfile", "Dockerfile.dockerignore", "kubernetes.yaml", "grafana-dashboard.json"}
    assert listed | others == set(NAMES)
    assert len(listed) == 7


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(".yaml")])
def test_yaml_parses_without_repeated_keys(name: str):
    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
            keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            assert len(keys) == len(set(keys)), keys
            return super().construct_mapping(node, deep)

    assert all(isinstance(each, dict) for each in yaml.load_all(text(name), Strict))


# --- one image, one Ray, one Python ---------------------------------------------------------------------------------


def image() -> str:
    return f"registry.example.com/mucs-ray:ray{PINS['ray']}-py{PYTHON.replace('.', '')}"


def test_ray_and_python_are_the_same_everywhere():
    asked = {number for name in NAMES for number in re.findall(r"\b2\.\d\d\.\d+\b", text(name))}
    assert asked == {PINS["ray"]}
    least = re.search(r'"ray\[[\w,]+\]>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert least and PINS["ray"].startswith(least[1])
    pythons = {number for name in NAMES for number in re.findall(r"(?i)python[ =]+(3\.\d+)", text(name))}
    assert pythons == {PYTHON}
    assert f"ARG PYTHON=py{PYTHON.replace('.', '')}\n" in text("Dockerfile")


def test_the_image_is_the_same_everywhere():
    named = {name: set(re.findall(r"\S*/mucs-ray:\S+", text(name))) for name in NAMES}
    users = {name for name, images in named.items() if images}
    assert users == {"README.md", "Dockerfile", "compose.yaml", *LAUNCHER, *KUBERAY}
    assert all(images == {image()} for name, images in named.items() if name in users)


def instructions() -> list[tuple[str, str]]:
    lines = re.sub(r"\\\n\s*", "", "\n".join(x for x in text("Dockerfile").splitlines() if not x.startswith("#")))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines.splitlines() if line]


def test_the_dockerfile():
    steps = instructions()
    words = [word for word, _ in steps]
    assert set(words) <= {"ARG", "FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER"}
    assert words.count("FROM") == 1 and set(words[: words.index("FROM")]) <= {"ARG"}
    assert ("FROM", "rayproject/ray:${RAY_VERSION}-${PYTHON}-cpu") in steps
    assert ("ARG", f"RAY_VERSION={PINS['ray']}") in steps
    assert steps[-1][0] == "USER" and int(steps[-1][1].split(":")[0]) == 1000  # a number: Kubernetes checks it is not 0
    assert [word for word, rest in steps if word == "USER" and rest.startswith(("root", "0"))] == []
    (installed,) = [rest for word, rest in steps if word == "RUN"]
    assert "--constraint constraints.txt" in installed and "index" not in installed
    assert any("RAY_AUTH_MODE=token" in rest for word, rest in steps if word == "ENV")
    copied = [source for word, rest in steps if word == "COPY" for source in rest.split()[:-1]]
    assert [source for source in copied if not (ROOT / source).exists()] == []
    ignored = text("Dockerfile.dockerignore").splitlines()
    assert "*" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == {source.rstrip("/") for source in copied}


# --- commands -------------------------------------------------------------------------------------------------------


def scripts(name: str) -> list[str]:
    """Return the texts that a shell runs: strings of YAML, code of a page, or the file itself."""
    if name.endswith(".yaml"):
        return [value for each in yaml.safe_load_all(text(name)) for _, value in values(each) if isinstance(value, str)]
    return (
        re.findall(r"```sh\n(.*?)```|`(mucs-ray [^`]+)`", text(name), re.DOTALL)
        if name == "README.md"
        else [text(name)]
    )


def entrypoints(name: str) -> list[list[str]]:
    """Return, for every call of `mucs-ray` in a file, the words after it up to the end of the command."""
    called = []
    for script in scripts(name):
        joined = re.sub(r"\\\n\s*", " ", "".join(script))
        joined = re.sub(r"(?m)(^|\s)#.*$", "", joined)
        called += [shlex.split(call) for call in re.findall(r"(?:^|\s)mucs-ray +([a-z][^\n&]*)", joined, re.MULTILINE)]
    return called


@pytest.mark.parametrize("name", ["rayjob.yaml", "slurm.sbatch", "sky.yaml", "compose.yaml", "README.md"])
def test_commands_and_their_options_are_there(name: str):
    calls = entrypoints(name)
    assert any(words[0] == "attribute" for words in calls)
    for words in calls:
        assert unknown_options(words) == set(), words


def unknown_options(words: list[str]) -> set[str]:
    command, rest = typer.main.get_command(app), list(words)
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts}
    return {word for word in rest if word.startswith("--")} - known


def test_the_check_of_options_can_fail():
    assert unknown_options(["attribute", "--dataset", "x", "--no-such"]) == {"--no-such"}


@pytest.mark.parametrize("name", ["rayjob.yaml", "slurm.sbatch", "sky.yaml", "compose.yaml"])
def test_data_and_runs_are_where_all_nodes_see_them(name: str):
    for words in entrypoints(name):
        options = dict(pairwise(words))
        for option in {"--dataset", "--run", "--out"} & set(options):
            value = options[option]
            if value.startswith("$"):
                (value,) = re.findall(rf"(?m)^\s*{value[1:]}[:=] ?(\S+)$", text(name))
            assert value.startswith(("s3://", "gs://", "/shared/")), value


# --- access ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NAMES if name != "README.md"])
def test_no_secret_is_in_a_file(name: str):
    secret = re.findall(r"(?i)(?:AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY|\b[0-9a-f]{32,}\b)", text(name))
    assert secret == []
    named = re.compile(r"(?im)^[ \t]*(\w*(?:token|secret|password|secret_\w+)):?[ \t]*[:=][ \t]*(\S+)")
    for key, value in named.findall(without_comments(name)):
        assert key == "automountServiceAccountToken" or value.startswith(("$", "null")), key


def test_token_authentication_is_on():
    for name in KUBERAY:
        assert spec_of(name)["authOptions"] == {"mode": "token"}
    for name in LAUNCHER:
        assert "-e RAY_AUTH_MODE=token" in document(name)["docker"]["run_options"]
        assert document(name)["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    assert document("sky.yaml")["envs"]["RAY_AUTH_MODE"] == "token"
    assert document("sky.yaml")["secrets"] == {"RAY_AUTH_TOKEN": None}
    assert re.search(r"(?m)^export RAY_AUTH_TOKEN RAY_AUTH_MODE=token", text("slurm.sbatch"))
    for service in ("head", "worker", "job"):
        environment = document("compose.yaml")["services"][service]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")
    assert [name for name in NAMES if re.search(r"RAY_AUTH_MODE[=: ]+disabled", text(name))] == []


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(".yaml")])
def test_no_port_is_public(name: str):
    for each in yaml.safe_load_all(text(name)):
        for path, value in values(each):
            assert not path.endswith((".hostPort", ".hostNetwork", ".nodePort", ".enableIngress")), path
            assert not path.endswith("erviceType") or value == "ClusterIP", path
            assert value not in ("LoadBalancer", "NodePort", "0.0.0.0/0", "Ingress") or "policyTypes" in path, path
    for host in re.findall(r"--dashboard-host[= ](\S+)", text(name)):
        assert host == "127.0.0.1" or name == "compose.yaml"
    if name == "compose.yaml":
        services = document(name)["services"]
        assert [port for service in services.values() for port in service.get("ports", [])] == ["127.0.0.1:8265:8265"]


def test_the_network_policy_lets_in_the_namespace_and_the_operator_alone():
    account, policy = yaml.safe_load_all(text("kubernetes.yaml"))
    assert (account["kind"], account["metadata"]["name"]) == ("ServiceAccount", "mucs-ray")
    assert (policy["apiVersion"], policy["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy")
    assert policy["spec"]["podSelector"]["matchLabels"] == {"ray.io/is-ray-node": "yes"}
    (rule,) = policy["spec"]["ingress"]
    same, operator = rule["from"]
    assert same == {"podSelector": {}}
    assert operator["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}


# --- ray up ---------------------------------------------------------------------------------------------------------


def check_launcher(config: dict[str, Any]) -> None:
    """Check a configuration against the schema of the installed Ray, as Ray's validate_config does."""
    schema = json.loads(Path(str(distribution("ray").locate_file("ray/autoscaler/ray-schema.json"))).read_text())
    jsonschema.validate(config, schema)
    kinds = config["available_node_types"]
    assert config["head_node_type"] in kinds
    assert sum(kind["min_workers"] for kind in kinds.values()) <= config["max_workers"]


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_up_takes_the_file(name: str):
    check_launcher(document(name))


def test_the_check_of_ray_up_can_fail():
    for change in ({"max_worker": 1}, {"max_workers": "8"}, {"head_node_type": "none"}):
        with pytest.raises((jsonschema.ValidationError, AssertionError)):
            check_launcher(document("ray-aws.yaml") | change)
    for missing in ("provider", "cluster_name"):
        config = document("ray-aws.yaml")
        del config[missing]
        with pytest.raises(jsonschema.ValidationError):
            check_launcher(config)


@pytest.mark.parametrize("name", LAUNCHER)
def test_head_on_demand_and_workers_on_spot_from_none(name: str):
    config = document(name)
    head, gpu = (config["available_node_types"][kind] for kind in ("head", "gpu"))
    assert head["resources"] == {"CPU": 0} and head["max_workers"] == 0
    assert (gpu["min_workers"], gpu["max_workers"]) == (0, config["max_workers"]) and gpu["max_workers"] > 0
    assert gpu["resources"]["GPU"] > 0
    assert f"-e MUCS_RAY_MAX_GPUS={gpu['max_workers'] * gpu['resources']['GPU']}" in config["docker"]["run_options"]
    assert 0 < config["idle_timeout_minutes"] <= 15
    if name == "ray-aws.yaml":
        assert gpu["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
        assert "InstanceMarketOptions" not in head["node_config"]
        assert "IamInstanceProfile" in gpu["node_config"] and config["provider"]["cache_stopped_nodes"] is False
    else:
        assert gpu["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
        assert "scheduling" not in head["node_config"] and gpu["node_config"]["serviceAccounts"]
    start_head, start_worker = config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]
    assert "--head" in start_head and "--num-cpus=0" in start_head and "ray_bootstrap_config.yaml" in start_head
    assert "--address=$RAY_HEAD_IP:6379" in start_worker and "--port=6379" in start_head
    assert config["setup_commands"] == config["head_setup_commands"] == []  # left out, Ray's own would run pip


@pytest.mark.parametrize("name", LAUNCHER)
def test_shared_memory_holds_the_object_store(name: str):
    config = document(name)
    (size,) = re.findall(r"--shm-size=(\d+)gb", " ".join(config["docker"]["run_options"]))
    stores = {int(store) for store in re.findall(r"--object-store-memory=(\d+)", text(name))}
    assert stores and max(stores) < int(size) * 2**30


# --- KubeRay --------------------------------------------------------------------------------------------------------

HEAD = {"rayStartParams", "template"}
WORKERS = {"groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"}
"""What the custom resource definitions of KubeRay require."""
CLUSTER_FIELDS = {
    "rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs",
}  # fmt: skip
JOB_FIELDS = {
    "entrypoint", "backoffLimit", "activeDeadlineSeconds", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished",
    "rayClusterSpec",
}  # fmt: skip


def spec_of(name: str) -> dict[str, Any]:
    """Return the part of a document that describes the cluster."""
    spec = document(name)["spec"]
    return spec["rayClusterSpec"] if name == "rayjob.yaml" else spec


def check_kuberay(spec: dict[str, Any]) -> None:
    assert set(spec) == CLUSTER_FIELDS
    head, groups = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert set(head) == HEAD | {"serviceType"}
    for group in groups:
        assert set(group) == WORKERS | {"replicas"}
        assert all(isinstance(group[key], int) for key in ("replicas", "minReplicas", "maxReplicas"))
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for each in (head, *groups):
        assert all(isinstance(value, str) for value in each["rayStartParams"].values())
        pod = each["template"]["spec"]
        assert pod["restartPolicy"] == "Never"  # autoscaler v2 asks for it
        (container,) = pod["containers"]
        assert {"name", "image", "resources"} <= set(container)
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert all({"name", "value"} == set(variable) for variable in container["env"])
        assert all(isinstance(variable["value"], str) for variable in container["env"])


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_takes_the_file(name: str):
    whole = document(name)
    assert set(whole) == {"apiVersion", "kind", "metadata", "spec"} and whole["apiVersion"] == "ray.io/v1"
    assert whole["kind"].lower() + ".yaml" == name
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", whole["metadata"]["name"])
    assert all(isinstance(value, str) for value in whole["metadata"]["annotations"].values())
    check_kuberay(spec_of(name))


def test_the_check_of_kuberay_can_fail():
    good = spec_of("rayjob.yaml")
    check_kuberay(good)

    def broken(*path: str | int, value: object = None, remove: bool = False) -> dict[str, Any]:
        spec = deepcopy(good)
        at: Any = spec
        for key in path[:-1]:
            at = at[key]
        if remove:
            del at[path[-1]]
        else:
            at[path[-1]] = value
        return spec

    worker = ("workerGroupSpecs", 0)
    for bad in (
        broken("headGroupSpec", remove=True),
        broken("headGroupSpec", "rayStartParams", "num-cpus", value=0),
        broken(*worker, "maxReplica", value=3),
        broken(*worker, "minReplicas", remove=True),
        broken(*worker, "maxReplicas", value=-1),
        broken(*worker, "template", "spec", "volumes", value=[]),
    ):
        with pytest.raises((AssertionError, KeyError)):
            check_kuberay(bad)


def test_both_kuberay_files_get_the_same_cluster():
    assert spec_of("rayjob.yaml") == spec_of("raycluster.yaml")


def test_the_cluster_of_kuberay():
    spec = spec_of("rayjob.yaml")
    assert spec["rayVersion"] == PINS["ray"]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2" and spec["autoscalerOptions"]["idleTimeoutSeconds"] > 0
    head, (gpu,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert head["serviceType"] == "ClusterIP"
    assert (head["rayStartParams"]["num-cpus"], head["rayStartParams"]["num-gpus"]) == ("0", "0")
    assert gpu["minReplicas"] == gpu["replicas"] == 0 < gpu["maxReplicas"]
    (worker,) = gpu["template"]["spec"]["containers"]
    max_gpus = gpu["maxReplicas"] * worker["resources"]["limits"]["nvidia.com/gpu"]
    assert {"name": "MUCS_RAY_MAX_GPUS", "value": str(max_gpus)} in head["template"]["spec"]["containers"][0]["env"]
    for each in (head, gpu):
        pod = each["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == image()
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] == 1000
        assert pod["serviceAccountName"] == "mucs-ray"
        shm = {volume["name"]: volume for volume in pod["volumes"]}["shm"]["emptyDir"]
        assert shm["medium"] == "Memory" and {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
        assert int(each["rayStartParams"]["object-store-memory"]) < int(shm["sizeLimit"].removesuffix("Gi")) * 2**30
        assert int(container["resources"]["limits"]["memory"].removesuffix("Gi")) > int(shm["sizeLimit"][:-2])
        (cache,) = [variable["value"] for variable in container["env"] if variable["name"] == "MUCS_RAY_CACHE"]
        assert cache in {mount["mountPath"] for mount in container["volumeMounts"]}


def spot_labels(template: dict[str, Any], operator: str) -> set[str]:
    affinity = template["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    expressions = [each for term in affinity["nodeSelectorTerms"] for each in term["matchExpressions"]]
    assert {each["operator"] for each in expressions} == {operator}
    return {each["key"] for each in expressions}


def test_pods_of_workers_are_on_spot_and_leave_in_order():
    spec = spec_of("rayjob.yaml")
    head, gpu = spec["headGroupSpec"]["template"], spec["workerGroupSpecs"][0]["template"]
    assert spot_labels(gpu, "In") == spot_labels(head, "NotIn") and "karpenter.sh/capacity-type" in spot_labels(
        gpu, "In"
    )
    pod = gpu["spec"]
    (container,) = pod["containers"]
    assert (
        container["resources"]["limits"]["nvidia.com/gpu"] == container["resources"]["requests"]["nvidia.com/gpu"] == 1
    )
    assert {"nvidia.com/gpu", "cloud.google.com/gke-spot"} <= {each["key"] for each in pod["tolerations"]}
    shell, login, script = container["lifecycle"]["preStop"]["exec"]["command"]
    assert (shell, login) == ("/bin/bash", "-lc")
    assert "ray drain-node" in script and "DRAIN_NODE_REASON_PREEMPTION" in script
    parts = [int(number) for number in re.findall(r"(?:timeout|sleep) (\d+)", script)]
    assert len(parts) == 2 and sum(parts) < pod["terminationGracePeriodSeconds"]
    (deadline,) = re.findall(r"--deadline-remaining-seconds (\d+)", script)
    assert int(deadline) == parts[1]
    bash_parses(script)


def test_the_job_ends_and_resumes():
    spec = document("rayjob.yaml")["spec"]
    assert set(spec) == JOB_FIELDS
    assert spec["shutdownAfterJobFinishes"] is True
    assert all(spec[key] > 0 for key in ("backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"))
    assert "\n" not in spec["entrypoint"] and not re.search(r"[$`;|&]", spec["entrypoint"])  # no shell expands it


# --- scripts --------------------------------------------------------------------------------------------------------


def bash_parses(script: str) -> None:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True, capture_output=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "--shell=bash", "--severity=warning", "-"], input=script, text=True, check=True)


def test_scripts_parse():
    bash_parses(text("slurm.sbatch"))
    bash_parses(document("sky.yaml")["setup"])
    bash_parses(document("sky.yaml")["run"])
    with pytest.raises(subprocess.CalledProcessError):
        bash_parses("if true; then")


def test_slurm():
    lines = text("slurm.sbatch").splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    options = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH"))
    assert {"requeue", "exclusive", "time", "gpus-per-node", "cpus-per-task", "open-mode"} <= set(options)
    assert options["ntasks-per-node"] == "1" and re.fullmatch(r"B:USR1@\d+", options["signal"])
    script = without_comments("slurm.sbatch")
    first_command = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(n for n, line in enumerate(lines) if line.startswith("#SBATCH")) < first_command
    assert "set -euo pipefail" in script and "trap clean_up EXIT" in script and "trap requeue USR1" in script
    assert "scontrol requeue" in script and "ray symmetric-run" in script
    assert '--min-nodes "$SLURM_NNODES"' in script and '--num-gpus="$SLURM_GPUS_ON_NODE"' in script
    assert "--include-dashboard=false" in script
    head, rest = re.sub(r"\\\n\s*", " ", script).split("symmetric-run", 1)[1].split(" -- ", 1)
    assert not {"--head", "--port", "--block", "--node-ip-address"} & set(head.split())  # symmetric-run refuses them
    assert "mucs-ray attribute" in rest


def test_skypilot():
    task = document("sky.yaml")
    assert set(task) == {"name", "num_nodes", "envs", "secrets", "workdir", "resources", "setup", "run"}
    resources = {"accelerators", "cpus", "memory", "disk_size", "use_spot", "job_recovery"}
    assert set(task["resources"]) == resources
    assert task["resources"]["use_spot"] is True and task["num_nodes"] >= 2
    assert task["resources"]["job_recovery"]["max_restarts_on_errors"] > 0
    assert all(isinstance(value, str) for value in task["envs"].values())
    assert "--constraint constraints.txt" in task["setup"]
    assert not re.search(r"ray stop|symmetric-run|:6380\b|--port 6380", task["run"])  # SkyPilot's own Ray is there
    assert "--port 6379" in task["run"] and "--include-dashboard=false" in task["run"]


def test_compose():
    compose = document("compose.yaml")
    services = compose["services"]
    assert set(services) == {"s3", "bucket", "head", "worker", "job"}
    assert services["worker"]["deploy"]["replicas"] == 2
    assert re.fullmatch(r"minio/minio:RELEASE\.[\dTZ-]+", services["s3"]["image"])
    for name in ("head", "worker", "job", "bucket"):
        service = services[name]
        assert service["image"] == image()
        folder = (CLUSTER / service["build"]["context"]).resolve()
        assert (folder / service["build"]["dockerfile"]).resolve() == CLUSTER / "Dockerfile"
        assert set(service.get("depends_on", {})) <= set(services)
        assert service["environment"]["AWS_ENDPOINT_URL"] == "http://s3:9000"
    keys = (
        services["head"]["environment"]["AWS_SECRET_ACCESS_KEY"],
        services["s3"]["environment"]["MINIO_ROOT_PASSWORD"],
    )
    assert keys[0] == keys[1] and keys[0].startswith("${S3_SECRET_KEY:?")
    for name in ("head", "worker"):
        (store,) = re.findall(r"--object-store-memory=(\d+)", services[name]["command"])
        assert int(store) < int(services[name]["shm_size"].removesuffix("gb")) * 2**30
    assert "--num-cpus=0" in services["head"]["command"] and "--address=head:6379" in services["worker"]["command"]
    bash_parses(services["job"]["command"][-1])
    assert {volume.split(":")[0] for volume in services["s3"]["volumes"]} == set(compose["volumes"])
