"""Symmetric InfoNCE over the global batch (CLIP; HiCLIP eq. 10), hard or softened (PyramidCLIP, softened InfoNCE).

Each rank scores its own b pictures and b captions against the B of all ranks, so nobody holds a B x B matrix.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hiclip.distributed import gather_with_gradient, rank
from hiclip.model.affinity import at_least_float32


def contrastive_loss(
    image_vectors: Tensor, text_vectors: Tensor, logit_scale: Tensor, smoothing: float = 0.0
) -> Tensor:
    """Two (b, E) and a scalar -> scalar in nats: this rank's rows of the loss over the global batch of B pairs.

    The mean of it over ranks is the loss of the global batch, and gradients averaged over ranks (what DDP and DeepSpeed
    do) are that loss's gradients. Row i of both is one pair; vectors need not be normalised. Floats below 32 bits are
    lifted to float32 first, also under autocast: bf16 logits of 100 would be half a nat wrong.
    """
    with torch.autocast(image_vectors.device.type, enabled=False):
        images = F.normalize(at_least_float32(image_vectors), dim=-1)
        texts = F.normalize(at_least_float32(text_vectors), dim=-1)
        everyone = gather_with_gradient(torch.stack((images, texts), dim=1))
        all_images, all_texts = everyone.unbind(dim=1)
        positives = torch.arange(len(images), device=images.device) + rank() * len(images)
        image_to_text = softened_cross_entropy(logit_scale * images @ all_texts.T, positives, smoothing)
        text_to_image = softened_cross_entropy(logit_scale * texts @ all_images.T, positives, smoothing)
        return (image_to_text + text_to_image) / 2


def softened_cross_entropy(logits: Tensor, positives: Tensor, smoothing: float) -> Tensor:
    """(b, B) logits and (b,) columns of the positives -> mean over rows of the cross-entropy with softened targets.

    The target of a row is 1 - smoothing on its positive and smoothing / (B - 1) on each other column. It equals
    (1 - smoothing) * CE + smoothing * (lse - mean of the negatives), so that no (b, B) target is made.
    """
    if smoothing == 0.0:
        return F.cross_entropy(logits, positives)
    negatives = logits.shape[1] - 1
    if negatives < 1:
        raise ValueError(f"smoothing: expected 0 with a batch of one pair, got {smoothing}")
    positive = logits.gather(1, positives[:, None]).squeeze(1)
    negative_mean = (logits.sum(dim=1) - positive) / negatives
    target_mean = (1 - smoothing) * positive + smoothing * negative_mean
    return (logits.logsumexp(dim=1) - target_mean).mean()
