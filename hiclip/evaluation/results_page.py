"""The page of an evaluation for a person: numbers with their intervals, what went right and wrong, and the hierarchies.

One file that can be mailed: pictures are inside it, nothing is loaded from elsewhere.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from hiclip.evaluation import page_parts as part
from hiclip.evaluation.averages import eleven_sets
from hiclip.evaluation.evaluation_set import Classification, EvaluationSet, Retrieval
from hiclip.evaluation.heads.measure_heads import MeasuredHead
from hiclip.evaluation.hierarchies import Drawing
from hiclip.evaluation.label_tree import numbered
from hiclip.evaluation.measure import Found, Judged, MeasuredSet, SubgroupResult
from hiclip.evaluation.outcome import Outcome
from hiclip.evaluation.result import Result
from hiclip.evaluation.retrieval import BoolArray, IntArray
from hiclip.evaluation.set_pictures import SetPictures
from hiclip.evaluation.table import BASELINES, baselines_of, interval, metric_title, number, with_sign
from pipeline.page import data_uri, figures, page, text

_EXAMPLES = 6  # of each kind
_MOST_CLASSES = 30  # that a table of all against all can show
_MISTAKES = 20
_AGREEMENTS = {
    "parsing": "Trees of captions beside given ones",
    "segments": "Groups of patches beside given segments",
}


def results_page(
    outcome: Outcome,
    measured: Sequence[tuple[EvaluationSet, MeasuredSet]],
    drawings: Sequence[Drawing],
    heads: Sequence[MeasuredHead] = (),
) -> str:
    """The whole page."""
    parts = [*_head(outcome), *_missing(outcome), *_columns(outcome)]
    for content, numbers in measured:
        parts += [f"<h2>{text(numbers.set)}</h2>", *_seen(content, numbers), *_numbers(numbers.results)]
        if numbers.subgroups:
            parts += _subgroups(numbers.subgroups)
        if numbers.judged is not None and content.classification is not None:
            parts += _confusions(content.classification, numbers.judged)
            parts += _judgements(content.pictures, content.classification, numbers.judged)
        if numbers.texts_found is not None and content.retrieval is not None:
            parts += _retrieved(content.pictures, content.retrieval, numbers.texts_found)
    for head in heads:
        parts += _head_numbers(head)
    for name in ("parsing", "segments"):
        results = [result for result in outcome.results if result.set == name]
        parts += [f"<h2>{text(_AGREEMENTS[name])}</h2>", *_numbers(results)] if results else []
    parts += _hierarchies(drawings)
    return page(f"Evaluation {outcome.name}", part.STYLE, parts)


def _head(outcome: Outcome) -> Iterator[str]:
    yield f"<h1>{text(outcome.name)}</h1>"
    yield f'<div class="soft mono">{text(outcome.checkpoint)} · weights {outcome.weights[:16]}</div>'
    shown = [(f"{outcome.parameters / 1e6:.1f} M", "parameters")]
    if outcome.train_flops is not None:
        training = [(f"{outcome.seen:,}", "pairs seen in training"), (f"{outcome.step:,}", "steps")]
        shown = [*training, *shown, (_flops(outcome.train_flops), "of training")]
    yield figures(shown)


def _seen(content: EvaluationSet, numbers: MeasuredSet) -> Iterator[str]:
    seen = numbers.seen
    if seen is not None:
        broken = f"{seen.broken:,} of {seen.count:,} pictures cannot be read and count as wrong" if seen.broken else ""
        said = [f"questions {content.fingerprint[:16]}", f"pictures {seen.sha256[:16]}", f"{numbers.seconds:,.1f} s"]
        yield f'<div class="soft mono">{text(" · ".join([*said, *([broken] if broken else [])]))}</div>\n'


def _head_numbers(head: MeasuredHead) -> Iterator[str]:
    """What a head learnt on the towers reaches, and how it was trained."""
    yield f"<h2>{text(head.set)}</h2>"
    said = [f"{head.epochs[-1].learnt:,} questions learnt", f"{head.questions:,} measured", f"{head.answers:,} answers"]
    said += [f"epoch {head.chosen} of {len(head.epochs)} chosen", f"{head.seconds:,.1f} s"]
    said += [f"{head.left_out:,} without an agreed answer left out"] if head.left_out else []
    if head.broken:
        said.append(f"{head.broken:,} of {head.pictures:,} pictures cannot be read and count as wrong")
    yield f'<div class="soft mono">{text(" · ".join(said))}</div>\n'
    yield from _numbers(head.results)


def _missing(outcome: Outcome) -> Iterator[str]:
    average = eleven_sets(outcome.results)
    if average.there:
        yield f"<p>Average of the eleven sets of HiCLIP's tables: {text(average)}.</p>\n"
    for name, why in outcome.missing.items():
        yield f"<p>Missing: {text(name)}: {text(why)}.</p>\n"


def _columns(outcome: Outcome) -> Iterator[str]:
    columns = outcome.columns
    if columns is not None:
        yield f"<h2>Columns</h2><p>{text(', '.join(columns.adds))} of {columns.rows:,} pairs in {columns.parts:,} "
        yield f'parts, {columns.broken:,} of them null: their pictures cannot be read.<br><span class="soft mono">'
        yield f"{text(columns.to)} · dataset {columns.dataset_fingerprint[:16]}</span></p>\n"


def _flops(count: float) -> str:
    """Floating-point operations with the largest prefix that leaves a whole digit."""
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12)):
        if count >= size:
            return f"{count / size:,.3g} {prefix}FLOP"
    return f"{count / 1e9:,.3g} GFLOP"


def _numbers(results: Sequence[Result]) -> Iterator[str]:
    baselines = baselines_of(results)
    head = "".join(f"<th>{text(name)}</th>" for name in ("metric", "", "model", "95 % interval", "chance"))
    head += "".join(f"<th>{text(BASELINES[name])}</th>" for name in baselines) + "<th>pictures</th>"
    rows = "".join(_row(result, baselines) for result in results)
    shapes = [("dot", "model, with its 95 % bootstrap interval"), ("tick", "chance")]
    shapes += [("diamond", "nearest training picture in pixels")] if "pixel_neighbours" in baselines else []
    yield (
        "<p>Every line starts at zero. Pixels: the answer of the training picture that looks most alike. Majority: "
        "always the commonest answer. By subgroup: each subgroup counts the same; country flags are left out, here and "
        "in what follows. Error distance: steps up the label tree from a wrong answer to where it meets the right one, "
        "1 to 3. Typical rank: geometric mean of the places at which retrieval finds the right answer. *: the metric "
        "that papers since CLIP quote for the set.</p>"
    )
    yield f'<div class="panel">{part.key(shapes)}<table><tr>{head}</tr>{rows}</table></div>\n'


def _row(result: Result, baselines: Sequence[str]) -> str:
    marks = [part.Mark(result.chance, "tick", f"chance {with_sign(result.chance, result.unit)}")]
    pixels = result.baselines.get("pixel_neighbours")
    if pixels is not None:
        marks.append(part.Mark(pixels, "diamond", f"pixel neighbours {with_sign(pixels, result.unit)}"))
    marks.append(part.Mark(result.value, "dot", with_sign(result.value, result.unit)))
    end = 1.05 * max(result.high, *(mark.value for mark in marks))
    cells = [
        with_sign(result.chance, result.unit),
        *(with_sign(result.baselines.get(name), result.unit) for name in baselines),
        f"{result.count:,}",
    ]
    return (
        f'<tr><td>{text(metric_title(result))}</td><td class="range">'
        f"{part.value_range(marks, result.low, result.high, end)}</td>"
        f'<td class="value">{text(with_sign(result.value, result.unit))}</td>'
        f'<td class="soft">{text(interval(result))}</td>'
        + "".join(f"<td>{text(cell)}</td>" for cell in cells)
        + "</tr>"
    )


def _subgroups(subgroups: Sequence[SubgroupResult]) -> Iterator[str]:
    yield (
        "<h3>By subgroup <small>share of pictures whose right concept is among the first five (pale) and is the first "
        "(solid)</small></h3>"
    )
    yield '<div class="panel"><div class="bars">'
    for group in dict.fromkeys(one.group for one in subgroups):
        members = sorted((one for one in subgroups if one.group == group), key=lambda one: -one.top5)
        rows = "".join(
            part.bar_row(
                one.subgroup.replace("-", " "),
                one.top1,
                one.top5,
                number(one.top5, "share"),
                f"{one.subgroup}: {one.count} pictures, top-1 {number(one.top1, 'share')} %, top-5 "
                f"{number(one.top5, 'share')} % ({number(one.top5_low, 'share')} to {number(one.top5_high, 'share')})"
                + (", left out of averages" if one.left_out else ""),
            )
            for one in members
        )
        yield f'<div class="family"><b>{text(group.replace("-", " and "))}</b>{rows}</div>'
    yield "</div></div>\n"


def _confusions(asked: Classification, judged: Judged) -> Iterator[str]:
    """What pictures of each group were taken for; of each class, where there are no groups."""
    tree = asked.tree
    labels, first = asked.labels[_answered(asked, judged)], _first(judged)[_answered(asked, judged)]
    if tree.flat and len(tree.classes) > _MOST_CLASSES:
        yield from _mistaken(asked, labels, first)
        return
    groups, place = numbered(tree.classes if tree.flat else tree.groups)
    table = np.zeros((len(groups), len(groups)))
    np.add.at(table, (place[labels], place[first]), 1.0)
    counts = np.bincount(place[asked.labels], minlength=len(groups))
    shares = table / np.maximum(counts, 1)[:, None]
    kind = "class" if tree.flat else "group"
    yield (
        f"<h3>What pictures were taken for <small>in percent of each {kind}'s pictures; row: what it shows, column: "
        f"the {'first answer' if tree.flat else 'group of the first answer'}</small></h3>"
    )
    names = [group.replace("-", " and ") for group in groups] if not tree.flat else groups
    yield part.matrix(names, shares.tolist(), [int(count) for count in counts])


def _first(judged: Judged) -> IntArray:
    """(N,) first answers."""
    return np.array([best[0] for best in judged.best], dtype=np.int64)


def _answered(asked: Classification, judged: Judged) -> BoolArray:
    """(N,): whether the picture could be read; what is stored as the answers to one that could not is nobody's."""
    found: BoolArray = np.array(judged.ranks) <= len(asked.tree.classes)
    return found


def _mistaken(asked: Classification, labels: IntArray, first: IntArray) -> Iterator[str]:
    """The commonest mistakes, where a table of all classes would be too large to look at."""
    wrong = Counter(zip(labels.tolist(), first.tolist(), strict=True))
    counts = np.bincount(asked.labels, minlength=len(asked.tree.classes))
    common = [(pair, count) for pair, count in wrong.most_common() if pair[0] != pair[1]][:_MISTAKES]
    yield "<h3>Commonest mistakes <small>of a class's pictures, how many were taken for one other class</small></h3>"
    yield '<div class="panel"><table><tr><th>it shows</th><th>taken for</th><th>pictures</th><th>of</th></tr>'
    for (label, answer), count in common:
        cells = (asked.tree.classes[label], asked.tree.classes[answer], f"{count:,}", f"{counts[label]:,}")
        yield "<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in cells) + "</tr>"
    yield "</table></div>\n"


def _judgements(pictures: SetPictures, asked: Classification, judged: Judged) -> Iterator[str]:
    ranks = np.array(judged.ranks)
    distance = np.where(_answered(asked, judged), asked.tree.distances(_first(judged), asked.labels), 3)
    wrong = ranks > min(5, len(asked.tree.classes))
    kinds = [
        ("Right", "the first answer is the concept", ranks == 1),
        ("Nearly", "the concept is among the first five", (ranks > 1) & ~wrong),
    ]
    if asked.tree.flat:
        kinds.append(("Wrong", "the concept is not among the first five", wrong))
    else:
        kinds += [
            ("Near in the tree", "wrong, but in the right subgroup", wrong & (distance == 1)),
            ("Wrong", "nothing is shared but the root of the label tree", wrong & (distance == 3)),
        ]
    for title, meaning, chosen in kinds:
        places = _spread(asked, np.flatnonzero(chosen & asked.tree.counted()[asked.labels]).tolist())
        share = f"{int(chosen.sum()):,} of {len(ranks):,}"
        cards = [_judged_card(pictures, asked, judged, place) for place in places]
        yield f"<h3>{title} <small>{meaning}: {share} pictures</small></h3>"
        yield f'<div class="cards">{"".join(cards)}</div>\n'


def _spread(asked: Classification, places: Sequence[int]) -> list[int]:
    """A few of the pictures by hash of their label, each from another subgroup (or class) while there are some."""
    kinds = asked.tree.classes if asked.tree.flat else asked.tree.subgroups
    names = asked.tree.classes
    by_hash = sorted(places, key=lambda place: hashlib.sha256(names[asked.labels[place]].encode()).digest())
    taken: set[str] = set()
    fresh: list[int] = []
    again: list[int] = []
    for place in by_hash:
        kind = kinds[asked.labels[place]]
        (again if kind in taken else fresh).append(place)
        taken.add(kind)
    return (fresh + again)[:_EXAMPLES]


def _judged_card(pictures: SetPictures, asked: Classification, judged: Judged, place: int) -> str:
    label, tree = int(asked.labels[place]), asked.tree
    rank = judged.ranks[place]
    readable = rank <= len(tree.classes)
    answers = [(tree.classes[answer], answer == label) for answer in judged.best[place]] if readable else []
    notes = [] if tree.flat else [tree.subgroups[label].replace("-", " ")]
    notes += ["cannot be read"] if not readable else [f"place {rank:,}"] if rank > 1 else []
    picture = pictures.read([int(asked.rows[place])])[0]
    return part.card(picture, tree.classes[label], " · ".join(notes), answers)


def _retrieved(pictures: SetPictures, asked: Retrieval, found: Found) -> Iterator[str]:
    """Captions with the pictures found for them: some that succeed, some that nearly do, some that fail."""
    ranks = np.array(found.ranks)[found.shown]
    kinds = ((ranks == 1, 3), ((ranks > 1) & (ranks <= 5), 3), (ranks > 50, 3))
    yield (
        f"<h3>Pictures found for a caption <small>the first five of {len(asked.rows):,}; framed: a right one</small>"
        "</h3>"
    )
    rows = []
    for chosen, count in kinds:
        places = np.flatnonzero(chosen).tolist()
        places.sort(key=lambda place: hashlib.sha256(asked.captions[found.shown[place]].encode()).digest())
        for place in places[:count]:
            query = found.shown[place]
            images = [
                (picture, asked.right.holds(answer, query))
                for picture, answer in zip(
                    pictures.read(asked.rows[found.best[place]].tolist()), found.best[place], strict=True
                )
            ]
            rank = found.ranks[query]
            rows.append(
                part.found(asked.captions[query], images, "found first" if rank == 1 else f"found at place {rank:,}")
            )
    yield f'<div class="panel">{"".join(rows)}</div>\n'


def _hierarchies(drawings: Sequence[Drawing]) -> Iterator[str]:
    headings = {
        "caption": (
            "Captions as trees",
            "Found by the affinities alone: nobody told the model what a phrase is. The higher two parts meet, the "
            "looser they hang together; below the words stands the affinity of every link at every layer. An untrained "
            "model of the same shape merges upwards too, so it stands beside the trained one.",
        ),
        "picture": (
            "Pictures as groups",
            "Patches that hang together at a layer, bottom layer left, and the borders between them. First two rows: "
            "what a link has beyond the strength that its place in the grid gives it. Then HiCLIP's thresholds, where "
            "they show more than single patches; they partly measure depth. What the control shows too is not learnt.",
        ),
        "agreement": (
            "How far they agree with people's",
            "Beside trees and groups that know nothing of the caption or the picture, and beside an untrained model.",
        ),
    }
    for kind, (title, words) in headings.items():
        shown = [drawing for drawing in drawings if drawing.kind == kind]
        if shown:
            yield f"<h2>{title}</h2><p>{words}</p>"
        for drawing in shown:
            note = f"<p>{text(drawing.title)}</p>" if kind == "agreement" else ""
            yield (
                f'<div class="panel drawing"><img src="{data_uri(drawing.png)}" alt="{text(drawing.title)}">{note}'
                "</div>\n"
            )
