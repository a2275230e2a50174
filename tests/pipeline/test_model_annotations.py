"""Annotations by models of transformers, with tiny ones that the tests make and save: real code, no meaning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from small_drawings import drawing, encoded

from hiclip.data.region_views import regions
from pipeline.annotations import CaptionSummaryAnnotation, ObjectRegionsAnnotation
from pipeline.jobfile import JobError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

PICTURES = pa.table({"image": [encoded(drawing(seed, 40 + 20 * seed)) for seed in range(3)]})
LONG = "A brown dog runs over the green field. It has a red ball in its mouth and seems to be very happy about it"


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A YOLOS of one layer and three classes."""
    import torch
    from transformers import YolosConfig, YolosForObjectDetection
    from transformers.models.yolos.image_processing_pil_yolos import YolosImageProcessorPil

    place = str(tmp_path_factory.mktemp("detector"))
    torch.manual_seed(0)
    config = YolosConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                         image_size=[64, 64], patch_size=16, num_detection_tokens=5,
                         id2label={0: "dog", 1: "red ball", 2: "tree"})  # fmt: skip
    model = YolosForObjectDetection(config)
    for weight in model.class_labels_classifier.parameters():
        weight.data *= 20  # or every class is as likely as the next
    model.save_pretrained(place)
    YolosImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(place)
    return place


def test_regions_are_what_the_image_tower_reads(detector: str) -> None:
    one = ObjectRegionsAnnotation(model=detector, min_score=0.0, most=4).ready()
    found = one.annotate(PICTURES)
    assert found.select(one.columns.names).schema == one.columns
    for row in found.to_pylist():
        assert set(row["object_tags"].split(", ")) <= {"dog", "red ball", "tree"}
        vectors = regions(row | {"pair_id": "x"}, 10, 32 + 4)
        assert (np.abs(vectors).sum(axis=1) > 0).tolist() == [True] * 4 + [False] * 6
        left, top, right, bottom = vectors[:4, 32:].T
        assert (left <= right).all()
        assert (top <= bottom).all()
        assert vectors[:4, 32:].min() >= 0
        assert vectors[:4, 32:].max() <= 1
    again = one.annotate(PICTURES.slice(1, 1))
    assert again["regions"].to_pylist() == found["regions"].to_pylist()[1:2], "nothing depends on its neighbours"


def test_only_what_is_certain_enough_counts(detector: str) -> None:
    certain = ObjectRegionsAnnotation(model=detector, min_score=1.0).ready().annotate(PICTURES)
    assert certain["object_tags"].to_pylist() == certain["regions"].to_pylist() == [None] * 3
    tags = ObjectRegionsAnnotation(model=detector, min_score=0.0, regions=False).ready()
    assert tags.annotate(PICTURES).column_names == ["image", "object_tags"]
    assert tags.deciding() != ObjectRegionsAnnotation(model=detector, min_score=0.0).deciding()


def test_a_model_is_known_by_what_is_in_its_folder(detector: str, tmp_path: Path) -> None:
    one = ObjectRegionsAnnotation(model=detector)
    before = one.deciding()["model"]
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in Path(detector).iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert one.model_copy(update={"model": str(copy)}).deciding()["model"] == before
    (copy / "config.json").write_text("{}")
    assert one.model_copy(update={"model": str(copy)}).deciding()["model"] != before
    with pytest.raises(JobError, match=r"object_regions\.model: expected a model's folder, found no \./nothing"):
        ObjectRegionsAnnotation(model="./nothing").ready()
    with pytest.raises(JobError, match=r"caption_summary\.model: expected a folder with config\.json"):
        CaptionSummaryAnnotation(model=str(tmp_path)).ready()
    assert ObjectRegionsAnnotation(model="facebook/detr-resnet-50").ready().model == "facebook/detr-resnet-50"


def test_the_rule_takes_the_first_sentence_of_a_long_caption() -> None:
    captions = pa.table({"caption": ["a dog", LONG, "one two three four five six seven"]})
    found = CaptionSummaryAnnotation(most_words=5).ready().annotate(captions)
    assert found["caption_summary"].to_pylist() == ["a dog", "A brown dog runs over", "one two three four five"]
    found = CaptionSummaryAnnotation(most_words=10).ready().annotate(captions)
    assert found["caption_summary"].to_pylist()[1] == "A brown dog runs over the green field."
    assert found["caption_summary"].to_pylist()[2] == "one two three four five six seven"


@pytest.fixture(scope="module")
def summariser(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A T5 of one layer with a vocabulary of a few words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    place = str(tmp_path_factory.mktemp("summariser"))
    torch.manual_seed(0)
    words = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *sorted(set(LONG.split()))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    ).save_pretrained(place)
    config = T5Config(vocab_size=len(words), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
                      decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(place)
    return place


def test_a_model_sums_up_what_is_long(summariser: str) -> None:
    one = CaptionSummaryAnnotation(model=summariser, most_words=5, most_tokens=6).ready()
    found = one.annotate(pa.table({"caption": ["a dog", LONG, LONG]}))["caption_summary"].to_pylist()
    assert found[0] == "a dog"
    assert found[1] == found[2] != LONG
    assert len(found[1].split()) <= 6
    assert set(found[1].split()) <= set(LONG.split())
