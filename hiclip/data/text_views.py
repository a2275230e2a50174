"""Views of a pair for the text tower. A new one is an entry of `TEXT_VIEWS`; an objective asks for it by name.

caption               as the dataset holds it
summary               its summary, column `caption_summary` (PyramidCLIP); the caption where it is null
tags                  tags of what is to be seen, column `object_tags` (PyramidCLIP); nothing where it is null
eda                   the caption, lightly changed (DeCLIP)
masked, masked_eda    caption and `eda` with some tokens masked (DeCLIP)
masked..._targets     what stood at these places
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hiclip.batch import TARGETS
from hiclip.data.chance import Chance
from hiclip.data.eda import changed_text
from hiclip.data.tokenizer import Tokens
from hiclip.data.view_settings import ViewSettings
from hiclip.data.word_masks import mask_words


@dataclass(frozen=True)
class TextView:
    """A view of a pair for the text tower."""

    draw: Callable[[Mapping[str, Any], Chance, ViewSettings], str]
    """The pair's columns, chance, settings -> a text."""
    columns: tuple[str, ...] = ()
    """Columns of the dataset that it reads."""
    change: Callable[[Tokens, Chance, ViewSettings], Tokens] | None = None
    """Tokens of the text (L,), chance, settings -> (L,), where a view is more than its text."""


def caption(pair: Mapping[str, Any], chance: Chance, settings: ViewSettings) -> str:
    """The caption as the dataset holds it."""
    return str(pair["caption"])


def summary(pair: Mapping[str, Any], chance: Chance, settings: ViewSettings) -> str:
    """The summary, or the caption if there is none: a short caption is its own summary."""
    return str(pair["caption"] if pair["caption_summary"] is None else pair["caption_summary"])


def tags(pair: Mapping[str, Any], chance: Chance, settings: ViewSettings) -> str:
    """The tags with commas between them."""
    return str(pair["object_tags"] or "")


def eda(pair: Mapping[str, Any], chance: Chance, settings: ViewSettings) -> str:
    """The caption with a word replaced, two swapped, or some deleted, whichever view it is drawn for."""
    return changed_text(str(pair["caption"]), chance._replace(view="eda").generator(), settings)


def masked(tokens: Tokens, chance: Chance, settings: ViewSettings) -> Tokens:
    """The tokens with some of them masked."""
    return mask_words(tokens, chance.generator(), settings.masked_share)[0]


def targets(tokens: Tokens, chance: Chance, settings: ViewSettings) -> Tokens:
    """What `masked` hides under the same chance."""
    under = chance._replace(view=chance.view.removesuffix(TARGETS))
    return mask_words(tokens, under.generator(), settings.masked_share)[1]


TEXT_VIEWS = {
    "caption": TextView(caption, columns=("caption",)),
    "summary": TextView(summary, columns=("caption", "caption_summary")),
    "tags": TextView(tags, columns=("object_tags",)),
    "eda": TextView(eda, columns=("caption",)),
    "masked": TextView(caption, columns=("caption",), change=masked),
    f"masked{TARGETS}": TextView(caption, columns=("caption",), change=targets),
    "masked_eda": TextView(eda, columns=("caption",), change=masked),
    f"masked_eda{TARGETS}": TextView(eda, columns=("caption",), change=targets),
}
