"""The page of a study: what was found in words, pictures, every number behind them; one file, nothing is fetched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from hiclip.scaling.analysis import MethodFindings
from hiclip.scaling.findings import Findings, HeldOut, formula, residual_rows, size_formula
from hiclip.scaling.law import Interval
from hiclip.scaling.points import Point
from hiclip.scaling.size_law import SizeLaw
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
td.words{white-space:normal;text-align:left}
.panel{overflow-x:auto}
"""
_ALT = {
    "law.png": "the laws and their rungs",
    "residuals.png": "how far each rung is from its law",
    "compute_ratio.png": "how much compute the first method needs for the same error",
}


def study_page(findings: Findings, pictures: Mapping[str, bytes]) -> str:
    """The whole page; `pictures`: PNG by the name of its file."""
    return page(findings.name, _STYLE, _parts(findings, pictures))


def _parts(findings: Findings, pictures: Mapping[str, bytes]) -> Iterator[str]:
    yield f'<h1>{text(findings.name)}</h1>\n<p class="lead">{text(findings.sentence())}</p>\n'
    yield _figures(findings)
    yield _picture("law.png", pictures)
    if findings.ratios:
        yield "<h2>At equal error</h2>\n"
        yield "".join(f"<p>{text(ratio.sentence())}.</p>\n" for ratio in findings.ratios)
        yield _picture("compute_ratio.png", pictures)
    for found in findings.methods:
        yield from _method_parts(findings, found, pictures)
    for refused in findings.refused:
        yield f"<h2>No law of {text(refused.method)}</h2>\n<p>{text(refused.reason)}.</p>\n"
    yield "<h2>Rungs</h2>\n" + _rung_text() + _picture("residuals.png", pictures) + _rung_table(findings)
    if findings.searches:
        yield "<h2>Search</h2>\n" + _search_table(findings)
    if findings.suggestion is not None:
        yield f"<h2>Next</h2>\n<p>{text(findings.suggestion.sentence(findings.compute_unit))}.</p>\n"
    if findings.failures:
        yield "<h2>Missing</h2>\n<p>These rungs failed; the laws know nothing of them.</p>\n"
        rows = [[failure.name, f"{failure.compute:.3g}", failure.reason] for failure in findings.failures]
        yield _table(["rung", f"compute ({findings.compute_unit})", "reason"], rows, words=2)


def _method_parts(findings: Findings, found: MethodFindings, pictures: Mapping[str, bytes]) -> Iterator[str]:
    name = f" of {text(found.method)}" if found.method else ""
    yield f"<h2>Law{name}</h2>\n" + _law_text(findings, found) + _law_table(found)
    yield f"<h2>Size and pairs{name}</h2>\n"
    law = found.size_law
    if law is None:
        yield f"<p>No law of size and pairs was fitted: {text(found.size_law_refused)}.</p>\n"
        return
    yield (
        f"<p>{text(findings.what)} = {text(size_formula(law))}, N {_size_words(found)}, D pairs seen"
        f"{', counted by what repeated pairs are worth' if law.repeat is not None else ''}. Given so much compute for "
        "one run, the model and the pairs that the law would choose:</p>\n"
    )
    what = "parameters" if _has_parameters(found) else f"{findings.compute_unit} a pair"
    said = [f"<li>{text(best.sentence(findings.compute_unit, what))}.</li>" for best in found.allocations]
    said += [f"<li>{text(caveat[:1].upper() + caveat[1:])}.</li>" for caveat in found.caveats]
    yield f"<ul>{''.join(said)}</ul>\n"
    yield _picture(f"iso_flops{f'_{found.method}' if found.method else ''}.png", pictures)
    yield _size_table(law)


def _picture(name: str, pictures: Mapping[str, bytes]) -> str:
    if name not in pictures:
        return ""
    alt = _ALT.get(name, "the best size of model for a compute")
    return f'<div class="panel plot"><img alt="{text(alt)}" src="{data_uri(pictures[name])}"></div>\n'


def _figures(findings: Findings) -> str:
    law, held_out = findings.law, findings.held_out
    boxes = [
        (f"{found.law.b.value:.3f}", f"exponent b{_of(found)}, {found.law.b.low:.3f} to {found.law.b.high:.3f}")
        for found in findings.methods
    ]
    if law.form != "power":
        boxes += [
            (f"{found.law.E.value:.3g}", f"floor E{_of(found)}, {found.law.E.low:.3g} to {found.law.E.high:.3g}")
            for found in findings.methods
        ]
    boxes.append((f"{law.leave_one_out:.1%}", "typical error of predicting one rung from the others"))
    if held_out is None:
        return figures(boxes)
    boxes.append((f"{held_out.predicted.value:.3g}", f"predicted for {held_out.name}, {_band(held_out.predicted)}"))
    if held_out.by_size is not None:
        boxes.append((f"{held_out.by_size.value:.3g}", f"predicted by size and pairs, {_band(held_out.by_size)}"))
    kind, value, what = _measured_box(held_out)
    return figures([*boxes, (value, what)], [*[""] * len(boxes), kind])


def _of(found: MethodFindings) -> str:
    return f" of {found.method}" if found.method else ""


def _measured_box(held_out: HeldOut) -> tuple[str, str, str]:
    if held_out.point is None:
        return "bad", "failed", "the held-out rung could not be measured"
    kind, verdict = ("good", "inside") if held_out.covered else ("bad", "outside")
    return kind, f"{held_out.point.error:.3g}", f"measured, {verdict} the predicted band"


def _law_text(findings: Findings, found: MethodFindings) -> str:
    stands = ""
    if len(found.selected) < len(found.points):
        stands = (
            f" It stands on the best {len(found.selected)} of {len(found.points)} rungs; the intervals below do not "
            "know that these were chosen by their errors, and are too narrow for it."
        )
    pictures = " and over other pictures of the same kind" if all(point.draws for point in found.points) else ""
    return (
        f"<p>{text(findings.what)} = {text(formula(found.law))}, C in {text(findings.compute_unit)}.{stands} Fitted "
        f"with Huber's loss on log residuals. The intervals hold the truth with 95 % over other runs{pictures}, if the "
        "law has this form and runs scatter normally around it; with few rungs that makes them wide, which is what few "
        "rungs can say. Beyond the largest rung the form itself is an assumption: "
        f"{text(found.forms.sentence())}.</p>\n"
    )


def _law_table(found: MethodFindings) -> str:
    law = found.law
    rows = [["exponent b", *_interval(law.b)], ["factor a at C = 1", *_interval(law.a)]]
    if law.form != "power":
        rows.append(["floor E", *_interval(law.E)])
    if law.form == "shifted_power":
        rows.append(["shift C₀", *_interval(law.shift)])
    rows.append(["scatter of one rung around the law", f"{law.noise:.2%}", "", ""])
    forms = [
        [fit.form, f"{fit.parameters}", f"{fit.aicc:.1f}", f"{fit.weight:.2f}", f"{fit.leave_one_out:.2%}"]
        for fit in found.forms.fits
    ]
    forms += [[form, why, "", "", ""] for form, why in found.forms.refused.items()]
    heads = ["form", "numbers", "AICc", "weight", "leave one out"]
    return _table(["", "value", "from", "to (95 %)"], rows) + _table(heads, forms)


def _size_table(law: SizeLaw) -> str:
    named = {"exponent alpha of N": law.alpha, "exponent beta of D": law.beta, "A at N = 1": law.A, "B at D = 1": law.B}
    if law.form == "power_with_floor":
        named["floor E"] = law.E
    if law.repeat is not None:
        named["R*, lasting passes of repeated pairs"] = law.repeat
    rows = [[name, *_interval(one)] for name, one in named.items()]
    rows.append(["scatter of one rung around the law", f"{law.noise:.2%}", "", ""])
    rows.append(["typical error of predicting one rung from the others", f"{law.leave_one_out:.2%}", "", ""])
    return _table(["", "value", "from", "to (95 %)"], rows)


def _size_words(found: MethodFindings) -> str:
    return "parameters" if _has_parameters(found) else "the compute of a pair"


def _has_parameters(found: MethodFindings) -> bool:
    return all(point.parameters is not None for point in found.points)


def _rung_text() -> str:
    return (
        "<p>Each error, its 95 % interval over the pictures of the evaluation set if it has one, the law's value, and "
        "the value that the law of all other rungs gives: the test that needs no further run.</p>\n"
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
    rows = []
    for found in findings.methods:
        fitted = dict(zip(found.selected, residual_rows(found.law, found.stands_on), strict=True))
        for place, point in enumerate(found.points):
            cells = _point_cells(found.method, point)
            if place not in found.selected:
                rows.append([*cells, f"{found.law.error(point.compute):.4g}", "", "not stood on"])
                continue
            _, own, alone = fitted[place]
            rows.append([*cells, f"{own:.4g}", f"{alone:.4g}", f"{alone / point.error - 1:+.1%}"])
    rows += [[*_point_cells(one.method, point), "", "", "no law"] for one in findings.refused for point in one.points]
    held_out = findings.held_out
    if held_out is None or held_out.point is None:
        return _table(heads, rows)
    predicted = held_out.predicted.value
    last = _point_cells("", replace(held_out.point, name=f"{held_out.name} (held out)"))
    point = held_out.point
    return _table(heads, rows, [*last, f"{predicted:.4g}", f"{predicted:.4g}", f"{predicted / point.error - 1:+.1%}"])


def _point_cells(method: str, point: Point) -> list[str]:
    name = f"{method}: {point.name}" if method else point.name
    over_pictures = f"{point.low:.4g} to {point.high:.4g}" if point.low < point.high else ""
    return [name, f"{point.compute:.4g}", f"{point.error:.4g}", over_pictures]


def _search_table(findings: Findings) -> str:
    """What the rungs were trained with was searched on one of them."""
    heads = ["searched", "trials", "best learning rate", "best weight decay", "reached the end"]
    rows = [
        [
            f"{method}: {one.rung}" if method else one.rung,
            f"{len(one.trials)}",
            f"{one.learning_rate:.3g}",
            "not searched" if one.weight_decay is None else f"{one.weight_decay:.3g}",
            f"{sum(trial.end == 'measured' for trial in one.trials)}",
        ]
        for method, one in findings.searches.items()
    ]
    return _table(heads, rows)


def _interval(interval: Interval) -> tuple[str, str, str]:
    return f"{interval.value:.4g}", f"{interval.low:.4g}", f"{interval.high:.4g}"


def _band(interval: Interval) -> str:
    return f"{interval.low:.3g} to {interval.high:.3g}"


def _table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    held_out: Sequence[str] | None = None,
    words: int | None = None,
) -> str:
    """`words`: the column that may break over lines."""
    head = "".join(f"<th>{text(cell)}</th>" for cell in heads)
    body = "".join(f"<tr>{_cells(row, words)}</tr>" for row in rows)
    last = f'<tr class="held">{_cells(held_out, words)}</tr>' if held_out else ""
    return f'<div class="panel"><table><tr>{head}</tr>{body}{last}</table></div>\n'


def _cells(row: Sequence[str], words: int | None) -> str:
    return "".join(
        f'<td class="words">{text(cell)}</td>' if place == words else f"<td>{text(cell)}</td>"
        for place, cell in enumerate(row)
    )
