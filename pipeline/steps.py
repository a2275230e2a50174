"""How annotations and filters stand in a job file: `- caption_length: {min_words: 3}`, the name of the step's file."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence


def step_reader(kind: str, names: Sequence[str]) -> Callable[[object], object]:
    """A pydantic validator that turns `name`, `{name: settings}` or `{name: ..., key: value}` into the last form."""

    def read(value: object) -> object:
        if isinstance(value, str):
            value = {"name": value}
        elif isinstance(value, dict) and "name" not in value and len(value) == 1:
            ((name, settings),) = value.items()
            if settings is not None and not isinstance(settings, dict):
                raise ValueError(f"expected keys and values after '{name}:', found {settings!r}")
            value = {"name": name, **(settings or {})}
        if isinstance(value, dict) and value.get("name") not in names:
            nearest = difflib.get_close_matches(str(value.get("name")), names, n=1, cutoff=0.5)
            hint = f"did you mean '{nearest[0]}'?" if nearest else f"known: {', '.join(names)}"
            raise ValueError(f"no such {kind} '{value.get('name')}'; {hint}")
        return value

    return read
