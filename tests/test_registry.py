"""Encoders, generators and datasets are found by listing their folders."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.core import registry
from bench.core.errors import UnknownNameError

FOLDERS = {
    "encoder": ("encoders", {"ridge", "braid-mlp", "knn"}),
    "generator": ("bench/generators", {"tiny-diffusion"}),
    "dataset": ("bench/data/datasets", {"nsd"}),
}
ROOT = Path(registry.__file__).parent.parent.parent

ENCODER = """
from encoders.base import Encoder

class {name}(Encoder):
    version = 1
    def fit(self, data, heads, runtime): ...
    def predict(self, voxels, subject, seed): ...
    def save(self, directory): ...
    @classmethod
    def load(cls, options, directory): ...
    @property
    def n_parameters(self): return 0
"""


@pytest.mark.parametrize("kind", sorted(FOLDERS))
def test_names_are_file_names(kind):
    folder, known = FOLDERS[kind]
    files = {path.stem.replace("_", "-") for path in (ROOT / folder).iterdir()}
    assert known <= set(registry.found(kind)) <= files


@pytest.mark.parametrize("kind", sorted(FOLDERS))
def test_everything_found_has_a_version_of_its_kind(kind):
    for name, cls in registry.found(kind).items():
        assert registry.load(kind, name) is cls
        assert isinstance(cls.version, int), name


def test_an_unknown_name_offers_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown encoder 'rigde'\. Did you mean 'ridge'\? Allowed: .*knn"):
        registry.load("encoder", "rigde")
    with pytest.raises(UnknownNameError, match=r"unknown dataset 'zzz'\. Allowed: "):
        registry.load("dataset", "zzz")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder of encoders of its own in the place of the real one."""
    folder = tmp_path / "made_up_encoders"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_KINDS", {"encoder": ("made_up_encoders", "encoders.base", "Encoder")})
    registry.found.cache_clear()
    yield folder
    registry.found.cache_clear()
    for name in [name for name in sys.modules if name.startswith("made_up_encoders")]:
        del sys.modules[name]


def test_a_new_file_is_a_new_encoder(package):
    (package / "my_net.py").write_text(ENCODER.format(name="MyNet"))
    (package / "shared_layers.py").write_text("WIDTH = 3\n")
    (package / "imports_only.py").write_text("from made_up_encoders.my_net import MyNet\n")
    assert {name: cls.__name__ for name, cls in registry.found("encoder").items()} == {"my-net": "MyNet"}


def test_a_package_is_one_thing_too(package):
    (package / "big_net").mkdir()
    (package / "big_net" / "model.py").write_text(ENCODER.format(name="BigNet"))
    (package / "big_net" / "__init__.py").write_text("from made_up_encoders.big_net.model import BigNet\n")
    assert list(registry.found("encoder")) == ["big-net"]


def test_machinery_behind_an_underscore_is_no_encoder(package):
    (package / "_shared.py").write_text(ENCODER.format(name="Shared"))
    assert registry.found("encoder") == {}


def test_a_module_whose_name_begins_with_another_is_not_in_it(package):
    """`ridge_x` lies beside `ridge`, not in it: what `ridge` imports from there is not its own."""
    (package / "net_parts.py").write_text(ENCODER.format(name="Part"))
    (package / "net.py").write_text(f"from made_up_encoders.net_parts import Part\n{ENCODER.format(name='Net')}")
    names = {name: cls.__name__ for name, cls in registry.found("encoder").items()}
    assert names == {"net": "Net", "net-parts": "Part"}


def test_two_in_one_file_are_refused(package):
    (package / "pair.py").write_text(ENCODER.format(name="One") + ENCODER.format(name="Two"))
    with pytest.raises(TypeError, match=r"made_up_encoders\.pair holds 2 classes of kind encoder, one is allowed"):
        registry.found("encoder")


def test_a_file_that_does_not_import_is_not_skipped(package):
    (package / "broken.py").write_text("import no_such_module\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        registry.found("encoder")
