"""The classes of a set, in a hierarchy if it has one: concepts in subgroups in groups, so that an error can be near or
far."""

from __future__ import annotations

from collections.abc import Sequence
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

        Of a flat tree 0 or 3.
        """
        if self.flat:
            return np.where(answers == labels, 0, 3).astype(np.int64)
        subgroup, group = numbered(self.subgroups)[1], numbered(self.groups)[1]
        return np.where(
            answers == labels,
            0,
            np.where(subgroup[answers] == subgroup[labels], 1, np.where(group[answers] == group[labels], 2, 3)),
        ).astype(np.int64)


def numbered(names: Sequence[str]) -> tuple[list[str], IntArray]:
    """Names in order of first appearance, and (C,) the number of each entry's."""
    order = list(dict.fromkeys(names))
    number = {name: place for place, name in enumerate(order)}
    return order, np.array([number[name] for name in names], dtype=np.int64)
