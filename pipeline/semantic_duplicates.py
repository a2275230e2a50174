"""Finds pairs whose embeddings mean the same: SemDeDup (Abbas et al. 2023, arXiv 2303.09540), in parts.

Spherical k-means on a sample makes clusters; only pairs of one cluster are compared. In a cluster pairs stand by their
similarity to its centroid, and one is refused when its greatest cosine with any before it is too high, whether that one
is refused itself or not, as the authors' code does it.

Vectors of length 1 are held in whole numbers of 1/32767: that moves a cosine by some 0.00002, and makes sums and
products exact in float64. So neither the machine nor the order of a sum can turn a decision, and a vector takes two
bytes a number on its way.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.jobfile import JobError, Number, Settings
from pipeline.keyed_hash import Numbers, mixed
from pipeline.nearness import Places
from pipeline.pair import pair_numbers
from pipeline.pool import REFUSED, Pool
from pipeline.storage import Folder

Units = npt.NDArray[np.int16]
"""(vectors, width): vectors of length 1 in whole numbers of 1/32767."""
Exact = npt.NDArray[np.float64]
"""The same, or sums and products of them: whole numbers below 2 to the 53."""

STEP = "duplicates.semantic"
REASON = "semantic_duplicate"

_ONE = 32_767
_FINE = 1 << 20
_MOST_WIDE = 8192
"""Above, squares of 2 to the 20 would not sum exactly."""
_AT_ONCE = 8192
_PRODUCTS = 4_000_000
"""Products that are held at once: 32 MB."""
_PLACE = "semantic_duplicates"
_FILE = "centroids.npy"


class SemanticDuplicates(Settings):
    """Which pairs mean the same, by their embeddings; a pair without one stays.

    k-means runs in one process, which holds 2 bytes a number for the sample and 24 for the centroids: 0.3 GB for
    250,000 and 1,000 of 512 numbers each. A task holds 6 bytes a number for the pairs that it compares.
    """

    column: str = "embedding"
    """Annotation column: a list of numbers, of one length in all pairs."""
    clusters: Annotated[int, Field(ge=1)] = 1_000
    """Parts that are compared within; 50,000 as published for 440 million pairs."""
    iterations: Annotated[int, Field(ge=1)] = 20
    """Rounds of k-means at most; 100 as published."""
    sample: Annotated[int, Field(ge=1)] = 250_000
    """Pairs that k-means looks at, drawn by a hash of pair_id; published: 256 a cluster."""
    max_similarity: Annotated[Number, Field(ge=0, lt=1)] = 0.95
    """Cosine above which two pairs mean the same: 1 - epsilon of the paper, chosen by the share that shall go."""
    keep: Literal["hard", "easy"] = "hard"
    """Of pairs that mean the same the one farthest from its centroid stays, or the one nearest to it."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Decides the sample, and where k-means begins."""


def refuse_semantic(pool: Pool, settings: SemanticDuplicates) -> Pool:
    """The pool without pairs that mean the same as another of their cluster: `semantic_duplicate`, `of PAIR_ID`.

    The pair named is the one with the greatest cosine of those before it, and may be refused beside another itself.
    JobError where embeddings are not of one length.
    """
    from pipeline.all_pairs import meet  # here: a job is read without Ray

    drawn = _sample(pool, settings)
    if not len(drawn):
        return pool
    place = pool.work.child(_PLACE)
    _write_centroids(place, spherical_k_means(drawn, settings.clusters, settings.iterations))
    columns = ("pair_id", settings.column)
    spread = partial(_by_cluster, place=place, settings=settings)
    pool = meet(pool, STEP, columns, spread, partial(repeated_meanings, settings=settings))
    place.remove()
    return pool


def spherical_k_means(sample: Units, clusters: int, iterations: int) -> Exact:
    """(clusters, width) centroids of length 1 of whole numbers of 1/32767, fewer where the sample is smaller.

    It begins with the first rows of the sample, whose order is therefore what chance decides, and ends when no row
    moves. A cluster that loses all its rows keeps its centroid.
    """
    centroids = sample[:clusters].astype(np.float64)
    before = np.full(len(sample), -1)
    for _ in range(iterations):
        nearest, _ = nearest_centroids(sample, centroids)
        if np.array_equal(nearest, before):
            break
        sums = _sums(sample, nearest, len(centroids))
        moved, new = units(sums)
        centroids[moved] = new
        before = nearest
    return centroids


def units(vectors: npt.NDArray[np.floating]) -> tuple[Places, Units]:
    """The rows that have a direction, and those at length 1; none are zeros, infinite or NaN."""
    found, rows = [], []
    for start in range(0, len(vectors), _AT_ONCE):
        some = vectors[start : start + _AT_ONCE].astype(np.float64)
        greatest = np.abs(some).max(axis=1, initial=0)
        good = np.flatnonzero((greatest > 0) & np.isfinite(greatest))
        # Two steps, so that the length too is the root of an exact sum.
        fine = np.rint(some[good] / greatest[good, None] * _FINE)
        length = np.sqrt((fine * fine).sum(axis=1))
        found.append(np.rint(fine / length[:, None] * _ONE).astype(np.int16))
        rows.append(start + good)
    if not rows:
        return np.empty(0, np.int64), np.empty((0, vectors.shape[1]), np.int16)
    return np.concatenate(rows), np.concatenate(found)


def nearest_centroids(vectors: Units, centroids: Exact) -> tuple[Places, Exact]:
    """(vectors,) the cluster of each, the first of equally near ones, and (vectors,) the product with its centroid."""
    cluster, product = np.empty(len(vectors), np.int64), np.empty(len(vectors))
    at_once = max(1, min(_AT_ONCE, _PRODUCTS // len(centroids)))
    for start in range(0, len(vectors), at_once):
        products = vectors[start : start + at_once].astype(np.float64) @ centroids.T
        cluster[start : start + at_once] = best = products.argmax(axis=1)
        product[start : start + at_once] = products[np.arange(len(best)), best]
    return cluster, product


def _sums(vectors: Units, cluster: Places, clusters: int) -> Exact:
    sums = np.zeros((clusters, vectors.shape[1]))
    for start in range(0, len(vectors), _AT_ONCE):
        of = cluster[start : start + _AT_ONCE]
        order = np.argsort(of, kind="stable")
        present, begins = np.unique(of[order], return_index=True)
        sums[present] += np.add.reduceat(vectors[start : start + _AT_ONCE][order].astype(np.float64), begins)
    return sums


def repeated_meanings(met: pa.Table, settings: SemanticDuplicates) -> pa.Table:
    """The rows of `met` (cluster, product with its centroid, row, pair, vector) that are refused, as REFUSED."""
    row, cluster = np.asarray(met["row"]), np.asarray(met["cluster"])
    product = np.asarray(met["product"])
    order = np.lexsort((row, product if settings.keep == "hard" else -product, cluster))
    vectors = _matrix(met["vector"].combine_chunks(), np.int16)
    most = settings.max_similarity * _ONE * _ONE
    refused, of = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for members in np.split(order, np.flatnonzero(np.diff(cluster[order])) + 1):
        for begin, best, greatest in _greatest_before(vectors, members):
            over = np.flatnonzero(greatest > most)
            refused.append(members[begin + over])
            of.append(members[best[over]])
    worse, better = np.concatenate(refused), np.concatenate(of)
    columns = {
        "row": row[worse],
        "reason": pa.repeat(pa.scalar(REASON), len(worse)),
        "detail": pa.array([f"of {number:016x}" for number in np.asarray(met["pair"])[better].tolist()], pa.string()),
        "of": row[better],
    }
    return pa.table(columns, schema=REFUSED)


def _greatest_before(vectors: Units, members: Places) -> Iterator[tuple[int, Places, Exact]]:
    """A block of members at a time: its begin, the place of the first best among those before each, and its product.

    Not below 0, which stands for none.
    """
    side = int(_PRODUCTS**0.5)
    for begin in range(0, len(members), side):
        ours = vectors[members[begin : begin + side]].astype(np.float64)
        best, greatest = np.zeros(len(ours), np.int64), np.zeros(len(ours))
        for start in range(0, begin + 1, side):
            theirs = ours if start == begin else vectors[members[start : start + side]].astype(np.float64)
            products = ours @ theirs.T
            if start == begin:
                products = np.tril(products, -1)
            first = products.argmax(axis=1)
            of_first = products[np.arange(len(first)), first]
            better = of_first > greatest
            best[better], greatest[better] = start + first[better], of_first[better]
        yield begin, best, greatest


def _sample(pool: Pool, settings: SemanticDuplicates) -> Units:
    """At most `sample` embeddings, in the order of the hash that draws them."""
    from pipeline.all_pairs import over_spans  # here: a job is read without Ray

    columns = ("pair_id", settings.column)
    hashes, widths = np.empty(0, np.uint64), set()
    for more, width in over_spans(pool, columns, partial(_draw, settings=settings)):
        hashes = np.sort(np.concatenate([hashes, more]))[: settings.sample]
        widths |= width
    if len(widths) > 1:
        raise JobError(_mistake(settings, *sorted(widths)[:2]))
    if not len(hashes):
        return np.empty((0, 0), np.int16)
    found = np.zeros((len(hashes), widths.pop()), np.int16)
    for some, vectors in over_spans(pool, columns, partial(_drawn, last=hashes[-1], settings=settings)):
        if len(some):
            found[np.searchsorted(hashes, some)] = vectors
    return found


def _draw(pairs: pa.Table, settings: SemanticDuplicates) -> tuple[Numbers, set[int]]:
    """The least hashes of the rows of a span that have an embedding, and how long those are."""
    at, vectors = _embeddings(pairs, settings)
    return np.sort(_hashes(pairs, settings)[at])[: settings.sample], {vectors.shape[1]} if len(at) else set()


def _drawn(pairs: pa.Table, last: np.uint64, settings: SemanticDuplicates) -> tuple[Numbers, Units]:
    hashes = _hashes(pairs, settings)
    drawn = np.flatnonzero(hashes <= last)
    at, vectors = _embeddings(pairs.take(pa.array(drawn)), settings)
    return hashes[drawn[at]], vectors


def _hashes(pairs: pa.Table, settings: SemanticDuplicates) -> Numbers:
    return mixed(np.uint64(settings.seed), pair_numbers(pairs["pair_id"]))


def _by_cluster(pairs: pa.Table, place: Folder, settings: SemanticDuplicates) -> pa.Table:
    """Rows (key, cluster, product, row, pair, vector) of the pairs with an embedding."""
    centroids = _read_centroids(place)
    at, vectors = _embeddings(pairs, settings)
    if not len(at):
        vectors = np.empty((0, centroids.shape[1]), np.int16)
    cluster, product = nearest_centroids(vectors, centroids)
    columns = {
        "key": mixed(cluster.astype(np.uint64)),
        "cluster": cluster,
        "product": product,
        "row": np.asarray(pairs["row"])[at],
        "pair": pair_numbers(pairs["pair_id"])[at],
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]),
    }
    return pa.table(columns)


def _embeddings(pairs: pa.Table, settings: SemanticDuplicates) -> tuple[Places, Units]:
    """The places of rows with an embedding that has a direction, and those."""
    column = pairs[settings.column].combine_chunks()
    there = np.flatnonzero(column.is_valid())
    column = column.drop_null()
    lengths = np.unique(pc.list_value_length(column))
    if len(lengths) > 1 or lengths.max(initial=1) > _MOST_WIDE or lengths.min(initial=1) < 1:
        raise JobError(_mistake(settings, *lengths[:2].tolist()))
    at, found = units(_matrix(column, np.float32, int(lengths[0]) if len(lengths) else 1))
    return there[at], found


def _matrix(column: pa.Array, kind: type, width: int | None = None) -> npt.NDArray[Any]:
    """(rows, width) of lists without a null among them."""
    width = column.type.list_size if width is None else width
    values = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values, kind).reshape(len(column), width)


def _mistake(settings: SemanticDuplicates, *lengths: int) -> str:
    came = " and ".join(map(str, lengths))
    return (
        f"duplicates.semantic.column: expected vectors of one length from 1 to {_MOST_WIDE} in {settings.column}, "
        f"came {came}"
    )


def _write_centroids(place: Folder, centroids: Exact) -> None:
    content = io.BytesIO()
    np.save(content, centroids.astype(np.int16))
    place.write_bytes(_FILE, content.getvalue())


def _read_centroids(place: Folder) -> Exact:
    found: Exact = np.load(io.BytesIO(place.read_bytes(_FILE))).astype(np.float64)
    return found
