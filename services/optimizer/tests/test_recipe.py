"""Recipes, rules and manifests: what is accepted, and how precisely the rest is refused."""

from __future__ import annotations

from typing import Any

import pytest
from modelworks.kit.errors import InvalidInput
from modelworks.optimizer.manifest import front_matter, read_manifest
from modelworks.optimizer.recipe import Rules, merge_rules, parse_recipe
from modelworks.optimizer.yaml_text import parse_yaml


def test_recipe_by_name_by_mapping_and_by_yaml_are_the_same() -> None:
    by_name = parse_recipe("int8")

    assert parse_recipe({"name": "int8", "pass": "int8"}) == by_name
    assert parse_recipe("name: int8\npass: int8\n") == by_name


def test_recipe_survives_being_stored_and_read() -> None:
    recipe = parse_recipe({
        "name": "small", "pass": "int8", "options": {"weight_type": "uint8", "leave": ["Conv"]},
        "rules": {"max_latency_ratio": None, "prefer": "size"}, "targets": ["a.onnx"],
    })  # fmt: skip

    assert parse_recipe(recipe.state()) == recipe
    assert parse_recipe(recipe.state()).rules.given() == {"max_latency_ratio": None, "prefer": "size"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("int3", "recipe 'int3' is unknown; known are: int8"),
        ({"name": "x"}, "recipe.pass: Field required"),
        ({"name": "x", "pass": "magic"}, "pass 'magic' is unknown; known are: int8"),
        ({"name": "../main", "pass": "int8"}, "recipe.name: String should match"),
        ({"name": "x", "pass": "int8", "sparsity": 1}, "recipe.sparsity is not known"),
        ({"name": "x", "pass": "int8", "options": {"bits": 3}}, "recipe.options.bits is not known"),
        ({"name": "x", "pass": "int8", "options": {"weight_type": "int4"}}, "recipe.options.weight_type: "),
        ({"name": "x", "pass": "int8", "rules": {"min_agreement": 1.5}}, "recipe.rules.min_agreement: .*1.5"),
        ({"name": "x", "pass": "int8", "rules": {"min_agreement": "0.9"}}, "recipe.rules.min_agreement: .*number"),
        ({"name": "x", "pass": "int8", "rules": {"min_agreement": float("nan")}}, "recipe.rules.min_agreement: "),
        ({"name": "x", "pass": "int8", "rules": {"min_agreement": True}}, "recipe.rules.min_agreement: "),
        ({"name": "x", "pass": "int8", "rules": {"max_latency": 1}}, "recipe.rules.max_latency is not known"),
        ({"name": "x", "pass": "int8", "rules": {"prefer": "luck"}}, "recipe.rules.prefer: .*'size' or 'latency'"),
        ({"name": "x", "pass": "int8", "rules": {"min_samples": None}}, "recipe.rules.min_samples: "),
        (
            {"name": "x", "pass": "int8", "targets": ["model.pt"]},
            "pass int8 does not take 'model.pt': it works on .onnx files",
        ),
        ({"name": "x", "pass": "int8", "targets": [f"{n}.onnx" for n in range(9)]}, "recipe.targets: "),
        ("name: [", "recipe, line .*: not valid YAML"),
        ("- name: x", "a mapping of names to values is wanted, not list"),
    ],
)
def test_recipe_that_is_none_is_refused_by_name(given: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        parse_recipe(given)


def test_rules_said_nearer_overrule_and_null_switches_off() -> None:
    repository = Rules(min_agreement=0.5, min_size_ratio=2.0)
    request = Rules(min_agreement=0.9, max_latency_ratio=None)

    rules = merge_rules(repository, request)

    assert (rules.min_agreement, rules.min_size_ratio, rules.max_latency_ratio) == (0.9, 2.0, None)
    assert rules.min_samples == Rules().min_samples


def test_default_rules_are_those_of_the_guide() -> None:
    assert Rules().model_dump() == {
        "min_agreement": 0.99, "min_cosine_mean": None, "max_latency_ratio": 1.1, "max_latency_ratio_batched": None,
        "min_size_ratio": 1.2, "min_samples": 20, "prefer": "size",
    }  # fmt: skip


class TestManifest:
    def test_front_matter_of_the_card_is_read(self) -> None:
        text = (
            "---\nlicense: mit\nmodelworks:\n  optimization: {rules: {min_agreement: 0.9}}\n  signature: {}\n---\n# x"
        )

        assert read_manifest({"README.md": text}).optimization.rules.given() == {"min_agreement": 0.9}

    def test_modelworks_yaml_goes_before_the_card(self) -> None:
        files = {
            "README.md": "---\nmodelworks: {optimization: {rules: {min_agreement: 0.9}}}\n---\n",
            "modelworks.yaml": "evaluation:\n  outputs: {y: classes}\n",
        }

        manifest = read_manifest(files)

        assert manifest.optimization.rules.given() == {}
        assert manifest.evaluation.outputs == {"y": "classes"}

    @pytest.mark.parametrize("files", [{}, {"README.md": "# no front matter"}, {"modelworks.yaml": ""}])
    def test_repository_that_says_nothing_wishes_nothing(self, files: dict[str, str]) -> None:
        assert read_manifest(files) == read_manifest({})

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("optimization: {rules: {max_speed: 3}}", "modelworks.yaml: optimization.rules.max_speed: "),
            ("evaluation: {inputs: {x: {kind: pixels}}}", "modelworks.yaml: evaluation.inputs.x.kind: "),
            ("evaluation: {inputs: {x: {kind: file-bytes, first: -1}}}", "evaluation.inputs.x.first: "),
            ("evaluation: {outputs: {y: pictures}}", "modelworks.yaml: evaluation.outputs.y: "),
            ("a: &a [1]\nb: [*a, *a]", "modelworks.yaml, line 2: not valid YAML: aliases are not allowed"),
            ("!!python/object/apply:os.system [true]", "modelworks.yaml, line 1: not valid YAML"),
            ("[1, 2", "modelworks.yaml, line"),
        ],
    )
    def test_wrong_manifest_is_refused_by_file_and_property(self, text: str, said: str) -> None:
        with pytest.raises(InvalidInput, match=said):
            read_manifest({"modelworks.yaml": text})

    def test_deeply_nested_text_is_refused_not_followed(self) -> None:
        with pytest.raises(InvalidInput, match="not valid YAML"):
            parse_yaml("a: " + "[" * 100_000, where="modelworks.yaml")

    def test_front_matter_ends_at_its_own_line(self) -> None:
        assert front_matter("---\na: 1\n---\n\n---\nb: 2\n---\n") == "a: 1\n"
        assert front_matter("text\n---\na: 1\n---\n") == ""
