"""A YAML file read together with where everything in it stands, so that a complaint can name the line.

It knows nothing of what the keys mean (``config.py`` does). Only plain values: mappings with text keys, lists,
text, numbers, booleans, null. Reading one runs nothing that the file says. ``${NAME}`` in a value is what the
environment has there, so that one file serves many machines; it is always text, and never read as YAML.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from fuse_tier.errors import ConfigError

MAX_FILE_BYTES = 1 << 20

KeyPath: TypeAlias = tuple[str | int, ...]
_SCALARS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float"))
_VARIABLE = re.compile(r"\$(\$?)\{([A-Za-z_][A-Za-z0-9_]*)\}")
_TEXTS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "timestamp", "value", "merge"))


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong in a configuration: where (empty path: the whole), and what is expected instead."""

    path: KeyPath
    message: str
    line: int | None = None  # only when it is not the path's own


@dataclass(slots=True)
class Document:
    """What a file says, and where: ``lines`` and ``texts`` (scalars as written) by the path of each key."""

    name: str
    value: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    texts: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line_of(self, path: KeyPath) -> int | None:
        """The line of the nearest key on the way to ``path``; none when this was no file."""
        for length in range(len(path), -1, -1):
            if (line := self.lines.get(path[:length])) is not None:
                return line
        return None

    def error(self, problems: Iterable[Problem]) -> ConfigError:
        """All problems in one error, a line each, in the order of the file."""
        texts: list[tuple[int, str]] = []
        for problem in problems:
            line = problem.line or self.line_of(problem.path)
            place = self.name if line is None else f"{self.name}:{line}"
            key = key_text(problem.path)
            texts.append((line or 0, f"{place}: {key}: {problem.message}" if key else f"{place}: {problem.message}"))
        texts.sort(key=lambda entry: entry[0])
        return ConfigError("\n".join(dict.fromkeys(text for _, text in texts)))


def key_text(path: KeyPath) -> str:
    """Such as ``ram.size`` or ``peers[1]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def parse_key(text: str) -> KeyPath:
    """The path that ``key_text`` writes so."""
    return tuple(int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", text))


def read(path: Path) -> Document:
    """Reads one YAML document. Raises ConfigError, which lists keys that stand twice and values of no known kind."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file: name an existing configuration with --config") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    return parse(content, str(path))


def parse(content: bytes, name: str) -> Document:
    """Reads one YAML document of that name in messages, as ``read`` does."""
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{name}: is longer than {MAX_FILE_BYTES} bytes: this is no configuration of ours")
    document = Document(name)
    try:
        root = yaml.compose(content, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}" if mark else name
        what = "; ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{place}: is no valid YAML: {what}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: is no valid YAML: {' '.join(str(error).split())}") from error
    if root is None:
        raise ConfigError(f"{name}: is empty: docs/configuration.md shows what it needs")
    document.lines[()] = root.start_mark.line + 1
    document.value = _Reader(document).read(root, ())
    if document.problems:
        raise document.error(document.problems)
    return document


class _Reader:
    """Turns composed nodes into values, noting their places."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._constructor = yaml.constructor.SafeConstructor()
        self._known: dict[int, Any] = {}
        self._open: set[int] = set()

    def read(self, node: yaml.Node, path: KeyPath) -> Any:
        # An alias gives the node that its anchor gave: read once, or a small file could grow without bound.
        if id(node) in self._known:
            return self._known[id(node)]
        if id(node) in self._open:
            return self._complain(path, "refers to itself: write the value out")
        self._open.add(id(node))
        value = self._known[id(node)] = self._value(node, path)
        return value

    def _value(self, node: yaml.Node, path: KeyPath) -> Any:
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            values = []
            for index, item in enumerate(node.value):
                self._document.lines[*path, index] = item.start_mark.line + 1
                values.append(self.read(item, (*path, index)))
            return values
        if isinstance(node, yaml.ScalarNode):
            self._document.texts[path] = node.value
            if node.tag in _SCALARS:
                try:
                    return self._constructor.construct_object(node)
                except ValueError:
                    return self._complain(path, f"{node.value!r} is no {node.tag.rpartition(':')[2]}")
            if node.tag in _TEXTS:
                return self._with_environment(node.value, path)
        return self._complain(path, f"the tag {node.tag!r} has no meaning here: write the plain value")

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._complain(path, f"line {line} has a key that is no name")
                continue
            key = str(key_node.value)
            if key in values:
                first = self._document.lines[*path, key]
                message = f"stands here again, after line {first}: keep one"
                self._document.problems.append(Problem((*path, key), message, line))
                continue
            self._document.lines[*path, key] = line
            values[key] = self.read(value_node, (*path, key))
        return values

    def _with_environment(self, text: str, path: KeyPath) -> str:
        lacking = [name for dollar, name in _VARIABLE.findall(text) if not dollar and not os.environ.get(name)]
        if lacking:
            name = lacking[0]
            self._complain(path, f"the environment has no {name}: set it, or write $${{{name}}} to mean that")
            return text
        found = _VARIABLE.sub(lambda one: f"${{{one[2]}}}" if one[1] else os.environ[one[2]], text)
        self._document.texts[path] = found
        return found

    def _complain(self, path: KeyPath, message: str) -> None:
        self._document.problems.append(Problem(path, message))
