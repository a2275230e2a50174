"""The page of a study: the law in a sentence, its plot, every number behind it; one file, nothing is fetched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hiclip.scaling.findings import Findings, HeldOut, formula, residual_rows
from hiclip.scaling.law import Interval, Law
from pipeline.page import data_uri, figures, page, text

_STYLE = """
main{max-width:1040px}
.figure{flex:1}
.figures{margin-bottom:26px}
.lead{color:var(--ink);font-size:17px}
.plot{background:#fff;padding:14px}
.plot img{display:block;width:100%;height:auto}
th,td{padding:7px 16px 7px 0;text-align:right;border-top:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}
tr.held td{color:var(--bad)}
.reason{white-space:normal;text-align:left}
"""


def study_page(findings: Findings, plot: bytes) -> str:
    """The whole page; `plot` is the law's PNG."""
    return page(findings.name, _STYLE, _parts(findings, plot))


def _parts(findings: Findings, plot: bytes) -> Iterator[str]:
    yield f'<h1>{text(findings.name)}</h1>\n<p class="lead">{text(findings.sentence())}</p>\n'
    yield _figures(findings)
    yield f'<div class="panel plot"><img alt="the law and its rungs" src="{data_uri(plot)}"></div>\n'
    yield "<h2>Law</h2>\n" + _law_text(findings) + _law_table(findings.law)
    yield "<h2>Rungs</h2>\n" + _rung_text() + _rung_table(findings)
    if findings.failures:
        yield "<h2>Missing</h2>\n<p>These rungs failed twice; the law knows nothing of them.</p>\n"
        rows = [[failure.name, f"{failure.compute:.3g}", failure.reason] for failure in findings.failures]
        yield _table(["rung", f"compute ({findings.compute_unit})", "reason"], rows)


def _figures(findings: Findings) -> str:
    law, held_out = findings.law, findings.held_out
    boxes = [(f"{law.b.value:.3f}", f"exponent b, {law.b.low:.3f} to {law.b.high:.3f}")]
    if law.form == "power_with_floor":
        boxes.append((f"{law.E.value:.3g}", f"floor E, {law.E.low:.3g} to {law.E.high:.3g}"))
    boxes.append((f"{law.leave_one_out:.1%}", "typical error of predicting one rung from the others"))
    if held_out is None:
        return figures(boxes)
    boxes.append((f"{held_out.predicted.value:.3g}", f"predicted for {held_out.name}, {_band(held_out.predicted)}"))
    kind, value, what = _measured_box(held_out)
    return figures([*boxes, (value, what)], [*[""] * len(boxes), kind])


def _measured_box(held_out: HeldOut) -> tuple[str, str, str]:
    if held_out.point is None:
        return "bad", "failed", "the held-out rung could not be measured"
    kind, verdict = ("good", "inside") if held_out.covered else ("bad", "outside")
    return kind, f"{held_out.point.error:.3g}", f"measured, {verdict} the predicted band"


def _law_text(findings: Findings) -> str:
    return (
        f"<p>{text(findings.what)} = {text(formula(findings.law))}, C in {text(findings.compute_unit)}. Fitted "
        "with Huber's loss on log residuals. The intervals hold the truth with 95 % if the law has this form and runs "
        "scatter normally around it; with few rungs that makes them wide, which is what few rungs can say. Beyond the "
        "largest rung the form itself is an assumption.</p>\n"
    )


def _law_table(law: Law) -> str:
    rows = [["exponent b", *_interval(law.b)], ["factor a at C = 1", *_interval(law.a)]]
    if law.form == "power_with_floor":
        rows.append(["floor E", *_interval(law.E)])
    rows.append(["scatter of one rung around the law", f"{law.noise:.2%}", "", ""])
    return _table(["", "value", "from", "to (95 %)"], rows)


def _rung_text() -> str:
    return (
        "<p>Each error with its 95 % interval over the pictures of the evaluation set, the law's value, and the value "
        "that the law of all other rungs gives: the test that needs no further run.</p>\n"
    )


def _rung_table(findings: Findings) -> str:
    heads = [
        "rung",
        f"compute ({findings.compute_unit})",
        "measured",
        "over pictures",
        "law",
        "by the others",
        "off by",
    ]
    rows = [
        [
            point.name,
            f"{point.compute:.3g}",
            f"{point.error:.4g}",
            f"{point.low:.4g} to {point.high:.4g}",
            f"{fitted:.4g}",
            f"{alone:.4g}",
            f"{alone / point.error - 1:+.1%}",
        ]
        for point, fitted, alone in residual_rows(findings.law, findings.points)
    ]
    held_out = findings.held_out
    if held_out is None or held_out.point is None:
        return _table(heads, rows)
    point, predicted = held_out.point, held_out.predicted.value
    last = [
        f"{held_out.name} (held out)",
        f"{point.compute:.3g}",
        f"{point.error:.4g}",
        f"{point.low:.4g} to {point.high:.4g}",
    ]
    return _table(heads, rows, [*last, f"{predicted:.4g}", f"{predicted:.4g}", f"{predicted / point.error - 1:+.1%}"])


def _interval(interval: Interval) -> tuple[str, str, str]:
    return f"{interval.value:.4g}", f"{interval.low:.4g}", f"{interval.high:.4g}"


def _band(interval: Interval) -> str:
    return f"{interval.low:.3g} to {interval.high:.3g}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], held_out: Sequence[str] | None = None) -> str:
    head = "".join(f"<th>{text(cell)}</th>" for cell in heads)
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
    last = f'<tr class="held">{_cells(held_out)}</tr>' if held_out else ""
    return f'<div class="panel"><table><tr>{head}</tr>{body}{last}</table></div>\n'


def _cells(row: Sequence[str]) -> str:
    return "".join(f"<td>{text(cell)}</td>" for cell in row)
