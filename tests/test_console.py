"""Parsers, progress and one-line errors; seeds of pictures and the time of stages."""

from __future__ import annotations

import argparse
import io
import itertools
import re

import pytest
import ray
from rich.console import Console

from bench import prepare, sweep
from bench.core import console, timings
from bench.core.errors import BadDataError, OptionError, UnknownNameError
from bench.core.seeds import picture_seed
from bench.core.storage import Folder
from bench.core.timings import Timings

NO_NUMBERS = ("", ",", "1,,2", "0", "0-2", "1;2", "a", "1-", "-1", "1-2-3", "1.5", "²")


@pytest.fixture
def screen(monkeypatch) -> io.StringIO:
    """What a stage writes, on a screen that is no terminal."""
    written = io.StringIO()
    monkeypatch.setattr(console, "console", lambda: Console(file=written, width=200, highlight=False))
    return written


def raises(error: BaseException):
    def main(argv):
        raise error

    return main


def test_the_status_of_a_stage_is_its_own():
    assert console.guard(len, ["a", "b", "c"]) == 3


def test_arguments_come_from_the_command_line_by_default(monkeypatch):
    monkeypatch.setattr("sys.argv", ["stage", "--x"])
    assert console.guard(lambda argv: 7 if argv == ["--x"] else 1, None) == 7


@pytest.mark.parametrize(
    "error",
    [BadDataError("mask has no voxels"), ValueError("alpha is -1"), FileNotFoundError("fetch the weights")],
)
def test_errors_that_a_user_can_mend_are_one_line(error, screen):
    assert console.guard(raises(error), []) == 2
    assert screen.getvalue() == f"error: {error}\n"


def test_a_message_is_never_markup_or_wrapped(screen):
    message = "[red]" + "x" * 500 + "[/nothing]"
    assert console.guard(raises(BadDataError(message)), []) == 2
    assert screen.getvalue() == f"error: {message}\n"


def test_an_error_can_be_traced(monkeypatch):
    monkeypatch.setenv("RECONBENCH_TRACEBACK", "1")
    with pytest.raises(BadDataError, match="mask"):
        console.guard(raises(BadDataError("mask")), [])


def test_other_errors_are_not_hidden(screen):
    with pytest.raises(ZeroDivisionError):
        console.guard(raises(ZeroDivisionError()), [])
    assert screen.getvalue() == ""


def test_an_interrupt_says_how_to_continue(screen):
    assert console.guard(raises(KeyboardInterrupt()), []) == 130
    assert screen.getvalue() == "interrupted; rerun the same command to continue\n"


def test_an_error_of_a_ray_worker_is_its_message_alone(screen, ray_session):
    @ray.remote
    def work():
        raise UnknownNameError("label", "V9", ["V1", "V2"], "atlas 'prf-visualrois'")

    assert console.guard(lambda argv: ray.get(work.remote()), []) == 2
    assert screen.getvalue() == (
        "error: unknown label 'V9' in atlas 'prf-visualrois'. Did you mean 'V2'? Allowed: V1, V2.\n"
    )


def test_progress_in_a_log_is_a_line_now_and_then(screen, monkeypatch):
    clock = iter([0.0, 10.0, 11.0, 12.0, 16.0, 17.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress("render", 5) as advance:
        advance()
        advance()
        advance(note="skipped")
        advance(note="[bold]x")
        advance(1, "last")
    assert screen.getvalue().splitlines() == [
        "render     1/5  10.0 s",
        "render     4/5  16.0 s  [bold]x",
        "render     5/5  17.0 s  last",
    ]


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
    written = io.StringIO()
    terminal = Console(file=written, width=100, force_terminal=True)
    monkeypatch.setattr(console, "console", lambda: terminal)
    with console.progress("fit", 4) as advance:
        advance(4, "done")
    assert "fit" in written.getvalue()
    assert "4/4" in written.getvalue()
    assert "done" in written.getvalue()


def test_results_stay_alone_on_standard_output(capsys):
    console.console().print("note")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "note\n")


def test_help_shows_summary_defaults_and_example(capsys):
    cli = console.parser("render", "Render pictures.\n\nSlowly.", "reconbench render --batch 8\n  reconbench render x")
    cli.add_argument("--batch", type=int, default=32, help="pictures a request")
    cli.add_argument("--fast", action="store_true", help="skip the slow part")
    cli.add_argument("--out", help="where to")
    with pytest.raises(SystemExit) as ended:
        cli.parse_args(["--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert text.startswith("usage: reconbench render ")
    assert "Slowly." in text
    assert "pictures a request (default: 32)" in text
    assert "(default: None)" not in text
    assert "(default: False)" not in text
    assert "  reconbench render --batch 8\n  reconbench render x" in text


def test_options_are_not_abbreviated(capsys):
    cli = console.parser("x", "", "")
    cli.add_argument("--subjects")
    assert isinstance(cli, argparse.ArgumentParser)
    with pytest.raises(SystemExit) as ended:
        cli.parse_args(["--subj", "1"])
    assert ended.value.code == 2
    assert "unrecognized arguments: --subj" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", (1,)),
        ("1,3-5, 7", (1, 3, 4, 5, 7)),
        ("7,5-6", (5, 6, 7)),
        ("2,1-3,2", (1, 2, 3)),
        ("4-4", (4,)),
        (" 10 ", (10,)),
    ],
)
def test_lists_of_numbers(text, expected):
    assert console.numbers(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8-5", "8-5 runs backwards in '8-5'"),
        ("1, 8-5", "8-5 runs backwards in '1, 8-5'"),
        *((bad, f"{bad!r} is not a list of numbers from 1, such as 1,2,5-8") for bad in NO_NUMBERS),
    ],
)
def test_what_is_no_list_of_numbers(text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(message)):
        console.numbers(text)


@pytest.mark.parametrize("stage", [prepare, sweep])
@pytest.mark.parametrize("option", ["--subjects", "--sessions"])
def test_every_stage_says_which_option_runs_backwards(stage, option, capsys):
    with pytest.raises(SystemExit) as ended:
        stage.main(["--root", "nowhere", option, "8-5"] if stage is prepare else [option, "8-5"])
    assert ended.value.code == 2
    assert f"error: argument {option}: 8-5 runs backwards in '8-5'" in capsys.readouterr().err


def test_pairs_are_names_and_values():
    assert console.pairs(["a=1", "b=x=y"], "--set", "NAME=VALUE") == {"a": "1", "b": "x=y"}
    assert console.pairs([], "--set", "NAME=VALUE") == {}


@pytest.mark.parametrize("text", ["", "a", "=", "a=", "=1"])
def test_what_is_no_pair_shows_the_form(text):
    with pytest.raises(OptionError, match=re.escape(f"--inputs takes INPUT=HEAD, got {text!r}")):
        console.pairs(["z=1", text], "--inputs", "INPUT=HEAD")


def test_a_name_given_twice_is_refused():
    with pytest.raises(OptionError, match="--set names 'a' twice: '1' and '2'"):
        console.pairs(["a=1", "b=1", "a=2"], "--set", "NAME=VALUE")


def test_seeds_of_pictures_are_golden():
    """Pictures on other machines were made with these."""
    assert picture_seed(0) == 364267326147784021
    assert picture_seed(7) == picture_seed(7, repeat=-1) == 3001793406936310941
    assert picture_seed(72_999, sample=1, base=42) == 2648757885742865354
    assert picture_seed(5, repeat=1, sample=1, base=3) == 3103429479604172424


def test_seeds_name_the_picture_alone():
    numbers = itertools.product(range(40), range(3), range(5), range(3))
    seeds = {name: picture_seed(*name) for name in numbers}
    assert len(set(seeds.values())) == len(seeds)
    assert all(0 <= seed < 2**62 for seed in seeds.values())
    assert picture_seed(11, sample=1) != picture_seed(1, sample=11)


def test_time_is_counted_by_stage_and_over_restarts(tmp_path, monkeypatch):
    clock = iter([0.0, 2.0, 10.0, 11.0, 20.0, 25.0])
    monkeypatch.setattr(timings.time, "monotonic", lambda: next(clock))
    runs = Folder.at(tmp_path)
    first = Timings(runs)
    with first.stage("fit"):
        pass
    with first.stage("render"):
        pass
    again = Timings(runs)
    with pytest.raises(BadDataError, match="x"), again.stage("fit"):
        raise BadDataError("x")
    assert again.seconds == {"fit": 7.0, "render": 1.0}
    assert again.here == {"fit": 5.0}
    assert runs.read_json("stages.json") == again.seconds
