"""CLIP written a second time and without our code: modules in open_clip's layout, under open_clip's names.

`nn.MultiheadAttention`, tokens first, QuickGELU by its own formula, projections as matrices on the right: what OpenAI
published, in the least code that has its names and its features. Beside it the batch that models are compared on.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from hiclip.model.two_towers import TwoTowers

VOCABULARY = 300


class QuickGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, mask: Tensor | None) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        layers = OrderedDict(c_fc=nn.Linear(width, 4 * width), gelu=QuickGelu(), c_proj=nn.Linear(4 * width, width))
        self.mlp = nn.Sequential(layers)
        self.ln_2 = nn.LayerNorm(width)
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=self.mask)[0]
        return x + self.mlp(self.ln_2(x))


class Blocks(nn.Module):
    def __init__(self, width: int, depth: int, mask: Tensor | None = None) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(width, width // 64, mask) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x.permute(1, 0, 2)).permute(1, 0, 2)


class Visual(nn.Module):
    def __init__(self, width: int, depth: int, px: int, patch: int, embedding: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((px // patch) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Blocks(width, depth)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, embedding))

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(images).flatten(2).permute(0, 2, 1)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        x = self.transformer(self.ln_pre(x))
        return self.ln_post(x[:, 0]) @ self.proj


class ReferenceClip(nn.Module):
    """Towers of different sizes, so that no part of one can be taken for the other's; biases and norms random too."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        width, context, embedding = 64, 12, 48
        self.visual = Visual(128, depth=3, px=32, patch=8, embedding=embedding)
        mask = torch.full((context, context), float("-inf")).triu(1)
        self.transformer = Blocks(width, depth=2, mask=mask)
        self.token_embedding = nn.Embedding(VOCABULARY, width)
        self.positional_embedding = nn.Parameter(torch.randn(context, width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, embedding))
        self.logit_scale = nn.Parameter(torch.tensor(2.5))
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("bias") or ".ln_" in name or name.startswith("ln_"):
                    parameter.add_(torch.randn_like(parameter) * 0.3)

    def encode_image(self, images: Tensor) -> Tensor:
        """(B, 3, 32, 32) -> (B, 48)."""
        features: Tensor = self.visual(images)
        return features

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(B, 12) -> (B, 48)."""
        x = self.ln_final(self.transformer(self.token_embedding(tokens) + self.positional_embedding))
        features: Tensor = x[torch.arange(len(x)), tokens.argmax(dim=-1)] @ self.text_projection
        return features


def pairs(count: int = 5) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, 32, 32) and captions (B, 12) of different lengths, each between a start and an end token."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.zeros(count, 12, dtype=torch.long)
    for row, caption in enumerate(tokens):
        length = 3 + 2 * row % 10
        caption[:length] = torch.randint(1, VOCABULARY - 2, (length,), generator=generator)
        caption[0], caption[length - 1] = VOCABULARY - 2, VOCABULARY - 1
    return torch.randn(count, 3, 32, 32, generator=generator), tokens


@torch.no_grad()
def assert_same_features(towers: TwoTowers, images: Tensor, texts: Tensor) -> None:
    """Whether the towers give these (B, 48) of the batch `pairs()`, whose numbers are of the order of 1 to 10."""
    pictures, tokens = pairs()
    assert torch.allclose(towers.image_tower(pictures).vector, images, rtol=1e-5, atol=1e-5)
    assert torch.allclose(towers.text_tower(tokens).vector, texts, rtol=1e-5, atol=1e-5)
