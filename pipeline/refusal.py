"""Why a row of a URL list is not in the dataset: one word that is counted, and a detail that explains."""

from __future__ import annotations


class Refusal(Exception):
    """A row is refused. It is raised where the fault is seen, and becomes a line of the ledger, never a lost row."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        # img2dataset hands errors on as text; from_text() reads this form back.
        return f"{self.reason}\t{self.detail}"


def from_text(text: str) -> Refusal:
    """The refusal that `str()` was taken of; any other text is an error that nobody foresaw and becomes `failed`."""
    reason, tab, detail = text.partition("\t")
    return Refusal(reason, detail) if tab else Refusal("failed", text)
