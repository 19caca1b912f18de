"""Recipes: the shipped ones hold, mistakes are named with their place, and every published system can be written."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import yaml

from bench.core import registry
from bench.core.errors import OptionError, UnknownNameError
from bench.fitting.draws import configurations
from bench.fitting.plan import DataDigests, plan_recipe
from bench.generators.base import Generator, InputSpec, TargetSpec
from bench.recipes.base import Recipe, with_options
from bench.recipes.checks import check_recipe
from bench.recipes.load import load_recipe, recipe_names
from bench.recipes.parts import HeadSpec, Node
from bench.scoring.division import open_reasons_of
from encoders.base import Encoder

PLAIN = """
stages:
  - encoder: ridge
    heads:
      latent: {target: tiny-diffusion.latent}
render:
  out: {generator: tiny-diffusion, inputs: {latent: latent}}
"""


@pytest.fixture
def load(tmp_path):
    """Load a recipe from its text, with some keys changed by path: `{"stages.0.encoder": "x"}`."""

    def loaded(text: str, changes: dict | None = None, name: str = "mine") -> Recipe:
        content = yaml.safe_load(text)
        for path, value in (changes or {}).items():
            *parents, last = path.split(".")
            place = content
            for part in parents:
                place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
            place[last] = value
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(content))
        return load_recipe(str(file))

    return loaded


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_holds(name):
    loaded = load_recipe(name)
    assert loaded.name == name
    assert loaded.title
    assert loaded.source
    for values in configurations(loaded.search, seed=0):
        check_recipe(with_options(loaded, values))


def test_the_default_recipes_are_shipped():
    assert {"tiny-ridge", "tiny-braid-mlp", "tiny-knn"} <= set(recipe_names())


def test_what_is_left_out_has_its_default(load):
    loaded = load(PLAIN)
    assert loaded.name == "mine"
    assert loaded.stages[0].name == "fit"
    assert loaded.stages[0].heads == {"latent": HeadSpec("tiny-diffusion.latent")}
    assert loaded.stages[0].heads["latent"].generator == "tiny-diffusion"
    assert loaded.stages[0].heads["latent"].target_name == "latent"
    assert (loaded.repeats, loaded.samples, loaded.search.trials, loaded.post) == ("mean-before", 1, 1, ())
    assert open_reasons_of(loaded) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": []}, r"unknown option 'stage' in recipe 'mine'\. Did you mean 'stages'"),
        ({"stages.0.encodr": "x"}, r"unknown option 'encodr' in recipe 'mine': stage 'fit'\. Did you mean 'encoder'"),
        (
            {"stages.0.heads.latent.tagret": "x"},
            r"unknown option 'tagret' in .*: head 'latent'\. Did you mean 'target'",
        ),
        ({"stages.0.encoder": "rigde"}, r"unknown encoder 'rigde'\. Did you mean 'ridge'"),
        (
            {"stages.0.options": {"alhpa": 1}},
            r"unknown option 'alhpa' in options of encoder 'ridge'\. Did you .* 'alpha'",
        ),
        (
            {"stages.0.heads.latent.target": "tiny-diffusion.laten"},
            r"unknown target 'laten' in generator 'tiny-diff.*latent",
        ),
        (
            {"stages.0.heads.latent.target": "tiny-difusion.z"},
            r"unknown generator 'tiny-difusion'\. Did you mean 'tiny-dif",
        ),
        ({"render.out.input": {}}, r"unknown option 'input' in .*: render node 'out'\. Did you mean 'inputs'"),
        ({"render.out.generator": "tiny"}, r"unknown generator 'tiny'"),
        ({"render.out.inputs": {"latnt": "latent"}}, r"unknown input 'latnt' in generator 'tiny-diffusion'.*'latent'"),
        ({"render.out.inputs": {"latent": "laten"}}, r"unknown head or node 'laten' in render of 'mine'.*'latent'"),
        ({"render.out.options": {"step": 5}}, r"unknown option 'step' in options of generator .*'steps'"),
        (
            {"search.space": {"fit.alfa": {"choice": [1]}}},
            r"unknown option 'alfa' in search space of 'fit.alfa'.*'alpha'",
        ),
        (
            {"search.space": {"fit.averagin": {"choice": ["mean"]}}},
            r"unknown option 'averagin' in search space of 'fit.averagin'.*'averaging'",
        ),
        ({"search.space": {"fit.normalise": {"choice": ["subject"]}}}, r"unknown option 'normalise' in search space"),
        (
            {"search.space": {"fti.alpha": {"choice": [1]}}},
            r"unknown stage 'fti' in recipe 'mine'\. Did you mean 'fit'",
        ),
        ({"search.trails": 3}, r"unknown option 'trails' in recipe 'mine': search\. Did you mean 'trials'"),
        (
            {"render.pick": {"select": {"pictures": "out", "by": "brain", "haed": "latent"}}},
            r"unknown option 'haed' in recipe 'mine': render node 'pick': select\. Did you mean 'head'",
        ),
        ({"post": ["restandardize"]}, r"unknown post step 'restandardize'"),
        ({"stages.0.init_from": "earlier"}, r"unknown earlier stage 'earlier' in stage 'fit'\. Allowed: none"),
    ],
)
def test_unknown_names_are_reported_with_their_place_and_the_nearest(load, changes, message):
    with pytest.raises(UnknownNameError, match=message):
        load(PLAIN, changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": []}, "recipe 'mine' has no stages"),
        ({"stages": {"encoder": "ridge"}}, "recipe 'mine': stages is a list of mappings, got"),
        ({"stages": ["ridge"]}, "recipe 'mine': stage 0: a mapping of averaging, .* is needed, got 'ridge'"),
        ({"stages.0.heads.latent.take": {"a": 1}}, "stage 'fit': head 'latent': take: .*{'a': 1}"),
        ({"stages.0.encoder": {}}, "recipe 'mine': stage 'fit': encoder: Input should be a valid string"),
        ({"render.out": "tiny-diffusion"}, "recipe 'mine': render node 'out': a mapping of blend, .* got 'tiny-diff"),
        ({"search": []}, "recipe 'mine': search: a mapping of grace, .* is needed, got \\[\\]"),
        ({"search.space": {"fit.alpha": [1]}}, "search.space.fit.alpha is a mapping from names, got"),
        (
            {"generators": {"tiny-diffusion": 1}},
            "recipe 'mine': generators.tiny-diffusion is a mapping from names, got",
        ),
        ({"stages.0.heads": ["latent"]}, "recipe 'mine': stage 'fit': heads is a mapping from names, got"),
        ({"stages.0.heads.latent": "tiny-diffusion.latent"}, "head 'latent': a mapping of roi, take, target is needed"),
        ({"stages.0.heads.latent.target": "latent"}, "a head's target is <generator>.<target>, got 'latent'"),
        ({"stages.0.heads.latent.take": [3, 3]}, r"take is \[first, one past the last\], got \[3, 3\]"),
        ({"stages.0.heads.latent.take": [-1, 3]}, r"take is \[first, one past the last\], got \[-1, 3\]"),
        ({"stages.0.heads.latent.take": [0, 5]}, r"take \[0, 5\] leaves target 'tiny-diffusion.latent' of shape \(4, "),
        ({"stages.0.heads.latent.take": [0, 1, 2]}, "head 'latent': take"),
        ({"stages.0.subjects": "some"}, "stage 'fit': subjects: Input should be 'each', 'joint' or 'others'"),
        ({"stages.0.gpus": "half"}, "stage 'fit': gpus: .*'half'"),
        ({"stages.0.options": {"alpha": "big"}}, "options of encoder 'ridge': alpha.*'big'"),
        ({"render": {}}, r"recipe 'mine': the render graph has no node 'out', it has \[\]"),
        ({"render": "out"}, "recipe 'mine': render is a mapping from names, got 'out'"),
        (
            {"render.out.options": {"strength": 2}},
            "options of generator 'tiny-diffusion': strength: .*less than or equal",
        ),
        ({"render.out.generator": None}, "a render node has either a generator or a blend"),
        ({"render.out.blend": {"latent": 1.0}}, "a render node has either a generator or a blend"),
        ({"render.out": {"blend": {"latent": 1.0}}}, r"render node 'out' blends \['latent'\]: heads, not pictures"),
        ({"render.latent": {"generator": "tiny-diffusion"}}, r"\['latent'\] name both heads and render nodes"),
        ({"search.trials": 0}, "search.trials is 0, at least 1 is needed"),
        (
            {"search.space": {"fit.averaging": {"choice": ["single", "men"]}}},
            "search space of 'fit.averaging': averaging: Input should be 'single', 'mean' or 'random-repeat' .*'men'",
        ),
        (
            {"search.space": {"fit.averaging": {"uniform": [0, 1]}}},
            r"search space of 'fit.averaging': {choice: \[...\]} is needed, got {'uniform': \[0, 1\]}",
        ),
        ({"samples": "two"}, "recipe 'mine': samples: .*'two'"),
        ({"repeats": "mean"}, "recipe 'mine': repeats: Input should be 'mean-before', 'mean-after' or 'each'"),
    ],
)
def test_wrong_values_are_reported_with_their_place(load, changes, message):
    with pytest.raises(OptionError, match=message):
        load(PLAIN, changes)


def test_a_blend_takes_nothing_else():
    with pytest.raises(OptionError, match="a blend node takes the weights of earlier nodes only"):
        Node(blend={"low": 0.5}, inputs={"latent": "latent"})


def test_an_unknown_recipe_offers_the_nearest(tmp_path):
    with pytest.raises(UnknownNameError, match=r"unknown recipe 'tiny-rige'\. Did you mean 'tiny-ridge'"):
        load_recipe("tiny-rige")
    with pytest.raises(UnknownNameError, match=r"unknown recipe '.*gone\.yaml'"):
        load_recipe(str(tmp_path / "gone.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "bad.yaml is not YAML: "),
        ("- 1", "bad.yaml holds list, a map"),
        ("stages: []\nstages: []", "bad.yaml is not YAML: key 'stages' stands there twice"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(OptionError, match=message):
        load_recipe(str(tmp_path / "bad.yaml"))


def test_two_stages_need_two_names(load):
    stage = yaml.safe_load(PLAIN)["stages"][0]
    with pytest.raises(OptionError, match=r"two stages have one name: \['fit', 'fit'\]"):
        load(PLAIN, {"stages": [stage, stage]})


def test_changed_options_belong_to_their_stage(load):
    stages = [{"encoder": "ridge", "name": n, "options": {"alpha": 1.0}} for n in ("first", "last")]
    stages[1]["heads"] = {"latent": {"target": "tiny-diffusion.latent"}}
    loaded = load(PLAIN, {"stages": stages})
    changed = with_options(loaded, {"last.alpha": 5.0, "last.form": "dual"})
    assert [stage.options for stage in changed.stages] == [{"alpha": 1.0}, {"alpha": 5.0, "form": "dual"}]
    assert loaded.stages[1].options == {"alpha": 1.0}
    averaged = with_options(loaded, {"last.averaging": "mean", "last.alpha": 5.0})
    assert [(stage.averaging, stage.options) for stage in averaged.stages] == [
        ("single", {"alpha": 1.0}),
        ("mean", {"alpha": 5.0}),
    ]
    assert with_options(loaded, {}) == loaded
    with pytest.raises(UnknownNameError, match="unknown stage 'lst'"):
        with_options(loaded, {"lst.alpha": 1.0})


# The systems of the literature, written as recipes over stand-ins that have their options, targets and inputs.


@dataclass(frozen=True)
class NetOptions:
    width: int = 64
    lr: float = 1e-3
    global_rounds: int = 10


@dataclass(frozen=True)
class RenderOptions:
    strength: float = 0.75
    mixing: float = 0.4
    guidance: float = 7.5


def encoder_class(options: type = NetOptions) -> type[Encoder]:
    return type("Net", (Encoder,), {"version": 1, "Options": options})


def generator_class(targets: dict, inputs: dict) -> type[Generator]:
    specs = {"targets": {n: TargetSpec(s) for n, s in targets.items()}, "inputs": inputs}
    return type("Frozen", (Generator,), {"version": 1, "Options": RenderOptions, **specs})


def latent(*shape: int, oracle: str | None = None, required: bool = True) -> InputSpec:
    return InputSpec(shape, oracle=oracle, required=required)


PICTURE = InputSpec((3, 512, 512), kind="picture", required=False)
FAKES = {
    "encoder": {
        name: encoder_class()
        for name in ("ridge", "residual-mlp", "brainguard", "text-cnn", "masked-vit", "concept-attention")
    },
    "generator": {
        "vdvae": generator_class({"z": (91168,)}, {"z": latent(91168, oracle="z")}),
        "versatile-diffusion": generator_class(
            {"vision": (257, 768), "text": (77, 768)},
            {
                "vision": latent(257, 768, oracle="vision"),
                "text": latent(77, 768, oracle="text", required=False),
                "image": PICTURE,
            },
        ),
        "sdxl-unclip": generator_class({"tokens": (256, 1664)}, {"tokens": latent(256, 1664, oracle="tokens")}),
        "sdxl": generator_class(
            {"z": (4, 64, 64)}, {"image": PICTURE, "z": latent(4, 64, 64, oracle="z", required=False)}
        ),
        "stable-diffusion-v14": generator_class(
            {"z": (4, 40, 40), "text": (77, 768)},
            {"z": latent(4, 40, 40, oracle="z"), "text": latent(77, 768, oracle="text")},
        ),
        "class-diffusion": generator_class({"class": (512,)}, {"class": latent(512, oracle="class")}),
    },
}


@pytest.fixture
def fakes(monkeypatch):
    monkeypatch.setattr(registry, "found", lambda kind: FAKES[kind])


SYSTEMS = {
    "brain-diffuser": """
stages:
  - encoder: ridge
    heads:
      z: {target: vdvae.z}
      vision: {target: versatile-diffusion.vision}
      text: {target: versatile-diffusion.text}
post: [restandardise]
render:
  low: {generator: vdvae, inputs: {z: z}}
  out:
    generator: versatile-diffusion
    options: {strength: 0.75, mixing: 0.4}
    inputs: {image: low, vision: vision, text: text}
""",
    "takagi": """
stages:
  - encoder: ridge
    heads:
      z: {target: stable-diffusion-v14.z, roi: "streams:early"}
      c: {target: stable-diffusion-v14.text, roi: "streams:ventral"}
repeats: each
samples: 5
render:
  out: {generator: stable-diffusion-v14, inputs: {z: z, text: c}}
""",
    "mindeye2-blend": """
stages:
  - name: pretrain
    encoder: residual-mlp
    subjects: joint
    heads: {tokens: {target: sdxl-unclip.tokens}, blurry: {target: sdxl.z}}
  - name: finetune
    encoder: residual-mlp
    init_from: pretrain
    heads: {tokens: {target: sdxl-unclip.tokens}, blurry: {target: sdxl.z}}
render:
  unrefined: {generator: sdxl-unclip, inputs: {tokens: tokens}}
  low: {generator: sdxl, inputs: {z: blurry}}
  refined: {generator: sdxl, inputs: {image: unrefined}}
  out: {blend: {refined: 0.75, low: 0.25}}
search:
  trials: 2
  space: {finetune.lr: {loguniform: [1.0e-5, 1.0e-3]}}
""",
    "brainguard": """
stages:
  - encoder: brainguard
    subjects: joint
    options: {global_rounds: 50}
    heads:
      vision: {target: versatile-diffusion.vision}
      text: {target: versatile-diffusion.text}
render:
  out: {generator: versatile-diffusion, inputs: {vision: vision, text: text}}
""",
    "cs292f-cnn": """
stages:
  - name: picture
    encoder: ridge
    heads: {z: {target: stable-diffusion-v14.z}}
  - name: text
    encoder: text-cnn
    init_from: picture
    heads:
      z: {target: stable-diffusion-v14.z}
      text: {target: stable-diffusion-v14.text, take: [0, 15]}
render:
  out: {generator: stable-diffusion-v14, inputs: {z: z, text: text}}
""",
    "cnd": """
stages:
  - name: pretrain
    encoder: masked-vit
    dataset: hcp
    subjects: joint
    normalise: subject
  - name: fit
    encoder: concept-attention
    init_from: pretrain
    heads: {class: {target: class-diffusion.class}}
render:
  out: {generator: class-diffusion, inputs: {class: class}}
""",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_every_system_can_be_written(name, load, fakes):
    loaded = load(SYSTEMS[name], name=name)
    order = [node for node, _ in loaded.render_order()]
    assert sorted(order) == sorted(loaded.render)
    assert order[-1] == "out"
    targets = {head.target: "t" for stage in loaded.stages for head in stage.heads.values()}
    planned = plan_recipe(loaded, (1, 2), DataDigests({"": "s", "hcp": "h"}, targets), seed=0)
    assert len(planned) == len(loaded.stages)
    assert len({plan.id for stage in planned for plan in stage}) == sum(map(len, planned))


def test_brain_diffuser_fills_three_heads_and_two_nodes(load, fakes):
    loaded = load(SYSTEMS["brain-diffuser"])
    assert sorted(loaded.stages[0].heads) == ["text", "vision", "z"]
    assert [name for name, _ in loaded.render_order()] == ["low", "out"]
    assert open_reasons_of(loaded) == ["post step 'restandardise' uses statistics of the test predictions"]


def test_mindeye2_starts_each_subject_from_the_joint_fit_and_is_open(load, fakes):
    loaded = load(SYSTEMS["mindeye2-blend"])
    data = DataDigests({"": "s"}, {"sdxl-unclip.tokens": "a", "sdxl.z": "b"})
    (joint,), each = plan_recipe(loaded, (1, 2, 5), data, seed=0)
    assert joint.subjects == (1, 2, 5)
    assert [plan.subjects for plan in each] == [(1,), (2,), (5,)]
    assert {plan.parent for plan in each} == {joint.id}
    assert open_reasons_of(loaded) == ["render node 'out' blends pictures"]
    assert [name for name, _ in loaded.render_order()].index("refined") == 2


def test_brainguard_is_one_fit_of_all_subjects(load, fakes):
    data = DataDigests({"": "s"}, {f"versatile-diffusion.{t}": t for t in ("vision", "text")})
    ((only,),) = plan_recipe(load(SYSTEMS["brainguard"]), (1, 2, 3), data, seed=0)
    assert only.subjects == (1, 2, 3)


def test_cs292f_takes_a_slice_of_the_text(load, fakes):
    loaded = load(SYSTEMS["cs292f-cnn"])
    assert loaded.stages[1].heads["text"].take == (0, 15)
    with pytest.raises(
        OptionError, match=r"take \[0, 78\] leaves target 'stable-diffusion-v14.text' of shape \(77, 768\)"
    ):
        load(SYSTEMS["cs292f-cnn"], {"stages.1.heads.text.take": [0, 78]})


def test_cnd_pretrains_without_heads_on_other_data(load, fakes):
    loaded = load(SYSTEMS["cnd"])
    assert loaded.stages[0].heads == {}
    assert loaded.stages[0].dataset == "hcp"
    with pytest.raises(UnknownNameError, match="unknown data set 'hcp' in the sweep's data"):
        plan_recipe(loaded, (1,), DataDigests({"": "s"}, {"class-diffusion.class": "c"}), seed=0)


def test_a_graph_in_a_circle_is_refused(load, fakes):
    circle = {
        "render.low": {"generator": "versatile-diffusion", "inputs": {"image": "out", "vision": "vision"}},
    }
    with pytest.raises(OptionError, match=r"render nodes \['low', 'out'\] feed each other in a circle"):
        load(SYSTEMS["brain-diffuser"], circle)


def test_a_node_that_feeds_itself_is_refused(load, fakes):
    with pytest.raises(OptionError, match=r"render nodes \['out'\] feed each other in a circle"):
        load(SYSTEMS["brain-diffuser"], {"render.out.inputs.image": "out"})


def test_a_required_input_must_be_fed(load, fakes):
    with pytest.raises(
        OptionError, match=r"generator 'versatile-diffusion' needs input 'vision'; the node gives \['image'\]"
    ):
        load(SYSTEMS["brain-diffuser"], {"render.out.inputs": {"image": "low"}})


def test_nodes_come_after_what_feeds_them_whatever_their_order_in_the_file(load, fakes):
    graph = yaml.safe_load(SYSTEMS["mindeye2-blend"])["render"]
    for names in (sorted(graph), sorted(graph, reverse=True)):
        loaded = load(SYSTEMS["mindeye2-blend"], {"render": {name: graph[name] for name in names}})
        order = [name for name, _ in loaded.render_order()]
        assert order.index("unrefined") < order.index("refined") < order.index("out")


def test_a_recipe_is_frozen():
    loaded = load_recipe("tiny-ridge")
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.name = "other"
