"""What a detector sees in a picture: names for PyramidCLIP's tags, region vectors for its image tower's rear layers.

PyramidCLIP took both from VinVL's detector (ten regions of 2,048 numbers and 4 of the box each). Any detector that
transformers knows will do: its query's last hidden state is the region's vector, the box's corners are 0..1 of the
picture's sides.
"""

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
from pipeline.jobfile import JobError, Number, Settings
from pipeline.pictures import as_seen
from pipeline.wanted_package import expect_package


class ObjectRegionsAnnotation(Settings):
    """Columns `object_tags` (string: `dog, red ball`) and `regions` (binary: float16 vectors one after another).

    Both have the most certain first; a picture in which nothing is found has neither.
    """

    name: Literal["object_regions"] = "object_regions"
    version: ClassVar[int] = 2
    reads: ClassVar[tuple[str, ...]] = ("image",)
    model: Annotated[str, Field(min_length=1)]
    """Name on a hub (`facebook/detr-resnet-50`) or folder of an object detector that transformers can load."""
    revision: str | None = None
    """Commit or tag of a model on a hub; null: the newest, which may be another one tomorrow."""
    most: Annotated[int, Field(ge=1)] = 10
    """Regions of a picture. PyramidCLIP: 10."""
    min_score: Annotated[Number, Field(ge=0, le=1)] = 0.5
    """Least certainty of a region."""
    regions: bool = True
    """Whether the column `regions` is made, some 40 kB a pair; false: tags alone."""
    resources: Resources = Resources(workers=1)
    """What a worker of it takes; decides nothing of the dataset."""

    def deciding(self) -> dict[str, Any]:
        """All that its values follow from: a model in a folder by its files, one on a hub by name and revision."""
        model = self.model if not Path(self.model).is_dir() else files_hash(self.model)
        return self.model_dump(mode="json", exclude={"resources"}) | {"model": model}

    @property
    def columns(self) -> pa.Schema:
        """The columns that it adds."""
        tags = pa.field("object_tags", pa.string())
        return pa.schema([tags, pa.field("regions", pa.binary())] if self.regions else [tags])

    def ready(self) -> ObjectRegionsAnnotation:
        """Itself with its folder's full path; JobError if transformers is not installed or a folder holds no model."""
        expect_package(self.name, "transformers")
        return self.model_copy(update={"model": model_path(self.name, self.model)})

    def annotate(self, pairs: pa.Table) -> pa.Table:
        """Looks at every picture by itself, so that no vector depends on its neighbours."""
        found = [self._look(image) for image in pairs["image"].to_pylist()]
        for field, values in zip(self.columns, zip(*found, strict=True) if found else ((), ()), strict=False):
            pairs = pairs.append_column(field, pa.array(values, field.type))
        return pairs

    def _look(self, content: bytes) -> tuple[str | None, bytes | None]:
        with Image.open(io.BytesIO(content)) as opened:
            picture = as_seen(opened)
        processor, model = _loaded(self.model, self.revision, self.resources.gpus > 0)
        inputs = processor(images=picture, return_tensors="pt").to(model.device)
        output = model(**inputs)
        logits = output.logits[0].float().cpu().numpy()
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores = (odds / odds.sum(axis=1, keepdims=True))[:, :-1]  # the last class is "nothing"
        best = scores.max(axis=1)
        order = [at for at in np.argsort(-best, kind="stable")[: self.most] if best[at] >= self.min_score]
        if not order:
            return None, None
        labels = [model.config.id2label[int(scores[at].argmax())] for at in order]
        # Queries are the last tokens, also where the hidden state has those of the picture before them.
        hidden = output.last_hidden_state[0, -len(logits) :].float().cpu().numpy()
        across, down, wide, high = output.pred_boxes[0].float().cpu().numpy().T
        boxes = np.stack([across - wide / 2, down - high / 2, across + wide / 2, down + high / 2], axis=1)
        vectors = np.concatenate([hidden, boxes.clip(0, 1)], axis=1)[order].astype("<f2")
        return ", ".join(dict.fromkeys(labels)), vectors.tobytes()


def model_path(annotation: str, model: str) -> str:
    """The full path of a model's folder, the name of one on a hub; JobError if a folder holds no model."""
    if not Path(model).exists():
        if model.startswith((".", "/")):
            raise JobError(f"annotations.{annotation}.model: expected a model's folder, found no {model}")
        return model
    if not (Path(model) / "config.json").is_file():
        raise JobError(f"annotations.{annotation}.model: expected a folder with config.json, came {model}")
    return str(Path(model).absolute())


def files_hash(path: str) -> str:
    """Hex sha256 over names and hashes of a model's files."""
    digest = hashlib.sha256()
    for file in sorted(one for one in Path(path).iterdir() if one.is_file()):
        with file.open("rb") as content:
            digest.update(f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


@lru_cache(maxsize=2)
def _loaded(model: str, revision: str | None, on_gpu: bool) -> tuple[Any, Any]:
    from transformers import AutoImageProcessor, AutoModelForObjectDetection  # in the worker: once a process

    processor: Any = AutoImageProcessor
    processor = processor.from_pretrained(model, revision=revision)
    detector = AutoModelForObjectDetection.from_pretrained(model, revision=revision, use_safetensors=True)
    return processor, detector.eval().requires_grad_(False).to("cuda" if on_gpu else "cpu")
