"""Training of a head, an epoch at a time: on vectors that are there already, or together with a copy of the towers.

An epoch is a function of what the one before left and of nothing else. So it may be carried out on any machine, again
if it was lost, and a training that was interrupted goes on from the last epoch that its folder holds and ends as if it
had not been.
"""

from __future__ import annotations

import copy
import logging
import math
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize

from hiclip.batch import trim_padding
from hiclip.data.images import ImageError, eval_transform, normalise
from hiclip.data.permutation import Permutation, derive_key
from hiclip.data.tokenizer import Tokenizer
from hiclip.evaluation.blocks import MapBlocks
from hiclip.evaluation.embed import Embedder, Vectors, embed_pictures, embed_texts
from hiclip.evaluation.heads.fusion_head import FusionHead
from hiclip.evaluation.heads.head_settings import HeadTraining
from hiclip.evaluation.heads.head_task import HeadTask, Questions
from hiclip.evaluation.retrieval import IntArray
from hiclip.model.two_towers import TwoTowers
from hiclip.training.checkpoint import local_files
from hiclip.training.optimizer import OptimizerSettings, optimizer_state, parameter_groups, set_optimizer_state
from hiclip.training.schedule import ScheduleSettings, rate_factor_of_step
from pipeline.jobfile import JobError, Settings
from pipeline.manifest import DatasetError
from pipeline.storage import Folder, StorageError

log = logging.getLogger(__name__)

PROGRESS = "progress.json"
"""Written last after every epoch: what it names is whole."""


@dataclass(frozen=True)
class Features:
    """Vectors of some pictures and texts of a task."""

    picture_rows: IntArray
    """(P,) numbers of the pictures, ascending."""
    images: Vectors | None
    """(P, E); NaN for a picture that cannot be read; None where the head looks at no picture."""
    text_rows: IntArray
    """(T,) likewise."""
    texts: Vectors | None
    """(T, E)"""

    def image(self, pictures: IntArray) -> Vectors | None:
        """(B,) pictures -> (B, E)."""
        return None if self.images is None else self.images[np.searchsorted(self.picture_rows, pictures)]

    def text(self, texts: IntArray) -> Vectors | None:
        """(B,) texts -> (B, E)."""
        return None if self.texts is None else self.texts[np.searchsorted(self.text_rows, texts)]


class EpochRow(Settings):
    """What became of one epoch."""

    loss: float
    """Mean over the questions that were learnt."""
    learnt: int
    """Questions; the pictures of the others cannot be read."""
    choose: float
    """Accuracy on the questions that choose the epoch."""
    seconds: float


class Progress(Settings):
    """How far a training is."""

    epochs: list[EpochRow]

    @property
    def best(self) -> int:
        """Number, from 1, of the first of the epochs that did best."""
        return 1 + int(np.argmax([row.choose for row in self.epochs]))


@dataclass(frozen=True)
class TrainingState:
    """What an epoch leaves for the next one."""

    epoch: int
    """Epochs done."""
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]


@dataclass(frozen=True)
class LearntEpoch:
    """What one epoch did."""

    state: TrainingState
    loss: float
    """Mean over the questions that were learnt."""
    questions: int
    """How many they were."""


@dataclass(frozen=True)
class Training:
    """What all epochs share."""

    label: str
    task: HeadTask
    settings: HeadTraining
    embedder: Embedder
    """The towers as they were given and how to compute; no training changes them."""
    features: Features | None
    """Of all pictures and texts; None: the towers are trained."""
    seed: int


class AnswerModel(nn.Module):
    """The head, and the towers if they learn with it."""

    def __init__(self, training: Training) -> None:
        super().__init__()
        settings, task = training.settings, training.task
        sizes = training.embedder.sizes
        self.head = FusionHead(sizes.embedding, settings.hidden, settings.dropout, len(task.answers), settings.inputs)
        self.towers: TwoTowers | None = copy.deepcopy(training.embedder.towers) if training.features is None else None

    def train(self, mode: bool = True) -> AnswerModel:
        """The head's dropout on or off; the towers stay as they are evaluated (running means of a ResNet)."""
        self.training = mode
        self.head.train(mode)
        return self


def head_task_features(
    embedder: Embedder,
    task: HeadTask,
    settings: HeadTraining,
    questions: list[Questions],
    batch: int,
    map_blocks: MapBlocks,
    what: str,
) -> Features:
    """Vectors of all that some questions are about, each picture and text once; only the sides that a head is shown."""
    picture_rows = np.unique(np.concatenate([part.pictures for part in questions]))
    text_rows = np.unique(np.concatenate([part.texts for part in questions]))
    images, texts = None, None
    if settings.inputs != "text":
        shown = [(task.pictures, picture_rows)]
        (embedded,) = embed_pictures(embedder, shown, batch, map_blocks, f"{what}: pictures")
        images = embedded.vectors
    if settings.inputs != "image":
        said = [task.texts[row] for row in text_rows.tolist()]
        texts = embed_texts(embedder, said, batch, map_blocks, f"{what}: texts")
    return Features(picture_rows, images, text_rows, texts)


def answers_of(head: FusionHead, features: Features, questions: Questions) -> IntArray:
    """(Q,) the answer to each question, -1 where its picture cannot be read. On the CPU, without dropout."""
    head = copy.deepcopy(head).cpu().eval()
    guesses = np.full(len(questions), -1, dtype=np.int64)
    with torch.inference_mode():
        for first in range(0, len(questions), 4096):
            places = np.arange(first, min(first + 4096, len(questions)))
            image = features.image(questions.pictures[places])
            known = np.arange(len(places)) if image is None else np.flatnonzero(~np.isnan(image[:, 0]))
            text = features.text(questions.texts[places])
            if len(known):
                logits = head(*(None if side is None else torch.from_numpy(side[known]) for side in (image, text)))
                guesses[places[known]] = logits.argmax(dim=-1).numpy()
    return guesses


def train_head(training: Training, batch: int, map_blocks: MapBlocks, place: Folder) -> tuple[AnswerModel, Progress]:
    """All epochs; -> the model as the best of them left it. `batch`: pictures and texts that are embedded together.

    What lies in `place` is gone on from. JobError if the loss stops being a number.
    """
    progress, state = _resumed(place) or (Progress(epochs=[]), _first_state(training))
    epochs = training.settings.epochs
    while state.epoch < epochs:
        began = time.monotonic()
        what = f"{training.label}: epoch {state.epoch + 1} of {epochs}"
        (learnt,) = map_blocks(train_epoch, training, [state], what)
        state = learnt.state
        accuracy = _accuracy(training, state, batch, map_blocks, what)
        row = EpochRow(
            loss=learnt.loss,
            learnt=learnt.questions,
            choose=accuracy,
            seconds=round(time.monotonic() - began, 3),
        )
        progress = Progress(epochs=[*progress.epochs, row])
        log.info("%s: loss %.4f, accuracy %.4f on the questions that choose", what, row.loss, accuracy)
        _store(place, state, progress)
    return _model(training, _read(place, _file("best", progress.best))), progress


def train_epoch(training: Training, state: TrainingState) -> LearntEpoch:
    """One epoch on the embedder's device; what it leaves is on the CPU. Nothing that was given is changed.

    JobError if the loss stops being a number, DatasetError if no picture can be read.
    """
    settings, embedder, count = training.settings, training.embedder, len(training.task.train)
    steps = -(-count // settings.batch)
    pairs = settings.epochs * steps * settings.batch
    schedule = ScheduleSettings(pairs=pairs, warmup_pairs=round(settings.warmup * pairs))
    threads = torch.get_num_threads()
    cuda = [torch.cuda.current_device()] if embedder.device == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        try:
            torch.set_num_threads(embedder.threads)
            model = _model(training, state.model).to(embedder.device).train()
            optimizer, rates = _optimizer(model, settings)
            set_optimizer_state(optimizer, model, state.optimizer)
            torch.manual_seed(derive_key(training.seed, "head dropout", state.epoch) >> 1)
            key = np.array([derive_key(training.seed, "head order", state.epoch)], dtype=np.uint64)
            order = Permutation(count).forward(np.arange(count, dtype=np.uint64), key).astype(np.int64)
            total, learnt = torch.zeros((), dtype=torch.float64, device=embedder.device), 0
            for number, (questions, image, text) in enumerate(_batches(training, model, order)):
                factor = rate_factor_of_step(schedule, state.epoch * steps + number, settings.batch)
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
                if not len(questions):
                    continue
                loss = _loss(training, model.head(image, text), questions)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                if settings.clip_norm is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
                optimizer.step()
                total += loss.detach() * len(questions)
                learnt += len(questions)
            if not learnt:
                name = training.task.pictures.names()[int(training.task.train.pictures[0])]
                raise DatasetError(
                    f"{training.label}: no picture of the training questions can be read, such as {name}"
                )
            if not math.isfinite(float(total)):
                raise JobError(
                    f"{training.label}: the loss of epoch {state.epoch + 1} is no number; learning_rate: expected "
                    f"a smaller one, came {settings.learning_rate:g}"
                )
            left = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
            after = TrainingState(state.epoch + 1, left, optimizer_state(optimizer, model))
        finally:
            torch.set_num_threads(threads)
    return LearntEpoch(after, float(total) / learnt, learnt)


def _loss(training: Training, logits: Tensor, questions: IntArray) -> Tensor:
    worths = training.task.train.worths.table(questions, len(training.task.answers))
    targets = torch.from_numpy(worths).to(logits.device)
    if training.task.loss == "cross_entropy":
        return cross_entropy(logits.float(), targets)
    # Summed over answers: their number is no reason to learn less from each question.
    return binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum") / len(questions)


def _optimizer(model: AnswerModel, settings: HeadTraining) -> tuple[torch.optim.AdamW, list[float]]:
    """AdamW and the full rate of each of its groups."""
    groups = parameter_groups(model.head, settings.weight_decay)
    rates = [settings.learning_rate] * len(groups)
    if model.towers is not None:
        groups += parameter_groups(model.towers, settings.weight_decay)
        rates += [settings.tower_learning_rate] * (len(groups) - len(rates))
    known = OptimizerSettings()
    return torch.optim.AdamW(groups, betas=known.betas, eps=known.eps, fused=True), rates


Step = tuple[IntArray, Tensor | None, Tensor | None]
"""Questions whose pictures can be read, and the vectors of both sides, (B, E) each; None for a side not shown."""


def _batches(training: Training, model: AnswerModel, order: IntArray) -> Iterator[Step]:
    asked, size = training.task.train, training.settings.batch
    cuts = [order[first : first + size] for first in range(0, len(order), size)]
    if training.features is not None:
        for rows in cuts:
            yield _known_batch(training, training.features, asked, rows)
        return
    assert model.towers is not None
    with ThreadPoolExecutor(max(1, training.embedder.threads)) as readers, ThreadPoolExecutor(1) as ahead:
        # The next batch is read while this one is learnt.
        waiting = [ahead.submit(_read_batch, training, rows, readers) for rows in cuts[:1]]
        for number in range(len(cuts)):
            read = waiting.pop().result()
            waiting += [ahead.submit(_read_batch, training, rows, readers) for rows in cuts[number + 1 : number + 2]]
            yield _tower_batch(training, model.towers, read)


def _known_batch(training: Training, features: Features, asked: Questions, rows: IntArray) -> Step:
    image, text = features.image(asked.pictures[rows]), features.text(asked.texts[rows])
    known = np.arange(len(rows)) if image is None else np.flatnonzero(~np.isnan(image[:, 0]))
    sides = [
        None if side is None else torch.from_numpy(side[known]).to(training.embedder.device) for side in (image, text)
    ]
    return rows[known], sides[0], sides[1]


@dataclass(frozen=True)
class _ReadBatch:
    """Questions with readable pictures, as the towers take them: each picture and text once."""

    questions: IntArray
    pixels: Tensor | None
    picture_of: IntArray
    tokens: Tensor | None
    text_of: IntArray


def _read_batch(training: Training, rows: IntArray, readers: ThreadPoolExecutor) -> _ReadBatch:
    task, embedder, inputs = training.task, training.embedder, training.settings.inputs
    sizes, pixels = embedder.sizes, None
    picture_of = np.zeros(len(rows), dtype=np.int64)
    if inputs != "text":
        numbers, place = np.unique(task.train.pictures[rows], return_inverse=True)
        shown = list(readers.map(lambda data: _pixels(embedder, data), task.pictures.read(numbers.tolist())))
        readable = np.array([one is not None for one in shown])
        kept = readable[place]
        rows, picture_of = rows[kept], (np.cumsum(readable) - 1)[place[kept]]
        if readable.any():
            pixels = torch.from_numpy(np.stack([one for one in shown if one is not None]))
    tokens, text_of = None, np.zeros(len(rows), dtype=np.int64)
    if inputs != "image" and len(rows):
        numbers, text_of = np.unique(task.train.texts[rows], return_inverse=True)
        encoded = Tokenizer(sizes.context).encode([task.texts[number] for number in numbers.tolist()])
        tokens = trim_padding(torch.from_numpy(encoded))
    return _ReadBatch(rows, pixels, picture_of, tokens, text_of)


def _pixels(embedder: Embedder, data: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | None:
    try:
        return eval_transform(data, embedder.sizes.image_px, embedder.centre_crop)
    except ImageError:
        return None


def _tower_batch(training: Training, towers: TwoTowers, read: _ReadBatch) -> Step:
    device = training.embedder.device
    image, text = None, None
    with torch.autocast(device, dtype=torch.bfloat16, enabled=training.embedder.precision == "bf16"):
        if read.pixels is not None:
            image = towers.image_tower(normalise(read.pixels.to(device))).vector
        if read.tokens is not None:
            text = towers.text_tower(read.tokens.to(device)).vector
    if image is not None:
        image = normalize(image.float(), dim=-1)[torch.from_numpy(read.picture_of).to(device)]
    if text is not None:
        text = normalize(text.float(), dim=-1)[torch.from_numpy(read.text_of).to(device)]
    return read.questions, image, text


def _accuracy(training: Training, state: TrainingState, batch: int, map_blocks: MapBlocks, what: str) -> float:
    task, model = training.task, _model(training, state.model)
    features = features_after(training, model, [task.choose], batch, map_blocks, what)
    return float(task.choose.worths.of(answers_of(model.head, features, task.choose)).mean())


def features_after(
    training: Training,
    model: AnswerModel,
    questions: list[Questions],
    batch: int,
    map_blocks: MapBlocks,
    what: str,
) -> Features:
    """Vectors of what the questions are about, of the towers that were trained or of those that are frozen."""
    if training.features is not None:
        return training.features
    assert model.towers is not None
    embedder = replace(training.embedder, towers=model.towers)
    return head_task_features(embedder, training.task, training.settings, questions, batch, map_blocks, what)


def _model(training: Training, tensors: dict[str, Tensor]) -> AnswerModel:
    model = AnswerModel(training)
    model.load_state_dict(tensors)
    return model


def _first_state(training: Training) -> TrainingState:
    """The towers as given; each answer starts at its share in training, which takes thousands of steps to learn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_key(training.seed, "head weights") >> 1)
        model = AnswerModel(training)
    task = training.task
    common = task.train.worths.by_answer(len(task.answers))
    share = torch.from_numpy((common + 0.5) / (len(task.train) + 1.0)).float().clamp(max=0.99)
    with torch.no_grad():
        model.head.answer.bias.copy_(torch.log(share) if task.loss == "cross_entropy" else torch.logit(share))
    return TrainingState(0, {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}, {})


def _store(place: Folder, state: TrainingState, progress: Progress) -> None:
    """The state, the best model if it is this one's, the progress; then what they replace goes."""
    kept = {_file("last", state.epoch), _file("best", progress.best), PROGRESS}
    tensors = {f"model.{name}": tensor for name, tensor in state.model.items()}
    tensors |= {f"optimizer.{name}": tensor for name, tensor in state.optimizer.items()}
    place.make()
    _write(place, _file("last", state.epoch), tensors)
    if progress.best == state.epoch:
        _write(place, _file("best", state.epoch), state.model)
    place.write_text(PROGRESS, progress.model_dump_json(indent=1) + "\n")
    for name in set(place.names(suffix=".safetensors")) - kept:
        place.remove(name)


def _resumed(place: Folder) -> tuple[Progress, TrainingState] | None:
    """Where the training that `place` holds stands; None if it holds none that is whole."""
    if not place.exists(PROGRESS):
        return None
    try:
        progress = Progress.model_validate_json(place.read_text(PROGRESS))
        done = len(progress.epochs)
        tensors = _read(place, _file("last", done))
        _read(place, _file("best", progress.best))
    except (ValidationError, SafetensorError, StorageError) as error:
        log.warning("%s is not what it should be and is trained again: %s", place.root, str(error).splitlines()[0])
        return None
    log.info("%s: %d epochs were done before an interruption", place.root, done)

    def part(name: str) -> dict[str, Tensor]:
        return {key.removeprefix(name): tensor for key, tensor in tensors.items() if key.startswith(name)}

    return progress, TrainingState(done, part("model."), part("optimizer."))


def _file(kind: str, epoch: int) -> str:
    return f"{kind}-{epoch:04d}.safetensors"


def _write(place: Folder, name: str, tensors: dict[str, Tensor]) -> None:
    with tempfile.TemporaryDirectory(prefix="hiclip-head-") as local:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, f"{local}/{name}")
        place.upload(f"{local}/{name}", name)


def _read(place: Folder, name: str) -> dict[str, Tensor]:
    with local_files(place, [name]) as here:
        tensors: dict[str, Tensor] = load_file(here / name)
        return tensors
