"""`score weights`: which network weights are on this machine, where the others come from, and fetching them."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from bench.core import console
from bench.core.errors import MissingDataError, UnknownNameError
from eval.networks import _weights as weights
from eval.networks._weights import WeightsEntry
from eval.networks.base import Network
from eval.protocols import base as protocols


def run(argv: Sequence[str]) -> int:
    """Parse; list what is there and what is missing; with `--download` show the terms and fetch."""
    options = _parser().parse_args(argv)
    if options.weights is not None and options.download is None and not Path(options.weights).is_dir():
        raise MissingDataError(f"no folder {options.weights}")
    chosen = _networks(options.protocol)
    screen = Console(highlight=False)  # standard output: the list is the result
    if options.download is not None:
        wanted = _named(options.download, chosen) if options.download else chosen
        _fetch(wanted, options.weights, screen)
    names = {network.name for network in chosen}
    for entry in weights.inventory(options.weights):
        if entry.name in names:
            _show(entry, screen)
    return 0


def _parser() -> argparse.ArgumentParser:
    """Return the command line."""
    cli = console.parser(
        "score weights",
        "List the weights of the feature networks: where they lie with their sha256, or where they come from. With "
        "--download, show the terms and fetch what is missing; what a broken connection left is continued.",
        "reconbench score weights --protocol mindeye2 --download",
    )
    cli.add_argument("--weights", metavar="FOLDER", help="searched first, and where downloads go")
    cli.add_argument("--protocol", metavar="NAME", help="only the networks of one protocol")
    cli.add_argument("--download", nargs="*", metavar="NETWORK", help="fetch these, or all that are missing")
    return cli


def _networks(protocol: str | None) -> list[Network]:
    """Return the networks of a protocol, or all."""
    return weights.networks() if protocol is None else list(protocols.find(protocol).networks)


def _named(names: Sequence[str], known: Sequence[Network]) -> list[Network]:
    """Return the networks of these names.

    Raises:
        UnknownNameError: If there is no network of a name.
    """
    by_name = {network.name: network for network in known}
    for name in names:
        if name not in by_name:
            raise UnknownNameError("network", name, by_name)
    return [by_name[name] for name in names]


def _fetch(networks: Sequence[Network], folder: str | None, screen: Console) -> None:
    """Show the terms of every missing file, then download each once."""
    missing = {n.weights_file: n for n in networks if not any(path.is_file() for path in weights.places(n, folder))}
    for file, network in missing.items():
        screen.print(f"{file}: {network.terms}\n    {network.url or network.source}", markup=False, soft_wrap=True)
    columns = TextColumn("{task.description:<24}"), BarColumn(bar_width=30), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=console.console()) as bar:
        for file, network in missing.items():
            task = bar.add_task(file, total=None)
            weights.fetch(network, folder, functools.partial(bar.advance, task))
            bar.update(task, total=bar.tasks[task].completed)


def _show(entry: WeightsEntry, screen: Console) -> None:
    """Print one network's line, and where its file comes from if it is missing."""
    state, style = (f"{entry.path}  sha256 {entry.sha256}", "") if entry.path else ("missing", "yellow")
    lines = [f"{entry.name:<20} {entry.file:<24} {state}"]
    if entry.path is None:
        lines += [f"    from {entry.source}", f"    terms: {entry.terms}", *([f"    {entry.url}"] if entry.url else [])]
    for line in lines:
        screen.print(line, style=style, markup=False, soft_wrap=True)
