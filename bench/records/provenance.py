"""What a score was made with: packages, hardware and commit. Never host names, paths or credentials."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from bench.core.errors import OptionError

COMMIT_VARIABLE = "RECONBENCH_COMMIT"
# Set by Ray in the driver of a submitted job; holds the metadata given with `ray job submit --metadata-json`.
_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_PACKAGES = (
    "clip-anytorch",
    "diffusers",
    "h5py",
    "nibabel",
    "numpy",
    "pandas",
    "pillow",
    "pyarrow",
    "ray",
    "reconbench",
    "safetensors",
    "scikit-image",
    "scipy",
    "timm",
    "torch",
    "torchmetrics",
    "torchvision",
    "transformers",
)
_COMMIT = re.compile(r"([0-9a-f]{7,64})(-dirty)?")


def packages() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that can move a number."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # a job's shipped folder is not an installed package
            continue
    return found


def hardware() -> dict[str, Any]:
    """Return this machine: processor model, cores, memory in bytes, accelerators by model and memory in bytes."""
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": [{"model": str(card.name), "memory_bytes": int(card.total_memory)} for card in cards],
    }


def _processor() -> str:
    """Return the processor's model name, or its architecture where the system does not tell."""
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    """Return `packages` and `hardware` as they stand on a record."""
    return {"packages": packages(), "hardware": hardware()}


def commit() -> str | None:
    """Return the commit of the source, with `-dirty` behind it when tracked files were changed; None when unknown.

    A job's `.git` does not travel with it, so the submitter's word comes first: `commit` in the job's metadata, then
    `RECONBENCH_COMMIT` (which an image sets for the source it holds), then `git` where the source lies in a checkout.

    Raises:
        OptionError: If what was given is not a commit.
    """
    given = _commit_of_job() or os.environ.get(COMMIT_VARIABLE)
    if given is None:
        return _commit_of_checkout(Path(__file__).resolve().parent.parent.parent)
    if not _COMMIT.fullmatch(given):
        raise OptionError(f"{given!r} is not a commit: 7 to 64 hex characters, with '-dirty' behind them if changed")
    return given


def _commit_of_job() -> str | None:
    """Return the commit given as metadata of the Ray job that this process runs in."""
    text = os.environ.get(_JOB_VARIABLE)
    metadata = (json.loads(text).get("metadata") or {}) if text else {}
    value = metadata.get("commit")
    return str(value) if value else None


def _commit_of_checkout(root: Path) -> str | None:
    """Return the commit of a git checkout; None without a checkout or without git."""
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (FileNotFoundError, subprocess.CalledProcessError):  # no git, or a checkout without any commit
        return None
    return f"{head}-dirty" if changed else head


def _git(root: Path, *arguments: str) -> str:
    """Return what a git command prints."""
    done = subprocess.run(("git", *arguments), cwd=root, check=True, capture_output=True, text=True)
    return done.stdout.strip()
