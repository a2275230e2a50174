"""The 1000 classes of ImageNet: their ids, CLIP's names and prompts for them, and where WordNet hangs them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from typing import Any

from hiclip.evaluation.label_tree import meeting_heights
from hiclip.evaluation.retrieval import IntArray


@dataclass(frozen=True)
class ImagenetClasses:
    """What `classes/imagenet.json` says."""

    wnids: tuple[str, ...]
    """(1000,) ids of WordNet 3.0 in the usual order of the classes, which is that of the ids."""
    names: tuple[str, ...]
    """(1000,) CLIP's; "missile" and "sunglasses" are two classes each, as in every evaluation of CLIP."""
    templates: tuple[str, ...]
    """CLIP's 80 prompts."""
    parts: dict[str, tuple[str, ...]]
    """wnids, ascending, of the sets that ask for some of the classes: `imagenet_a` and `imagenet_r`, 200 each."""

    def wnids_of(self, name: str) -> tuple[str, ...]:
        """(C,) the id of each class of the set `name`, in the order of its classes; all 1000 if it asks for all."""
        return self.parts.get(name, self.wnids)

    def names_of(self, name: str) -> tuple[str, ...]:
        """(C,) CLIP's name of each class of the set `name`."""
        called = dict(zip(self.wnids, self.names, strict=True))
        return tuple(called[wnid] for wnid in self.wnids_of(name))


@lru_cache(maxsize=1)
def imagenet_classes() -> ImagenetClasses:
    """The classes, read once."""
    content = _content("imagenet.json")
    parts = {name: tuple(content[name]) for name in ("imagenet_a", "imagenet_r")}
    return ImagenetClasses(tuple(content["wnids"]), tuple(content["classes"]), tuple(content["templates"]), parts)


def imagenet_parents() -> dict[str, list[str]]:
    """wnid -> wnids right above it, for the 1000 classes and all that is above them; the root `n00001740` has none.

    WordNet is no tree: 75 of these have two parents or more, and several ways lead up to the root.
    """
    parents: dict[str, list[str]] = _content("imagenet_wordnet.json")["parents"]
    return parents


@cache
def wordnet_heights(name: str) -> IntArray:
    """(C, C) for the classes of the set `name`: how far up WordNet two of them meet, see `meeting_heights`."""
    return meeting_heights(imagenet_parents(), imagenet_classes().wnids_of(name))


def imagenet_lemmas() -> dict[str, str]:
    """wnid -> WordNet's first word for it, for the keys of `imagenet_parents`."""
    names: dict[str, str] = _content("imagenet_wordnet.json")["names"]
    return names


def _content(file: str) -> dict[str, Any]:
    text = resources.files("hiclip.evaluation.sets").joinpath("classes", file).read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content
