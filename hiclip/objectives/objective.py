"""What the training loop knows of an objective: the views it wants to see and the losses it answers with.

An objective works in two stages, so that the gradient of a large batch can be computed in parts: `encode` needs the
towers, and can be run part by part; `losses` needs all of this rank's pairs at once, and no tower.
"""

from __future__ import annotations

from torch import Tensor, nn

from hiclip.batch import Batch, Views
from hiclip.model.two_towers import TwoTowers


class Objective(nn.Module):
    """A module with, perhaps, parameters of its own: heads, which belong to the second stage.

    Losses come weighted and by name; the loop adds them up.
    """

    def __init__(self, views: Views) -> None:
        super().__init__()
        self.views = views
        """Views of a pair that `Batch` must hold."""

    def forward(self, towers: TwoTowers, batch: Batch) -> dict[str, Tensor]:
        """Towers and this rank's pairs -> scalar losses by name; the mean over ranks is the global batch's."""
        return self.losses(self.encode(towers, batch), batch, towers.logit_scale())

    def encode(self, towers: TwoTowers, batch: Batch) -> dict[str, Tensor]:
        """Everything that needs a tower, each tensor (b, ...): the rows of some pairs depend on those pairs alone."""
        raise NotImplementedError

    def losses(self, encoded: dict[str, Tensor], batch: Batch, logit_scale: Tensor) -> dict[str, Tensor]:
        """What `encode` found for all pairs of this rank -> weighted scalars. Of `batch`, targets alone are read."""
        raise NotImplementedError


def check_counts(**counts: int | None) -> None:
    """ValueError, beginning with the key, for a count below 1; None is none."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name}: expected at least 1, came {count}")
