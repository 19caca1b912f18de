"""The choice of a generator, as a stage or a recipe makes it: which one, with which options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import yaml

from bench.core import options as typed_options
from bench.core import registry
from bench.core.console import pairs
from bench.core.errors import OptionError
from bench.generators.base import Generator, TargetSpec


@dataclass(frozen=True)
class GeneratorChoice:
    """A generator by name, and what is set of its options.

    Attributes:
        name: Its name in recipes.
        settings: Options by name; the rest keep their defaults.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> type[Generator]:
        """The generator's class.

        Raises:
            UnknownNameError: If there is no such generator.
        """
        return cast("type[Generator]", registry.load("generator", self.name))

    @property
    def options(self) -> Any:  # noqa: ANN401 - an instance of the generator's own Options
        """The checked options.

        Raises:
            UnknownNameError: If an option is not among the generator's.
            OptionError: If a value has the wrong type or range.
        """
        return typed_options.build(self.kind.Options, dict(self.settings), f"options of generator {self.name!r}")

    def load(self, device: torch.device) -> Generator:
        """Load the frozen weights onto a device.

        Raises:
            MissingWeightsError: If they are not on this machine.
        """
        return self.kind(self.options, device)

    def identity(self, render: bool) -> dict[str, Any]:
        """Return what decides this generator's output, as plain data.

        Args:
            render: Whether for pictures; for targets the options marked `{"stage": "render"}` do not count. Those
                marked `{"stage": "place"}` (where files lie) count for neither.
        """
        chosen = self.options
        # Targets of one generator are shared by recipes that render with other steps and strengths.
        ignored = {"place"} if render else {"place", "render"}
        counting = {
            # Defaults count too: a default that changes in a later release is another output.
            f.name: getattr(chosen, f.name)
            for f in dataclasses.fields(chosen)
            if f.metadata.get("stage") not in ignored
        }
        digest = self.kind.weights_digest(chosen)
        return {"generator": self.name, "version": self.kind.version, "weights_digest": digest, "options": counting}

    def target(self, name: str) -> TargetSpec:
        """Return what is known of one of the generator's targets.

        Raises:
            UnknownNameError: If it makes no such target.
        """
        self.kind.check_targets([name])
        return self.kind.targets[name]


def settings_from(texts: Sequence[str]) -> dict[str, Any]:
    """Return options from a command line's `NAME=VALUE` texts; values are read as YAML (`0.5`, `true`, `ddim`).

    Raises:
        OptionError: If a text is not of that form, a name stands there twice, or a value is not YAML.
    """
    settings: dict[str, Any] = {}
    for name, value in pairs(texts, "--set", "NAME=VALUE").items():
        try:
            # As a recipe's file reads it, so that the command line and a recipe mean the same by `0.5` and `true`.
            settings[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise OptionError(f"--set {name}: {value!r} is not a YAML value: {error}") from None
    return settings
