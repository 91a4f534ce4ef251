"""What a person asks for: a pass, its options, the files to work on, and the rules that decide the verdict.

A recipe is a name (`int8`), a mapping, or such a mapping in YAML. Rules may
also stand in the repository; what is said closest to the request wins.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any, Literal, TypeVar

from modelworks.kit.errors import InvalidInput
from modelworks.optimizer.passes import PASSES
from modelworks.optimizer.yaml_text import parse_yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


class Rules(_Strict):
    """When a variant is promoted: every rule must hold; null switches a rule off.

    The same class is what somebody wrote (then what is absent is left to the next source, see `given`) and what is in
    force (then the defaults have filled it).
    """

    model_config = ConfigDict(strict=True)

    min_agreement: Annotated[float, Field(ge=0, le=1)] | None = 0.99
    """Share of the evaluation inputs on which variant and original agree."""
    min_cosine_mean: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Mean cosine of float outputs; for embeddings 0.99 is a sensible value."""
    max_latency_ratio: Annotated[float, Field(gt=0, le=1000)] | None = 1.1
    """Variant over original at batch 1."""
    max_latency_ratio_batched: Annotated[float, Field(gt=0, le=1000)] | None = None
    """The same at the largest batch that was measured."""
    min_size_ratio: Annotated[float, Field(gt=0, le=1000)] | None = 1.2
    """Original over variant, in bytes on disk."""
    min_samples: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    """Fewer inputs than this prove nothing."""
    prefer: Literal["size", "latency"] = "size"
    """Which candidate a pass with several keeps."""

    def given(self) -> dict[str, Any]:
        """Only what was written."""
        return self.model_dump(exclude_unset=True)


RecipeName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
"""Also the last part of the variant's branch."""

TargetPath = Annotated[str, Field(min_length=1, max_length=500)]


class Recipe(_Strict):
    """A pass with its options, files and rules."""

    name: RecipeName
    pass_name: str = Field(alias="pass")
    options: dict[str, Any] = Field(default_factory=dict)
    rules: Rules = Rules()
    targets: tuple[TargetPath, ...] = Field(default=(), max_length=8)
    """Paths to optimise. Empty: the pass's favourite (`model.onnx`) if there is one, else every file that it takes."""

    def state(self) -> dict[str, Any]:
        """As JSON, to be read by `parse_recipe` again."""
        rules = {"rules": self.rules.given()} if self.rules.given() else {}
        targets = {"targets": list(self.targets)} if self.targets else {}
        options = {"options": self.options} if self.options else {}
        return {"name": self.name, "pass": self.pass_name, **options, **rules, **targets}

    @property
    def digest(self) -> str:
        """Names the content: two recipes with the same digest ask for the same thing."""
        return hashlib.sha256(json.dumps(self.state(), sort_keys=True).encode()).hexdigest()[:16]


BUILT_IN: Mapping[str, Mapping[str, Any]] = {
    "int8": {"name": "int8", "pass": "int8"},
    # The same numbers in another form: it must answer as the original does, and need not be smaller.
    "onnx": {"name": "onnx", "pass": "onnx-export", "rules": {"min_cosine_mean": 0.999, "min_size_ratio": None}},
}
"""Recipes that can be asked for by name."""

_TEXT_MAX = 64 * 1024

_Model = TypeVar("_Model", bound=BaseModel)


def parse_recipe(given: str | Mapping[str, Any]) -> Recipe:
    """A recipe from its name, a mapping, or YAML text with a mapping.

    Raises:
        InvalidInput: unknown name, pass or property, or a value out of bounds; the message names it.
    """
    if isinstance(given, str):
        if given in BUILT_IN:
            given = BUILT_IN[given]
        elif ":" in given or "{" in given:
            if len(given) > _TEXT_MAX:
                raise InvalidInput(f"the recipe has {len(given)} characters, at most {_TEXT_MAX} allowed")
            given = parse_yaml(given, where="recipe")
        else:
            raise InvalidInput(
                f"recipe {given!r} is unknown; known are: {', '.join(sorted(BUILT_IN))}. "
                'Or send one inline: {"name": ..., "pass": ..., "options": {...}, "rules": {...}}'
            )
    recipe = _validated(Recipe, given, where="recipe")
    _check_options(recipe)
    return recipe


def parse_rules(given: Mapping[str, Any], *, where: str) -> Rules:
    """Rules as written somewhere; `where` goes into the message.

    Raises:
        InvalidInput: an unknown rule, or a value out of bounds.
    """
    return _validated(Rules, given, where=where)


def merge_rules(*sources: Rules) -> Rules:
    """The rules in force: each source overrules those before it."""
    merged: dict[str, Any] = {}
    for source in sources:
        merged |= source.given()
    return Rules(**merged)


def _check_options(recipe: Recipe) -> None:
    spec = PASSES.get(recipe.pass_name)
    if spec is None:
        raise InvalidInput(f"recipe: pass {recipe.pass_name!r} is unknown; known are: {', '.join(sorted(PASSES))}")
    _validated(import_module(spec.module).Options, recipe.options, where="recipe.options")
    for target in recipe.targets:
        if not target.endswith(spec.takes.suffix):
            pickled = target.endswith(spec.takes.refused) if spec.takes.refused else False
            why = spec.takes.refused_because if pickled else f"it works on {spec.takes.suffix} files"
            raise InvalidInput(f"recipe.targets: pass {recipe.pass_name} does not take {target!r}: {why}")


def _validated(model: type[_Model], given: Any, *, where: str) -> _Model:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        path = ".".join([where, *(str(part) for part in first["loc"])])
        if first["type"] == "extra_forbidden":
            known = ", ".join(sorted(_names(model)))
            raise InvalidInput(f"{path} is not known here; at the top are known: {known}", field=path) from error
        raise InvalidInput(f"{path}: {first['msg']} (given: {str(first['input'])[:100]})", field=path) from error


def _names(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]
