"""The page of an evaluation for a person: numbers with their intervals, what went right and wrong, and the hierarchies.

One file that can be mailed: pictures are inside it, nothing is loaded from elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from hiclip.evaluation import page_parts as part
from hiclip.evaluation.evaluation_set import EvaluationSet, folded
from hiclip.evaluation.hierarchies import Drawing
from hiclip.evaluation.measure import MeasuredSet, SubgroupResult
from hiclip.evaluation.outcome import Outcome
from hiclip.evaluation.result import Result
from hiclip.evaluation.table import BASELINES, TITLES, baselines_of, interval, number, with_sign
from pipeline.page import data_uri, figures, page, text

_EXAMPLES = 6  # of each kind


def results_page(
    outcome: Outcome, measured: Sequence[tuple[EvaluationSet, MeasuredSet]], drawings: Sequence[Drawing]
) -> str:
    """The whole page."""
    parts = [*_head(outcome), *_columns(outcome)]
    for content, numbers in measured:
        parts += [f"<h2>{text(content.name)}</h2>", *_numbers(numbers.results)]
        if numbers.subgroups:
            parts += _subgroups(numbers.subgroups)
        if numbers.judged is not None:
            parts += [*_confusions(content, numbers), *_judgements(content, numbers)]
        if numbers.texts_found is not None:
            parts += _retrieved(content, numbers)
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
        "1 to 3. Typical rank: geometric mean of the places at which retrieval finds the right answer.</p>"
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
        f'<tr><td>{text(TITLES[result.metric])}</td><td class="range">'
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


def _confusions(content: EvaluationSet, numbers: MeasuredSet) -> Iterator[str]:
    """What pictures of each group were taken for."""
    assert numbers.judged is not None
    groups = list(dict.fromkeys(content.tree.groups))
    place = np.array([groups.index(group) for group in content.tree.groups])
    table = np.zeros((len(groups), len(groups)))
    first = np.array([best[0] for best in numbers.judged.best])
    np.add.at(table, (place[content.labels], place[first]), 1.0)
    counts = table.sum(axis=1)
    shares = table / np.maximum(counts, 1)[:, None]
    names = [group.replace("-", " and ") for group in groups]
    yield (
        "<h3>What pictures were taken for <small>in percent of each group's pictures; row: what it shows, column: the "
        "group of the first answer</small></h3>"
    )
    yield part.matrix(names, shares.tolist(), [int(count) for count in counts])


def _judgements(content: EvaluationSet, numbers: MeasuredSet) -> Iterator[str]:
    assert numbers.judged is not None
    ranks = np.array(numbers.judged.ranks)
    first = np.array([best[0] for best in numbers.judged.best])
    distance = content.tree.distances(first, content.labels)
    kinds = [
        ("Right", "the first answer is the concept", ranks == 1),
        ("Nearly", "the concept is among the first five", (ranks > 1) & (ranks <= 5)),
        ("Near in the tree", "wrong, but in the right subgroup", (ranks > 5) & (distance == 1)),
        ("Wrong", "nothing is shared but the root of the label tree", (ranks > 5) & (distance == 3)),
    ]
    for title, meaning, chosen in kinds:
        pictures = _spread(content, np.flatnonzero(chosen & content.tree.counted()[content.labels]).tolist())
        share = f"{int(chosen.sum()):,} of {len(ranks):,}"
        yield f"<h3>{title} <small>{meaning}: {share} pictures</small></h3>"
        yield f'<div class="cards">{"".join(_judged_card(content, numbers, picture) for picture in pictures)}</div>\n'


def _spread(content: EvaluationSet, pictures: Sequence[int]) -> list[int]:
    """A few of the pictures by hash of their label, each from another subgroup as long as there are some."""
    labels = content.tree.classes
    by_hash = sorted(pictures, key=lambda picture: hashlib.sha256(labels[content.labels[picture]].encode()).digest())
    taken: set[str] = set()
    fresh: list[int] = []
    again: list[int] = []
    for picture in by_hash:
        subgroup = content.tree.subgroups[content.labels[picture]]
        (again if subgroup in taken else fresh).append(picture)
        taken.add(subgroup)
    return (fresh + again)[:_EXAMPLES]


def _judged_card(content: EvaluationSet, numbers: MeasuredSet, picture: int) -> str:
    assert numbers.judged is not None
    label, tree = int(content.labels[picture]), content.tree
    answers = [(tree.classes[answer], answer == label) for answer in numbers.judged.best[picture]]
    rank = numbers.judged.ranks[picture]
    note = tree.subgroups[label].replace("-", " ") + (f" · place {rank:,}" if rank > 1 else "")
    return part.card(content.pictures[picture], tree.classes[label], note, answers)


def _retrieved(content: EvaluationSet, numbers: MeasuredSet) -> Iterator[str]:
    """Captions with the pictures found for them: some that succeed, some that nearly do, some that fail."""
    assert numbers.texts_found is not None
    ranks = np.array(numbers.texts_found.ranks)
    counted = content.tree.counted()[content.labels[content.queries]]
    kinds = ((ranks == 1, 3), ((ranks > 1) & (ranks <= 5), 3), (ranks > 50, 3))
    yield (
        f"<h3>Pictures found for a caption <small>the first five of {len(content.queries):,}; framed: the right one"
        "</small></h3>"
    )
    rows = []
    for chosen, count in kinds:
        candidates = np.flatnonzero(chosen & counted).tolist()
        candidates.sort(key=lambda query: hashlib.sha256(content.captions[query].encode()).digest())
        for query in candidates[:count]:
            caption = content.captions[query]
            best = numbers.texts_found.best[query]
            images = [
                (content.pictures[content.queries[found]], folded(caption) in content.wordings[found]) for found in best
            ]
            rank = numbers.texts_found.ranks[query]
            rows.append(part.found(caption, images, "found first" if rank == 1 else f"found at place {rank:,}"))
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
    }
    for kind, (title, words) in headings.items():
        shown = [drawing for drawing in drawings if drawing.kind == kind]
        if shown:
            yield f"<h2>{title}</h2><p>{words}</p>"
        for drawing in shown:
            yield (
                f'<div class="panel drawing"><img src="{data_uri(drawing.png)}" alt="{text(drawing.title)}"></div>\n'
            )
