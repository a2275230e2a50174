"""EvaluateJob: which checkpoint is asked, what, beside which baselines, which hierarchies are drawn, and which columns
about a dataset are written."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from hiclip.data.images import CENTRE_CROP
from hiclip.evaluation.heads import HeadSettings
from hiclip.evaluation.heads.head_task import head_label
from hiclip.evaluation.sets import SetSettings
from pipeline.jobfile import Job, Number, Settings


class PixelNeighboursSettings(Settings):
    """The baseline without a model: the training picture that looks most alike, pixel by pixel."""

    px: Annotated[int, Field(ge=2, le=64)] = 16
    """Side of the pictures that are compared. On the walk's drawings 16 is better than 8 and than 32."""


class BaselineSettings(Settings):
    """What stands beside the model in the table, besides chance and the majority."""

    pixel_neighbours: PixelNeighboursSettings | None = PixelNeighboursSettings()
    """Null leaves it out; it decodes every training picture whose caption holds a label of the set."""


class LinearProbeSettings(Settings):
    """Which sets are probed and how; each needs a training split beside its test."""

    sets: Annotated[tuple[SetSettings, ...], Field(min_length=1)]
    """Sets of labelled pictures, see `hiclip.evaluation.sets`."""
    features: Literal["before_projection", "embedding"] = "before_projection"
    """What is probed: the tower's output before its projection, as CLIP did, or the unit vectors of zero-shot."""
    held_out: Annotated[Number, Field(gt=0, lt=1)] = 0.2
    """Share of each class's training pictures that chooses C, drawn by hash of their names."""


class TreeSettings(Settings):
    """Given trees of captions, which the model's are compared with."""

    path: Annotated[str, Field(min_length=1)]
    """File with a bracketed tree a line, as VG-NSL gives for MSCOCO's test captions: `( ( a cat ) ( sits ... ) )`."""
    labelled: bool = False
    """Whether brackets begin with a label, as in the Penn Treebank: `(S (NP (DT a) (NN cat)) ...)`."""


class MaskSettings(Settings):
    """Pictures with masks of what is in them, which the model's groups are compared with."""

    pictures: Annotated[str, Field(min_length=1)]
    """Folder or s3:// of pictures."""
    masks: Annotated[str, Field(min_length=1)]
    """Folder or s3:// of PNGs of the same names and sizes: a number a pixel says which segment it belongs to (COCO's
    panoptic colours are such numbers too)."""
    void: int = 255
    """Number of pixels that belong to nothing; 0 for COCO's panoptic masks."""


class HierarchySettings(Settings):
    """Which captions become trees and which pictures are shown with their groups."""

    captions: tuple[Annotated[str, Field(pattern=r"\S\s+\S")], ...] = ()
    """Captions of two words or more to parse. The first one's tree is printed at the end of the run."""
    training_pairs: Annotated[int, Field(ge=0)] = 3
    """Pairs of the training data whose caption and picture are drawn: long captions among its first thousand; of the
    first dataset if several were mixed."""
    set_pictures: Annotated[int, Field(ge=0)] = 4
    """Pictures of the first set that are drawn, chosen by hash."""
    trees: TreeSettings | None = None
    """Parse F1 against given trees; null measures none."""
    masks: MaskSettings | None = None
    """Agreement of groups with given segments; null measures none."""


ColumnName = Literal["clip_score", "embedding"]


def _check_once(names: tuple[ColumnName, ...]) -> tuple[ColumnName, ...]:
    if len(set(names)) < len(names):
        raise ValueError(f"expected each column once, came {', '.join(names)}")
    return names


class ColumnsSettings(Settings):
    """Columns about a dataset, which the annotation `joined_columns` brings into a later one."""

    dataset: Annotated[str, Field(min_length=1)]
    """Folder or s3:// address that `pipeline.build` wrote; every pair of it gets a row."""
    to: Annotated[str, Field(min_length=1)]
    """Folder or s3:// that every machine reaches: `part-00000.parquet`, ... with pair_id and the columns, in the
    order of the dataset, and `columns.json`, written last."""
    adds: Annotated[tuple[ColumnName, ...], Field(min_length=1), AfterValidator(_check_once)] = ("clip_score",)
    """Columns to write. clip_score: cosine of the vectors of picture and caption, a float; embedding: the picture's
    vector of length one, floats. Null where the picture cannot be read."""
    pairs_per_part: Annotated[int, Field(ge=1)] = 10_000
    """Rows of a part, rounded up to whole row groups of the dataset; one task makes a part."""


class WorkerSettings(Settings):
    """What one task asks of Ray; it embeds one batch, or makes one part of columns."""

    cpus: Annotated[Number, Field(gt=0)] = 1.0
    """Ray CPUs of a task, and its threads."""
    gpus: Annotated[Number, Field(ge=0)] = 0.0
    """Ray GPUs of a task; a part of one is allowed. 0 computes on CPU."""


MOST_COMPARED = 8
"""Checkpoints, or finished evaluations, that stand side by side: a column each."""


def _one_or_several(said: object) -> str | None:
    if isinstance(said, dict):
        return "[several]"  # in brackets, for no checkpoint's name can be the same
    return "one" if isinstance(said, str) else None


def _check_number(named: dict[str, str]) -> dict[str, str]:
    if not 2 <= len(named) <= MOST_COMPARED:
        raise ValueError(f"expected 2 to {MOST_COMPARED} checkpoints by name, or one without, came {len(named)}")
    return named


_Address = Annotated[str, Field(min_length=1)]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]

CheckpointSettings = Annotated[
    Annotated[_Address, Tag("one")] | Annotated[dict[_Name, _Address], AfterValidator(_check_number), Tag("[several]")],
    Discriminator(
        _one_or_several,
        custom_error_type="checkpoint_type",
        custom_error_message="expected an address, or addresses by name",
    ),
]
"""What a job may say of whom it asks: a checkpoint, or two or more by name, which are compared."""


class EvaluateJob(Job):
    """An evaluation of one checkpoint, or of several that are compared."""

    checkpoint: CheckpointSettings
    """Folder of a checkpoint, or of a run, whose newest checkpoint is taken; or s3://. Or published weights of CLIP: a
    file of OpenAI's or open_clip's names, or a folder as open_clip and transformers write it. Or what MLflow knows of:
    runs:/RUN_ID, models:/NAME/VERSION, models:/NAME/latest, models:/NAME@ALIAS. Or several of them by name,
    `{clip: runs/a, hiclip: runs/b}`: each is evaluated into `out`/NAME, and in `out` they stand side by side, with
    their differences to the first."""
    sets: tuple[SetSettings, ...] = ()
    """Evaluation sets, see `hiclip.evaluation.sets`; none only where something else is asked for."""
    linear_probe: LinearProbeSettings | None = None
    """Sets whose classes are read off frozen features; null probes nothing."""
    heads: tuple[HeadSettings, ...] = ()
    """Heads to train on the towers and to measure, see `hiclip.evaluation.heads`; each set once a mode and inputs."""
    columns: ColumnsSettings | None = None
    """What to write about a dataset; null writes nothing."""
    dataset: str | None = None
    """The training data that baselines and drawings look at; null: the one that the checkpoint's own job names, or all
    that it mixes; published weights name none."""
    baselines: BaselineSettings = BaselineSettings()
    hierarchy: HierarchySettings | None = HierarchySettings()
    """Null draws nothing."""
    batch: Annotated[int, Field(ge=1)] = 128
    """Pictures or texts that are embedded together."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the towers; what is compared afterwards is fp32."""
    centre_crop: Annotated[Number, Field(gt=0, le=1)] = CENTRE_CROP
    """Share of a picture's shorter side that its centre square shows: 0.875 is DeCLIP's test ("resize 256, crop 224")
    and so HiCLIP's, 1 is CLIP's. Baselines that compare pixels see the whole square."""
    draws: Annotated[int, Field(ge=100)] = 1000
    """Resamples behind each interval."""
    workers: WorkerSettings = WorkerSettings()

    @model_validator(mode="after")
    def _asks_something(self) -> EvaluateJob:
        given = (None, None) if self.hierarchy is None else (self.hierarchy.trees, self.hierarchy.masks)
        if not any((self.sets, self.heads, self.columns, self.linear_probe, *given)):
            raise ValueError(
                "sets: expected one or more, or linear_probe, heads, columns, hierarchy.trees or .masks, came none"
            )
        labels = [head_label(head) for head in self.heads]
        twice = next((label for place, label in enumerate(labels) if label in labels[:place]), None)
        if twice is not None:
            raise ValueError(f"heads: expected each set once a mode and inputs, came {twice} twice")
        if self.columns is not None and not isinstance(self.checkpoint, str):
            raise ValueError(f"columns: expected one checkpoint to write them with, came {len(self.checkpoint)}")
        return self
