"""A folder that `transformers` saves gives the same features in our towers, and ours the same in its CLIPModel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from clip_reference import ReferenceClip, assert_same_features, pairs
from safetensors.torch import load_file
from torch import Tensor

from hiclip.model.clip_names import from_published
from hiclip.model.clip_sizes import settings_of
from hiclip.model.two_towers import TwoTowers
from hiclip.training.published_weights import read_published, write_published

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra `dev`)")


def tiny_clip(path: Path, end: int) -> Any:
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1}
    text = sizes | {"vocab_size": 300, "max_position_embeddings": 12, "bos_token_id": 298, "eos_token_id": end}
    vision = sizes | {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "image_size": 32}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision | {"patch_size": 8}, projection_dim=48)
    torch.manual_seed(2)
    model = transformers.CLIPModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1) if parameter.ndim else None
    model.save_pretrained(path)
    return model


@torch.no_grad()
def their_features(model: Any) -> tuple[Tensor, Tensor]:
    pictures, tokens = pairs()
    vision = model.vision_model(pixel_values=pictures).pooler_output
    text = model.text_model(input_ids=tokens).pooler_output
    return model.visual_projection(vision), model.text_projection(text)


@pytest.mark.parametrize("end", [2, 299])
def test_transformers_features_are_ours(tmp_path: Path, end: int) -> None:
    """A folder as transformers saves it; four heads of 32 channels, which only its configuration tells."""
    model = tiny_clip(tmp_path, end)
    assert_same_features(read_published(str(tmp_path)), *their_features(model))


def test_our_features_are_transformers(tmp_path: Path) -> None:
    weights = ReferenceClip().state_dict()
    settings = settings_of(weights, "open_clip")
    towers = TwoTowers(settings)
    towers.load_state_dict(from_published(settings, weights, "open_clip"))
    write_published(towers, str(tmp_path), "transformers")
    model, said = transformers.CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(said.values()), said
    assert_same_features(towers, *their_features(model.eval()))
    model.save_pretrained(tmp_path / "theirs")
    ours, theirs = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "theirs/model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
