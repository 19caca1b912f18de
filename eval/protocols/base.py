"""What a protocol is: every choice between two pictures and a table, as data that can be compared line by line."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from dataclasses import dataclass, fields
from typing import Literal

import eval.protocols
from eval.images import Resize
from eval.metrics.identification import Ties
from eval.networks.base import Network

Kind = Literal["pixel", "identification", "distance"]
Formula = Literal["pixcorr", "ssim", "ssim-columnwise", "two-way-identification", "correlation-distance"]
Need = Literal["images", "predictions", "true latents", "betas"]

KINDS: dict[str, Kind] = {
    "pixcorr": "pixel",
    "ssim": "pixel",
    "ssim-columnwise": "pixel",
    "two-way-identification": "identification",
    "correlation-distance": "distance",
}


@dataclass(frozen=True)
class Feature:
    """Where a feature comes from.

    Attributes:
        network: The frozen network.
        tap: Its layer.
        resize: The size at which pictures enter it, after the protocol's first step.
    """

    network: Network
    tap: str
    resize: Resize


@dataclass(frozen=True)
class MetricSpec:
    """One column of a table.

    Attributes:
        name: Its name in results, unique within the protocol.
        label: Its heading in published tables.
        formula: The function that computes it.
        feature: What it is computed on; None for pixels.
        resize: Size of the pictures of a pixel metric, after the protocol's first step; None leaves them as they are.
        transpose: For identification, compare with other reconstructions instead of other truths.
        ties: For identification, what a tie counts.
        needs: What the caller must supply; without it the metric is "not computed".
    """

    name: str
    label: str
    formula: Formula
    feature: Feature | None = None
    resize: Resize | None = None
    transpose: bool = False
    ties: Ties = "zero"
    needs: tuple[Need, ...] = ("images",)

    def __post_init__(self) -> None:
        if (self.feature is None) != (self.kind == "pixel"):
            raise ValueError(f"metric {self.name!r}: {self.formula} and feature {self.feature} do not go together")
        if self.feature is not None and self.feature.tap not in self.feature.network.taps:
            raise ValueError(f"metric {self.name!r}: {self.feature.network.name} has taps {self.feature.network.taps}")

    @property
    def kind(self) -> Kind:
        """What sort of number it is."""
        return KINDS[self.formula]

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value means a better reconstruction."""
        return self.kind != "distance"

    @property
    def chance(self) -> float | None:
        """Expected value over random pairings; None where it depends on the pictures and has to be measured."""
        return 0.5 if self.kind == "identification" else None


@dataclass(frozen=True)
class Protocol:
    """A way to score reconstructions, fixed for good: any change of a number is a new version.

    Attributes:
        name: Its name, which is its file's name with hyphens.
        version: Raised whenever a value it gives would change.
        summary: What it reproduces, in one sentence.
        first: Resizing that both pictures undergo before anything else.
        metrics: The columns, in the order of the table.
        samples: How several samples of an image become one value: "mean-score" scores each and averages.
        quirks: What a careful reader would not expect, and what is known to differ from the original.
    """

    name: str
    version: int
    summary: str
    first: Resize
    metrics: tuple[MetricSpec, ...]
    samples: Literal["mean-score"] = "mean-score"
    quirks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [metric.name for metric in self.metrics]
        if len(set(names)) != len(names):
            raise ValueError(f"protocol {self.name!r} names a metric twice: {names}")

    def __getitem__(self, name: str) -> MetricSpec:
        """Return the metric of that name.

        Raises:
            KeyError: If there is none; offers the nearest.
        """
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise KeyError(_unknown("metric", name, [metric.name for metric in self.metrics]))

    @property
    def networks(self) -> tuple[Network, ...]:
        """The feature networks, each once, in the order of the metrics that use them."""
        return tuple(dict.fromkeys(metric.feature.network for metric in self.metrics if metric.feature))

    def lines(self) -> list[str]:
        """Return every choice as a line of text, so that two protocols can be compared with `diff`."""
        head = [f"{f.name}: {getattr(self, f.name)}" for f in fields(self) if f.name not in ("metrics", "quirks")]
        columns = [_line(metric) for metric in self.metrics]
        return [*head, *columns, *(f"quirk: {quirk}" for quirk in self.quirks)]


def names() -> list[str]:
    """Return the names of all protocols: the files of this folder."""
    # The folder is the list: a new protocol is a new file and no other edit.
    modules = (module.name for module in pkgutil.iter_modules(eval.protocols.__path__))
    return sorted(name.replace("_", "-") for name in modules if name != "base")


def find(name: str) -> Protocol:
    """Return the protocol of that name.

    Raises:
        ValueError: If there is none; lists them and offers the nearest.
    """
    known = names()
    if name not in known:
        raise ValueError(_unknown("protocol", name, known))
    protocol: Protocol = importlib.import_module(f"eval.protocols.{name.replace('-', '_')}").PROTOCOL
    return protocol


def _unknown(kind: str, name: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown {kind} {name!r}, allowed: {', '.join(known)}{hint}"


def _line(metric: MetricSpec) -> str:
    parts = [metric.formula, f"needs {' + '.join(metric.needs)}", "higher" if metric.higher_is_better else "lower"]
    if metric.kind == "identification":
        parts += ["other reconstructions" if metric.transpose else "other truths", f"ties {metric.ties}"]
    if metric.feature:
        feature = metric.feature
        parts += [f"{feature.network.name} {feature.tap}", feature.network.weights_file, _describe(feature.resize)]
    elif metric.resize:
        parts.append(_describe(metric.resize))
    return f"metric {metric.name} ({metric.label}): {', '.join(parts)}"


def _describe(resize: Resize) -> str:
    return f"{resize.size} px {resize.interpolation}{' antialiased' if resize.antialias else ' without antialias'}"
