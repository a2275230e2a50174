"""Published CLIP weights give the same features in our towers, go back bit for bit, and wrong ones are named."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from clip_reference import ReferenceClip, assert_same_features, pairs
from safetensors.torch import save_file
from small_checkpoint import SMALL_MODEL, small_checkpoint, small_openmoji
from torch import Tensor

from hiclip.evaluation.run_sets import evaluate_checkpoint
from hiclip.evaluation.sets.openmoji import OpenmojiSettings
from hiclip.model.clip_names import from_published, to_published
from hiclip.model.clip_relations import Names
from hiclip.model.clip_sizes import settings_of
from hiclip.model.sizes import ModelSettings, resolve
from hiclip.model.two_towers import TwoTowers
from hiclip.training.checkpoint import CheckpointError, load_towers
from hiclip.training.published_weights import read_published, write_published

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def reference() -> ReferenceClip:
    return ReferenceClip().eval()


@pytest.fixture
def weights(reference: ReferenceClip) -> Weights:
    return {name: tensor.clone() for name, tensor in reference.state_dict().items()}


def towers_of(weights: Weights, names: Names = "open_clip") -> TwoTowers:
    settings = settings_of(weights, names)
    towers = TwoTowers(settings)
    towers.load_state_dict(from_published(settings, weights, names))
    return towers.eval()


@torch.no_grad()
def test_open_clips_features_are_ours(reference: ReferenceClip, weights: Weights) -> None:
    pictures, tokens = pairs()
    towers = towers_of(weights)
    assert_same_features(towers, reference.encode_image(pictures), reference.encode_text(tokens))
    assert towers.logit_scale().item() == pytest.approx(reference.logit_scale.exp().item())


@torch.no_grad()
def test_openais_resnet_is_ours(tmp_path: Path) -> None:
    reference = ReferenceClip(resnet=True).eval()
    weights = dict(reference.state_dict())
    towers = towers_of(weights)
    assert towers.settings.size == "resnet_tiny"
    assert_same_features(towers, reference.encode_image(pairs(64)[0]), reference.encode_text(pairs()[1]))
    again = to_published(towers, "open_clip")
    assert all(torch.equal(again[name], weights[name]) for name in weights if "num_batches" not in name)
    ReferenceClip(resnet=True).load_state_dict(again)
    write_published(towers, str(tmp_path / "ours"), "open_clip")
    assert read_published(str(tmp_path / "ours")).settings == towers.settings
    with pytest.raises(CheckpointError, match="transformers has no CLIP with a ResNet"):
        write_published(towers, str(tmp_path / "theirs"), "transformers")
    del weights["visual.layer2.0.conv1.weight"]
    assert "missing: visual.layer2.0.conv1.weight" in refusal(weights)
    deeper = weights | {"visual.layer3.1.conv1.weight": torch.zeros(32, 128, 1, 1)}
    assert "expected the blocks of ResNet-50 (3, 4, 6, 3), came (1, 1, 2, 1)" in refusal(deeper)


def test_sizes_are_read_off_the_shapes(weights: Weights) -> None:
    settings = settings_of(weights, "open_clip")
    sizes = resolve(settings)
    assert (sizes.image.width, sizes.image.depth, sizes.image.heads, sizes.image_px, sizes.patch_px) == (
        128,
        3,
        2,
        32,
        8,
    )
    assert (sizes.text.width, sizes.text.depth, sizes.text.heads, sizes.context, sizes.vocabulary) == (
        64,
        2,
        1,
        12,
        300,
    )
    assert sizes.embedding == 48
    assert not settings.image_hierarchy
    assert not settings.text_hierarchy


@pytest.mark.parametrize(
    ("size", "names"),
    [
        ("tiny", "transformers"),
        ("vit_b_32", "open_clip"),
        ("vit_b_32", "transformers"),
        ("vit_b_16", "open_clip"),
        ("resnet_50", "open_clip"),
    ],
)
def test_a_named_size_is_found_by_its_name(size: str, names: Names) -> None:
    settings = ModelSettings(size=size, image_hierarchy=False, text_hierarchy=False)  # type: ignore[arg-type]
    with torch.device("meta"):
        towers = TwoTowers(settings)
    assert settings_of(to_published(towers, names), names) == settings


@pytest.mark.parametrize("names", ["open_clip", "transformers"])
def test_there_and_back_bit_for_bit(names: Names) -> None:
    torch.manual_seed(5)
    settings = ModelSettings(
        width=64, image_width=128, depth=2, text_depth=3, image_px=32, patch_px=8, context=16, embedding=32,
        image_hierarchy=False, text_hierarchy=False,
    )  # fmt: skip
    own = TwoTowers(settings).state_dict()
    published = to_published(TwoTowers(settings), names)
    assert len({tensor.data_ptr() for tensor in published.values()}) == len(published), "safetensors shares no memory"
    again = towers_of(to_published_with(settings, own, names), names).state_dict()
    assert again.keys() == own.keys()
    assert all(torch.equal(again[name], own[name]) for name in own)


def to_published_with(settings: ModelSettings, own: Weights, names: Names) -> Weights:
    towers = TwoTowers(settings)
    towers.load_state_dict(own)
    return to_published(towers, names)


def test_open_clips_own_file_comes_back_bit_for_bit(weights: Weights) -> None:
    again = to_published(towers_of(weights), "open_clip")
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weights[name]) for name in weights)


def test_half_precision_is_lifted(weights: Weights) -> None:
    towers = towers_of({name: tensor.half() for name, tensor in weights.items()})
    assert {tensor.dtype for tensor in towers.state_dict().values()} == {torch.float32}
    assert torch.equal(towers.image_tower.cls_token.detach(), weights["visual.class_embedding"].half().float())


def test_what_old_files_hold_beside_the_weights_is_passed_over(weights: Weights) -> None:
    weights["input_resolution"] = torch.tensor(32)
    weights["context_length"] = torch.tensor(12)
    assert towers_of(weights)


def refusal(weights: Weights) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        towers_of(weights)
    return str(caught.value)


def test_wrong_weights_are_named(weights: Weights) -> None:
    query = "visual.transformer.resblocks.1.attn.in_proj_weight"
    assert f"missing: {query}" in refusal({name: tensor for name, tensor in weights.items() if name != query})
    assert "unknown: logit_bias" in refusal(weights | {"logit_bias": torch.zeros(())})
    assert f"{query} is (3, 128) and should be (384, 128)" in refusal(weights | {query: torch.zeros(3, 128)})
    assert f"{query} holds int8" in refusal(weights | {query: weights[query].to(torch.int8)})
    assert "missing: visual.conv1.weight" in refusal({n: t for n, t in weights.items() if n != "visual.conv1.weight"})
    assert "square number of patches" in refusal(weights | {"visual.positional_embedding": torch.zeros(16, 128)})
    assert "expected 4 axes" in refusal(weights | {"visual.conv1.weight": torch.zeros(128)})
    without = {name: tensor for name, tensor in weights.items() if ".resblocks.0." not in name}
    assert "visual.transformer.resblocks.0.ln_1.weight" in refusal(without)
    assert "and 18 more" in refusal(without), "a long list is counted"


def test_two_faults_are_one_error(weights: Weights) -> None:
    said = refusal({n: t for n, t in weights.items() if n != "logit_scale"} | {"logit_bias": torch.zeros(())})
    assert "missing: logit_scale; unknown: logit_bias" in said


@pytest.mark.parametrize(
    "switch", [{"image_hierarchy": True}, {"text_hierarchy": True}, {"causal": False}, {"text_pooling": "max"}]
)
def test_a_model_that_is_more_than_clip_is_not_written_as_one(switch: dict[str, Any], tmp_path: Path) -> None:
    plain = {"image_hierarchy": False, "text_hierarchy": False}
    towers = TwoTowers(ModelSettings(width=64, depth=1, image_px=16, context=8, **(plain | switch)))
    with pytest.raises(CheckpointError, match=re.escape(f"{next(iter(switch))}: {next(iter(switch.values()))}")):
        write_published(towers, str(tmp_path / "out"), "open_clip")
    assert not (tmp_path / "out").exists()


# Files


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "bin"])
def test_every_kind_of_file_is_read(weights: Weights, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    if suffix == "safetensors":
        save_file(weights, path)
    elif suffix == "bin":
        torch.save(weights, path)
    else:  # as open_clip's training stores it
        run = {f"module.{name}": tensor for name, tensor in weights.items()}
        torch.save({"epoch": 3, "name": "run", "state_dict": run, "optimizer": {"state": {}}}, path)
    again = to_published(read_published(str(path)), "open_clip")
    assert all(torch.equal(again[name], weights[name]) for name in weights)


@pytest.mark.parametrize("names", ["open_clip", "transformers"])
def test_a_written_folder_is_read(weights: Weights, tmp_path: Path, names: Names) -> None:
    towers = towers_of(weights)
    write_published(towers, str(tmp_path), names)
    again = read_published(str(tmp_path))
    assert again.settings == towers.settings
    assert not again.training
    assert all(torch.equal(tensor, towers.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_the_configuration_decides_about_heads(weights: Weights, tmp_path: Path) -> None:
    write_published(towers_of(weights), str(tmp_path), "open_clip")
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["head_width"] = 32
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert resolve(read_published(str(tmp_path)).settings).image.heads == 4


def test_a_published_model_is_evaluated_as_a_checkpoint_of_the_same_weights_is(tmp_path: Path) -> None:
    plain = replace(SMALL_MODEL, image_hierarchy=False, text_hierarchy=False)
    checkpoint = small_checkpoint(tmp_path / "run", "nowhere", "0" * 64, plain)
    write_published(load_towers(str(checkpoint))[0], str(tmp_path / "published"), "transformers")
    sets = [OpenmojiSettings(name="openmoji", root=str(small_openmoji(tmp_path / "crawl")))]
    asked = str(checkpoint), str(tmp_path / "published"), str(tmp_path / "published/model.safetensors")
    own, folder, file = (evaluate_checkpoint(path, sets, metrics={"loss", "rsum"}, draws=100) for path in asked)
    assert own == folder == file
    assert own


@pytest.mark.parametrize(
    ("names", "config", "said"),
    [
        ("open_clip", '{"model_cfg": {"embed_dim": 48}}', "model_cfg.quick_gelu: expected true"),
        ("open_clip", '{"model_cfg": {"quick_gelu": true, "text_cfg": {"heads": "8"}}}', "heads: expected a count"),
        ("transformers", '{"vision_config": {"hidden_act": "gelu"}}', "vision_config.hidden_act: expected quick_gelu"),
        ("transformers", '{"text_config": {"layer_norm_eps": 1e-6}}', "text_config.layer_norm_eps: expected 1e-05"),
        ("transformers", '{"text_config": 3}', "text_config: expected keys and values, came int"),
        ("transformers", "[1]", "config.json beside it: expected keys and values, came list"),
        ("transformers", '{"model_type": "cl', "config.json beside it cannot be read"),
    ],
)
def test_another_model_by_its_configuration(
    weights: Weights, tmp_path: Path, names: Names, config: str, said: str
) -> None:
    write_published(towers_of(weights), str(tmp_path), names)
    name = "open_clip_config.json" if names == "open_clip" else "config.json"
    (tmp_path / name).write_text(config)
    with pytest.raises(CheckpointError, match=re.escape(said)):
        read_published(str(tmp_path))


class Code:
    """What a hostile file does where it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.target),)


def test_code_in_a_file_does_not_run(tmp_path: Path) -> None:
    target = tmp_path / "made by the file"
    for name, write in (("zip.pt", torch.save), ("old.bin", old_save)):
        path = tmp_path / name
        write({"visual.proj": torch.zeros(1), "code": Code(target)}, path)
        with pytest.raises(CheckpointError, match=r"expected tensors alone, found posix\.mkdir besides tensors"):
            read_published(str(path))
        assert not target.exists()


def old_save(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def bad_files(folder: Path, weights: Weights) -> dict[str, str]:
    """Name of a file that cannot be what it says -> what must be said of it."""
    save_file(weights, folder / "whole.safetensors")
    torch.save(weights, folder / "whole.pt")
    whole = (folder / "whole.safetensors").read_bytes(), (folder / "whole.pt").read_bytes()
    (folder / "half.safetensors").write_bytes(whole[0][: len(whole[0]) // 2])
    (folder / "half.pt").write_bytes(whole[1][: len(whole[1]) // 2])
    (folder / "empty.pt").write_bytes(b"")
    (folder / "text.bin").write_text("<html>not found</html>")
    (folder / "pickle.bin").write_bytes(pickle.dumps({"a": 1}, protocol=2))
    torch.save([weights], folder / "list.pt")
    torch.save({"model": weights}, folder / "nested.pt")
    save_file({"resnet.weight": torch.zeros(2)}, folder / "other.safetensors")
    with zipfile.ZipFile(folder / "script.pt", "w") as archive:
        archive.writestr("clip/constants.pkl", b"")
    return {
        "half.safetensors": "cannot be read",
        "half.pt": "cannot be read",
        "empty.pt": "cannot be read",
        "text.bin": "no PyTorch file, or a damaged one",
        "pickle.bin": "cannot be read",
        "list.pt": "expected tensors by name, found list",
        "nested.pt": "found model (dict)",
        "other.safetensors": "found resnet.weight",
        "script.pt": "a TorchScript archive",
        "absent.pt": "absent.pt",
    }


def test_what_cannot_be_read_is_one_clear_line(weights: Weights, tmp_path: Path) -> None:
    for name, said in bad_files(tmp_path, weights).items():
        with pytest.raises((CheckpointError, ValueError), match=re.escape(said)) as caught:
            read_published(str(tmp_path / name))
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match=r"expected a file that ends in \.safetensors"):
        read_published(str(tmp_path / "clip.onnx"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_bytes_are_one_clear_line(tmp_path: Path) -> None:
    """Whatever a flipped byte makes the reader do: it reads tensors, or says that it cannot, and nothing else."""
    chance = random.Random(0)
    weights, refused = {"visual.proj": torch.randn(2, 3)}, 0
    save_file(weights, tmp_path / "whole.safetensors")
    torch.save(weights, tmp_path / "whole.pt")
    old_save(weights, tmp_path / "whole.bin")
    for suffix in ("safetensors", "pt", "bin"):
        content = (tmp_path / f"whole.{suffix}").read_bytes()
        damaged = tmp_path / f"damaged.{suffix}"
        for _ in range(60):
            flipped = bytearray(content)
            flipped[chance.randrange(min(len(content), 600))] = chance.randrange(256)
            damaged.write_bytes(flipped)
            with pytest.raises(CheckpointError) as caught:
                read_published(str(damaged))
            refused += "cannot be read" in str(caught.value)
    assert refused > 60, "the others read as tensors that are no CLIP"
