"""From OpenAI's checkpoint file to the frozen network."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from bench.core.errors import CorruptFileError
from bench.generators._weights.checkpoints import Checkpoint, CheckpointOptions, find
from bench.generators._weights.frozen import load_state, read_state, seeded
from bench.generators.vdvae.architecture import BOTTLENECK, WIDTH
from bench.generators.vdvae.network import VeryDeepVAE

_LOG = logging.getLogger(__name__)

CHECKPOINT = Checkpoint(
    name="vdvae-imagenet64",
    files=("imagenet64-iter-1600000-model-ema.th",),
    licence="MIT",
    terms="Keep OpenAI's copyright notice with copies of the weights.",
    url="https://openaipublic.blob.core.windows.net/very-deep-vaes-assets/vdvae-assets-2",
)
_FIRST_LAYER = "encoder.in_conv.weight"
_PREFIX = "module."


def load_network(options: CheckpointOptions) -> VeryDeepVAE:
    """Return the network with the published weights, or untrained where the options say so; on the CPU, float32.

    The width is the checkpoint's own (512 as published); every other figure of the architecture is fixed, so that any
    checkpoint gives the same 91,168 latents.

    Raises:
        MissingWeightsError: If the checkpoint is not on this machine.
        CorruptFileError: If it is the state dict of another network.
    """
    if options.untrained:
        with seeded():  # the published network's own first values, the same on every machine
            return VeryDeepVAE()
    path = find(CHECKPOINT, options).tensors()[0]
    state = _state(path)
    width = _width(state, path)
    if width != WIDTH:
        _LOG.warning("%s is %d channels wide; OpenAI's published checkpoint is %d", path, width, WIDTH)
    with torch.device("meta"):  # initial values would be drawn and thrown away
        network = VeryDeepVAE(width)
    network = network.to_empty(device="cpu")
    load_state(network, state, path)
    return network


def _state(path: Path) -> dict[str, torch.Tensor]:
    """Return a checkpoint's tensors by name, without the prefix that saving from several GPUs puts before names."""
    content = read_state(path)
    if strange := [name for name, value in content.items() if not isinstance(value, torch.Tensor)]:
        raise CorruptFileError(f"{path} must be a plain state dict, names to tensors; {strange[0]!r} is no tensor")
    return {name.removeprefix(_PREFIX): value for name, value in content.items() if isinstance(value, torch.Tensor)}


def _width(state: Mapping[str, torch.Tensor], path: Path) -> int:
    """Return the channels of a checkpoint's first layer."""
    if _FIRST_LAYER not in state:
        raise CorruptFileError(f"{path} holds the weights of another network: there is no {_FIRST_LAYER}")
    width = len(state[_FIRST_LAYER]) if state[_FIRST_LAYER].ndim else 0
    if not width or width % BOTTLENECK:
        raise CorruptFileError(f"{path}: {_FIRST_LAYER} has {width} channels, a multiple of {BOTTLENECK} is needed")
    return width
