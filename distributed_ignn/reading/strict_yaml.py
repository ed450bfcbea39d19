"""YAML as settings need it: plain values, each key once, no references, not deep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from distributed_ignn.reading.plain_files import in_one_line, read_plain

#: Of all settings together; the longest shipped file has 4 kB.
YAML_LIMIT = 256 * 2**10
_DEEPEST = 32


class _StrictLoader(yaml.SafeLoader):
    """A safe loader that refuses a key written twice, of which YAML keeps only the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.YAMLError(f"the key in line {line} is not a word")
            if key in seen:
                raise yaml.YAMLError(f"key {key!r} is written twice, again in line {line}")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The value in a YAML file; None for an empty one.

    Raises:
        OSError: the file cannot be read, or has more than 256 KiB.
        ValueError: see ``parse_yaml``.
    """
    return parse_yaml(read_plain(path, YAML_LIMIT))


def parse_yaml(content: bytes | str) -> Any:
    """The value that YAML describes, in UTF-8.

    A few lines of references to references (``&a``, ``*a``) stand for more values than fit any
    memory, so there are none.

    Raises:
        ValueError: it is not YAML, a key is written twice or not a word, or it holds references,
            types of a programming language, text that is no Unicode, or values nested more than
            32 deep.
    """
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
    except UnicodeDecodeError as error:
        raise ValueError(
            f"it is no text; write it in utf-8 (wrong at byte {error.start})"
        ) from error
    try:
        _check_events(text)
        return yaml.load(text, _StrictLoader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        raise ValueError(in_one_line(_place(error))) from error
    except (yaml.YAMLError, RecursionError, TypeError, AttributeError, LookupError) as error:
        # besides its own error, the library lets those of malformed dates and numbers through
        raise ValueError(in_one_line(error)) from error


def _place(error: yaml.MarkedYAMLError) -> str:
    """The line and what is wrong there, without the parser's own words for the file."""
    mark = error.problem_mark or error.context_mark
    line = "" if mark is None else f"line {mark.line + 1}: "
    context = error.context or "while"
    words = [error.problem] if context.startswith("while") else [context, error.problem]
    return line + ", ".join(filter(None, words))


def _check_events(text: str) -> None:
    """The parser works without recursion, so depth is known before anything is built."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            place = "" if event.start_mark is None else f" in line {event.start_mark.line + 1}"
            raise yaml.YAMLError(f"the reference{place} is not allowed; write the value")
        if isinstance(event, yaml.ScalarEvent):
            event.value.encode()  # half of a surrogate pair, which no file name holds
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise yaml.YAMLError(f"values are nested more than {_DEEPEST} deep")
