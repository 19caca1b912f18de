"""Records -> leaderboard.json, leaderboard.md and leaderboard.html.

The JSON is a pure function of the records; Markdown and the page are made from it and from nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import pyarrow as pa
from rich.console import Console

from bench.board import gallery as pictures
from bench.board.build import build, validate
from bench.board.compare import named_pairs, print_comparison, table_pairs
from bench.board.html import html
from bench.board.image_scores import filled
from bench.board.markdown import markdown
from bench.board.terminal import print_table
from bench.core.console import console, guard, parser
from bench.core.errors import CorruptFileError, MissingDataError, OptionError
from bench.core.storage import Folder, home
from bench.records import schemas
from bench.records.record import Record, read_records, read_samples

__all__ = ["build", "build_board", "check_board", "main", "print_table"]

JSON_FILE, MARKDOWN_FILE, PAGE_FILE = "leaderboard.json", "leaderboard.md", "leaderboard.html"
GALLERY_FILE = "gallery.json"


def build_board(runs: Folder, out: Folder, gallery: Sequence[pictures.Item] | None = None) -> dict[str, Any]:
    """Build the leaderboard of a runs folder and write it in its three forms.

    Args:
        runs: Folder whose `scores/` holds the records.
        out: Where the files go.
        gallery: Pictures for the page; None keeps those that already lie in `out`.

    Returns:
        The content of `leaderboard.json`.

    Raises:
        CorruptFileError: If a record or its table is damaged.
    """
    records, samples = _read(runs)
    board = build(records, samples)
    shown = _read_gallery(out) if gallery is None else pictures.gallery(gallery)
    if shown is not None:
        shown = filled(shown, records, samples)
        pictures.validate(shown, f"{out}/{GALLERY_FILE}")
        out.write_json(GALLERY_FILE, shown)
    out.write_json(JSON_FILE, board)
    out.write_bytes(MARKDOWN_FILE, markdown(board).encode())
    out.write_bytes(PAGE_FILE, html(board, shown).encode())
    return board


def _read(runs: Folder) -> tuple[list[Record], dict[str, pa.Table]]:
    """Return all records of a runs folder and the per-image tables of those that have one.

    Raises:
        MissingDataError: If nothing was scored there.
    """
    if not runs.exists("scores"):
        raise MissingDataError(f"no folder {runs}/scores: score something first, or name another --runs")
    records = read_records(runs)
    return records, {r.id: t for r in records if r.status == "ok" and (t := read_samples(runs, r)) is not None}


def _read_gallery(out: Folder) -> dict[str, Any] | None:
    """Return the checked gallery of an output folder; None where it has none."""
    if not out.exists(GALLERY_FILE):
        return None
    where = f"{out}/{GALLERY_FILE}"
    found: dict[str, Any] = schemas.parse(out.read_bytes(GALLERY_FILE), where)
    pictures.validate(found, where)
    return found


def check_board(runs: Folder, out: Folder) -> dict[str, Any]:
    """Check that the files of an output folder are what the records give, byte for byte.

    Returns:
        The content of `leaderboard.json`.

    Raises:
        MissingDataError: If a file is not there.
        CorruptFileError: If one does not follow its schema, or is not what the records give.
    """
    where = f"{out}/{JSON_FILE}"
    board: dict[str, Any] = schemas.parse(out.read_bytes(JSON_FILE), where)
    validate(board, where)
    records, samples = _read(runs)
    if build(records, samples) != board:
        raise CorruptFileError(f"{where} is not what the records of {runs} give: build it again")
    shown = _read_gallery(out)
    if shown is not None and filled(shown, records, samples) != shown:
        raise CorruptFileError(f"{out}/{GALLERY_FILE} holds scores that the records of {runs} do not: build it again")
    expected = {MARKDOWN_FILE: markdown(board), PAGE_FILE: html(board, shown)}
    for name, content in expected.items():
        if out.read_bytes(name) != content.encode():
            raise CorruptFileError(f"{out}/{name} was not made from {JSON_FILE}: build it again")
    return board


def _run(argv: Sequence[str]) -> int:
    """Parse the command line, build or check, and print the ranked table."""
    if argv and argv[0] == "compare":
        return _compare(argv[1:])
    options = parser(
        "leaderboard",
        "Build leaderboard.json, leaderboard.md and leaderboard.html from the records of scored runs. "
        "`leaderboard compare` tests rows against each other.",
        "python bench/leaderboard.py --runs s3://bucket/runs --out ./board",
    )
    options.add_argument("--runs", metavar="URI", help="folder with scores/ (default: $RECONBENCH_HOME/runs)")
    options.add_argument("--out", metavar="URI", help="where the files go (default: the runs folder)")
    options.add_argument("--check", action="store_true", help="write nothing; check the files against the records")
    given = options.parse_args(argv)
    runs = Folder.at(given.runs or home() / "runs")
    out = Folder.at(given.out) if given.out else runs
    board = check_board(runs, out) if given.check else build_board(runs, out)
    print_table(board)
    console().print(f"{'checked' if given.check else 'wrote'} {out}/{PAGE_FILE}", markup=False, soft_wrap=True)
    return 0


def _compare(argv: Sequence[str]) -> int:
    """Parse, and print paired tests of two rows or of all pairs of the tables."""
    options = parser(
        "leaderboard compare",
        "Paired tests between two rows, or between all systems of a table: difference, bootstrap interval, sign-flip "
        "permutation test over images, Holm's correction over all metrics and pairs.",
        "reconbench leaderboard compare tiny-ridge tiny-knn --runs .reconbench/runs/demo",
    )
    options.add_argument("rows", nargs="*", metavar="ROW", help="two rows, by name or record id")
    options.add_argument("--all", action="store_true", help="every pair of systems of every ranked table")
    options.add_argument("--table", metavar="ID", help="with --all: only the table of this id in leaderboard.json")
    options.add_argument("--runs", metavar="URI", help="folder with scores/ (default: $RECONBENCH_HOME/runs)")
    given = options.parse_args(argv)
    if len(given.rows) != (0 if given.all else 2) or (given.table and not given.all):
        raise OptionError("compare takes two rows, or --all (with --table ID for one table)")
    runs = Folder.at(given.runs or home() / "runs")
    records, samples = _read(runs)
    families = (
        table_pairs(records, given.table) if given.all else [[pair] for pair in named_pairs(records, *given.rows)]
    )
    screen = Console(highlight=False)  # standard output: the tests are the result
    for pairs in families:
        print_comparison(pairs, samples, screen)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns its exit status."""
    return guard(_run, argv)


if __name__ == "__main__":
    sys.exit(main())
