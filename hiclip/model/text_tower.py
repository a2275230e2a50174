"""The text tower: CLIP's text transformer, with HiCLIP's Tree Transformer over the chain of its words.

Words attend under affinities between neighbouring words, so that phrases merge layer by layer into a sentence. The
caption's vector is read at its end token, or is the greatest value of each channel over all of its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hiclip.batch import end_positions
from hiclip.model.affinity import NeighbourProjection, WordLinks, sentence_affinity
from hiclip.model.hierarchy import SentenceLinks
from hiclip.model.sizes import ModelSettings, Sizes
from hiclip.model.tower_output import TowerOutput
from hiclip.model.transformer import Hierarchy, Transformer, take


class SentenceHierarchy(Hierarchy[WordLinks]):
    """Affinities of a chain of words, and the mask they give."""

    def __init__(self, settings: ModelSettings, sizes: Sizes) -> None:
        super().__init__()
        self.settings = settings
        self.projection = NeighbourProjection(sizes.text.width, sizes.text.affinity_width)

    def affinities(self, tokens: Tensor, chain: Tensor | None, previous: WordLinks | None) -> WordLinks:
        """Layer input (B, N, D) and the nodes of the chain (B, N) -> (B, N-1)."""
        assert chain is not None
        query, key = self.projection(tokens)
        return sentence_affinity(query, key, chain, previous, scale=self.settings.affinity_scale)

    def mask(self, links: WordLinks, chain: Tensor | None) -> SentenceLinks:
        """Affinities -> what gives C (B, N, N)."""
        assert chain is not None
        return SentenceLinks(links, chain, self.settings.special_tokens_in_chain, self.settings.self_link)


class TextTower(nn.Module):
    """Token table and positions, layers, then a projection of the end token."""

    def __init__(self, settings: ModelSettings, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.text.width
        self.settings = settings
        self.token_embedding = nn.Embedding(sizes.vocabulary, width)
        self.positions = nn.Parameter(torch.randn(sizes.context, width) * 0.01)
        self.transformer = Transformer[WordLinks](sizes.text, lambda: SentenceHierarchy(settings, sizes))
        self.final_norm = nn.LayerNorm(width)
        # No bias, as in CLIP and as on the image side: DeCLIP's code has one, but a constant added to every caption's
        # vector says nothing about any caption, and without it the parameters are those of CLIP's published models.
        self.projection = nn.Linear(width, sizes.embedding, bias=False)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(
        self, tokens: Tensor, given: Sequence[WordLinks] | None = None, *, all_tokens: bool = False
    ) -> TowerOutput[WordLinks]:
        """(B, L) token ids, L at most the context -> the tower's output, its tokens (B, L, D).

        Padding after a caption's end changes nothing. `given` replaces the affinities of the layers that compute some,
        bottom first; see `ImageTower.forward`. `all_tokens`: see `TowerOutput`.
        """
        end = end_positions(tokens)[:, None]
        every = all_tokens or self.settings.text_pooling == "max"
        place = torch.arange(tokens.shape[1], device=tokens.device)
        stream = self.token_embedding(tokens) + self.positions[: tokens.shape[1]]
        stream, affinities = self.transformer(
            stream, self._allowed(place, end), self._chain(place, end), given, None if every else end
        )
        stream = self.final_norm(stream)
        pooled = self._pooled(stream, place, end) if every else stream.squeeze(1)
        return TowerOutput(self.projection(pooled), stream if all_tokens else None, affinities)

    def _pooled(self, stream: Tensor, place: Tensor, end: Tensor) -> Tensor:
        """Tokens after the final norm (B, L, D) -> (B, D).

        "max" looks at places up to a caption's end. PyramidCLIP's released model looks at padding too, whose tokens
        attend to the caption as further read-outs; but then a feature depends on how far a caption happens to be
        padded, padding cannot be trimmed, and under a hierarchy padding is linked to nothing.
        """
        if self.settings.text_pooling == "end":
            return take(stream, end).squeeze(1)
        return stream.masked_fill((place > end).unsqueeze(-1), float("-inf")).amax(dim=1)

    def _chain(self, place: Tensor, end: Tensor) -> Tensor:
        """Places (L,) and ends (B, 1) -> (B, L) bool: the tokens that are linked to their neighbours."""
        if self.settings.special_tokens_in_chain:
            return place <= end
        return (place > 0) & (place < end)

    def _allowed(self, place: Tensor, end: Tensor) -> Tensor:
        """-> (B, L, L) bool: a word reads itself and the words before it, or all words of its caption."""
        if self.settings.causal:
            return (place <= place[:, None]).expand(len(end), -1, -1)
        return (place <= end)[:, None, :].expand(-1, len(place), -1)
