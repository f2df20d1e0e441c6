# Copyright (c) 2026 the cabalmail-runbooks authors
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hold a JSON answer against botocore's model of the service: members, types, required ones, enumerations, lengths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from botocore.model import Shape

_SCALARS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "character": (str,),
    "integer": (int,),
    "long": (int,),
    "boolean": (bool,),
    "float": (int, float),
    "double": (int, float),
    "timestamp": (int, float),
    "blob": (str,),
}


def problems(value: Any, shape: Shape, path: str = "") -> Iterator[str]:
    """Yield a sentence for each way in which ``value`` departs from ``shape``."""
    kind = shape.type_name
    if kind == "structure":
        yield from _structure(value, shape, path)
    elif kind == "list":
        if not isinstance(value, list):
            yield f"{path}: not a list"
        else:
            for number, item in enumerate(value):
                yield from problems(item, shape.member, f"{path}[{number}]")
    elif kind == "map":
        if not isinstance(value, dict):
            yield f"{path}: not a map"
        else:
            for key, item in value.items():
                yield from problems(item, shape.value, f"{path}.{key}")
    else:
        yield from _scalar(value, shape, path)


def _structure(value: Any, shape: Any, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: not a structure"
        return
    for name in shape.required_members:
        if name not in value:
            yield f"{path}.{name}: missing"
    for name, item in value.items():
        if name not in shape.members:
            yield f"{path}.{name}: unknown to {shape.name}"
        else:
            yield from problems(item, shape.members[name], f"{path}.{name}")


def _scalar(value: Any, shape: Any, path: str) -> Iterator[str]:
    if not isinstance(value, _SCALARS[shape.type_name]) or (shape.type_name != "boolean" and isinstance(value, bool)):
        yield f"{path}: {value!r} is no {shape.type_name}"
        return
    if getattr(shape, "enum", None) and value not in shape.enum:
        yield f"{path}: {value!r} is not one of {shape.enum}"
    low = shape.metadata.get("min")
    size = len(value) if isinstance(value, str) else value
    if low is not None and size < low:
        yield f"{path}: {value!r} is below {low}"
