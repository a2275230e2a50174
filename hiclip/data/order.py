"""Which pair comes when, as arithmetic on (pairs, row groups, seed, step): no list, no state, no beginning.

Global position `q = step * batch + i` lies in epoch `q // pairs` at place `q % pairs`. Within an epoch

1. the row groups are permuted: slot s holds group P(s);
2. the slots are cut into equal windows of at most `window_groups`, and the rows of each are permuted among themselves.

Both permutations are keyed by (seed, epoch). Every pair comes exactly once an epoch, any place in a stream of five
billion pairs is found in microseconds, and to resume is to ask for the next step. A step reads the groups of one window
(of two where it crosses a border), so row groups are read whole and kept while their window lasts. Pairs mix as far as
a window reaches: let it span many groups.

The global batch of a step is a set. Its rows are handed out in ascending order, and rank r of w takes the r-th of w
equal slices: every world size sees the same batches, and a rank needs about 1/w of a window's groups instead of all.
A batch may cross the border of an epoch; nothing is left out there, and nothing is repeated within an epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from hiclip.data.permutation import MAX_SIZE, Permutation, Words, derive_key, keys_of

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Order:
    """The order in which a dataset is shown, epoch after epoch."""

    pairs: int
    """Pairs in the dataset."""
    rows_per_group: int
    """Rows of every row group but the dataset's last."""
    window_groups: int
    """Most row groups whose rows are mixed with each other; windows are made equal, so that none is a small rest."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pairs < 1 or self.rows_per_group < 1 or self.window_groups < 1:
            raise ValueError(f"pairs, rows_per_group and window_groups are at least 1, came {self}")
        if self.pairs + self.rows_per_group * (self.window_groups + 1) > MAX_SIZE:
            raise ValueError(f"an order reaches to 2^62 pairs, came {self}")

    @property
    def groups(self) -> int:
        """Row groups in the dataset."""
        return -(-self.pairs // self.rows_per_group)

    def rows(self, positions: Rows) -> Rows:
        """Global positions (n,) int64 -> (n,) row indices in the dataset. ValueError for a negative position."""
        if positions.size and positions.min() < 0:
            raise ValueError(f"positions start at 0, came {positions.min()}")
        epochs, places = np.divmod(positions, self.pairs)
        rows = np.empty_like(places)
        for epoch, chosen in _each_value(epochs):
            rows[chosen] = _epoch(self, epoch).rows(places[chosen].astype(np.uint64))
        return rows

    def positions(self, rows: Rows, epoch: int) -> Rows:
        """Rows (n,) int64 -> (n,) global positions at which they come in `epoch`: the inverse of `rows`."""
        if rows.size and not 0 <= rows.min() <= rows.max() < self.pairs:
            raise ValueError(f"rows lie in 0..{self.pairs - 1}, came {rows.min()}..{rows.max()}")
        return _epoch(self, epoch).places(rows.astype(np.uint64)).astype(np.int64) + epoch * self.pairs

    def rows_of_step(self, step: int, batch: int) -> Rows:
        """(batch,) rows of the global batch of `step`, ascending within each epoch that it touches."""
        return self.rows_between(step * batch, (step + 1) * batch)[0]

    def rows_between(self, first: int, last: int) -> tuple[Rows, Rows]:
        """(n,) rows at positions `first` to `last` (not included), ascending within each epoch; (n,) their epochs."""
        positions = np.arange(first, last, dtype=np.int64)
        epochs = positions // self.pairs
        borders = np.flatnonzero(np.diff(epochs)) + 1
        return np.concatenate([np.sort(part) for part in np.split(self.rows(positions), borders)]), epochs

    def rows_of_rank(self, step: int, batch: int, rank: int, world: int) -> Rows:
        """(batch // world,) rows of `rank` of `world` at `step`. ValueError if `world` does not divide `batch`."""
        return self.rows_of_step(step, batch)[slice_of_rank(batch, rank, world)]

    def epochs_of_rank(self, step: int, batch: int, rank: int, world: int) -> Rows:
        """(batch // world,) epoch of each row that `rows_of_rank` gives."""
        return positions_of_step(step, batch)[slice_of_rank(batch, rank, world)] // self.pairs


def positions_of_step(step: int, batch: int) -> Rows:
    """(batch,) global positions of a step."""
    return np.arange(step * batch, (step + 1) * batch, dtype=np.int64)


def slice_of_rank(batch: int, rank: int, world: int) -> slice:
    """The part of a global batch that belongs to `rank`. ValueError if `world` does not divide `batch`."""
    if not 0 <= rank < world or batch % world:
        raise ValueError(f"a batch of {batch} pairs has no equal slice for rank {rank} of {world}")
    return slice(rank * batch // world, (rank + 1) * batch // world)


@dataclass(frozen=True)
class _Epoch:
    """One epoch of an order.

    A place counts the pairs of the epoch. A padded place counts as if the short group were full, so that slots and
    windows are found by division; `missing` padded places at the end of the short group's slot are nobody's.
    """

    order: Order
    groups_key: Words
    """(1,) key of the permutation of the groups."""
    rows_key: int
    """From which every window's key is made."""
    short_end: int
    """Padded place behind the slot of the dataset's last group, the only one that may be short."""

    @property
    def missing(self) -> int:
        return self.order.groups * self.order.rows_per_group - self.order.pairs

    def rows(self, places: Words) -> Rows:
        """Places (n,) -> (n,) rows."""
        slots, inside = np.divmod(self._pad(self._mix_windows(places, inverse=False)), self._rows_per_group)
        return (self._groups(slots) * self._rows_per_group + inside).astype(np.int64)

    def places(self, rows: Words) -> Words:
        """Rows (n,) -> (n,) places, the inverse of `rows`."""
        groups, inside = np.divmod(rows, self._rows_per_group)
        slots = Permutation(self.order.groups).inverse(groups, self.groups_key)
        return self._mix_windows(self._unpad(slots * self._rows_per_group + inside), inverse=True)

    def _groups(self, slots: Words) -> Words:
        permutation = Permutation(self.order.groups)
        first, last = int(slots.min()), int(slots.max())
        if last - first >= slots.size:
            return permutation.forward(slots, self.groups_key)
        # A batch asks for the few slots of a window, many times each: a small table halves the work.
        table = permutation.forward(np.arange(first, last + 1, dtype=np.uint64), self.groups_key)
        return np.take(table, slots - np.uint64(first))

    def _mix_windows(self, places: Words, inverse: bool) -> Words:
        """Permutes the places of every window among themselves."""
        windows = self._window_of(self._pad(places) // self._rows_per_group)
        starts = self._unpad(self._first_slot(windows) * self._rows_per_group)
        sizes = self._unpad(self._first_slot(windows + np.uint64(1)) * self._rows_per_group) - starts
        keys = keys_of(self.rows_key, windows)
        mixed = np.empty_like(places)
        for size, chosen in _each_value(sizes):  # three at most: two kinds of windows, and the one with the short group
            permutation = Permutation(size)
            permute = permutation.inverse if inverse else permutation.forward
            mixed[chosen] = starts[chosen] + permute((places - starts)[chosen], keys[chosen])
        return mixed

    @cached_property
    def _window_slots(self) -> tuple[np.uint64, np.uint64]:
        """Slots of a window, and how many windows (the first ones) have one more."""
        windows = -(-self.order.groups // self.order.window_groups)
        slots, longer = divmod(self.order.groups, windows)
        return np.uint64(slots), np.uint64(longer)

    def _window_of(self, slots: Words) -> Words:
        length, longer = self._window_slots
        in_longer = slots < longer * (length + np.uint64(1))
        return np.where(in_longer, slots // (length + np.uint64(1)), (slots - longer) // length)

    def _first_slot(self, windows: Words) -> Words:
        length, longer = self._window_slots
        return windows * length + np.minimum(windows, longer)

    @property
    def _rows_per_group(self) -> np.uint64:
        return np.uint64(self.order.rows_per_group)

    def _pad(self, places: Words) -> Words:
        behind = places >= np.uint64(self.short_end - self.missing)
        return places + behind * np.uint64(self.missing)

    def _unpad(self, padded: Words) -> Words:
        behind = padded >= np.uint64(self.short_end)
        return padded - behind * np.uint64(self.missing)


def _each_value(values: Words | Rows) -> list[tuple[int, slice | npt.NDArray[np.bool_]]]:
    """The distinct values of an array and where they stand; a step has nearly always one, which needs no sorting."""
    if not values.size:
        return []
    if values.min() == values.max():
        return [(int(values[0]), slice(None))]
    return [(int(value), values == value) for value in np.unique(values)]


@lru_cache(maxsize=64)
def _epoch(order: Order, epoch: int) -> _Epoch:
    groups_key = np.array([derive_key(order.seed, epoch, "groups")], dtype=np.uint64)
    last = np.array([order.groups - 1], dtype=np.uint64)
    short_slot = int(Permutation(order.groups).inverse(last, groups_key)[0])
    short_end = (short_slot + 1) * order.rows_per_group
    return _Epoch(order, groups_key, derive_key(order.seed, epoch, "rows"), short_end)
