"""The console command: stages by name."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from bench import cli

BENCH = Path(cli.__file__).parent


def test_the_command_alone_tells_its_stages(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: reconbench STAGE [options]\n")
    for name, summary in cli.STAGES.items():
        assert f"  {name:<11}  {summary}" in text
    assert cli.main(["-h"]) == 0
    assert cli.main([]) == 2
    assert capsys.readouterr().out == 2 * text


def test_every_stage_is_a_file_of_the_flow():
    assert {"sweep", "prepare", "targets", "predict", "render", "score", "leaderboard"} <= set(cli.STAGES)
    for name in cli.STAGES:
        assert (BENCH / f"{name}.py").is_file(), name


def test_an_unknown_stage_offers_the_nearest(capsys):
    assert cli.main(["swep"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.replace("\n", " ").startswith("error: unknown stage 'swep'. Did you mean 'sweep'?")


def test_a_stage_gets_the_rest_of_the_line_and_gives_the_status(monkeypatch):
    given = []
    stage = types.ModuleType("bench.prepare")
    stage.main = lambda argv: given.append(argv) or 5
    monkeypatch.setitem(sys.modules, "bench.prepare", stage)
    assert cli.main(["prepare", "--out", "x"]) == 5
    monkeypatch.setattr(sys, "argv", ["reconbench", "prepare"])
    assert cli.main() == 5
    assert given == [["--out", "x"], []]


@pytest.mark.parametrize("name", sorted(cli.STAGES))
def test_a_stage_turns_a_wrong_option_into_status_2(name, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--no-such-option"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"usage: reconbench {name} ")
    assert f"reconbench {name}: error: " in error
