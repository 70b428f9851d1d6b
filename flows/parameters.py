"""The parameters of flows, and how the form in Prefect's UI gets its fields from them.

Prefect draws the form of a run from the JSON schema of the flow's parameters. Recipe, lineage and iterations are
parameters of their own. All other settings of `RunConfig` are the parameter `overrides`, whose model `Overrides` is
made from `RunConfig` by `_optional_copy`:

1. Each setting becomes optional with the default None, which means "as the lineage or the recipe has it". Bounds,
   choices and help stay, since they are in the annotation, the metadata and the description. So Prefect rejects an
   invalid value by the schema, before a run exists.
2. Each section becomes a choice between nothing, an object without properties, and the optional copy of the section.
   The form shows it closed.
3. `position` is Prefect's own key for the order of fields: that of `RunConfig`.
4. Nothing has a `default` in the schema, so that the form shows settings empty.
5. A boolean becomes a choice of true and false, because a switch has no third position for "as it is".
6. A list has the choice `empty`, because a list that is left empty is as the recipe has it.
7. The help ends with the values that the recipes have (`form_help`), for which the form's fields have no place.

`Overrides.filled_in` returns only what a user has filled in; `config.resolve` merges that over the recipe.
"""

from functools import cache
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, create_model, model_serializer
from pydantic.fields import FieldInfo
from pydantic.json_schema import SkipJsonSchema

from flows.form_help import form_help
from spin_core.config.resolve import RecipeName
from spin_core.config.run import RunConfig

_SEPARATE_PARAMETERS = ("recipe", "iterations")
"""Settings that are parameters of the flow, and so not among the overrides."""


_HiddenNone = Annotated[None, SkipJsonSchema()]
"""None, which is not in the schema: an empty field of the form."""

Iterations = Annotated[int, Field(ge=0, le=1000)] | _HiddenNone
"""How many iterations; 0 takes the lineage's or the recipe's number, as does None, which older schedules have. None is
not in the schema: it would be a choice of its own in the form, with the text `Property is type "None"`."""

AS_THE_LINEAGE: Final = "as the lineage has it"
"""The choice of a form for a lineage that exists."""

RecipeChoice = Literal["as the lineage has it", RecipeName]
"""A recipe for a new lineage. A text and not None for an existing one, so that the form shows one drop-down."""

OptionalName = Annotated[str, Field(pattern=r"^([a-z0-9][a-z0-9-]{0,62})?$")]
"""A lineage's name, or an empty string."""


class Partial(BaseModel):
    """Settings of which some are filled in. Its serialized form has only those."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), title="change", hide_input_in_errors=True
    )

    @model_serializer
    def filled_in(self) -> dict[str, Any]:
        """The values that were filled in, without sections in which nothing was."""
        values: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if isinstance(value, Partial):
                value = value.filled_in() or None
            # None is a choice of the user's only for a setting that can be None itself; else the field was left empty.
            if value is not None or (name in self.model_fields_set and NoneType in get_args(field.annotation)):
                values[name] = value
        return values


def is_section(annotation: Any) -> bool:
    """Whether a field's type is a model with settings of its own."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


_OF_LISTS = ("type", "items", "prefixItems", "minItems", "maxItems", "uniqueItems")
"""Keys of the schema of a list."""


@cache
def _optional_copy(model: type[BaseModel], path: tuple[str, ...] = ()) -> type[Partial]:
    """A model with the same settings, each of them optional.

    Args:
        model: The section of the configuration.
        path: The names of the sections that lead to it, for the recipes' values in the help.
    """
    fields: dict[str, Any] = {}
    for position, (name, field) in enumerate(model.model_fields.items()):
        if model is RunConfig and name in _SEPARATE_PARAMETERS:
            continue
        annotation: Any = field.annotation
        section = next((kind for kind in (annotation, *get_args(annotation)) if is_section(kind)), None)
        if section is not None:
            copy: Any = _optional_copy(section, (*path, name))
            annotation = copy | Annotated[None, "nothing is filled in, which is no choice of a setting's value"]
        elif NoneType not in get_args(annotation):
            # Annotated needs at least one argument next to the type, and `metadata`, with the bounds, may be empty.
            annotation = Annotated[annotation, "may be left out", *field.metadata] | _HiddenNone
        fields[name] = (
            annotation,
            Field(
                default=None,
                title=name.replace("_", " "),
                description=field.description if section else _help(field, (*path, name)),
                json_schema_extra=_section_schema(position) if section else _setting_schema(position),
            ),
        )
    own_name = "".join(part.title() for part in path).replace("_", "") or model.__name__
    return create_model(f"{own_name}Overrides", __base__=Partial, **fields)


def _help(field: FieldInfo, path: tuple[str, ...]) -> str:
    """The help of a setting in the form."""
    is_list = any(get_origin(kind) is tuple for kind in (field.annotation, *get_args(field.annotation)))
    return form_help(field.description or "", path, is_list=is_list)


_TITLES = {
    "number": "number",
    "integer": "whole number",
    "string": "text",
    "boolean": "true or false",
    "array": "list",
    "null": "none",
}
"""The names of a setting's choices in the form, which calls them `float`, `int`, `str`, … otherwise."""

_UNCHANGED = {"type": "object", "title": "leave as it is", "properties": {}, "maxProperties": 0}
"""The choice of a section in which nothing is filled in. For a null, the form would show `Property is type "None"`."""


def _section_schema(position: int) -> Any:
    """A function that changes the schema of a section: a choice, closed at first, whose wrong settings are named.

    A choice rejects a wrong section as a whole. Prefect's server, but not its form, replaces the choices of a property
    that has a type and no default by that type alone, and `then` names the setting that is wrong.
    """

    def change(schema: dict[str, Any]) -> None:
        section, _null = schema["anyOf"]
        del schema["default"]
        schema |= {"position": position, "anyOf": [_UNCHANGED, section], "type": ["object", "null"]}
        schema |= {"if": {"type": "object"}, "then": dict(section)}

    return change


def _setting_schema(position: int) -> Any:
    """A function that changes the schema of a setting: an empty field, and choices for booleans and lists."""

    def change(schema: dict[str, Any]) -> None:
        schema["position"] = position
        del schema["default"]
        if schema.get("type") == "array" and not schema.get("minItems"):
            items = {name: schema.pop(name) for name in _OF_LISTS if name in schema}
            empty = {"type": "array", "const": [], "maxItems": 0, "title": "empty"}
            schema["anyOf"] = [{**items, "title": "list"}, empty]
        for alternative in schema.get("anyOf", ()):
            if alternative.get("type") in _TITLES:
                alternative.setdefault("title", _TITLES[alternative["type"]])
        for alternative in (schema, *schema.get("anyOf", ())):
            if alternative.get("type") == "boolean":
                alternative["enum"] = [True, False]
            # The form's fields know `minimum` alone, and mark what is below.
            if alternative.get("type") == "integer" and "exclusiveMinimum" in alternative:
                alternative["minimum"] = alternative.pop("exclusiveMinimum") + 1
            elif "exclusiveMinimum" in alternative:
                alternative["minimum"] = alternative["exclusiveMinimum"]

    return change


if TYPE_CHECKING:

    class Overrides(Partial):
        """`RunConfig` with every field optional."""
else:
    Overrides = _optional_copy(RunConfig)
