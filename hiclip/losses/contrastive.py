"""InfoNCE over the global batch (CLIP; HiCLIP eq. 10), hard or softened (PyramidCLIP), in memory linear in the batch.

Each rank scores its own b pictures and b captions against the B of all ranks, so nobody holds a B x B matrix; told a
block, a rank does not hold its b x B either.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hiclip.distributed import gather_with_gradient, rank
from hiclip.model.affinity import at_least_float32


def contrastive_loss(
    image_vectors: Tensor, text_vectors: Tensor, logit_scale: Tensor, smoothing: float = 0.0, block: int | None = None
) -> Tensor:
    """Two (b, E) and a scalar -> scalar in nats: this rank's rows of the loss over the global batch of B pairs.

    The mean of both directions. The mean of it over ranks is the loss of the global batch, and gradients averaged over
    ranks (what DDP and DeepSpeed do) are that loss's gradients. Row i of both is one pair; vectors need not be
    normalised. `block`: see `directed_loss`.
    """
    images, texts = unit_vectors(image_vectors), unit_vectors(text_vectors)
    everyone = gather_with_gradient(torch.stack((images, texts), dim=1))
    all_images, all_texts = everyone.unbind(dim=1)
    image_to_text = directed_loss(images, all_texts, logit_scale, smoothing, block)
    text_to_image = directed_loss(texts, all_images, logit_scale, smoothing, block)
    return (image_to_text + text_to_image) / 2


def logit_bytes(losses: int, pairs: int, batch: int, smoothing: float, block: int | None) -> int:
    """Bytes of logits that a rank with `pairs` of `batch` pairs holds at most, of so many losses in one direction.

    Each keeps a float32 matrix for the backward, which holds two more while it works on one, four if the target is
    softened. In blocks nothing is kept.
    """
    if losses == 0:
        return 0
    worked_on = 4 if smoothing else 2
    return 4 * batch * ((losses + worked_on) * pairs if block is None else 2 * min(block, pairs))


def unit_vectors(vectors: Tensor) -> Tensor:
    """(..., E) -> the same of length 1, in float32 at least: bf16 logits of 100 would be half a nat wrong."""
    return F.normalize(at_least_float32(vectors), dim=-1)


def directed_loss(
    queries: Tensor, keys: Tensor, logit_scale: Tensor, smoothing: float = 0.0, block: int | None = None
) -> Tensor:
    """This rank's queries (b, E) and all ranks' keys (B, E), both unit vectors -> scalar in nats: each finds its own.

    Keys are gathered in the order of ranks (`gather_with_gradient`): the i-th query of rank r belongs to key r * b + i.
    Where keys carry no gradient (DeCLIP's nearest neighbours) none is computed.

    `block` None: all b x B logits at once, by autograd. Else `block` rows of them at a time, each turned into its part
    of the loss and of the gradients at once and then dropped: the same numbers but for rounding, block x B of memory.
    Autocast does not reach in here.
    """
    with torch.autocast(queries.device.type, enabled=False):
        positives = torch.arange(len(queries), device=queries.device) + rank() * len(queries)
        if block is None:
            return softened_cross_entropy(logit_scale * queries @ keys.T, positives, smoothing)
        _check_smoothing(smoothing, len(keys))
        loss: Tensor = _InBlocks.apply(  # type: ignore[no-untyped-call]
            queries, keys, logit_scale, positives, smoothing, block
        )
        return loss


def softened_cross_entropy(logits: Tensor, positives: Tensor, smoothing: float) -> Tensor:
    """(b, B) logits and (b,) columns of the positives -> mean over rows of the cross-entropy with softened targets.

    The target of a row is 1 - smoothing on its positive and smoothing / (B - 1) on each other column. It equals
    (1 - smoothing) * CE + smoothing * (lse - mean of the negatives), so that no (b, B) target is made.
    """
    if smoothing == 0.0:
        return F.cross_entropy(logits, positives)
    _check_smoothing(smoothing, logits.shape[1])
    return (logits.logsumexp(dim=1) - _target_means(logits, positives, smoothing)).mean()


def _target_means(logits: Tensor, positives: Tensor, smoothing: float) -> Tensor:
    """(b, B) -> (b,): the mean of each row's logits under its target."""
    positive = logits.gather(1, positives[:, None]).squeeze(1)
    if smoothing == 0.0:
        return positive
    negative_mean = (logits.sum(dim=1) - positive) / (logits.shape[1] - 1)
    return (1 - smoothing) * positive + smoothing * negative_mean


def _check_smoothing(smoothing: float, keys: int) -> None:
    if smoothing and keys < 2:
        raise ValueError(f"smoothing: expected 0 with a batch of one pair, came {smoothing}")


class _InBlocks(torch.autograd.Function):
    """`directed_loss`, block by block of rows.

    The loss is a scalar, so its gradients are known up to one factor while a block's logits are at hand: the forward
    keeps them, three products a block as in the full form, and nothing is computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, logit_scale: Tensor, positives: Tensor, smoothing: float, block: int
    ) -> Tensor:
        keys_wanted = ctx.needs_input_grad[1]
        loss, slope_of_scale = queries.new_zeros(()), queries.new_zeros(())
        to_queries = torch.empty_like(queries)
        to_keys = torch.zeros_like(keys) if keys_wanted else None
        for start in range(0, len(queries), block):
            part = slice(start, start + block)
            rows = logit_scale * queries[part]
            losses, slopes = _losses_and_slopes(rows @ keys.T, positives[part], smoothing)
            loss += losses.sum()
            torch.matmul(slopes, keys, out=to_queries[part])
            slope_of_scale += (to_queries[part] * queries[part]).sum()
            if to_keys is not None:
                to_keys.addmm_(slopes.T, rows)
        to_queries *= logit_scale
        ctx.save_for_backward(to_queries, to_keys, slope_of_scale.to(logit_scale.dtype))
        ctx.pairs = len(queries)
        loss /= ctx.pairs
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        factor = gradient / ctx.pairs
        wanted = zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)
        return *(saved * factor if needed else None for saved, needed in wanted), None, None, None


def _losses_and_slopes(logits: Tensor, positives: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """(r, B) logits, which are overwritten -> (r,) losses, and (r, B) their gradients: softmax minus target."""
    targets = _target_means(logits, positives, smoothing)
    top = logits.amax(dim=1, keepdim=True)
    shares = logits.sub_(top).exp_()
    sums = shares.sum(dim=1, keepdim=True)
    slopes = shares.div_(sums)
    other = smoothing / max(1, slopes.shape[1] - 1)
    if smoothing:
        slopes -= other
    slopes.scatter_add_(1, positives[:, None], torch.full_like(sums, other - (1 - smoothing)))
    return (top + sums.log()).squeeze(1) - targets, slopes
