"""CLIP written a second time and without our code: modules in open_clip's layout, under open_clip's names.

`nn.MultiheadAttention`, tokens first, QuickGELU by its own formula, projections as matrices on the right: what OpenAI
published, in the least code that has its names and its features. Beside it the batch that models are compared on.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from hiclip.model.sizes import resolve
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


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3, self.bn3 = nn.Conv2d(planes, 4 * planes, 1, bias=False), nn.BatchNorm2d(4 * planes)
        self.downsample = None
        if stride > 1 or inputs != 4 * planes:
            layers = {"-1": nn.AvgPool2d(stride), "0": nn.Conv2d(inputs, 4 * planes, 1, bias=False)}
            self.downsample = nn.Sequential(OrderedDict(layers | {"1": nn.BatchNorm2d(4 * planes)}))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.avgpool(torch.relu(self.bn2(self.conv2(y))))
        return torch.relu(self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x)))


class AttentionPool2d(nn.Module):
    def __init__(self, grid: int, width: int, heads: int, outputs: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(grid**2 + 1, width))
        self.k_proj, self.q_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj, self.heads = nn.Linear(width, outputs), heads

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).permute(2, 0, 1)
        x = torch.cat([x.mean(dim=0, keepdim=True), x]) + self.positional_embedding[:, None, :]
        q, k, v = self.q_proj, self.k_proj, self.v_proj
        read, _ = nn.functional.multi_head_attention_forward(
            x[:1], x, x, x.shape[-1], self.heads, None, torch.cat([q.bias, k.bias, v.bias]), None, None, False, 0.0,
            self.c_proj.weight, self.c_proj.bias, need_weights=False, use_separate_proj_weight=True,
            q_proj_weight=q.weight, k_proj_weight=k.weight, v_proj_weight=v.weight,
        )  # fmt: skip
        return read.squeeze(0)


class ModifiedResNet(nn.Module):
    """OpenAI's, of one block a stage."""

    def __init__(self, width: int, px: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width // 2, 3, 2, 1, bias=False), nn.BatchNorm2d(width // 2)
        self.conv2, self.bn2 = nn.Conv2d(width // 2, width // 2, 3, 1, 1, bias=False), nn.BatchNorm2d(width // 2)
        self.conv3, self.bn3 = nn.Conv2d(width // 2, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)
        self.layer1 = nn.Sequential(Bottleneck(width, width, 1))
        self.layer2 = nn.Sequential(Bottleneck(4 * width, 2 * width, 2))
        self.layer3 = nn.Sequential(Bottleneck(8 * width, 4 * width, 2))
        self.layer4 = nn.Sequential(Bottleneck(16 * width, 8 * width, 2))
        self.attnpool = AttentionPool2d(px // 32, 32 * width, 32 * width // 64, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = torch.relu(norm(conv(x)))
        return self.attnpool(self.layer4(self.layer3(self.layer2(self.layer1(self.avgpool(x))))))


class ReferenceClip(nn.Module):
    """Towers of different sizes, so that no part of one can be taken for the other's; biases and norms random too."""

    def __init__(self, resnet: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        width, context, embedding = 64, 12, 48
        vit = Visual(128, depth=3, px=32, patch=8, embedding=embedding)
        self.visual = ModifiedResNet(8, px=64, outputs=embedding) if resnet else vit
        mask = torch.full((context, context), float("-inf")).triu(1)
        self.transformer = Blocks(width, depth=2, mask=mask)
        self.token_embedding = nn.Embedding(VOCABULARY, width)
        self.positional_embedding = nn.Parameter(torch.randn(context, width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, embedding))
        self.logit_scale = nn.Parameter(torch.tensor(2.5))
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("bias") or ".ln_" in name or name.startswith("ln_") or ".bn" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
            for name, buffer in self.named_buffers():
                if "running" in name:
                    buffer.add_(torch.rand_like(buffer) * 0.3)

    def encode_image(self, images: Tensor) -> Tensor:
        """(B, 3, 32, 32), or 64 pixels for the ResNet -> (B, 48)."""
        features: Tensor = self.visual(images)
        return features

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(B, 12) -> (B, 48)."""
        x = self.ln_final(self.transformer(self.token_embedding(tokens) + self.positional_embedding))
        features: Tensor = x[torch.arange(len(x)), tokens.argmax(dim=-1)] @ self.text_projection
        return features


def pairs(px: int = 32) -> tuple[Tensor, Tensor]:
    """Pictures (5, 3, px, px) and captions (5, 12) of different lengths, each between a start and an end token."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.zeros(5, 12, dtype=torch.long)
    for row, caption in enumerate(tokens):
        length = 3 + 2 * row % 10
        caption[:length] = torch.randint(1, VOCABULARY - 2, (length,), generator=generator)
        caption[0], caption[length - 1] = VOCABULARY - 2, VOCABULARY - 1
    return torch.randn(5, 3, px, px, generator=generator), tokens


@torch.no_grad()
def assert_same_features(towers: TwoTowers, images: Tensor, texts: Tensor) -> None:
    """Whether the towers give these (5, 48) of the batch `pairs()`, whose numbers are of the order of 1 to 10."""
    pictures, tokens = pairs(resolve(towers.settings).image_px)
    assert torch.allclose(towers.image_tower(pictures).vector, images, rtol=1e-5, atol=1e-5)
    assert torch.allclose(towers.text_tower(tokens).vector, texts, rtol=1e-5, atol=1e-5)
