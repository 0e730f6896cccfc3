"""What pydantic finds wrong with a configuration, said for the person who wrote the file.

Only words: which rules there are is decided in ``config.py`` and ``config_fields.py``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fuse_tier.yamlfile import Document, KeyPath, Problem, key_text, parse_key

_EXPECTED = {
    "string_type": "text, in quotes if it could be taken for something else",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "tuple_type": "a list, such as [127.0.0.1:7460]",
}


def problems_of(error: ValidationError, model: type[BaseModel], document: Document) -> Iterator[Problem]:
    """One problem for each complaint, with the key it is about."""
    for detail in error.errors(include_url=False):
        if detail["type"] == "rules":
            for key, message in detail["ctx"]["broken"]:
                yield Problem(parse_key(key), message)
        else:
            yield Problem(detail["loc"], _message(detail, model, document))


def _message(detail: ErrorDetails, model: type[BaseModel], document: Document) -> str:
    path, kind, context = detail["loc"], detail["type"], detail.get("ctx", {})
    written = document.texts.get(path)
    value = _shown(detail["input"]) if written is None else repr(written)
    if kind == "config":
        return str(context["reason"])
    if kind == "missing":
        return f"is missing: give {_expected_at(model, path)}"
    if kind == "extra_forbidden":
        return _unknown(path, model)
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{value} is wrong here: give {_expected_at(model, path)}"
    if kind == "literal_error":
        return f"{value} is none of {context['expected']}"
    if kind == "greater_than_equal":
        return f"{value} is too small: at least {context['ge']}"
    if kind == "less_than_equal":
        return f"{value} is too large: at most {context['le']}"
    expected = _EXPECTED.get(kind)
    return f"{value} is wrong here: give {expected}" if expected else f"{value} is wrong here: {detail['msg']}"


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "a group of keys"
    if isinstance(value, list | tuple):
        return "a list"
    return "nothing" if value is None else repr(value)


def _unknown(path: KeyPath, model: type[BaseModel]) -> str:
    section = _section_at(model, path[:-1])
    known = keys_of(section) if section else []
    near = difflib.get_close_matches(str(path[-1]), known, n=1)
    place = f"{key_text(path[:-1])} has" if path[:-1] else "there are"
    return f"is no known key: did you mean {near[0]!r}?" if near else f"is no known key: {place} {', '.join(known)}"


def _expected_at(model: type[BaseModel], path: KeyPath) -> str:
    section = _section_at(model, path)
    if section is None:
        return "a value"
    needed = [field.alias or name for name, field in section.model_fields.items() if field.is_required()]
    return f"a group of keys, {{{', '.join(f'{key}: …' for key in needed or keys_of(section))}}}"


def _section_at(model: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    for part in path:
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        if part not in fields or (section := section_of(fields[str(part)].annotation)) is None:
            return None
        model = section
    return model


def keys_of(model: type[BaseModel]) -> list[str]:
    """The keys of a group as they are written in a file."""
    return [field.alias or name for name, field in model.model_fields.items()]


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The model of a group of keys, if that is what a field holds."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None
