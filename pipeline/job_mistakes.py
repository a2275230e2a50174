"""The words for a mistake in a job file: which key as the file has it, what was expected, what came, what was meant."""

from __future__ import annotations

import difflib
import json
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipeline.job_keys import annotations_of, structures

_NEAR = 0.5
"""Likeness, of 1, from which a known word is offered for an unknown one."""
_LONGEST = 60
"""Letters of what came that are repeated."""
_MISSPELT = ("extra_forbidden", "unexpected_keyword_argument")
_OWN_KEYS = re.compile(r"[a-z_0-9.]+(, [a-z_0-9.]+)*: ")
"""How a check begins that names the keys it is about."""

_EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dataclass_type": "keys and values",
    "dict_type": "keys and values",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "list_type": "a list",
    "model_attributes_type": "keys and values",
    "model_type": "keys and values",
    "none_required": "null",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_too_short": "at least {min_length} letters",
    "string_type": "text",
    "too_long": "a list of at most {max_length}",
    "too_short": "a list of at least {min_length}",
    "tuple_type": "a list",
}
"""Pydantic's kinds of errors in our words; what a kind needs stands in the error's context."""


def mistake(error: ValidationError, kind: type[BaseModel], content: Mapping[str, Any]) -> str:
    """One line about the first mistake, and how many more there are, in `content` that was to become a `kind`."""
    found: dict[str, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        found.setdefault(_written(detail["loc"], content), []).append(detail)
    # A misspelt key also makes a required key missing; the misspelt one is the mistake to name.
    path = next((path for path, details in found.items() if details[0]["type"] in _MISSPELT), next(iter(found)))
    count = len(found) - 1
    more = f" (and {count} more mistake{'s' if count > 1 else ''})" if count else ""
    # Where a value may be of several kinds there is an error of each.
    expected = list(dict.fromkeys(filter(None, map(_expected, found[path]))))
    if len(expected) > 1:
        return f"{path}: expected {' or '.join(expected)}, {_came(_at(path, content))}{more}"
    return _line(found[path][0], kind, path) + more


def _expected(detail: ErrorDetails) -> str | None:
    """What an error asks for, None if it is of no kind that is in the list."""
    context, what = detail.get("ctx", {}), detail["type"]
    if what == "literal_error":
        return _one_of(_quoted(context["expected"]))
    return _EXPECTED[what].format(**context) if what in _EXPECTED else None


def _line(detail: ErrorDetails, kind: type[BaseModel], path: str) -> str:
    context, what = detail.get("ctx", {}), detail["type"]
    if what in _MISSPELT:
        known = sorted(_keys_at(kind, detail["loc"][:-1]))
        return f"{path}: no such key{_hint(str(detail['loc'][-1]), known) or _known(known)}"
    if what == "missing":
        return f"{path}: missing; expected a value"
    if what == "union_tag_not_found":
        return _under(path, f"{context['discriminator'].strip(chr(39))}: missing; expected a value")
    if what == "union_tag_invalid":
        tags, tag = _quoted(context["expected_tags"]), str(context["tag"])
        key = context["discriminator"].strip("'")
        return _under(path, f"{key}: expected {_one_of(tags)}, came '{tag}'{_hint(tag, tags)}")
    came = detail["input"]
    if (expected := _expected(detail)) is not None:
        hint = _hint(str(came), _quoted(context["expected"])) if what == "literal_error" else ""
        return f"{path}: expected {expected}, {_came(came)}{hint}"
    text = " ".join(detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ").split())
    if (named := _OWN_KEYS.match(text)) and (not path or text[named.end() :].startswith("expected ")):
        return _under(path, text)
    return f"{path or 'the job'}: {text}" + ("" if isinstance(came, dict | list) else f", {_came(came)}")


def _under(path: str, text: str) -> str:
    """A message that begins with a key, below the path of what has the key."""
    keys, _, rest = text.partition(": ")
    return f"{', '.join(f'{path}.{key}' if path else key for key in keys.split(', '))}: {rest}"


def _came(value: object) -> str:
    """What came, in the words of YAML."""
    if isinstance(value, Mapping | list | tuple):
        kind = "a list" if isinstance(value, list | tuple) else "keys and values"
        return f"came {kind}" if value else f"came an empty {'list' if kind == 'a list' else 'mapping'}"
    if not isinstance(value, str):
        return f"came {json.dumps(value, default=repr)}"
    return f"came '{value if len(value) <= _LONGEST else value[:_LONGEST] + '…'}'"


def _quoted(listing: str) -> list[str]:
    """The words in pydantic's "'a', 'b' or 'c'"."""
    return re.findall(r"'([^']*)'", listing)


def _one_of(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def _hint(word: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(word, known, n=1, cutoff=_NEAR)
    return f"; did you mean '{nearest[0]}'?" if nearest else ""


def _known(known: Sequence[str]) -> str:
    return f"; known: {', '.join(known)}" if known else ""


def _written(location: Sequence[int | str], content: object) -> str:
    """The path of a location as an override writes it: without the names by which a union tells its members apart."""
    path: list[str] = []
    here: object = content
    for part in location:
        keyed = _keyed(here)
        if str(part).startswith("["):
            continue  # pydantic's "[key]" behind a key that is itself the mistake, or the tag of a mapping of any keys
        if part not in keyed and (keyed.get("name") == part or not isinstance(here, Mapping)):
            continue  # the tag of a section, or the kind that a value or a list was tried as
        here = keyed.get(part, {})
        path.append(str(part))
    return ".".join(path)


def _at(path: str, content: object) -> object:
    """What stands at a written path."""
    here = content
    for part in path.split("."):
        here = _keyed(here)[int(part) if isinstance(here, list | tuple) else part]
    return here


def _keyed(here: object) -> Mapping[Any, Any]:
    """Sections by key, lists by place."""
    return here if isinstance(here, Mapping) else dict(enumerate(here)) if isinstance(here, list | tuple) else {}


def _keys_at(kind: Any, location: Sequence[int | str]) -> set[str]:
    """Every key that may stand at `location`; a union offers those of the member the location names, else of all."""
    kinds = list(structures(kind))
    for part in location:
        named = [one for one in kinds if _names(one, part)]
        if named:
            kinds = named
            continue
        deeper = [inner for one in kinds for inner in structures(annotations_of(one).get(str(part)))]
        kinds = deeper or kinds
    return {key for one in kinds for key in annotations_of(one)}


def _names(kind: Any, part: int | str) -> bool:
    """Whether a location's part is a union's way to name this member (its discriminator value or its class name)."""
    if part == getattr(kind, "__name__", None):
        return True
    tag = annotations_of(kind).get("name")
    return tag is not None and typing.get_origin(tag) is typing.Literal and part in typing.get_args(tag)
