"""The keys that a job file may have, each with its default and what it means: what `--keys` prints."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined, to_jsonable_python


@dataclass(frozen=True)
class Key:
    """A key of a job."""

    path: str
    """As an override writes it; `*` stands for a place in a list."""
    default: str
    """As YAML; empty if the key must be given."""
    meaning: str


def job_keys(kind: type, path: str = "") -> Iterator[Key]:
    """Every key below `path` of a job's type, sections before what they hold.

    Where a section is one of several kinds, told apart by `name`, all kinds' keys come, each kind's behind its `name`.
    """
    meanings = _meanings(kind)
    for name, annotation in annotations_of(kind).items():
        key = f"{path}.{name}" if path else name
        kinds, words = list(structures(annotation)), _words(annotation)
        if name == "name" and len(words) == 1:
            yield Key(key, words[0], first_sentence(kind.__doc__))
            continue
        default = _default(kind, name)
        is_section = bool(kinds) and default is not None and not isinstance(default, list | tuple)
        meaning = meanings.get(name) or (first_sentence(kinds[0].__doc__) if len(kinds) == 1 else "")
        choices = f"One of {', '.join(words)}." if words else ""
        shown = "" if default is MISSING or is_section else json.dumps(to_jsonable_python(default), ensure_ascii=False)
        yield Key(key, shown, " ".join(filter(None, (meaning, choices))))
        for one, place in _placed(annotation, key):
            yield from job_keys(one, place)


def annotations_of(kind: Any) -> dict[str, Any]:
    """The keys of a section and the types of their values; none for what is no section."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: info.annotation for name, info in kind.model_fields.items()}
    if isinstance(kind, type) and is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return {field.name: hints[field.name] for field in fields(kind)}
    return {}


def structures(annotation: Any) -> Iterator[type]:
    """The types of sections inside an annotation: itself, or the members of its unions and lists."""
    return (kind for kind, _ in _placed(annotation, ""))


def _placed(annotation: Any, path: str) -> Iterator[tuple[type, str]]:
    """The types of sections inside an annotation, each with the path of its keys if `path` is the annotation's."""
    if annotations_of(annotation):
        yield annotation, path
    else:
        for inner in _inside(annotation):
            yield from _placed(inner, f"{path}.*" if _is_list(annotation) else path)


def _inside(annotation: Any) -> tuple[Any, ...]:
    """The types that a type is put together from."""
    together = isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None
    return typing.get_args(annotation) if together else ()


def _words(annotation: Any) -> list[str]:
    """The words that may stand there, if only some may."""
    if typing.get_origin(annotation) is typing.Literal:
        return [str(word) for word in typing.get_args(annotation)]
    return [word for inner in _inside(annotation) for word in _words(inner)] if not annotations_of(annotation) else []


def _is_list(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (tuple, list)


def _default(kind: Any, name: str) -> Any:
    """MISSING where the key must be given."""
    if issubclass(kind, BaseModel):
        default = kind.model_fields[name].get_default(call_default_factory=True, validated_data={})
        return MISSING if default is PydanticUndefined else default
    (field,) = (field for field in fields(kind) if field.name == name)
    return field.default if field.default_factory is MISSING else field.default_factory()


def _meanings(kind: type) -> dict[str, str]:
    """The text below each attribute, read from the source of the class and of those that it comes from."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if not annotations_of(one) or one is BaseModel:
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(tree, ast.ClassDef)
        for line, after in zip(tree.body, [*tree.body[1:], ast.Pass()], strict=True):
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and isinstance(after, ast.Expr):
                found[line.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return found


def first_sentence(text: str | None) -> str:
    """Of a docstring."""
    return " ".join((text or "").split()).split(". ")[0].rstrip(".") + "." if text else ""
