"""Pictures and captions become unit vectors, a batch at a time, by the towers of one checkpoint.

A vector depends on its batch in the last bits (matrix products are cut by shape), so batches are cut by place in the
set and never by how many tasks share the work, and each is computed by one thread unless the job says otherwise.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hiclip.batch import trim_padding
from hiclip.data.images import CENTRE_CROP, ImageError, eval_transform, normalise
from hiclip.data.tokenizer import Tokenizer
from hiclip.evaluation.blocks import MapBlocks, cut
from hiclip.evaluation.retrieval import IntArray
from hiclip.evaluation.set_pictures import SetPictures
from hiclip.model.sizes import Sizes, resolve
from hiclip.model.two_towers import TwoTowers

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Embedder:
    """A model and how it computes; what every task is given."""

    towers: TwoTowers
    precision: Literal["fp32", "bf16"] = "fp32"
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1
    """Threads of torch on a CPU."""
    centre_crop: float = CENTRE_CROP
    """Share of a picture's shorter side that the image tower is shown, see `eval_transform`."""

    @property
    def sizes(self) -> Sizes:
        """The numbers of the model."""
        return resolve(self.towers.settings)


Embed = Callable[[Embedder, Sequence[bytes]], Vectors]
"""From a batch of encoded pictures to a row each."""


@dataclass(frozen=True)
class EmbeddedPictures:
    """Pictures of a set as vectors."""

    vectors: Vectors
    """(N, E), of length one (features: as they are); a row of NaN for a picture that cannot be read."""
    sha256: str
    """Hex sha256 over the sha256 of each picture's bytes, in order: what was really looked at."""

    @property
    def broken(self) -> int:
        """Pictures that cannot be fetched or decoded."""
        return int(np.isnan(self.vectors[:, 0]).sum())


def embed_pictures(
    embedder: Embedder,
    shown: Sequence[tuple[SetPictures, IntArray]],
    batch: int,
    map_blocks: MapBlocks,
    what: str,
    embed: Embed | None = None,
) -> Iterator[EmbeddedPictures]:
    """For each of several sets its pictures number `rows`, each batch read where it is embedded by `picture_vectors`.

    Or by another `embed`. One stream of blocks: while one set is measured, the batches of the next ones are under way.
    """
    width, shared = embedder.sizes.embedding, (embedder, [pictures for pictures, _ in shown], embed or picture_vectors)
    blocks = [(place, part) for place, (_, rows) in enumerate(shown) for part in cut(rows.tolist(), batch)]
    answers = iter(map_blocks(_read_and_embed, shared, blocks, what))
    for _, rows in shown:
        found, digest = list[Vectors](), hashlib.sha256()
        for vectors, digests in itertools.islice(answers, -(-len(rows) // batch)):
            found.append(vectors)
            digest.update(digests)
        nothing = np.empty((0, width), dtype=np.float32)
        yield EmbeddedPictures(np.concatenate(found) if found else nothing, digest.hexdigest())
    next(answers, None)  # whoever watches is told that this was the last one


def embed_texts(embedder: Embedder, texts: Sequence[str], batch: int, map_blocks: MapBlocks, what: str) -> Vectors:
    """N texts -> (N, E) unit vectors. Equal texts are embedded once: a prompt may be a caption too."""
    once = list(dict.fromkeys(texts))
    vectors = np.concatenate(list(map_blocks(text_vectors, embedder, cut(once, batch), what)))
    place = {text: row for row, text in enumerate(once)}
    return vectors[[place[text] for text in texts]]


def _read_and_embed(
    shared: tuple[Embedder, Sequence[SetPictures], Embed], block: tuple[int, Sequence[int]]
) -> tuple[Vectors, bytes]:
    embedder, sets, embed = shared
    place, rows = block
    encoded = sets[place].read(rows)
    digests = b"".join(hashlib.sha256(picture).digest() for picture in encoded)
    return embed(embedder, encoded), digests


def picture_vectors(embedder: Embedder, pictures: Sequence[bytes]) -> Vectors:
    """One batch: B encoded pictures -> (B, E) unit vectors; NaN for one that cannot be read."""
    return _pictures(embedder, pictures, lambda images: _unit(embedder.towers.image_tower(images).vector))


def picture_features(embedder: Embedder, pictures: Sequence[bytes]) -> Vectors:
    """One batch: B encoded pictures -> (B, D) what the image tower projects: CLIP's input of a linear probe.

    The class token of a ViT after its last norm, the mean over the last map of a ResNet. NaN as in `picture_vectors`.
    """

    def features(images: Tensor) -> Vectors:
        tokens = embedder.towers.image_tower(images, all_tokens=True).tokens
        assert tokens is not None
        found: Vectors = tokens[:, 0].float().cpu().numpy()
        return found

    return _pictures(embedder, pictures, features)


def _pictures(embedder: Embedder, pictures: Sequence[bytes], embed: Callable[[Tensor], Vectors]) -> Vectors:
    px = embedder.sizes.image_px
    pixels = np.full((len(pictures), px, px, 3), 255, dtype=np.uint8)
    unreadable = []
    for row, picture in enumerate(pictures):
        try:
            pixels[row] = eval_transform(picture, px, embedder.centre_crop)
        except ImageError:
            unreadable.append(row)
    with computing(embedder):
        vectors = embed(normalise(torch.from_numpy(pixels).to(embedder.device)))
    vectors[unreadable] = np.nan
    return vectors


def text_vectors(embedder: Embedder, texts: Sequence[str]) -> Vectors:
    """One batch: B texts -> (B, E) unit vectors; what is longer than the context is cut off, as in training."""
    tokens = torch.from_numpy(Tokenizer(embedder.sizes.context).encode(texts))
    with computing(embedder):
        return _unit(embedder.towers.text_tower(trim_padding(tokens).to(embedder.device)).vector)


@contextlib.contextmanager
def computing(embedder: Embedder) -> Iterator[None]:
    """The towers on their device, no gradients, the job's arithmetic, and torch's threads set for the while."""
    threads = torch.get_num_threads()
    embedder.towers.eval().to(embedder.device)
    torch.set_num_threads(embedder.threads)
    try:
        with (
            torch.inference_mode(),
            torch.autocast(embedder.device, dtype=torch.bfloat16, enabled=embedder.precision == "bf16"),
        ):
            yield
    finally:
        torch.set_num_threads(threads)


def _unit(vectors: Tensor) -> Vectors:
    """(B, E) -> the same on the unit sphere, fp32, as numpy."""
    unit: Vectors = torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()
    return unit
