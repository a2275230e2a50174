"""The page of a study: the law in a sentence, its plot, every number behind it; one file, nothing is fetched."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape

from hiclip.scaling.findings import Findings, HeldOut, formula, residual_rows
from hiclip.scaling.law import Interval, Law

_STYLE = """
:root{color-scheme:light dark;--ground:#f6f6f3;--paper:#fff;--ink:#1d1f21;--soft:#6b6f76;--line:#e3e2dc;--good:#2f7d6b;
--bad:#b4503e}
@media(prefers-color-scheme:dark){:root{--ground:#16181a;--paper:#1f2225;--ink:#e8e6e1;--soft:#9aa0a8;--line:#33373c;
--good:#57b59d;--bad:#e08a77}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1040px;margin:0 auto;padding:40px 28px 80px}
h1{font-size:30px;margin:0;letter-spacing:-.02em}
h2{font-size:19px;margin:44px 0 8px;letter-spacing:-.01em}
p{margin:6px 0 18px;max-width:76ch;color:var(--soft)}
.lead{color:var(--ink);font-size:17px}
.figures{display:flex;flex-wrap:wrap;gap:14px;margin:24px 0}
.figure,.panel{background:var(--paper);border:1px solid var(--line);border-radius:10px}
.figure{padding:14px 20px;min-width:150px;flex:1}
.figure b{display:block;font-size:26px;line-height:1.2;letter-spacing:-.02em;font-variant-numeric:tabular-nums}
.figure span{color:var(--soft);font-size:13px}
.good b{color:var(--good)}.bad b{color:var(--bad)}
.panel{padding:14px 20px;overflow-x:auto}
.plot{background:#fff;padding:14px}
.plot img{display:block;width:100%;height:auto}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:7px 16px 7px 0;text-align:right;border-top:1px solid var(--line);white-space:nowrap}
th{border-top:0;color:var(--soft);font-weight:400}
th:first-child,td:first-child{text-align:left}
tr.held td{color:var(--bad)}
.reason{white-space:normal;text-align:left}
"""


def study_page(findings: Findings, plot: bytes) -> str:
    """The whole page; `plot` is the law's PNG."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(findings.name)}</title><style>{_STYLE}</style></head><body><main>\n"
        f"{''.join(_parts(findings, plot))}</main></body></html>\n"
    )


def _parts(findings: Findings, plot: bytes) -> Iterator[str]:
    yield f'<h1>{escape(findings.name)}</h1>\n<p class="lead">{escape(findings.sentence())}</p>\n'
    yield _figures(findings)
    source = base64.b64encode(plot).decode()
    yield f'<div class="panel plot"><img alt="the law and its rungs" src="data:image/png;base64,{source}"></div>\n'
    yield "<h2>Law</h2>\n" + _law_text(findings) + _law_table(findings.law)
    yield "<h2>Rungs</h2>\n" + _rung_text() + _rung_table(findings)
    if findings.failures:
        yield "<h2>Missing</h2>\n<p>These rungs failed twice; the law knows nothing of them.</p>\n"
        rows = [[failure.name, f"{failure.compute:.3g}", failure.reason] for failure in findings.failures]
        yield _table(["rung", f"compute ({findings.compute_unit})", "reason"], rows)


def _figures(findings: Findings) -> str:
    law, held_out = findings.law, findings.held_out
    boxes = [("", f"{law.b.value:.3f}", f"exponent b, {law.b.low:.3f} to {law.b.high:.3f}")]
    if law.form == "power_with_floor":
        boxes.append(("", f"{law.E.value:.3g}", f"floor E, {law.E.low:.3g} to {law.E.high:.3g}"))
    boxes.append(("", f"{law.leave_one_out:.1%}", "typical error of predicting one rung from the others"))
    if held_out is not None:
        boxes.append(
            ("", f"{held_out.predicted.value:.3g}", f"predicted for {held_out.name}, {_band(held_out.predicted)}")
        )
        boxes.append(_measured_box(held_out))
    figures = "".join(
        f'<div class="figure {kind}"><b>{escape(value)}</b><span>{escape(what)}</span></div>'
        for kind, value, what in boxes
    )
    return f'<div class="figures">{figures}</div>\n'


def _measured_box(held_out: HeldOut) -> tuple[str, str, str]:
    if held_out.point is None:
        return "bad", "failed", "the held-out rung could not be measured"
    kind, verdict = ("good", "inside") if held_out.covered else ("bad", "outside")
    return kind, f"{held_out.point.error:.3g}", f"measured, {verdict} the predicted band"


def _law_text(findings: Findings) -> str:
    return (
        f"<p>{escape(findings.what)} = {escape(formula(findings.law))}, C in {escape(findings.compute_unit)}. Fitted "
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
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heads)
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
    last = f'<tr class="held">{_cells(held_out)}</tr>' if held_out else ""
    return f'<div class="panel"><table><tr>{head}</tr>{body}{last}</table></div>\n'


def _cells(row: Sequence[str]) -> str:
    return "".join(f"<td>{escape(cell)}</td>" for cell in row)
