"""A short form of the caption, for PyramidCLIP's coarse text level: by a model, or by a rule that needs none."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from pipeline.annotation_resources import Resources
from pipeline.annotations.object_regions import files_hash, model_path
from pipeline.jobfile import Settings
from pipeline.wanted_package import expect_package

_BATCH = 32
_SENTENCE = re.compile(r"(?<=[.!?])\s")


class CaptionSummaryAnnotation(Settings):
    """Column `caption_summary`. PyramidCLIP summarised with a T5 and does not say which."""

    name: Literal["caption_summary"] = "caption_summary"
    version: ClassVar[int] = 1
    reads: ClassVar[tuple[str, ...]] = ("caption",)
    model: str | None = None
    """Name on a hub or folder of a summariser (text to text) that transformers can load; null: the rule."""
    revision: str | None = None
    """Commit or tag of a model on a hub; null: the newest, which may be another one tomorrow."""
    most_words: Annotated[int, Field(ge=1)] = 16
    """The rule: a caption of at most so many words is its own summary; of a longer one the first sentence, up to a full
    stop, question or exclamation mark before a blank, is taken, and of that the first so many words."""
    most_tokens: Annotated[int, Field(ge=1)] = 24
    """The model: length of a summary in its tokens; captions of at most `most_words` words are left as they are."""
    resources: Resources = Resources()
    """What a worker of it takes; decides nothing of the dataset."""

    def deciding(self) -> dict[str, Any]:
        """All that its values follow from: a model in a folder by its files, one on a hub by name and revision."""
        model = files_hash(self.model) if self.model is not None and Path(self.model).is_dir() else self.model
        return self.model_dump(mode="json", exclude={"resources"}) | {"model": model}

    @property
    def columns(self) -> pa.Schema:
        """The columns that it adds."""
        return pa.schema([pa.field("caption_summary", pa.string())])

    def ready(self) -> CaptionSummaryAnnotation:
        """Itself with its folder's full path; JobError if transformers is not installed or a folder holds no model."""
        if self.model is None:
            return self
        expect_package(self.name, "transformers")
        return self.model_copy(update={"model": model_path(self.name, self.model)})

    def annotate(self, pairs: pa.Table) -> pa.Table:
        """Sums up every caption; by the rule some 500,000 a second."""
        captions = pairs["caption"].to_pylist()
        long = [at for at, caption in enumerate(captions) if len(caption.split()) > self.most_words]
        for start in range(0, len(long), _BATCH):
            some = long[start : start + _BATCH]
            for at, summary in zip(some, self._summaries([captions[at] for at in some]), strict=True):
                captions[at] = summary
        return pairs.append_column(self.columns.field(0), pa.array(captions, pa.string()))

    def _summaries(self, captions: list[str]) -> list[str]:
        if self.model is None:
            return [" ".join(_SENTENCE.split(caption, 1)[0].split()[: self.most_words]) for caption in captions]
        tokenizer, model = _loaded(self.model, self.revision, self.resources.gpus > 0)
        inputs = tokenizer(captions, return_tensors="pt", padding=True, truncation=True).to(model.device)
        ids = model.generate(**inputs, max_new_tokens=self.most_tokens, num_beams=1, do_sample=False)
        return [" ".join(one.split()) for one in tokenizer.batch_decode(ids, skip_special_tokens=True)]


@lru_cache(maxsize=2)
def _loaded(model: str, revision: str | None, on_gpu: bool) -> tuple[Any, Any]:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer  # in the worker: once a process

    tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
    summariser = AutoModelForSeq2SeqLM.from_pretrained(model, revision=revision, use_safetensors=True)
    return tokenizer, summariser.eval().requires_grad_(False).to("cuda" if on_gpu else "cpu")
