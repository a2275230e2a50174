"""Why a row of a URL list is not in the dataset: one word that is counted, and a detail that explains."""

from __future__ import annotations

_MARK = "refused"


class Refusal(Exception):
    """A row is refused. It is raised where the fault is seen, and becomes a line of the ledger, never a lost row."""

    def __init__(self, reason: str, detail: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(reason, detail, retry_after_s)
        self.reason = reason
        self.detail = detail
        self.retry_after_s = retry_after_s
        """How long the server asks to be left alone."""

    def __str__(self) -> str:
        # img2dataset hands errors on as text; from_text() reads this form back.
        return f"{_MARK}\t{self.reason}\t{self.retry_after_s}\t{self.detail}"


def from_text(text: str) -> Refusal:
    """The refusal that `str()` was taken of; any other text is an error that nobody foresaw and becomes `failed`."""
    mark, _, rest = text.partition("\t")
    if mark != _MARK or rest.count("\t") < 2:
        return Refusal("failed", text)
    reason, retry_after_s, detail = rest.split("\t", 2)
    return Refusal(reason, detail, float(retry_after_s))
