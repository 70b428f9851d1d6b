"""YAML as users may write it in a file or after `--set`: plain values, in which nothing is lost and nothing explodes.

The YAML library takes the last of two equal keys without a word. It also follows references (`*name`), with which a
text of ten lines can stand for billions of values, and nests as deeply as Python's stack allows.
"""

from collections.abc import Hashable
from typing import Any

import yaml

MAX_DEPTH = 50
"""How deeply lists and mappings may be nested. Settings need four levels."""

MAX_VALUES = 100_000
"""How many values a text may stand for, with all references followed."""

_MAX_DIGITS = 100
"""How long a whole number may be."""


def read_yaml(text: str) -> Any:
    """The values of a YAML text.

    Raises:
        yaml.YAMLError: The text is not YAML, has a key twice, is nested too deeply, or stands for too many values.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """The safe loader with limits, and without doubled keys."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[int, int] = {}
        """How many values each finished node stands for, by the node's id."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node of the text, of which its size is counted."""
        if self._depth > MAX_DEPTH:
            raise _problem(f"more than {MAX_DEPTH} levels of nesting", self.peek_event())  # type: ignore[no-untyped-call]
        is_reference = self.check_event(yaml.AliasEvent)
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_reference and id(node) not in self._sizes:  # it is not finished yet
            raise _problem("a value that contains itself", event)
        self._count(node)
        return node

    def _count(self, node: Any) -> None:
        """Note how many values a node stands for. A reference is the node that it refers to."""
        if id(node) in self._sizes:
            return
        children: list[Any] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        size = 1 + sum(self._sizes[id(child)] for child in children)
        if size > MAX_VALUES:
            raise _problem(f"more than {MAX_VALUES} values", node)
        self._sizes[id(node)] = size

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """The mapping of a node. Keys of merged mappings (`<<`) may be repeated, since that overrides them."""
        seen: set[str] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _problem(f"the key {str(key)[:80]}, which is not text", key_node)
            if key in seen:
                raise _problem(f"the key {key!r} a second time", key_node)
            seen.add(key)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return mapping

    def construct_yaml_int(self, node: Any) -> int:
        """The number of a node. Python would not even print one of thousands of digits."""
        if len(node.value) > _MAX_DIGITS:
            raise _problem(f"a number of more than {_MAX_DIGITS} digits", node)
        number: int = super().construct_yaml_int(node)
        return number


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _problem(text: str, where: Any) -> yaml.MarkedYAMLError:
    """An error at an event or a node."""
    return yaml.MarkedYAMLError(problem=text, problem_mark=where.start_mark)
