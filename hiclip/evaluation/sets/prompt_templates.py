"""Prompts of a class as a job or a set's own file gives them: each has one place for the class's name."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field


def template_fault(template: str) -> str | None:
    """What is the matter with a prompt that has not exactly one `{}`, or other braces."""
    rest = template.replace("{}", "", 1)
    if rest == template or "{" in rest or "}" in rest:
        return f"expected a prompt with one {{}} for the label, came '{template}'"
    return None


def _check(templates: tuple[str, ...]) -> tuple[str, ...]:
    for template in templates:
        if fault := template_fault(template):
            raise ValueError(fault)
    return templates


Templates = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_check)]
"""One prompt or more."""
