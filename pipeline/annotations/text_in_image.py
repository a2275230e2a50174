"""Says how much of a picture is text, as T-MARS asks, with PP-OCRv4's text detector, which lies beside this file."""

from __future__ import annotations

import hashlib
import io
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import Field

from pipeline.annotation_resources import Resources
from pipeline.jobfile import JobError, Settings
from pipeline.pictures import as_seen
from pipeline.wanted_package import expect_package

_OURS = Path(__file__).with_name("text_detector.onnx")
_STRIDE = 32  # of the network: both sides are multiples of it
_TEXT = 0.3  # probability from which PP-OCR counts a pixel as text


class TextInImageAnnotation(Settings):
    """Column `text_share`, 0..1: share of the picture's pixels that the detector takes for text."""

    version: ClassVar[int] = 2
    reads: ClassVar[tuple[str, ...]] = ("image",)
    name: Literal["text_in_image"] = "text_in_image"
    longer_side: Annotated[int, Field(ge=_STRIDE)] = 512
    """Pixels; larger pictures are made smaller for the detector."""
    model: str | None = None
    """ONNX file of another DBNet, on every machine of the build; null: PP-OCRv4's, which comes with the code."""
    resources: Resources = Resources(workers=1)
    """What a worker of it takes; decides nothing of the dataset."""

    def deciding(self) -> dict[str, Any]:
        """All that its values follow from: another model by what is in its file, wherever it lies."""
        model = None if self.model is None else hashlib.sha256(Path(self.model).read_bytes()).hexdigest()
        return {"longer_side": self.longer_side, "model": model}

    @property
    def columns(self) -> pa.Schema:
        """The columns that it adds."""
        return pa.schema([pa.field("text_share", pa.float32())])

    def ready(self) -> TextInImageAnnotation:
        """Itself with the model's full path; JobError if onnxruntime or the model's file is not there."""
        expect_package(self.name, "onnxruntime")
        if self.model is None:
            return self
        if not Path(self.model).is_file():
            raise JobError(f"annotations.{self.name}.model: expected an ONNX file, came {self.model}")
        return self.model_copy(update={"model": str(Path(self.model).absolute())})

    def annotate(self, pairs: pa.Table) -> pa.Table:
        """Looks at every picture, whose bytes must decode."""
        shares = [self._share(picture) for picture in pairs["image"].to_pylist()]
        return pairs.append_column(self.columns.field(0), pa.array(shares, pa.float32()))

    def _share(self, content: bytes) -> float:
        with Image.open(io.BytesIO(content)) as opened:
            picture = as_seen(opened)
        scale = min(1.0, self.longer_side / max(picture.size))
        width, height = (max(1, round(side * scale / _STRIDE)) * _STRIDE for side in picture.size)
        pixels = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32)
        # PP-OCR learnt from blue, green, red in -1..1.
        inputs = np.ascontiguousarray((pixels[None, :, :, ::-1] / 127.5 - 1).transpose(0, 3, 1, 2))
        session = _session(self.model or str(_OURS))
        (found,) = session.run(None, {session.get_inputs()[0].name: inputs})
        return float(np.mean(found > _TEXT))


@lru_cache(maxsize=2)
def _session(path: str) -> Any:
    import onnxruntime  # in the worker: the model is loaded once a process

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
