"""What a run tells whoever records it. Calls never wait and never fail: a run does not stop because its record does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Tracker(Protocol):
    """The record of one run; `pipeline.mlflow_tracker` keeps it in MLflow."""

    @property
    def run_id(self) -> str | None:
        """The record's own name for the run, with which a resumed run appends to it; None if it cannot be reached."""
        ...

    def params(self, values: Mapping[str, Any]) -> None:
        """Notes the settings of the run; nested ones get dotted names."""
        ...

    def metrics(self, values: Mapping[str, float], seen: int) -> None:
        """Notes numbers measured after `seen` pairs."""
        ...

    def tag(self, key: str, value: str) -> None:
        """Notes one fact about the run."""
        ...

    def artifact(self, path: str, folder: str = "") -> None:
        """Keeps a copy of a local file as it is now, in `folder` of the record."""
        ...

    def model(
        self, name: str, checkpoint: str, files: Mapping[str, str], tags: Mapping[str, object], description: str
    ) -> None:
        """Enters a finished model in the registry as a version of `name`: where its weights are, never the weights.

        `files`: small ones, by name, for a record that cannot hold a local path. Once for a run and a checkpoint.
        """
        ...

    def dataset(
        self, name: str, fingerprint: str, place: str, columns: Mapping[str, str], pairs: int, context: str
    ) -> None:
        """Enters a dataset as an input of the run: its place, its columns (name to Arrow type) and how many pairs.

        `context` says what it is to the run, in a word.
        """
        ...

    def close(self, status: str = "FINISHED") -> None:
        """Delivers what is left, keeps what cannot be delivered, and ends the record as FINISHED, FAILED or KILLED."""
        ...
