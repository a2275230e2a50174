"""Pictures are scored by real models: drawn text is found, plain pictures hold none, and nothing depends on batches."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw, ImageFont

from pipeline.annotations.safety import SafetyAnnotation
from pipeline.annotations.text_in_image import TextInImageAnnotation
from pipeline.jobfile import InputError
from pipeline.wanted_package import expect_package


def picture(text: str = "") -> bytes:
    drawn = Image.linear_gradient("L").resize((320, 240)).convert("RGB")
    for line in range(4 if text else 0):
        ImageDraw.Draw(drawn).text((10, 10 + 55 * line), text, fill="red", font=ImageFont.load_default(40))
    file = io.BytesIO()
    drawn.save(file, format="PNG")
    return file.getvalue()


def test_drawn_text_is_found() -> None:
    pairs = pa.table({"image": [picture(), picture("SALE 50% OFF"), picture()]})
    found = TextInImageAnnotation().ready().annotate(pairs)
    assert found.schema.field("text_share").type == pa.float32()
    plain, text, again = found["text_share"].to_pylist()
    assert plain == again < 0.01
    assert 0.1 < text < 0.9


def test_another_detector_must_be_there() -> None:
    with pytest.raises(InputError, match=r"text_in_image\.model: expected an ONNX file, came nothing\.onnx"):
        TextInImageAnnotation(model="nothing.onnx").ready()


def test_every_picture_has_a_safety_score_whatever_its_batch() -> None:
    pairs = pa.table({"image": [picture(), picture("SALE"), picture("WORDS")]})
    together = SafetyAnnotation().ready().annotate(pairs)
    assert together.schema.field("unsafe_score").type == pa.float32()
    scores = together["unsafe_score"].to_pylist()
    assert all(0 <= score < 0.5 for score in scores)
    assert len(set(scores)) > 1
    alone = [SafetyAnnotation().annotate(pairs.slice(row, 1))["unsafe_score"][0].as_py() for row in range(3)]
    assert np.allclose(alone, scores, atol=1e-4)


@pytest.mark.parametrize("kind", [SafetyAnnotation, TextInImageAnnotation])
def test_no_pairs_have_the_columns(kind: type[SafetyAnnotation | TextInImageAnnotation]) -> None:
    none = kind().annotate(pa.table({"image": pa.array([], pa.binary())}))
    assert none.schema.names == ["image", *kind().columns.names]


def test_a_missing_package_is_named() -> None:
    with pytest.raises(InputError, match=r"^annotations\.x: expected the package no-such; pip install"):
        expect_package("x", "no_such")
