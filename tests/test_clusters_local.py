"""The local autoscaling cluster: its processes, its configuration, and a real run from zero workers up and back."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from clusters import local_autoscaling, own_processes  # noqa: E402 - `clusters` is not an installed package

SCRIPT = ROOT / "clusters" / "local_autoscaling.py"
SIZE = local_autoscaling.Size(cpu_workers=2, gpu_workers=0, idle_minutes=0.1)
VARIABLE = "RECONBENCH_TEST_MARK"

# Two Tune trials of one CPU on a head that has none; then the workers go. One JSON line says what was seen.
DRIVER = """
import json, sys, threading, time
import ray
from ray import tune

ray.init(logging_level="error", log_to_driver=False)
counts, ended = [], threading.Event()

def watch():
    while not ended.wait(0.2):
        alive = sum(node["Alive"] for node in ray.nodes())
        if not counts or counts[-1] != alive:
            counts.append(alive)

def trial(config):
    time.sleep(2)
    tune.report({"node": ray.get_runtime_context().get_node_id(), "square": config["x"] ** 2})

head = ray.get_runtime_context().get_node_id()
watcher = threading.Thread(target=watch)
watcher.start()
results = tune.Tuner(
    tune.with_resources(trial, {"cpu": 1}),
    param_space={"x": tune.grid_search([2, 3])},
    tune_config=tune.TuneConfig(max_concurrent_trials=2),
    run_config=tune.RunConfig(storage_path=sys.argv[1], verbose=0),
).fit()
deadline = time.monotonic() + 40
while counts[-1] > 1 and time.monotonic() < deadline:
    time.sleep(0.2)
ended.set()
watcher.join()
seen = [result.metrics for result in results]
print("SEEN", json.dumps({
    "counts": counts, "squares": sorted(m["square"] for m in seen), "on_head": sum(m["node"] == head for m in seen),
}))
"""


def sleeper(mark: str, code: str = "import time; time.sleep(60)") -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, VARIABLE: mark})


def wait_for(mark: str, count: int) -> set[own_processes.Process]:
    deadline = time.monotonic() + 15
    while len(found := own_processes.own(VARIABLE, mark)) != count and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(found) == count
    return found


def test_only_marked_processes_and_their_descendants_are_ended():
    mark, other = uuid.uuid4().hex, uuid.uuid4().hex
    # The child clears its environment, as Ray's workers do by renaming themselves.
    spawn = (
        "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], env={})"
    )
    parent, stranger = sleeper(mark, f"{spawn}; time.sleep(60)"), sleeper(other)
    try:
        assert parent.pid in {pid for pid, _ in wait_for(mark, 2)}
        assert own_processes.end(VARIABLE, mark) == 2
        assert parent.wait(5) == -15
        assert own_processes.own(VARIABLE, mark) == set()
        assert stranger.poll() is None
        assert len(wait_for(other, 1)) == 1
    finally:
        for one in (parent, stranger):
            one.kill()
            one.wait()


def test_a_process_that_ignores_the_request_is_killed():
    mark = uuid.uuid4().hex
    deaf = sleeper(
        mark, "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    )
    try:
        wait_for(mark, 1)
        time.sleep(0.5)  # until it has installed its handler
        assert own_processes.end(VARIABLE, mark, grace_s=0.5) == 1
        assert deaf.wait(5) == -9
    finally:
        deaf.kill()
        deaf.wait()


def test_the_asking_process_is_never_its_own_victim():
    mark = uuid.uuid4().hex
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from clusters import own_processes; "
    code += f"print(own_processes.end({VARIABLE!r}, {mark!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, VARIABLE: mark}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "0"


def test_a_reused_process_id_is_another_process():
    mark = uuid.uuid4().hex
    one = sleeper(mark)
    try:
        ((pid, start),) = wait_for(mark, 1)
        assert own_processes.alive({(pid, start), (pid, start - 1)}) == {(pid, start)}
    finally:
        one.kill()
        one.wait()
    assert own_processes.alive({(pid, start)}) == set()


def test_configuration_fills_in_what_was_asked_and_nothing_else():
    plain = yaml.safe_load(local_autoscaling.CONFIG.read_text())
    config = local_autoscaling.configuration(replace(SIZE, cpu_workers=3, gpu_workers=1), "127.0.0.1:7777")
    assert config["max_workers"] == 4
    assert config["provider"].pop("gcs_address") == "127.0.0.1:7777"
    assert config["provider"] == plain["provider"]
    assert config["idle_timeout_minutes"] == 0.1
    assert {name: kind["max_workers"] for name, kind in config["available_node_types"].items()} == {
        "ray.head.default": 0,
        "cpu.worker": 3,
        "gpu.worker": 1,
    }
    assert all(kind.get("min_workers", 0) == 0 for kind in config["available_node_types"].values())
    assert "GPU" not in config["available_node_types"]["cpu.worker"]["resources"]
    priorities = {name: kind.get("priority", 0) for name, kind in config["available_node_types"].items()}
    assert priorities["cpu.worker"] > priorities["gpu.worker"]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (replace(SIZE, cpu_workers=0), "--cpu-workers 0 and --gpu-workers 0"),
        (replace(SIZE, cpu_workers=-1), "--cpu-workers -1"),
        (replace(SIZE, idle_minutes=0.0), r"--idle-minutes 0\.0: must be more than 0"),
        (replace(SIZE, idle_minutes=float("nan")), "--idle-minutes nan"),
    ],
)
def test_a_size_that_cannot_be_is_refused(size, message):
    with pytest.raises(ValueError, match=message):
        local_autoscaling.configuration(size, "127.0.0.1:1")


def test_free_ports_differ():
    ports = local_autoscaling.free_ports(20)
    assert len(set(ports)) == 20
    assert all(1024 <= port < 65536 for port in ports)


def test_the_state_file_is_the_owners_and_broken_ones_are_named(tmp_path):
    state = tmp_path / "deep" / "state.json"
    cluster = local_autoscaling.Cluster("127.0.0.1:1", "http://127.0.0.1:2", "secret", "mark", "/nowhere")
    local_autoscaling.save(state, cluster)
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    assert local_autoscaling.load(state) == cluster
    for text in ("{", '{"address": 1}', "[]"):
        state.write_text(text)
        with pytest.raises(ValueError, match=r"state\.json is not the state of a local cluster"):
            local_autoscaling.load(state)


def run(verb: str, state: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), verb, "--state", str(state), *options]
    # From another folder: the script finds the repository by itself.
    return subprocess.run(command, cwd=state.parent, capture_output=True, text=True, timeout=120, check=False)


def test_without_a_cluster_the_verbs_say_so(tmp_path):
    state = tmp_path / "state.json"
    assert (shown := run("status", state)).returncode == 1
    assert "not up" in shown.stderr
    assert (shown := run("env", state)).returncode == 1
    assert "no cluster in" in shown.stderr
    assert (shown := run("down", state)).returncode == 0
    assert "ended 0 processes" in shown.stderr
    assert (shown := run("up", state, "--cpu-workers", "0")).returncode == 2
    assert "error: --cpu-workers 0" in shown.stderr
    assert not state.exists()


def sourced(text: str) -> dict[str, str]:
    """What a shell's environment gains by evaluating `up`'s output."""
    shell = subprocess.run(["bash", "-c", f"{text}\nenv -0"], env={}, capture_output=True, text=True, check=True)
    return {k: v for k, _, v in (item.partition("=") for item in shell.stdout.split("\0")) if k.startswith("RAY_")}


@pytest.mark.cluster
def test_workers_come_from_zero_for_a_tune_run_and_go_again(tmp_path):
    state, driver = tmp_path / "state.json", tmp_path / "driver.py"
    driver.write_text(DRIVER)
    try:
        started = run("up", state, "--idle-minutes", "0.1")
        assert started.returncode == 0, started.stderr
        cluster = local_autoscaling.load(state)
        client = sourced(started.stdout)
        assert client == cluster.client_environment()
        assert client["RAY_AUTH_MODE"] == "token"
        assert len(client["RAY_AUTH_TOKEN"]) >= 32
        again = run("up", state)
        assert again.stdout == started.stdout
        assert "already up" in again.stderr
        assert run("status", state).returncode == 0

        submit = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--"]
        submit += ["python", str(driver), str(tmp_path / "tune")]
        job = subprocess.run(
            submit, env={**os.environ, **client}, capture_output=True, text=True, timeout=100, check=False
        )
        assert job.returncode == 0, job.stdout[-3000:] + job.stderr[-1000:]
        seen = json.loads(next(line for line in job.stdout.splitlines() if line.startswith("SEEN "))[5:])
        assert seen["squares"] == [4, 9]
        assert seen["on_head"] == 0
        assert seen["counts"][0] == 1
        assert max(seen["counts"]) == 3
        assert seen["counts"][-1] == 1

        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{cluster.dashboard}/api/jobs/", timeout=10)
        assert refused.value.code == 401
        refused.value.close()
    finally:
        stopped = run("down", state)
    assert stopped.returncode == 0, stopped.stderr
    assert own_processes.own(local_autoscaling.MARK, cluster.mark) == set()
    assert not Path(cluster.temp_dir).exists()
    assert not state.exists()
