"""The configuration that lies beside published weights: what it must say for our model to be the same one.

Weights show neither their activation nor their heads. open_clip's `open_clip_config.json` and transformers'
`config.json` do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hiclip.model.clip_relations import Names
from hiclip.model.sizes import HEAD_WIDTH, ModelSettings, ResNetSize, TowerSize, resolve

CONFIG_NAME: dict[Names, str] = {"open_clip": "open_clip_config.json", "transformers": "config.json"}
"""Name of the configuration's file."""

_NORM_EPS = 1e-5
_END = 49_407
"""CLIP's end token: the largest of its vocabulary."""
_LARGEST_IS_END = 2
"""To transformers the end token 2 means the largest token of a caption, which is what our text tower takes."""


@dataclass(frozen=True)
class Heads:
    """Attention heads of the towers as a configuration tells them; None where it does not."""

    image: int | None = None
    text: int | None = None


def read_config(config: Mapping[str, Any], names: Names) -> Heads:
    """What a configuration tells that weights do not. Raises ValueError, naming its key, if it is not our model."""
    return _open_clip_heads(_section(config, "model_cfg")) if names == "open_clip" else _transformers_heads(config)


def make_config(settings: ModelSettings, names: Names) -> dict[str, Any]:
    """The configuration with which open_clip, or transformers, builds the same model; ValueError if it has none."""
    return _open_clip_config(settings) if names == "open_clip" else _transformers_config(settings)


def _open_clip_heads(model: Mapping[str, Any]) -> Heads:
    if model.get("quick_gelu") is not True:
        raise ValueError("model_cfg.quick_gelu: expected true, our model's activation; without it open_clip's is GELU")
    vision, text = _section(model, "vision_cfg", "model_cfg."), _section(model, "text_cfg", "model_cfg.")
    if isinstance(vision.get("layers"), list):  # a ResNet: its attention pool has a head for every 64 channels
        return Heads(None, _count(text, "heads"))
    width, head_width = _count(vision, "width"), _count(vision, "head_width")
    return Heads(width // head_width if width and head_width else None, _count(text, "heads"))


def _transformers_heads(config: Mapping[str, Any]) -> Heads:
    heads: dict[str, int | None] = {}
    for name in ("vision_config", "text_config"):
        tower = _section(config, name)
        if (activation := tower.get("hidden_act", "quick_gelu")) != "quick_gelu":
            raise ValueError(f"{name}.hidden_act: expected quick_gelu, the activation of our model, came {activation}")
        if (eps := tower.get("layer_norm_eps", _NORM_EPS)) != _NORM_EPS:
            raise ValueError(f"{name}.layer_norm_eps: expected {_NORM_EPS:g}, came {eps}")
        heads[name] = _count(tower, "num_attention_heads")
    return Heads(heads["vision_config"], heads["text_config"])


def _section(config: Mapping[str, Any], name: str, above: str = "") -> Mapping[str, Any]:
    section = config.get(name, {})
    if not isinstance(section, Mapping):
        raise ValueError(f"{above}{name}: expected keys and values, came {type(section).__name__}")
    return section


def _count(section: Mapping[str, Any], key: str) -> int | None:
    value = section.get(key)
    if value is not None and (not isinstance(value, int) or value < 1):
        raise ValueError(f"{key}: expected a count, came {value!r}")
    return value


def _open_clip_config(settings: ModelSettings) -> dict[str, Any]:
    sizes = resolve(settings)
    image, text = sizes.image, sizes.text
    is_resnet = isinstance(image, ResNetSize)
    vision_cfg = {
        "image_size": sizes.image_px,
        "layers": list(image.stages) if isinstance(image, ResNetSize) else image.depth,
        "width": image.width,
        "head_width": HEAD_WIDTH if is_resnet else image.width // image.heads,
        "patch_size": None if is_resnet else sizes.patch_px,
    }
    text_cfg = {
        "context_length": sizes.context,
        "vocab_size": sizes.vocabulary,
        "width": text.width,
        "heads": text.heads,
        "layers": text.depth,
    }
    return {
        "model_cfg": {
            "embed_dim": sizes.embedding,
            "quick_gelu": True,
            "vision_cfg": vision_cfg,
            "text_cfg": text_cfg,
        },
    }


def _transformers_config(settings: ModelSettings) -> dict[str, Any]:
    sizes = resolve(settings)
    if isinstance(sizes.image, ResNetSize):
        raise ValueError("transformers has no CLIP with a ResNet; open_clip has")
    vision = {"image_size": sizes.image_px, "patch_size": sizes.patch_px}
    text = {
        "vocab_size": sizes.vocabulary,
        "max_position_embeddings": sizes.context,
        "bos_token_id": _END - 1 if sizes.vocabulary > _END else None,
        "eos_token_id": _END if sizes.vocabulary > _END else _LARGEST_IS_END,
        "pad_token_id": 0,
    }
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": sizes.embedding,
        "vision_config": vision | _transformers_tower("clip_vision_model", sizes.image, sizes.embedding),
        "text_config": text | _transformers_tower("clip_text_model", sizes.text, sizes.embedding),
    }


def _transformers_tower(kind: str, tower: TowerSize, embedding: int) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": tower.width,
        "intermediate_size": 4 * tower.width,
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.heads,
        "projection_dim": embedding,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": _NORM_EPS,
    }
