"""What the training loop knows of an objective: the views it wants to see and the losses it answers with."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from hiclip.batch import Batch, Views
from hiclip.model.two_towers import TwoTowers


class Objective(Protocol):
    """A module with, perhaps, parameters of its own. Losses come weighted and by name; the loop adds them up."""

    @property
    def views(self) -> Views:
        """Views of a pair that `Batch` must hold."""
        ...

    def __call__(self, towers: TwoTowers, batch: Batch) -> dict[str, Tensor]:
        """Towers and this rank's pairs -> scalar losses by name; the mean over ranks is the global batch's."""
        ...
