"""Masked words: which tokens are hidden, what they become, and a loss that reads only their places."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peak_memory import peak_bytes
from torch import Tensor
from two_ranks import run_on_ranks

from hiclip.batch import MASK_TOKEN, NOT_PREDICTED, TARGETS, end_positions, trim_padding
from hiclip.data.chance import Chance
from hiclip.data.text_views import TEXT_VIEWS
from hiclip.data.tokenizer import END, START, Tokenizer
from hiclip.data.view_settings import ViewSettings
from hiclip.data.word_masks import mask_words
from hiclip.distributed import mean_over_ranks, rank, world
from hiclip.losses.masked_words import PLACES_AT_ONCE, MaskedWords, logit_bytes

PAIRS, LENGTH, WIDTH, VOCABULARY = 6, 5, 3, 7
CAPTION = "a small brown dog with a red collar runs across the grass behind the white house"


def caption_tokens() -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return Tokenizer(77).encode([CAPTION])[0]


def test_words_are_hidden_as_often_and_as_the_recipe_says() -> None:
    tokens, random = caption_tokens(), np.random.default_rng(0)
    drawn = [mask_words(tokens, random, 0.15) for _ in range(4000)]
    masked, targets = (np.stack(side) for side in zip(*drawn, strict=True))
    end = int(tokens.argmax())
    chosen = targets != NOT_PREDICTED
    assert abs(chosen[:, 1:end].mean() - 0.15) < 0.005
    assert not chosen[:, 0].any()
    assert not chosen[:, end:].any()
    assert (targets[chosen] == np.broadcast_to(tokens, chosen.shape)[chosen]).all()
    assert (masked[~chosen] == np.broadcast_to(tokens, chosen.shape)[~chosen]).all()
    kept = masked[chosen] == targets[chosen]
    hidden = masked[chosen] == MASK_TOKEN
    assert abs(hidden.mean() - 0.8) < 0.01
    assert abs(kept.mean() - 0.1) < 0.01
    others = masked[chosen & (masked != MASK_TOKEN) & (masked != targets)]
    assert others.max() < START
    assert abs(others.mean() / START - 0.5) < 0.03


def test_shares_of_nothing_and_of_everything() -> None:
    tokens, random = caption_tokens(), np.random.default_rng(0)
    masked, targets = mask_words(tokens, random, 0.0)
    assert (masked == tokens).all()
    assert (targets == NOT_PREDICTED).all()
    end = int(tokens.argmax())
    assert (mask_words(tokens, random, 1.0)[1][1:end] == tokens[1:end]).all()
    empty = Tokenizer(77).encode([""])[0]
    assert (mask_words(empty, random, 1.0)[0] == empty).all()


@pytest.mark.parametrize("view", ["masked", "masked_eda"])
def test_a_view_and_its_targets_come_from_one_chance(view: str) -> None:
    settings = ViewSettings(masked_share=0.5)
    tokenizer, pair = Tokenizer(77), {"caption": CAPTION}

    def drawn(name: str, epoch: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        chance, made = Chance(1, "00ff", epoch, name), TEXT_VIEWS[name]
        assert made.change is not None
        return made.change(tokenizer.encode([made.draw(pair, chance, settings)])[0], chance, settings)

    for epoch in range(20):
        masked, targets = drawn(view, epoch), drawn(view + TARGETS, epoch)
        text = "caption" if view == "masked" else "eda"
        plain = tokenizer.encode([TEXT_VIEWS[text].draw(pair, Chance(1, "00ff", epoch, text), settings)])[0]
        chosen = targets != NOT_PREDICTED
        assert (targets[chosen] == plain[chosen]).all()
        assert (masked[~chosen] == plain[~chosen]).all()
        assert (masked != plain).sum() > 0
        assert (drawn(view, epoch) == masked).all()
        assert (drawn(view, epoch + 1) != masked).any()


def test_the_end_is_found_behind_a_mask() -> None:
    """The mask's number is the largest of all, and still a caption ends at its end."""
    tokens = torch.tensor([[START, 5, MASK_TOKEN, END, 0, 0, 0, 0, 0], [START, MASK_TOKEN, 7, 8, 9, END, 0, 0, 0]])
    assert end_positions(tokens).tolist() == [3, 5]
    assert trim_padding(tokens).shape == (2, 8)


def many_words(places: int) -> tuple[MaskedWords, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    states = torch.randn(places // 8, 8, WIDTH, generator=generator).requires_grad_()
    torch.manual_seed(0)
    return MaskedWords(WIDTH, 600), states, torch.randint(0, 600, (places // 8, 8), generator=generator)


def test_more_places_than_are_held_at_once_give_the_same_loss_and_gradients() -> None:
    words, states, targets = many_words(2 * PLACES_AT_ONCE + 8)
    whole = F.cross_entropy(words.head(states).flatten(0, 1), targets.flatten())
    expected = torch.autograd.grad(whole, (states, *words.parameters()))
    loss = words(states, targets)
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(torch.autograd.grad(loss, (states, *words.parameters())), expected)


@pytest.mark.parametrize("places", [PLACES_AT_ONCE // 4, PLACES_AT_ONCE, 4 * PLACES_AT_ONCE])
def test_the_memory_of_logits_is_as_told_and_stops_growing(places: int) -> None:
    words, states, targets = many_words(places)
    most = peak_bytes(lambda: words(states, targets).backward())
    assert most == pytest.approx(logit_bytes(places, 600), rel=0.1)


def head() -> MaskedWords:
    torch.manual_seed(0)
    return MaskedWords(WIDTH, VOCABULARY).double()


def states_and_targets() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    states = torch.randn(PAIRS, LENGTH, WIDTH, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, VOCABULARY, (PAIRS, LENGTH + 3), generator=generator)
    hidden = torch.rand(PAIRS, LENGTH + 3, generator=generator) < 0.3
    hidden[:, LENGTH:] = False
    hidden[0], hidden[5, 0] = False, True  # the ranks' counts differ
    return states, targets.masked_fill(~hidden, NOT_PREDICTED)


def test_the_loss_is_the_mean_over_places_of_all_logits() -> None:
    """What DeCLIP computes from logits everywhere; token 0 may be a target."""
    states, targets = states_and_targets()
    targets[1, 1] = 0
    words = head()
    everywhere = words.head(states)
    expected = F.cross_entropy(everywhere.flatten(0, 1), targets[:, :LENGTH].flatten(), ignore_index=NOT_PREDICTED)
    torch.testing.assert_close(words(states, targets), expected)


def test_only_the_hidden_places_are_looked_at() -> None:
    states, targets = states_and_targets()
    states.requires_grad_()
    head()(states, targets).backward()
    assert states.grad is not None
    assert ((states.grad != 0).any(dim=-1) == (targets[:, :LENGTH] != NOT_PREDICTED)).all()


def test_a_head_that_knows_nothing_costs_the_logarithm_of_the_vocabulary() -> None:
    words = head()
    torch.nn.init.zeros_(words.head.weight)
    torch.nn.init.zeros_(words.head.bias)
    assert words(*states_and_targets()).item() == pytest.approx(math.log(VOCABULARY))


def test_nothing_hidden_costs_nothing() -> None:
    states, targets = states_and_targets()
    words = head()
    loss = words(states, torch.full_like(targets, NOT_PREDICTED))
    loss.backward()
    assert loss.item() == 0
    assert words.head.weight.grad is not None
    assert (words.head.weight.grad == 0).all()


def loss_and_gradients() -> tuple[float, list[Tensor]]:
    words = head()
    loss = words(*(side.chunk(world())[rank()] for side in states_and_targets()))
    loss.backward()
    return float(mean_over_ranks(loss)), [mean_over_ranks(p.grad) for p in words.parameters() if p.grad is not None]


def test_two_ranks_with_unequally_many_places_are_one() -> None:
    counts = [(side != NOT_PREDICTED).sum().item() for side in states_and_targets()[1].chunk(2)]
    assert counts[0] != counts[1]
    loss_alone, alone = loss_and_gradients()
    for loss, gradients in run_on_ranks(2, loss_and_gradients):
        assert loss == pytest.approx(loss_alone, rel=1e-12)
        torch.testing.assert_close(gradients, alone, rtol=1e-10, atol=1e-14)


def test_its_gradient_is_exact() -> None:
    states, targets = states_and_targets()
    words = head()
    assert torch.autograd.gradcheck(lambda inputs: words(inputs, targets), (states.requires_grad_(),))
