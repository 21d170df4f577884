"""Reads small structured files of users: JSON, YAML, XML, CSV, lists of lines.

Each reader returns the content, or raises a :class:`UserError` with the file and the reason in one sentence. A missing
file stays a ``FileNotFoundError``, for which :func:`~uniperceiver_v2.reading.sources.explained` has the remedy.
"""

import csv
import io
import json
import os
from typing import Any
from xml.etree import ElementTree

import yaml

from ..errors import UserError
from .disk import read_file
from .extent import require_bounded
from .remote import is_remote

LARGEST_YAML = 2**20  # characters
DEEPEST_YAML = 50  # levels of lists and sections
MOST_VALUES = 100_000  # of a YAML file, each alias written out
_MERGE = "tag:yaml.org,2002:merge"  # of the key "<<", which may come twice


def read_text(path: str) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises:
        UserError: it is not in UTF-8, or not a regular file.
    """
    try:
        return read_file(path).decode("utf-8-sig")
    except ValueError as error:  # UnicodeDecodeError is one
        raise _unusable(path, "a text in UTF-8", error) from error


def read_json(path: str) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: it is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise _unusable(path, "a whole JSON file", error) from error


def read_yaml(path: str, what: str = "a YAML file") -> dict:
    """The content of a YAML file with keys. Tags that would run code are refused.

    Args:
        path: the file.
        what: what it is to the user, for messages.

    Raises:
        UserError: it is not YAML, has no keys or one key twice, or is beyond ``LARGEST_YAML``, ``DEEPEST_YAML`` or
            ``MOST_VALUES``.
    """
    try:
        text = read_text(path)
        if len(text) > LARGEST_YAML:
            raise ValueError(f"it has more than {LARGEST_YAML} characters")
        content = yaml.load(text, _BoundedLoader)
        require_bounded(content, MOST_VALUES, DEEPEST_YAML)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError, TypeError, AttributeError, KeyError) as error:
        raise _unusable(path, what, error) from error
    if not isinstance(content, dict):
        raise UserError(f"{os.path.abspath(path)} cannot be read as {what}: it has no KEY: VALUE pairs")
    return content


class _BoundedLoader(yaml.SafeLoader):
    """Makes plain values only. Stops where a file would take much memory or time, and where a key comes twice, as only
    one of its values could be kept."""

    _depth = 0
    _pairs = 0  # of all mappings so far, with those that "<<" copies

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        if self._depth > DEEPEST_YAML:
            raise ValueError(f"it is nested deeper than {DEEPEST_YAML} levels")
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                line, name = key.start_mark.line + 1, (key.tag, key.value)
                if name in lines:
                    raise ValueError(f"the key {key.value!r:.80} is in line {lines[name]} and again in line {line}")
                lines[name] = line
        return node

    def flatten_mapping(self, node: Any) -> None:
        # Called for each mapping, and for those that "<<" names before their pairs are copied.
        super().flatten_mapping(node)
        self._pairs += len(node.value)
        if self._pairs > MOST_VALUES:
            raise ValueError(f"it stands for more than {MOST_VALUES} values")


def read_xml(path: str) -> ElementTree.Element:
    """The root of an XML file. A file that declares entities is refused, as they might fill the memory.

    Raises:
        UserError: it is not XML, or declares entities.
    """
    try:
        content = read_file(path)
        if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
            raise ValueError("it declares entities, which might fill the memory")
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise _unusable(path, "an XML file", error) from error


def read_lines(path: str) -> list[str]:
    """The lines of a text file without white space around them. Empty lines are left out."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def read_table(path: str, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a CSV file by the names in its first line. Fields are separated by commas, semicolons or tabs,
    whichever the first line has.

    Raises:
        UserError: a column is missing, or a row is too short for one.
    """
    text = read_text(path)
    try:
        rows, names = _open_table(text)
        absent = [column for column in columns if column not in names]
        if absent:
            raise ValueError(
                f"its first line has no column {absent[0]!r}, only {', '.join(map(repr, names)) or 'none'}"
            )
        table = []
        for row in rows:
            short = [column for column in columns if row[column] is None]
            if short:
                raise ValueError(f"line {rows.line_num} has no {short[0]!r}")
            table.append({column: row[column].strip() for column in columns})
    except (csv.Error, ValueError) as error:
        raise _unusable(path, "a CSV file", error) from error
    return table


def read_columns(path: str) -> list[str]:
    """The names in the first line of a CSV file; see :func:`read_table`.

    Raises:
        UserError: the line is not one of a CSV file.
    """
    text = read_text(path)
    try:
        return _open_table(text)[1]
    except csv.Error as error:
        raise _unusable(path, "a CSV file", error) from error


def _open_table(text: str) -> tuple[csv.DictReader, list[str]]:
    """The rows of a CSV by the names of its columns, and these names."""
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)  # the comma where there is none of them
    rows = csv.DictReader(io.StringIO(text), delimiter=separator, strict=True)
    names = [name.strip() for name in rows.fieldnames or ()]
    rows.fieldnames = names
    return rows, names


def _unusable(path: str, what: str, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    where = path if is_remote(path) else os.path.abspath(path)
    return UserError(f"{where} cannot be read as {what}: {' '.join(str(error).split())}")
