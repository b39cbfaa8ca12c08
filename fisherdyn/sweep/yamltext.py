"""YAML in which every key is there once; plain YAML keeps the last of several and says nothing."""

from __future__ import annotations

from typing import Any

import yaml

MERGE = "tag:yaml.org,2002:merge"
"""Of `<<`: what it brings gives way to the mapping's own keys by design."""


class _Loader(yaml.SafeLoader):
    """Looks at keys as they are written, before anything is merged."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        mapping = super().compose_mapping_node(anchor)
        first: dict[tuple[str, Any], int] = {}
        for key, _ in mapping.value:
            # A list or mapping as a key is refused by YAML itself.
            if key.tag == MERGE or not isinstance(key, yaml.ScalarNode):
                continue
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in first:
                raise ValueError(
                    f"line {line}: {key.value} is there already, in line {first[name]}: rename it or leave one out"
                )
            first[name] = line
        return mapping


def load(source: str) -> Any:
    """What a text says.

    Raises:
        ValueError: a key is twice in one mapping, or a value cannot be (a 13th month).
        yaml.YAMLError: it is no YAML.
    """
    return yaml.load(source, Loader=_Loader)
