"""DeCLIP's objective with real towers: its parts, which settings make it CLIP, and that it resumes with its queue."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_dataset import small_dataset
from small_run import random_batch, random_batches, small_job
from torch import Tensor
from two_ranks import run_on_ranks

from hiclip.batch import MASK_TOKEN, Batch, Views
from hiclip.distributed import mean_over_ranks, rank, world
from hiclip.losses.contrastive import contrastive_loss
from hiclip.losses.neighbour_queue import neighbour_loss
from hiclip.model.sizes import ModelSettings
from hiclip.model.two_towers import TwoTowers
from hiclip.objectives.clip import ClipSettings
from hiclip.objectives.declip import DeclipObjective, DeclipSettings
from hiclip.pretrain import stream_plan
from hiclip.training.checkpoint import newest_checkpoint, read_checkpoint
from hiclip.training.history import StepRow
from hiclip.training.pretrain_job import PretrainJob
from hiclip.training.rank_run import run_rank
from hiclip.training.saving import RunPlace
from hiclip.training.this_process import run_here
from pipeline.jobfile import JobError

MODEL = ModelSettings(width=64, depth=2, image_px=16, patch_px=8, context=8, embedding=16, vocabulary=MASK_TOKEN + 1)
PAIRS, QUEUE = 8, 20
SETTINGS = DeclipSettings(queue=QUEUE)
ONLY_CLIP = DeclipSettings(clip=1, image_self=0, masked_words=0, neighbours=0)


def towers_and(settings: DeclipSettings) -> tuple[TwoTowers, DeclipObjective]:
    torch.manual_seed(0)
    return TwoTowers(MODEL).double(), settings.build(MODEL).double()


def batch_of(views: Views) -> Batch:
    batch = random_batch(views, PAIRS, torch.Generator().manual_seed(1))
    return replace(batch, images={view: images.double() for view, images in batch.images.items()})


def test_with_the_contrastive_weight_alone_and_equal_views_it_is_clip() -> None:
    towers, objective = towers_and(ONLY_CLIP)
    plain = batch_of(Views(("crop",), ("caption",)))
    picture, caption = plain.images["crop"], plain.tokens["caption"]
    same = replace(plain, images={"view_1": picture, "view_2": picture}, tokens={"caption": caption, "eda": caption})
    losses = objective(towers, same)
    assert list(losses) == ["clip"]
    torch.testing.assert_close(losses["clip"], ClipSettings().build(MODEL)(towers, plain)["contrastive"])
    assert list(objective.parameters()) == []
    assert list(objective.buffers()) == []


def test_the_four_losses_are_all_pairs_of_views() -> None:
    towers, objective = towers_and(ONLY_CLIP)
    batch = batch_of(ONLY_CLIP.views)
    images = [towers.image_tower(batch.images[view]).vector for view in ("view_1", "view_2")]
    texts = [towers.text_tower(batch.tokens[view]).vector for view in ("caption", "eda")]
    four = [contrastive_loss(image, text, towers.logit_scale()) for image in images for text in texts]
    torch.testing.assert_close(objective(towers, batch)["clip"], sum(four) / 4)


def test_all_parts_are_weighted_and_named() -> None:
    towers, objective = towers_and(SETTINGS)
    batch = batch_of(SETTINGS.views)
    losses = objective.eval()(towers, batch)  # the queue stays for the next look
    doubled = DeclipSettings(clip=0.8, image_self=0.4, masked_words=0.4, neighbours=0.4, queue=QUEUE)
    _, heavier = towers_and(doubled)
    assert list(losses) == ["clip", "image_self", "masked_words", "neighbours"]
    for name, loss in heavier.eval()(towers, batch).items():
        torch.testing.assert_close(loss, 2 * losses[name])
    for name, left_out in (("image_self", {"image_self": 0.0}), ("neighbours", {"neighbours": 0.0})):
        _, without = towers_and(replace(SETTINGS, **left_out))  # type: ignore[arg-type]
        assert name not in without(towers, batch)


def test_words_are_guessed_from_the_masked_text_and_the_words_before() -> None:
    towers, objective = towers_and(SETTINGS)
    batch = batch_of(SETTINGS.views)
    head = objective.self_supervision.masked_words
    assert head is not None
    tokens = towers.text_tower(batch.tokens["masked"], all_tokens=True).tokens
    assert tokens is not None
    targets = batch.tokens["masked_targets"]
    logits = head.head(tokens[:, [1, 3]]).flatten(0, 1)
    expected = F.cross_entropy(logits, targets[:, [1, 3]].flatten())
    torch.testing.assert_close(objective(towers, batch)["masked_words"], 0.2 * expected)


def test_neighbours_are_looked_for_before_the_texts_enter_and_edas_enters_first() -> None:
    towers, objective = towers_and(SETTINGS)
    batch = batch_of(SETTINGS.views)
    queue = objective.self_supervision.queue
    assert queue is not None
    before, encoded = queue.vectors.clone(), objective.encode(towers, batch)
    near = [before[(F.normalize(encoded[view], dim=1) @ before.T).argmax(dim=1)] for view in ("masked", "eda")]
    four = [
        neighbour_loss(encoded[image], found, towers.logit_scale()) for image in ("view_1", "view_2") for found in near
    ]
    losses = objective.losses(encoded, batch, towers.logit_scale())
    torch.testing.assert_close(losses["neighbours"], 0.2 * sum(four) / 4)
    torch.testing.assert_close(queue.vectors[:PAIRS], F.normalize(encoded["eda"], dim=1))
    torch.testing.assert_close(queue.vectors[PAIRS : 2 * PAIRS], F.normalize(encoded["masked"], dim=1))
    assert (queue.vectors[2 * PAIRS :] == before[2 * PAIRS :]).all()
    objective.eval()
    objective.losses(encoded, batch, towers.logit_scale())
    assert queue.oldest.item() == 2 * PAIRS


@pytest.mark.parametrize(
    ("settings", "texts"),
    [
        (SETTINGS, ("masked", "eda", "masked_targets")),
        (DeclipSettings(masked_text="eda"), ("caption", "masked_eda", "masked_eda_targets")),
        (DeclipSettings(masked_words=0), ("caption", "eda")),
        (DeclipSettings(masked_words=0, masked_text="eda"), ("caption", "eda")),
    ],
)
def test_which_text_is_masked(settings: DeclipSettings, texts: tuple[str, ...]) -> None:
    assert settings.views == Views(("view_1", "view_2"), texts)
    assert len(settings.views.captions) == 2
    towers, objective = towers_and(replace(settings, queue=QUEUE))
    losses = objective(towers, batch_of(settings.views))
    assert ("masked_words" in losses) == (len(texts) == 3)


def test_presets_are_starting_points() -> None:
    assert vars(DeclipSettings().numbers) == {"clip": 0.4, "image_self": 0.2, "masked_words": 0.2, "neighbours": 0.2}
    assert DeclipSettings(weights="paper").numbers.clip == 0.6
    assert DeclipSettings(weights="code_88m").numbers == DeclipSettings(clip=0.6).numbers
    assert DeclipSettings(neighbours=0).numbers.neighbours == 0


@pytest.mark.parametrize("block_pairs", [None, 3])
def test_encoding_in_parts_is_encoding_at_once(block_pairs: int | None) -> None:
    towers, objective = towers_and(replace(SETTINGS, block_pairs=block_pairs))
    batch = batch_of(SETTINGS.views)
    parts = [objective.encode(towers, batch.part(first, first + 2)) for first in range(0, PAIRS, 2)]
    encoded = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    objective.eval()
    torch.testing.assert_close(objective.losses(encoded, batch, towers.logit_scale()), objective(towers, batch))


def losses_and_gradients() -> tuple[dict[str, float], dict[str, Tensor]]:
    """Two steps of this rank's share; the second's losses and gradients averaged over ranks. Without SimSiam, whose
    batch norm sees the pairs of its rank."""
    towers, objective = towers_and(replace(SETTINGS, image_self=0.0))
    whole = batch_of(SETTINGS.views)
    whole.tokens["masked_targets"][0] = -100  # so that ranks have unequally many words to guess
    batch = whole.part(rank() * PAIRS // world(), (rank() + 1) * PAIRS // world())
    objective(towers, batch)
    losses = objective(towers, batch)
    torch.stack(list(losses.values())).sum().backward()
    modules = {**dict(towers.named_parameters()), **dict(objective.named_parameters())}
    gradients = {name: mean_over_ranks(p.grad) for name, p in modules.items() if p.grad is not None}
    large = {name: gradient for name, gradient in gradients.items() if gradient.numel() < 100_000}
    return {name: float(mean_over_ranks(loss)) for name, loss in losses.items()}, large


def test_two_ranks_train_as_one_process_does() -> None:
    losses_alone, gradients_alone = losses_and_gradients()
    assert list(losses_alone) == ["clip", "masked_words", "neighbours"]
    for losses, gradients in run_on_ranks(2, losses_and_gradients):
        assert losses == pytest.approx(losses_alone, rel=1e-11)
        torch.testing.assert_close(gradients, gradients_alone, rtol=1e-8, atol=1e-12)


def small_declip(out: str) -> PretrainJob:
    """7 steps; a queue of 20 that 16 texts a step run round."""
    return small_job(
        out,
        objective={"name": "declip", "queue": QUEUE},
        model={"vocabulary": MASK_TOKEN + 1},
        schedule={"pairs": 56},
        checkpoints={"every_pairs": 24},
    )


def run(job: PretrainJob, newest: str | None = None, stop_before: int | None = None) -> list[StepRow]:
    rows: list[StepRow] = []

    def batches(first_step: int) -> Iterator[Batch]:
        for step, batch in enumerate(random_batches(job, first_step), first_step):
            if step == stop_before:
                raise KeyboardInterrupt
            yield batch

    run_rank(job, RunPlace(job.out, "fingerprint of the data", None), newest, batches, rows.append)
    return rows


def test_a_run_resumes_bit_for_bit_with_its_queue_and_heads(tmp_path: Path) -> None:
    whole, broken = small_declip(str(tmp_path / "whole")), small_declip(str(tmp_path / "broken"))
    undisturbed = run(whole)
    with pytest.raises(KeyboardInterrupt):
        run(broken, stop_before=5)
    resumed = run(broken, newest_checkpoint(broken.out))
    assert [(row.seen, row.loss, row.parts) for row in resumed] == [
        (row.seen, row.loss, row.parts) for row in undisturbed[3:]
    ]
    weights, expected = (read_checkpoint(job.out).weights() for job in (broken, whole))
    assert all((weights[name] == tensor).all() for name, tensor in expected.items())
    prefix = "objective.self_supervision"
    assert expected[f"{prefix}.queue.vectors"].shape == (QUEUE, 64)
    assert expected[f"{prefix}.queue.oldest"].tolist() == [7 * 16 % QUEUE]
    assert f"{prefix}.masked_words.head.weight" in expected


def test_it_trains_on_a_dataset_through_its_views_and_resumes(tmp_path: Path) -> None:
    """Real pictures and captions, augmented, shuffled and masked in this process."""
    small_dataset(tmp_path / "data", pairs=32)
    job = small_declip(str(tmp_path / "run"))
    job = job.model_copy(update={"data": job.data.model_copy(update={"dataset": str(tmp_path / "data")})})
    plan, rows = stream_plan(job), list[StepRow]()
    place = RunPlace(job.out, plan.fingerprint, None)
    run_here(job, place, plan, rows.append)
    assert [row.seen for row in rows] == [8, 16, 24, 32, 40, 48, 56]
    assert set(rows[0].parts) == {"clip", "image_self", "masked_words", "neighbours"}
    (tmp_path / "run/checkpoints/seen-000000000056/COMPLETE").unlink()  # as if it had been killed while saving
    again: list[StepRow] = []
    run_here(job, place, plan, again.append)
    assert [row.parts for row in again] == [row.parts for row in rows[6:]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "model.vocabulary: expected 49409 with objective declip, whose masks are token 49408, came 49408"),
        ({"masked_words": 0, "queue": 0}, "objective.queue: expected at least 1, came 0"),
        ({"clip": -1}, "clip: expected 0 or more, came -1"),
        ({"clip": 0, "neighbours": 0}, "objective.clip, objective.neighbours: expected one above 0, for without it"),
        (
            {"weights": "papers"},
            "objective.weights: expected code_yfcc15m, code_88m or paper, came 'papers'; did you mean 'paper'?",
        ),
        ({"quee": 1}, "objective.quee: no such key; did you mean 'queue'?"),
    ],
)
def test_mistakes_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(JobError) as caught:
        small_job("out", objective={"name": "declip", **changes})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_worker_with_one_pair_is_refused() -> None:
    with pytest.raises(JobError, match=r"data\.batch: expected two pairs or more a worker with objective declip"):
        small_job(
            "out",
            objective={"name": "declip"},
            model={"vocabulary": MASK_TOKEN + 1},
            workers={"count": 8},
            engine={"name": "deepspeed"},
        )
