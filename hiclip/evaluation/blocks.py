"""The seam between what is computed and where: a function, what all blocks share, and the blocks, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

Shared = TypeVar("Shared")
Block = TypeVar("Block")
Answer = TypeVar("Answer")
Item = TypeVar("Item")


class MapBlocks(Protocol):
    """Yields function(shared, block) for every block, in order. `hiclip.evaluation.ray_blocks` has the cluster's."""

    def __call__(
        self, function: Callable[[Shared, Block], Answer], shared: Shared, blocks: Iterable[Block], what: str
    ) -> Iterator[Answer]:
        """Carries `function` out on every block; `what` names the blocks to whoever watches ("pictures")."""
        ...


def map_here(
    function: Callable[[Shared, Block], Answer], shared: Shared, blocks: Iterable[Block], what: str
) -> Iterator[Answer]:
    """A `MapBlocks` in this process: for small sets, and inside a trial that has no CPU to give away."""
    for block in blocks:
        yield function(shared, block)


def cut(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """`items` in blocks of `size`, the last one shorter. Where the cuts lie never depends on how many work on them."""
    return [items[start : start + size] for start in range(0, len(items), size)]
