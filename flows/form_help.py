"""The help text of a setting in the form: what it means, and the value that each recipe has."""

import json
import re
from collections import Counter
from functools import cache
from typing import Any

from spin_core.config.recipes import RECIPES
from spin_core.config.resolve import resolve
from spin_core.store.files import json_values

_LONGEST = 60
"""The most characters of a value that are shown."""

_EMPTY = re.compile(r"\b[Ee]mpty(?=:| takes | is | makes | publishes | turns )")
"""The word for an empty text or list in a setting's help. A field of the form that is empty means something else."""


def form_help(description: str, path: tuple[str, ...], *, is_list: bool) -> str:
    """The help of a setting, with the recipes' values.

    Args:
        description: The setting's own help.
        path: The names of its sections, and its own.
        is_list: Whether its value is a list.
    """
    text = _EMPTY.sub("`[]`" if is_list else '`""`', description)
    values = recipe_values(path)
    return f"{text}\n\n{values}" if values else text


def recipe_values(path: tuple[str, ...]) -> str:
    """`In the recipes: 0.1; demo: 5`: the value that most recipes have, then those of the others."""
    values = {recipe: _text(value) for recipe, config in _recipes().items() for value in _values_at(config, path)}
    if not values:
        return ""
    ((common, _),) = Counter(values.values()).most_common(1)
    others = [f"{recipe}: {value}" for recipe, value in values.items() if value != common]
    return f"In the recipes: {'; '.join([common, *others])}"


def _values_at(config: Any, path: tuple[str, ...]) -> list[Any]:
    """The value of a setting; empty if a section above it is not set."""
    for name in path:
        if not isinstance(config, dict) or name not in config:
            return []
        config = config[name]
    return [config]


def _text(value: Any) -> str:
    """A value as a person writes it."""
    if value is None or not str(value):
        return "none"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


@cache
def _recipes() -> dict[str, Any]:
    """All values of each recipe."""
    return {recipe: json_values(resolve(recipe)) for recipe in RECIPES}
