"""How the hyperparameters that were best for one rung are carried to rungs of other sizes.

Yang et al. 2022 (muP): under Adam the best rate of a hidden matrix falls as 1 / width, because its update moves every
output by a sum over that many inputs. Here one rate is for all weights and the start is not muP's, so that the rule is
an approximation: it is the hidden matrices that diverge first. It says nothing of depth, batch or length of the run.
Weight decay keeps its number; AdamW multiplies it by the rate, so that the pull of a step falls with the rate.
"""

from __future__ import annotations

from dataclasses import dataclass

from hiclip.model.sizes import resolve
from hiclip.scaling.scale_job import Changes
from hiclip.scaling.search_settings import DECAY, RATE, Transfer
from hiclip.training.pretrain_job import PretrainJob


@dataclass(frozen=True)
class Best:
    """What a search found, and for which size."""

    learning_rate: float
    weight_decay: float | None
    """None: it was not searched."""
    width: int
    """Channels of the searched rung's image tower."""


def transferred(best: Best, other: PretrainJob, transfer: Transfer) -> Changes:
    """The changes that give `other` the best values; with inverse_width a rate of four digits at another width."""
    width, rate = resolve(other.model).image.width, best.learning_rate
    if transfer == "inverse_width" and width != best.width:
        rate = float(f"{rate * best.width / width:.4g}")
    return {RATE: rate} if best.weight_decay is None else {RATE: rate, DECAY: best.weight_decay}
