"""Pairs that mean the same are refused as the published procedure does it, whatever the tasks and the blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from small_pool import small_pool, verdicts_by_name

from pipeline.jobfile import JobError
from pipeline.keyed_hash import mixed
from pipeline.semantic_duplicates import (
    SemanticDuplicates,
    nearest_centroids,
    refuse_semantic,
    repeated_meanings,
    spherical_k_means,
    units,
)

Vectors = npt.NDArray[np.float64]
EMBEDDING = pa.schema([pa.field("embedding", pa.list_(pa.float32()))])


def meanings(count: int, width: int = 8, seed: int = 0) -> Vectors:
    """Vectors of some length, about a third of them near to another."""
    chance = np.random.default_rng(seed)
    found = chance.normal(size=(count, width))
    for row in range(count // 3):
        found[row] = found[-1 - row % 20] + chance.normal(size=width) * chance.uniform(0, 0.4)
    return np.asarray(chance.permutation(found) * chance.uniform(0.1, 30, (count, 1)))


def of_length_1(vectors: Vectors) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def published(
    vectors: Vectors, cluster: npt.NDArray[np.int64], centroids: Vectors, settings: SemanticDuplicates
) -> dict[int, int]:
    """Refused -> the most similar one before it: all products of a cluster at once, as the authors' code."""
    refused: dict[int, int] = {}
    for number in range(len(centroids)):
        rows = np.flatnonzero(cluster == number)
        distance = 1 - vectors[rows] @ centroids[number]
        rows = rows[np.argsort(-distance if settings.keep == "hard" else distance, kind="stable")]
        similarity = np.triu(vectors[rows] @ vectors[rows].T, 1)
        for at in np.flatnonzero(similarity.max(axis=0, initial=0) > settings.max_similarity):
            refused[int(rows[at])] = int(rows[similarity[:, at].argmax()])
    return refused


def decided(vectors: Vectors, settings: SemanticDuplicates) -> dict[int, int]:
    """Refused -> beside which, of vectors that are all of one sample."""
    _, held = units(vectors)
    centroids = spherical_k_means(held, settings.clusters, settings.iterations)
    cluster, product = nearest_centroids(held, centroids)
    rows = np.random.default_rng(0).permutation(len(vectors))  # tasks' rows come in any order
    met = pa.table(
        {"cluster": cluster[rows], "product": product[rows], "row": rows, "pair": rows.astype(np.uint64),
         "vector": pa.FixedSizeListArray.from_arrays(pa.array(held[rows].reshape(-1)), held.shape[1])}
    )  # fmt: skip
    found = repeated_meanings(met, settings).to_pylist()
    assert all(row["detail"] == f"of {row['of']:016x}" for row in found)
    return {row["row"]: row["of"] for row in found}


@pytest.mark.parametrize("keep", ["hard", "easy"])
@pytest.mark.parametrize(("clusters", "max_similarity"), [(1, 0.9), (7, 0.95), (7, 0.0), (40, 0.99)])
def test_what_the_published_procedure_refuses_is_refused(keep: str, clusters: int, max_similarity: float) -> None:
    settings = SemanticDuplicates(clusters=clusters, max_similarity=max_similarity, keep=keep)  # type: ignore[arg-type]
    vectors = of_length_1(meanings(300))
    centroids = of_length_1(spherical_k_means(units(vectors)[1], clusters, settings.iterations))
    expected = published(vectors, (vectors @ centroids.T).argmax(axis=1), centroids, settings)
    assert len(expected) > 10
    assert decided(vectors, settings) == expected


def test_one_that_is_refused_still_refuses_others() -> None:
    at = np.radians([0, 10, 20, 30, 75])
    arc = np.column_stack([np.cos(at), np.sin(at)])
    hard = SemanticDuplicates(clusters=1, max_similarity=float(np.cos(np.radians(11))))
    assert decided(arc, hard) == {1: 0, 2: 1, 3: 2}, "read from 75 and 0 degrees to the centroid, at 27"
    assert decided(arc, hard.model_copy(update={"keep": "easy"})) == {2: 3, 1: 2, 0: 1}


@pytest.mark.parametrize("products", [30, 500])
def test_blocks_decide_nothing(monkeypatch: pytest.MonkeyPatch, products: int) -> None:
    settings = SemanticDuplicates(clusters=3, max_similarity=0.9)
    whole = decided(meanings(200), settings)
    monkeypatch.setattr("pipeline.semantic_duplicates._PRODUCTS", products)
    monkeypatch.setattr("pipeline.semantic_duplicates._AT_ONCE", 11)
    assert decided(meanings(200), settings) == whole != {}


def test_k_means_is_that_of_plain_numbers() -> None:
    vectors = of_length_1(meanings(500, seed=4))
    centroids = vectors[:12]
    for _ in range(50):
        nearest = (vectors @ centroids.T).argmax(axis=1)
        centroids = of_length_1(np.array([vectors[nearest == number].sum(axis=0) for number in range(12)]))
    ours = spherical_k_means(units(vectors)[1], 12, 50)
    np.testing.assert_allclose(ours / 32767, centroids, atol=1e-4)


def test_a_cluster_without_rows_keeps_its_centroid_and_there_are_no_more_than_rows() -> None:
    _, twins = units(np.array([[1.0, 0], [1, 0], [0, 1], [0.1, 1]]))
    found = spherical_k_means(twins, 3, 5)
    assert found[1].tolist() == [32767, 0], "both twins are in the first"
    assert len(spherical_k_means(twins, 9, 5)) == 4


def test_vectors_without_a_direction_have_no_unit() -> None:
    at, found = units(np.array([[0.0, 0], [3, 4], [np.nan, 1], [1, np.inf], [0, -2e-30]]))
    assert at.tolist() == [1, 4]
    assert found.tolist() == [[19660, 26214], [0, -32767]]
    at, found = units(np.empty((0, 5)))
    assert (len(at), found.shape) == (0, (0, 5))


def row(number: int, embedding: Any, **more: Any) -> dict[str, Any]:
    return {"pair_id": f"{number:016x}", "embedding": embedding, **more}


@pytest.mark.usefixtures("ray_session")
def test_tasks_refuse_what_the_published_procedure_refuses(tmp_path: Path) -> None:
    vectors = meanings(150).astype(np.float32)
    rows = [row(number, vector.tolist()) for number, vector in enumerate(vectors)]
    rows += [row(150, None), row(151, [0.0] * 8), row(152, vectors[0].tolist(), step="language", reason="other")]
    settings = SemanticDuplicates(clusters=5, sample=60, max_similarity=0.9)
    found = {}
    for shards_per_span in (1, 50):
        pool = small_pool(tmp_path / str(shards_per_span), rows, EMBEDDING, 40, shards_per_span)
        pool = refuse_semantic(pool, settings)
        found[shards_per_span] = verdicts_by_name(pool)
        assert pool.work.names("met/") == pool.work.names("semantic_duplicates/") == []
    assert found[1] == found[50]
    plain = of_length_1(vectors.astype(np.float64))
    drawn = np.argsort(mixed(np.uint64(settings.seed), np.arange(150, dtype=np.uint64)))[: settings.sample]
    centroids = of_length_1(spherical_k_means(units(vectors[drawn])[1], 5, settings.iterations))
    expected = published(plain, (plain @ centroids.T).argmax(axis=1), centroids, settings)
    verdicts = {int(name, 16): verdict for name, verdict in found[1].items()}
    assert verdicts.pop(152) == ("other", None)
    assert len(expected) > 20
    assert verdicts == {
        number: ("semantic_duplicate", f"of {expected[number]:016x}") if number in expected else (None, None)
        for number in range(152)
    }


@pytest.mark.usefixtures("ray_session")
def test_pools_without_embeddings_stay_and_uneven_ones_are_a_mistake(tmp_path: Path) -> None:
    none = small_pool(tmp_path / "none", [row(number, None) for number in range(4)], EMBEDDING)
    assert refuse_semantic(none, SemanticDuplicates()) == none
    uneven = [row(number, [1.0] * (2 + number // 3)) for number in range(6)]
    wanted = "duplicates.semantic.column: expected vectors of one length .* in embedding, came 2 and 3"
    for shards_per_span in (1, 2):
        pool = small_pool(tmp_path / str(shards_per_span), uneven, EMBEDDING, 3, shards_per_span)
        with pytest.raises(JobError, match=wanted):
            refuse_semantic(pool, SemanticDuplicates())
