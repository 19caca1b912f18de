"""The cluster files: Ray's own schema for AWS, KubeRay's rules, the image, and what all of them must agree on."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path, PurePosixPath

import jsonschema
import pytest
import ray
import yaml

from bench import sweep
from bench.records import provenance

ROOT = Path(__file__).resolve().parent.parent
CLUSTERS = ROOT / "clusters"
SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
AUTOSCALERS = ("aws.yaml", "local-autoscaling.yaml")
MANIFESTS = ("kuberay-cluster.yaml", "kuberay-job.yaml")
DNS_1123 = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
QUANTITY = re.compile(r"\d+(\.\d+)?(m|[KMGT]i?)?")


def read(name):
    return yaml.safe_load((CLUSTERS / name).read_text())


def header(name):
    """The comment at the top of a file."""
    lines = (CLUSTERS / name).read_text().splitlines()
    return "\n".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])


def cluster_spec(name):
    spec = read(name)["spec"]
    return spec if name == "kuberay-cluster.yaml" else spec["rayClusterSpec"]


def pod_templates(spec):
    return [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]


def containers(spec):
    return [one for template in pod_templates(spec) for one in template["spec"]["containers"]]


def instructions():
    """The Dockerfile as `(INSTRUCTION, rest)` pairs, comments dropped and continued lines joined."""
    lines = [line for line in (CLUSTERS / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1].strip()) for line in joined.splitlines() if line]


# --- ray up ---


@pytest.mark.parametrize("name", AUTOSCALERS)
def test_autoscaler_files_fit_rays_own_schema(name):
    jsonschema.Draft7Validator(SCHEMA).validate(read(name))


def test_rays_schema_catches_what_it_should():
    broken = read("aws.yaml")
    broken["available_node_types"]["cpu"]["resources"]["CPU"] = 1.5
    broken["idle_timeout"] = 5
    messages = " ".join(error.message for error in jsonschema.Draft7Validator(SCHEMA).iter_errors(broken))
    assert "1.5 is not of type 'integer'" in messages
    assert "'idle_timeout' was unexpected" in messages


@pytest.mark.parametrize("name", AUTOSCALERS)
def test_autoscaler_files_scale_from_zero_and_keep_work_off_the_head(name):
    config = read(name)
    types = config["available_node_types"]
    head = types[config["head_node_type"]]
    workers = {key: kind for key, kind in types.items() if key != config["head_node_type"]}
    assert head["resources"]["CPU"] == 0
    assert "GPU" not in head["resources"]
    assert head["max_workers"] == 0
    assert workers
    for kind in types.values():
        assert all(type(amount) is int for amount in kind["resources"].values())
    for kind in workers.values():
        assert kind["min_workers"] == 0
        assert type(kind["max_workers"]) is int
    most = [kind["max_workers"] for kind in workers.values()]
    assert max(most) <= config["max_workers"] <= sum(most)
    cpu = [kind["priority"] for kind in workers.values() if "GPU" not in kind["resources"]]
    gpu = [kind["priority"] for kind in workers.values() if "GPU" in kind["resources"]]
    # The autoscaler fills the higher priority first: CPU tasks should not start GPU nodes while others can be had.
    assert cpu
    assert gpu
    assert min(cpu) > max(gpu)


def test_aws_workers_are_spot_and_reach_s3_by_profile():
    config = read("aws.yaml")
    assert config["provider"]["type"] == "aws"
    assert config["provider"]["cache_stopped_nodes"] is False
    assert 0 < config["idle_timeout_minutes"] <= 10
    for key, kind in config["available_node_types"].items():
        node = kind["node_config"]
        assert node["IamInstanceProfile"]["Name"].startswith("reconbench-")
        assert node["ImageId"].startswith("resolve:ssm:/aws/service/deeplearning/ami/")
        assert type(node["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"]) is int
        if key == config["head_node_type"]:
            assert "InstanceMarketOptions" not in node
        else:
            assert node["InstanceMarketOptions"] == {"MarketType": "spot"}
        if "GPU" in kind["resources"]:
            assert re.fullmatch(r"g[56]\.2xlarge", node["InstanceType"])


def test_aws_leaves_no_list_for_ray_to_fill_and_ships_only_the_token():
    config = read("aws.yaml")
    for key in ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert config[key] == []
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}


@pytest.mark.parametrize("key", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_aws_nodes_start_in_the_images_workdir_with_authentication(key):
    start = read("aws.yaml")[key][-1]
    workdir = dict(instructions())["WORKDIR"]
    assert start.startswith(f"cd {workdir} && ")
    assert "unset OMP_NUM_THREADS" in start
    assert "export RAY_AUTH_MODE=token" in start
    words = shlex.split(start)
    assert words[words.index("ray") + 1] == "start"
    if key.startswith("head"):
        assert "--head" in words
        assert "--dashboard-host=127.0.0.1" in words
        assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in words
    else:
        assert "--address=$RAY_HEAD_IP:6379" in words


# --- KubeRay ---


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_name_api_and_kind(name):
    manifest = read(name)
    assert manifest["apiVersion"] == "ray.io/v1"
    assert manifest["kind"] == {"kuberay-cluster.yaml": "RayCluster", "kuberay-job.yaml": "RayJob"}[name]
    given = manifest["metadata"].get("name") or manifest["metadata"]["generateName"].removesuffix("-")
    assert DNS_1123.fullmatch(given)
    # The operator appends to the name and cuts at 63 characters.
    assert len(given) <= 40


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_ask_for_the_token_and_the_v2_autoscaler(name):
    spec = cluster_spec(name)
    assert spec["authOptions"]["mode"] == "token"
    assert DNS_1123.fullmatch(spec["authOptions"]["secretName"])
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert type(spec["autoscalerOptions"]["idleTimeoutSeconds"]) is int
    pinned = re.search(r"^ray==(\S+)$", (CLUSTERS / "constraints.txt").read_text(), re.MULTILINE)
    assert spec["rayVersion"] == pinned[1]


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_groups_scale_from_zero(name):
    spec = cluster_spec(name)
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert list(groups) == ["cpu", "gpu-train", "gpu-render"]
    for key, group in groups.items():
        assert DNS_1123.fullmatch(key)
        assert group["minReplicas"] == group["replicas"] == 0
        assert type(group["maxReplicas"]) is int
        assert group["maxReplicas"] > 0
        assert type(group["priority"]) is int
        assert type(group["idleTimeoutSeconds"]) is int
        assert all(type(value) is str for value in group["rayStartParams"].values())
    assert groups["cpu"]["priority"] > max(groups["gpu-train"]["priority"], groups["gpu-render"]["priority"])
    # KubeRay takes the parameters of `ray start` as text; a number there is refused.
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert all(type(value) is str for value in spec["headGroupSpec"]["rayStartParams"].values())


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_pods(name):
    spec = cluster_spec(name)
    assert len(containers(spec)) == len(pod_templates(spec)) == 4
    for template in pod_templates(spec):
        assert template["spec"]["restartPolicy"] == "Never"
        (container,) = template["spec"]["containers"]
        assert DNS_1123.fullmatch(container["name"])
        assert {"name": "RAY_AUTH_MODE", "value": "token"} in container["env"]
        limits, requests = container["resources"]["limits"], container["resources"]["requests"]
        assert limits == requests
        assert {"cpu", "memory"} <= set(limits)
        assert all(type(value) is str and QUANTITY.fullmatch(value) for value in limits.values())
        # Without a command of its own, the operator starts Ray in the image's WORKDIR.
        assert not {"command", "args", "workingDir"} & set(container)
        tolerated = [one["key"] for one in template["spec"].get("tolerations", [])]
        assert tolerated == (["nvidia.com/gpu"] if "nvidia.com/gpu" in limits else [])
    assert "nvidia.com/gpu" not in containers(spec)[0]["resources"]["limits"]
    gpus = [one["resources"]["limits"].get("nvidia.com/gpu") for one in containers(spec)[1:]]
    assert gpus == [None, "1", "1"]
    assert {port["containerPort"]: port["name"] for port in containers(spec)[0]["ports"]} == {
        6379: "gcs-server",
        8265: "dashboard",
        10001: "client",
    }


def test_the_job_runs_the_sweep_on_the_same_cluster():
    spec = read("kuberay-job.yaml")["spec"]
    assert spec["rayClusterSpec"] == read("kuberay-cluster.yaml")["spec"]
    words = shlex.split(spec["entrypoint"])
    assert words[:2] == ["python", "bench/sweep.py"]
    assert words[words.index("--runs") + 1].startswith("s3://")
    assert words[words.index("--data") + 1].startswith("s3://")
    assert spec["submissionMode"] == "K8sJobMode"
    assert spec["shutdownAfterJobFinishes"] is True
    assert type(spec["ttlSecondsAfterFinished"]) is int
    assert type(spec["backoffLimit"]) is int
    # A working directory would have to be a remote archive: the code is in the image.
    assert "runtimeEnvYAML" not in spec


# --- the image ---


def test_the_image_installs_the_tested_versions_and_the_packages():
    steps = instructions()
    assert steps[0] == ("FROM", "python:3.11-slim-bookworm")
    assert ("WORKDIR", "/app") in steps
    installs = [rest for step, rest in steps if step == "RUN" and "pip install" in rest]
    assert len(installs) == 2
    assert all("--constraint clusters/constraints.txt" in rest for rest in installs)
    assert "--editable ." in installs[-1]
    copied = [words[:-1] for step, rest in steps if step == "COPY" for words in [rest.split()]]
    sources = {source for words in copied for source in words}
    assert {"bench", "encoders", "eval", "clusters", "pyproject.toml", "clusters/constraints.txt"} <= sources
    for source in sources:
        assert (ROOT / source).exists()
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.rstrip("*") for name in packages} <= sources


def test_the_image_runs_as_nobody_special_and_knows_commit_and_authentication():
    steps = instructions()
    users = [rest for step, rest in steps if step == "USER"]
    assert users == ["ray"]
    assert [step for step, _ in steps].index("USER") > max(i for i, (step, _) in enumerate(steps) if step == "RUN")
    variables = dict(item.split("=", 1) for item in shlex.split(next(rest for step, rest in steps if step == "ENV")))
    assert variables["RAY_AUTH_MODE"] == "token"
    assert variables["RECONBENCH_COMMIT"] == "${COMMIT}"
    assert ("ARG", 'COMMIT=""') in steps
    # `ray up` places mounted files by the HOME of the image's configuration, not of its user table.
    assert variables["HOME"] == "/home/ray"
    mounted = PurePosixPath(next(iter(read("aws.yaml")["file_mounts"])))
    assert mounted.is_relative_to(variables["HOME"])


def test_the_image_has_what_the_launchers_call():
    install = next(rest for step, rest in instructions() if step == "RUN" and "apt-get install" in rest)
    assert {"rsync", "wget"} <= set(install.split())
    pip = next(rest for step, rest in instructions() if step == "RUN" and "requirements.txt" in rest)
    assert "boto3" in pip.split()  # the autoscaler on the head starts instances with it


def test_only_named_paths_enter_the_image():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {line[1:] for line in rules if line.startswith("!")}
    copied = {word for step, rest in instructions() if step == "COPY" for word in rest.split()[:-1]}
    assert {source.split("/")[0] for source in copied} == allowed


# --- all of them ---


@pytest.mark.parametrize("name", ["aws.yaml", "local-autoscaling.yaml", *MANIFESTS, "Dockerfile"])
def test_no_secret_and_no_machine_stands_in_a_file(name):
    text = (CLUSTERS / name).read_text()
    assert not re.search(r"AKIA[0-9A-Z]{16}|aws_secret_access_key|AWS_SECRET_ACCESS_KEY\s*[:=]\s*\S", text)
    assert not re.search(r"RAY_AUTH_TOKEN\s*[:=]\s*[\"']?[0-9a-f]{8}", text)
    assert "BEGIN" not in text
    assert "RAY_AUTH_MODE" in text or name == "local-autoscaling.yaml"


def test_one_image_everywhere_with_the_packages_version():
    images = {read("aws.yaml")["docker"]["image"]}
    images |= {one["image"] for name in MANIFESTS for one in containers(cluster_spec(name))}
    (image,) = images
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert image.rpartition(":")[2] == version
    assert f"-t {image} ." in header("Dockerfile")


@pytest.mark.parametrize("name", ["aws.yaml", "local-autoscaling.yaml", *MANIFESTS])
def test_each_file_says_how_to_start_submit_and_stop(name):
    top = header(name)
    assert "ray job submit -- python bench/sweep.py" in top
    assert "# Start:" in top
    assert "# Stop:" in top
    for script in re.findall(r"python (clusters/\S+\.py|bench/\S+\.py)", top):
        assert (ROOT / script).exists()
    assert f"clusters/{name}" in top or name == "local-autoscaling.yaml"


def test_the_page_names_files_and_options_that_exist():
    page = (CLUSTERS / "README.md").read_text()
    named = set(re.findall(r"\b(?:clusters|bench)/[\w.-]+\.(?:py|yaml)|clusters/Dockerfile", page))
    assert {"clusters/aws.yaml", "clusters/kuberay-cluster.yaml", "clusters/kuberay-job.yaml"} <= named
    assert all((ROOT / name).exists() for name in named)
    options = {text for action in sweep.arguments()._actions for text in action.option_strings}
    assert set(re.findall(r"`(--(?:shards|data|runs)\w*)`", page)) <= options
    assert f"`{provenance.COMMIT_VARIABLE}`" in page
    nodes = [kind["node_config"] for kind in read("aws.yaml")["available_node_types"].values()]
    assert {node["IamInstanceProfile"]["Name"] for node in nodes} == set(
        re.findall(r"^\| `(reconbench-\w+)` \|", page, re.MULTILINE)
    )
    secret = cluster_spec("kuberay-cluster.yaml")["authOptions"]["secretName"]
    assert f"`{secret}`" in page
    sources = [source["secretRef"] for one in containers(cluster_spec("kuberay-job.yaml")) for source in one["envFrom"]]
    assert sources == [{"name": "reconbench-s3", "optional": True}] * 4
    assert "secret generic reconbench-s3 " in page
