"""The classes of a set, in a hierarchy if it has one: concepts in subgroups in groups, so that an error can be near or
far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hiclip.evaluation.retrieval import BoolArray, IntArray


@dataclass(frozen=True)
class LabelTree:
    """C classes and where they hang."""

    classes: tuple[str, ...]
    subgroups: tuple[str, ...] = ()
    """(C,): the subgroup of each class; a subgroup lies in one group. Empty for classes without a hierarchy."""
    groups: tuple[str, ...] = ()
    """(C,): the group of each class; empty likewise."""
    heights: IntArray | None = None
    """(C, C) steps from a class up to where it meets each other one, for classes in a hierarchy of any depth (see
    `meeting_heights`); None: what subgroups and groups say."""
    left_out: frozenset[str] = frozenset()
    """Subgroups that averages leave out (country flags: one seventh of all emoji, told apart by colour alone)."""

    @property
    def flat(self) -> bool:
        """Whether the classes have no hierarchy."""
        return not self.subgroups

    def counted(self) -> BoolArray:
        """(C,): whether the class takes part in averages over subgroups; all of a flat tree."""
        if self.flat:
            return np.ones(len(self.classes), dtype=np.bool_)
        return np.array([subgroup not in self.left_out for subgroup in self.subgroups], dtype=np.bool_)

    def subgroup_numbers(self) -> tuple[list[str], IntArray]:
        """The names of the subgroups in order of first appearance, and (C,) the number of each class's."""
        return numbered(self.subgroups)

    def distances(self, answers: IntArray, labels: IntArray) -> IntArray:
        """(N,), (N,) classes -> (N,) steps up the tree to a shared node: 0 same class ... 3 nothing shared.

        Of a flat tree 0 or 3, unless it has heights.
        """
        if self.heights is not None:
            return self.heights[answers, labels]
        if self.flat:
            return np.where(answers == labels, 0, 3).astype(np.int64)
        subgroup, group = numbered(self.subgroups)[1], numbered(self.groups)[1]
        return np.where(
            answers == labels,
            0,
            np.where(subgroup[answers] == subgroup[labels], 1, np.where(group[answers] == group[labels], 2, 3)),
        ).astype(np.int64)


def meeting_heights(parents: Mapping[str, Sequence[str]], classes: Sequence[str]) -> IntArray:
    """(C, C): height of the lowest node above both of two classes, 0 for a class and itself.

    "Mistake severity" of Bertinetto et al. (Making Better Mistakes, 2020). The height of a node is the longest way down
    from it to one of the classes; where a node has several parents, as in WordNet, the lowest meeting counts.

    Example: cat and dog below mammal, frog and mammal below animal: cat meets dog at 1, frog at 2.
    """
    above: dict[str, frozenset[str]] = {}

    def ancestors(node: str) -> frozenset[str]:
        if node not in above:
            above[node] = frozenset({node}).union(*(ancestors(parent) for parent in parents.get(node, ())))
        return above[node]

    members: dict[str, list[int]] = {}
    for place, name in enumerate(classes):
        for node in ancestors(name):
            members.setdefault(node, []).append(place)
    height = dict.fromkeys(members, 0)
    waiting = list(classes)
    while waiting:
        node = waiting.pop()
        for parent in parents.get(node, ()):
            if height[parent] < height[node] + 1:
                height[parent] = height[node] + 1
                waiting.append(parent)
    found = np.full((len(classes), len(classes)), max(height.values()) + 1, dtype=np.int64)
    for node in sorted(members, key=lambda node: -height[node]):  # lower meetings overwrite higher ones
        found[np.ix_(np.array(members[node]), np.array(members[node]))] = height[node]
    np.fill_diagonal(found, 0)
    return found


def numbered(names: Sequence[str]) -> tuple[list[str], IntArray]:
    """Names in order of first appearance, and (C,) the number of each entry's."""
    order = list(dict.fromkeys(names))
    number = {name: place for place, name in enumerate(order)}
    return order, np.array([number[name] for name in names], dtype=np.int64)
