"""What a protocol is: every choice between two pictures and a table, as data that can be compared line by line."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, fields
from typing import Literal

import eval.protocols
from eval import _listing
from eval.metrics.base import Formula, Kind, Readout
from eval.networks.base import Network
from eval.pictures import Step

SampleRule = Literal["mean-score", "mean-comparison", "mean-feature", "best-sample"]
"""What is averaged over samples.

"mean-score": their values. "mean-comparison": what they were compared to, e.g. correlations before identification
(Takagi & Nishimoto 2023). "mean-feature": their features. "best-sample": nothing; the one sample whose mean over images
is best stands for all, which takes the truth to know: an oracle.
"""
Need = Literal["images", "predictions", "true latents", "betas"]

NEEDS: dict[str, tuple[Need, ...]] = {
    "latents": ("predictions", "true latents"),
    "betas": ("images", "betas"),
}
"""What must be supplied for a formula that reads these; pictures for all others."""


@dataclass(frozen=True)
class Feature:
    """Where a feature comes from.

    Attributes:
        network: The frozen network.
        tap: Its layer.
        resize: The size at which pictures enter it, after the protocol's first step; None leaves them as they are.
        scale: Factor on pixels in [0, 1] before the network's mean and s.d.
    """

    network: Network
    tap: str
    resize: Step | None
    scale: float = 1.0


@dataclass(frozen=True)
class MetricSpec:
    """One column of a table.

    Attributes:
        name: Its name in results, unique within the protocol.
        label: Its heading in published tables.
        formula: The formula that computes it.
        feature: What it is computed on; None for what takes no feature network.
        resize: Size of the pictures of a pixel metric, after the protocol's first step; None leaves them as they are.
        readout: Options of the formula's last step; None takes the formula's own.
        needs: What the caller must supply; without it the metric is "not computed".
        samples: How several samples of an image become one value.
        counted: Whether the protocol lets ranks count it.
    """

    name: str
    label: str
    formula: Formula
    feature: Feature | None = None
    resize: Step | None = None
    readout: Readout | None = None
    needs: tuple[Need, ...] = ("images",)
    samples: SampleRule = "mean-score"
    counted: bool = True

    def __post_init__(self) -> None:
        if (self.feature is None) == (self.formula.reads in ("features", "paired features")):
            raise ValueError(f"metric {self.name!r}: {self.formula.name} and feature {self.feature} do not go together")
        if self.feature is not None and self.feature.tap not in self.feature.network.taps:
            raise ValueError(f"metric {self.name!r}: {self.feature.network.name} has taps {self.feature.network.taps}")
        own = type(self.formula.readout)
        if type(self.reads_out) is not own:
            raise ValueError(
                f"metric {self.name!r}: {self.formula.name} is read out by {own.__name__}, not {self.readout}"
            )
        lacking = set(NEEDS.get(self.formula.reads, ())) - set(self.needs)
        if lacking:
            raise ValueError(f"metric {self.name!r}: {self.formula.name} also needs {sorted(lacking)}")
        self._check_samples()

    def _check_samples(self) -> None:
        known = {"mean-score", "best-sample"}
        if self.formula.reads == "features":
            known.add("mean-feature")
        if self.reads_out.averages_comparisons:
            known.add("mean-comparison")
        if self.samples not in known:
            raise ValueError(
                f"metric {self.name!r}: samples of {self.formula.name} take {sorted(known)}, not {self.samples}"
            )

    @property
    def reads_out(self) -> Readout:
        """The readout: the metric's own, or else the formula's."""
        return self.readout or self.formula.readout

    @property
    def kind(self) -> Kind:
        """What sort of number it is."""
        return self.formula.kind

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value means a better reconstruction."""
        return self.formula.higher_is_better

    @property
    def chance(self) -> float | None:
        """Expected value over random pairings; None where it depends on the pictures and has to be measured."""
        return self.reads_out.chance

    @property
    def ranked(self) -> bool:
        """Whether ranks may count it: never retrieval, brain correlation, or what chose its sample by the truth."""
        return self.counted and self.formula.ranked and self.samples != "best-sample"


@dataclass(frozen=True)
class Protocol:
    """A way to score reconstructions, fixed for good: any change of a number is a new version.

    Attributes:
        name: Its name, which is its file's name with hyphens.
        version: Raised whenever a value it gives would change.
        summary: What it reproduces, in one sentence.
        first: Resizing that both pictures undergo before anything else; None for none.
        metrics: The columns, in the order of the table.
        quirks: What a careful reader would not expect, and what is known to differ from the original.
    """

    name: str
    version: int
    summary: str
    first: Step | None
    metrics: tuple[MetricSpec, ...]
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
        raise KeyError(_listing.unknown("metric", name, [metric.name for metric in self.metrics]))

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
    return [name.replace("_", "-") for name in _listing.names(eval.protocols)]


def find(name: str) -> Protocol:
    """Return the protocol of that name.

    Raises:
        ValueError: If there is none; lists them and offers the nearest.
    """
    known = names()
    if name not in known:
        raise ValueError(_listing.unknown("protocol", name, known))
    protocol: Protocol = importlib.import_module(f"eval.protocols.{name.replace('-', '_')}").PROTOCOL
    return protocol


def _line(metric: MetricSpec) -> str:
    parts = [metric.formula.name, f"needs {' + '.join(metric.needs)}", "higher" if metric.higher_is_better else "lower"]
    parts += [metric.reads_out.describe(), f"samples {metric.samples}", "ranked" if metric.ranked else "never ranked"]
    if metric.feature:
        feature = metric.feature
        parts += [f"{feature.network.name} {feature.tap}", feature.network.weights_file, _describe(feature.resize)]
        parts.append(f"pixels times {feature.scale:g}" if feature.scale != 1 else "")
    elif metric.formula.reads == "pixels":
        parts.append(_describe(metric.resize))
    return f"metric {metric.name} ({metric.label}): {', '.join(part for part in parts if part)}"


def _describe(step: Step | None) -> str:
    return step.describe() if step else "size as it came"
