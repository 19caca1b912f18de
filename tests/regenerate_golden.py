"""Write `tests/golden/outputs.json` anew: `python tests/regenerate_golden.py`, after raising a `version`.

An output that changed under an unchanged version is refused: results under one version must be the same everywhere.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fixed_outputs import Output, outputs  # noqa: E402 - the path is set above

GOLDEN = ROOT / "tests" / "golden" / "outputs.json"


def stored() -> dict[str, Any]:
    """Return the golden outputs, none where there is no file yet."""
    return json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}


def differences(name: str, made: Output, golden: Mapping[str, Any]) -> str:
    """Say in a line what is wrong with an output, "" where nothing is."""
    if name not in golden:
        return f"{name} is new: run `python tests/regenerate_golden.py`"
    held = golden[name]
    if held["version"] != made.version:
        now = f"{name} has version {made.version}, the golden file {held['version']}"
        return f"{now}: run `python tests/regenerate_golden.py`"
    expected = np.array(held["values"], dtype=float).reshape(held["shape"])
    if expected.shape == made.values.shape and np.allclose(made.values, expected, 0, made.tolerance, equal_nan=True):
        return ""
    moved = f"shape {made.values.shape}, was {expected.shape}"
    if expected.shape == made.values.shape:
        moved = f"by up to {np.nanmax(np.abs(made.values - expected)):.3g} (allowed {made.tolerance:g})"
    return (
        f"the output of {name} changed ({moved}) under version {made.version}: raise `version`, "
        "then run `python tests/regenerate_golden.py`"
    )


def entry(made: Output) -> dict[str, Any]:
    """Return what the golden file holds of an output."""
    digits = 4 if made.tolerance < 1 else 1
    values = [None if np.isnan(v) else round(float(v), digits) for v in made.values.ravel()]
    return {"version": made.version, "shape": list(made.values.shape), "values": values}


def main() -> int:
    """Regenerate the file; return 1 where an output changed without a new version."""
    golden, found = stored(), dict(outputs())
    wrong = [line for name, made in found.items() if "raise `version`" in (line := differences(name, made, golden))]
    if wrong:
        sys.stderr.write("\n".join(wrong) + "\n")
        return 1
    kept = {name: golden[name] for name, made in found.items() if not differences(name, made, golden)}
    lines = [f"{json.dumps(name)}: {json.dumps(kept.get(name) or entry(found[name]))}" for name in sorted(found)]
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
