"""How a stage joins Ray: settings in force, and the GPUs a cluster has or can grow to."""

from __future__ import annotations

import pytest
import ray

from bench.core import cluster
from bench.core.errors import OptionError


def test_a_users_setting_wins(monkeypatch):
    monkeypatch.setenv("RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S", "7")
    monkeypatch.delenv("TUNE_GLOBAL_CHECKPOINT_S", raising=False)
    found = cluster.apply_settings()
    assert found["RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S"] == "7"
    assert found["TUNE_GLOBAL_CHECKPOINT_S"] == cluster.SETTINGS["TUNE_GLOBAL_CHECKPOINT_S"]
    assert set(found) == set(cluster.SETTINGS)


@pytest.mark.parametrize(("up", "grown", "expected"), [(0, None, 0), (0, "8", 8), (2, None, 2), (2, "1", 2)])
def test_gpus_are_those_up_or_those_the_cluster_can_grow_to(up, grown, expected, monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0, **({"GPU": float(up)} if up else {})})
    monkeypatch.delenv("RECONBENCH_GPUS", raising=False)
    if grown is not None:
        monkeypatch.setenv("RECONBENCH_GPUS", grown)
    assert cluster.gpus() == expected


def test_gpus_that_are_no_number_are_refused(monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", dict)
    monkeypatch.setenv("RECONBENCH_GPUS", "many")
    with pytest.raises(OptionError, match="RECONBENCH_GPUS is 'many'"):
        cluster.gpus()


def test_the_largest_node_decides_how_many_cpus_one_task_may_ask_for(monkeypatch):
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0}},
        {"Alive": True, "Resources": {}},
        {"Alive": False, "Resources": {"CPU": 64.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert cluster.largest_node_cpus() == 4
    monkeypatch.setattr(ray, "nodes", lambda: nodes[1:])
    assert cluster.largest_node_cpus() == 1


def test_connect_is_idempotent_and_authenticates(ray_session):
    before = ray.get_runtime_context().get_node_id()
    cluster.connect()
    assert ray.get_runtime_context().get_node_id() == before
    assert cluster.apply_settings()["RAY_AUTH_MODE"] == "token"
