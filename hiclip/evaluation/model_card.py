"""The card of an exported model: what it is, what it was trained on, what it reaches, and how it is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from hiclip.data.images import CENTRE_CROP, CLIP_MEAN, CLIP_STD
from hiclip.data.tokenizer import END, PADDING, START, VOCABULARY
from hiclip.evaluation.outcome import Outcome
from hiclip.evaluation.result_tables import escaped, results_markdown
from hiclip.model.sizes import ModelSettings, ResNetSize, Sizes, resolve
from hiclip.training.checkpoint import TrainState
from hiclip.training.cost import parameters, train_flops


@dataclass(frozen=True)
class TrainingData:
    """A dataset that a model was trained on, as far as is known."""

    path: str
    name: str | None
    """Null where the dataset is not within reach."""
    fingerprint: str | None
    pairs: int | None
    licences: dict[str, str]
    """Source to licence, as the dataset's own job says."""


LOADING = """import torch
from hiclip.model.exported import load
towers = load(".")"""
"""Run in the folder of the export, or with its path for the dot."""

TOKENIZER = "TOKENIZER.md"


def preprocessing(settings: ModelSettings) -> dict[str, Any]:
    """What stands in `config.json` about pictures and captions."""
    sizes = resolve(settings)
    return {
        "picture": {
            "px": sizes.image_px,
            "centre_crop": CENTRE_CROP,
            "resize": "bicubic, antialiased",
            "mean": list(CLIP_MEAN),
            "std": list(CLIP_STD),
        },
        "caption": {
            "tokenizer": "CLIP's byte-pair encoding, lower case",
            "context": sizes.context,
            "start": START,
            "end": END,
            "padding": PADDING,
        },
    }


def tokenizer_note(settings: ModelSettings) -> str:
    """How captions become the numbers that the text tower takes."""
    sizes = resolve(settings)
    grown = "" if sizes.vocabulary == VOCABULARY else f" The table has {sizes.vocabulary:,} rows; these are the first."
    return f"""# Tokenizer

CLIP's byte-pair encoding (Radford et al. 2021): lower case, {VOCABULARY:,} entries.{grown}

A caption is a row of {sizes.context} numbers, int64: {START} (start), its first {sizes.context - 2} tokens,
{END} (end), then {PADDING} up to the end of the row. What is longer is cut off before the end token.

`hiclip.data.tokenizer.Tokenizer({sizes.context}).encode(captions)` makes the rows (NumPy; it needs the package
`instant-clip-tokenizer`). Every other implementation of CLIP's tokenizer gives the same numbers; check that it pads
with {PADDING}, as OpenAI's and open_clip's do.
"""


def model_card(
    settings: ModelSettings,
    state: TrainState,
    job: dict[str, Any],
    data: Sequence[TrainingData],
    outcome: Outcome | None,
) -> str:
    """README.md of the export. `job`: the pretraining job as its checkpoint holds it."""
    return "\n".join(_card(settings, state, job, data, outcome)) + "\n"


def _card(
    settings: ModelSettings,
    state: TrainState,
    job: dict[str, Any],
    data: Sequence[TrainingData],
    outcome: Outcome | None,
) -> Iterator[str]:
    sizes = resolve(settings)
    yield f"# {escaped(str(job.get('name', 'unnamed')))}\n"
    yield f"{architecture(settings, sizes)}; {parameters(settings) / 1e6:.1f} M parameters.\n"
    yield "## Load it\n"
    yield "In this folder, with the package `hiclip`, torch and safetensors; no Ray, DeepSpeed, MLflow or pydantic:\n"
    yield f"```python\n{LOADING}\n```\n"
    yield (
        f"`towers.image_tower(pictures).vector` takes (B, 3, {sizes.image_px}, {sizes.image_px}) pictures, normalised "
        f"as `config.json` says; `towers.text_tower(tokens).vector` takes (B, {sizes.context}) tokens, see "
        f"`{TOKENIZER}`. Both give (B, {sizes.embedding}), not yet of length one. `towers.logit_scale()` is the "
        "inverse temperature.\n"
    )
    yield "## Architecture\n"
    yield from _differing(settings)
    yield "\n## Training\n"
    objective = job.get("objective")
    named = objective.get("name") if isinstance(objective, dict) else None
    flops = state.train_flops or train_flops(settings, state.seen)
    yield f"- objective: {escaped(str(named or 'not stated'))}"
    yield f"- pairs seen: {state.seen:,} in {state.step:,} steps, {flops:.3g} FLOPs"
    yield f"- job: {escaped(str(job.get('name', 'unnamed')))}, fingerprint `{state.job_fingerprint}`"
    yield f"- data fingerprint: `{state.manifest_fingerprint}`"
    yield f"- commit of the code: {state.commit or 'not known'}\n"
    yield "## Data\n"
    yield from _data(data)
    yield "\n## Results\n"
    if outcome is None:
        yield "None are given."
    else:
        # One heading deeper, so that they stay a part of the card.
        yield (results_markdown(outcome).replace("\n#", "\n##").partition("\n")[2])


def architecture(settings: ModelSettings, sizes: Sizes) -> str:
    """Example: "HiCLIP: ViT with 4 layers of 192, patches of 8 px, pictures of 64 px; text with 4 layers of 192"."""
    image, text = sizes.image, sizes.text
    both = {(True, True): "HiCLIP", (True, False): "CLIP, Group Transformer", (False, True): "CLIP, Tree Transformer"}
    if isinstance(image, ResNetSize):
        blocks = "-".join(str(blocks) for blocks in image.stages)
        tower = f"CLIP's ResNet with {blocks} blocks from {image.width} channels"
    else:
        tower = f"vision transformer with {image.depth} layers of {image.width}, patches of {sizes.patch_px} px"
    family = both.get((settings.image_hierarchy, settings.text_hierarchy), "CLIP")
    return (
        f"{family} ({settings.size}): {tower}, pictures of {sizes.image_px} px; text transformer with {text.depth} "
        f"layers of {text.width}, {sizes.context} tokens; vectors of {sizes.embedding}"
    )


def _differing(settings: ModelSettings) -> Iterator[str]:
    """The keys of the model that are not the default; the rest stands in config.json."""
    content = asdict(settings)
    changed = {field.name: content[field.name] for field in fields(settings) if content[field.name] != field.default}
    yield "All keys are in `config.json`. Not the default:\n"
    yield from (f"- `{name}: {value}`" for name, value in changed.items())
    if not changed:
        yield "- none"


def _data(data: Sequence[TrainingData]) -> Iterator[str]:
    for one in data:
        known = f"{one.pairs:,} pairs, fingerprint `{one.fingerprint}`" if one.pairs else "not within reach at export"
        yield f"- {escaped(one.name or 'name not known')} (`{one.path}`): {known}"
        licences = [f"{escaped(source)}: {escaped(licence)}" for source, licence in one.licences.items()]
        yield f"  - licence of the data: {'; '.join(licences) or 'unknown'}"
    if not data:
        yield "- not stated; licence of the data: unknown"
