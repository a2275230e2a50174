"""How a head on two towers is trained: the keys under `train:` of an entry of `heads:`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.jobfile import Number, Settings


class HeadTraining(Settings):
    """HiCLIP's paper fine-tunes and says no more, so numbers can be compared within one of these only."""

    mode: Literal["frozen", "finetune"] = "frozen"
    """frozen: the head learns on vectors that are computed once; finetune: a copy of both towers learns with it. Both
    see the centre of a picture as an evaluation does, without augmentation, so that nothing is left to chance."""
    inputs: Literal["both", "text", "image"] = "both"
    """What the head is shown; text is the blind baseline, which looks at no picture."""
    epochs: Annotated[int, Field(ge=1)] = 10
    """Times that every question is learnt from; the epoch that does best on the questions to choose by is taken."""
    batch: Annotated[int, Field(ge=1)] = 256
    """Questions of a step."""
    learning_rate: Annotated[Number, Field(gt=0)] = 1e-3
    """Rate of the head at the top of the schedule, half a cosine."""
    tower_learning_rate: Annotated[Number, Field(gt=0)] = 1e-5
    """The same of the towers, where they are fine-tuned."""
    warmup: Annotated[Number, Field(ge=0, lt=1)] = 0.05
    """Share of the training over which the rates rise from 0."""
    weight_decay: Annotated[Number, Field(ge=0)] = 0.01
    """Pull of the matrices towards 0 a step, times the rate."""
    clip_norm: Annotated[Number, Field(gt=0)] | None = 1.0
    """Longest gradient that is applied unshortened; null: any."""
    hidden: Annotated[int, Field(ge=1)] = 1024
    """Width of the head's hidden layer."""
    dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.3
    """Share of the hidden layer that a step leaves out."""

    @property
    def label(self) -> str:
        """In a few letters, for names of results: frozen, finetune-text, ..."""
        return self.mode if self.inputs == "both" else f"{self.mode}-{self.inputs}"
