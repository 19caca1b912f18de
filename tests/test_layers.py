"""The arrows of the tree: tests -> bench -> {encoders, eval}, none the other way, none in a circle, all importable."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench import cli
from bench.cli import STAGES
from bench.core import registry
from eval.plugins import base as plugins
from eval.protocols import base as protocols

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("bench", "encoders", "eval")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAY_NOT_IMPORT = {
    "encoders": {"ray", "bench", "eval", "tests"},
    "eval": {"ray", "bench", "encoders", "tests"},
    "bench": {"tests", "pytest"},
}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, also inside functions and under TYPE_CHECKING.

    `from a import b` may be the module `a.b` or the name b of `a`: both.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_files_are_found():
    assert len(FILES) > 80
    assert {module_of(path).split(".")[0] for path in FILES} == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows_between_packages_point_one_way(package):
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in FILES
        if module_of(path).split(".")[0] == package
        for name in imports(path)
        if name.split(".")[0] in MAY_NOT_IMPORT[package]
    ]
    assert wrong == []


def test_only_bench_knows_ray_and_it_does():
    users = {module_of(p).split(".")[0] for p in FILES if any(n.split(".")[0] == "ray" for n in imports(p))}
    assert users == {"bench"}


def arrows(depth: int) -> dict[str, set[str]]:
    """Which module or folder imports which, names cut to `depth` parts."""
    modules = {module_of(path) for path in FILES}
    found: dict[str, set[str]] = {}
    for path in FILES:
        here = ".".join(module_of(path).split(".")[:depth])
        mine = list(imports(path))
        for name in mine:
            # `from a import b` where b is a module imports b; that `a` runs before it is no arrow of its own.
            if name not in modules or any(other.startswith(f"{name}.") and other in modules for other in mine):
                continue
            there = ".".join(name.split(".")[:depth])
            if name.count(".") + 1 >= depth and there != here:
                found.setdefault(here, set()).add(there)
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Names of a circle in the graph, empty where there is none."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        done.add(name)
        return next((found for there in sorted(graph.get(name, ())) if (found := visit(there, [*path, name]))), [])

    return next((found for name in sorted(graph) if (found := visit(name, []))), [])


def test_a_circle_would_be_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []


@pytest.mark.parametrize("depth", [2, 9])
def test_no_two_parts_import_each_other(depth):
    """File by file at depth 9; at depth 2 the parts are the modules and folders right below bench, encoders, eval."""
    assert circle(arrows(depth)) == []


USES = {
    "bench.simulate": {"bench.prepare"},  # the true-sized preset is written straight to shards
    "bench.fit": {"bench.targets"},  # targets that are missing are made before fits that need them
}
"""Stages that call another stage's function; everywhere else only `bench/sweeping` joins stages."""


def test_stages_are_joined_by_the_sweep_alone():
    stages = {f"bench.{name}" for name in STAGES}
    joined = {
        (module_of(path), name)
        for path in FILES
        for name in imports(path)
        if name in stages and not module_of(path).startswith("bench.sweeping.")
    }
    assert joined == {(user, used) for user, all_used in USES.items() for used in all_used}


LISTED = {
    "encoders": lambda: registry.found("encoder"),
    "eval/protocols": protocols.names,
    "eval/plugins": plugins.names,
    "bench/generators": lambda: registry.found("generator"),
    "bench/data/datasets": lambda: registry.found("dataset"),
}
"""What users list, and what the code finds there."""
CONTRACT = {"__init__", "__pycache__", "base", "choice", "encoding"}
"""The contract of a folder, how a recipe names a generator, how targets are made with one."""


@pytest.mark.parametrize("folder", list(LISTED))
def test_a_bare_name_is_one_listed_thing(folder):
    names = {p.stem for p in (ROOT / folder).iterdir() if p.suffix in ("", ".py")}
    bare = {name.replace("_", "-") for name in names - CONTRACT if not name.startswith("_")}
    assert bare == set(LISTED[folder]())


@pytest.mark.parametrize("name", [module_of(path) for path in FILES])
def test_every_module_imports(name):
    assert importlib.import_module(name).__doc__, f"{name} has no docstring"


@pytest.fixture(scope="module")
def helps() -> dict[str, subprocess.CompletedProcess[str]]:
    """What every stage's file, and the console command of one of them, answers to `--help` from another folder."""
    calls = {name: [sys.executable, str(ROOT / "bench" / f"{name}.py"), "--help"] for name in STAGES}
    calls["command"] = [str(Path(sys.executable).parent / "reconbench"), "sweep", "--help"]
    environment = {**os.environ, "COLUMNS": "100"}

    def answer(call: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            call, capture_output=True, text=True, cwd=ROOT.parent, env=environment, timeout=300, check=False
        )

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(calls, pool.map(answer, calls.values()), strict=True))


@pytest.mark.parametrize("name", list(STAGES))
def test_every_stage_answers_help(helps, name):
    answer = helps[name]
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith(f"usage: reconbench {name} ")
    assert "example:" in answer.stdout
    assert answer.stderr == ""


def test_the_console_command_is_installed(helps):
    assert helps["command"].returncode == 0, helps["command"].stderr
    assert helps["command"].stdout == helps["sweep"].stdout


@pytest.mark.parametrize("name", list(STAGES))
def test_the_console_command_reaches_the_same_stage(helps, name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(ROOT.parent)
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == helps[name].stdout
