"""The annotations: each adds columns to the pairs, for filters to read and for training to use.

An annotation is one file. Its name is the file's name, in the job too: `- language`.
"""

from __future__ import annotations

from typing import Annotated, Any, Protocol, get_args

import pyarrow as pa
from pydantic import BeforeValidator, Field

from pipeline.annotation_resources import Resources
from pipeline.annotations.caption_summary import CaptionSummaryAnnotation
from pipeline.annotations.joined_columns import JoinedColumnsAnnotation
from pipeline.annotations.language import LanguageAnnotation
from pipeline.annotations.object_regions import ObjectRegionsAnnotation
from pipeline.annotations.safety import SafetyAnnotation
from pipeline.annotations.text_in_image import TextInImageAnnotation
from pipeline.steps import step_reader

_Known = (
    CaptionSummaryAnnotation
    | JoinedColumnsAnnotation
    | LanguageAnnotation
    | ObjectRegionsAnnotation
    | SafetyAnnotation
    | TextInImageAnnotation
)
ANNOTATIONS = get_args(_Known)

AnyAnnotation = Annotated[
    Annotated[_Known, Field(discriminator="name")],
    BeforeValidator(step_reader("annotation", [kind.model_fields["name"].default for kind in ANNOTATIONS])),
]
"""One annotation as a job file may write it."""


class Annotation(Protocol):
    """What every annotation is."""

    @property
    def name(self) -> str:
        """The name of the step in the job."""

    @property
    def version(self) -> int:
        """Of the code; raised when it would give other values for the same pairs and settings."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns of the snapshot that it needs."""

    @property
    def resources(self) -> Resources:
        """What a worker of it takes of the cluster."""

    def deciding(self) -> dict[str, Any]:
        """All that its values follow from, as JSON would hold it: settings, and files by their content."""

    @property
    def columns(self) -> pa.Schema:
        """The columns that it adds."""

    def ready(self) -> Annotation:
        """Itself, checked before anything is fetched and with its paths as every machine means them."""

    def annotate(self, pairs: pa.Table) -> pa.Table:
        """The pairs with its columns appended; called with a batch, in any process, any number of times."""
