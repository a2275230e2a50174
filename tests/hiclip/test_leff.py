"""LeFF and its batch norm: the formula, what CLS gets, what the grid means, and that ranks do not count."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from small_run import random_batches, small_job
from torch import Tensor, nn
from two_ranks import run_on_ranks

from hiclip.distributed import rank, world
from hiclip.model.batch_norm import GlobalBatchNorm
from hiclip.model.leff import Leff
from hiclip.model.sizes import ModelSettings, resolve
from hiclip.model.transformer import Layer
from hiclip.model.two_towers import TwoTowers
from hiclip.training.checkpoint import load_towers
from hiclip.training.history import StepRow
from hiclip.training.rank_run import run_rank
from hiclip.training.saving import RunPlace

WIDTH, GRID = 6, 5
SETTINGS = ModelSettings(
    width=64, depth=3, image_px=24, patch_px=8, context=10, embedding=16, vocabulary=100, leff=True, front_layers=2
)


def leff(width: int = WIDTH, grid: int = GRID, seed: int = 0) -> Leff:
    """A LeFF in float64 whose every parameter says something."""
    torch.manual_seed(seed)
    module = Leff(width, grid).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def tokens(pairs: int = 4, grid: int = GRID, width: int = WIDTH, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(pairs, 1 + grid**2, width, generator=generator, dtype=torch.float64)


def quick_gelu(values: Tensor) -> Tensor:
    return values * torch.sigmoid(1.702 * values)


def normed(values: Tensor, norm: GlobalBatchNorm) -> Tensor:
    """Batch norm by its formula; values (..., channels)."""
    rows = values.reshape(-1, values.shape[-1])
    return (values - rows.mean(0)) / (rows.var(0, correction=0) + 1e-5).sqrt() * norm.weight + norm.bias


def test_leff_is_its_formula() -> None:
    module, given = leff(), tokens()
    patches = given[:, 1:]
    wide = quick_gelu(normed(patches @ module.widen.weight.T + module.widen.bias, module.wide_norm))
    grid = nn.functional.pad(wide.unflatten(1, (GRID, GRID)), (0, 0, 1, 1, 1, 1))
    mixed = sum(
        grid[:, row : row + GRID, column : column + GRID] * module.mix.weight[:, 0, row, column]
        for row in range(3)
        for column in range(3)
    )
    assert isinstance(mixed, Tensor)
    mixed = quick_gelu(normed(mixed, module.mixed_norm)).flatten(1, 2)
    narrow = quick_gelu(normed(mixed @ module.narrow.weight.T + module.narrow.bias, module.narrow_norm))
    torch.testing.assert_close(module(given), torch.cat((given[:, :1], narrow), dim=1))


def test_a_layer_gives_cls_its_own_norm_and_no_mlp() -> None:
    layer: Layer[Tensor] = Layer(64, 1, None, Leff(64, 3))
    layer.double()
    stream = tokens(grid=3, width=64)
    attended = stream + layer.attention(*[layer.attention_norm(stream)] * 2, None, None)
    cls_token = attended[:, 0]
    torch.testing.assert_close(layer(stream, None, None)[:, 0], cls_token + layer.mlp_norm(cls_token))


def test_a_patch_reaches_its_eight_neighbours() -> None:
    """With the statistics held still; with the batch's own, every patch moves every other a little."""
    module = leff().eval()
    given, changed = tokens(1), tokens(1)
    changed[0, 1 + 1 * GRID + 2] += 1  # row 1, column 2
    moved = (module(given) - module(changed)).abs().sum(dim=-1)[0] > 1e-9
    expected = torch.zeros(GRID, GRID, dtype=torch.bool)
    expected[0:3, 1:4] = True
    assert not moved[0]
    assert torch.equal(moved[1:].view(GRID, GRID), expected)


def test_moving_the_picture_moves_the_answer_inside() -> None:
    module, given = leff().eval(), tokens(2)
    moved = given.clone()
    moved[:, 1:] = given[:, 1:].unflatten(1, (GRID, GRID)).roll((1, 1), (1, 2)).flatten(1, 2)
    before, after = (module(stream)[:, 1:].unflatten(1, (GRID, GRID)) for stream in (given, moved))
    # Away from the border of both: there zeros stand beside the grid.
    torch.testing.assert_close(after[:, 2:-1, 2:-1], before[:, 1:-2, 1:-2])


@pytest.mark.parametrize("training", [True, False])
def test_the_gradient_of_leff(training: bool) -> None:
    module = leff(2, 2).train(training)
    given = tokens(3, 2, 2).requires_grad_()
    parameters = tuple(module.parameters())
    assert torch.autograd.gradcheck(lambda stream, *_: module(stream), (given, *parameters), fast_mode=True)


def test_two_crops_may_pass_before_the_gradient() -> None:
    """Running statistics move with the second forward; the first one's gradient is not of them."""
    module, crops = leff(), (tokens(seed=1), tokens(seed=2))
    sum((module(crop).square().sum() for crop in crops), torch.zeros(())).backward()
    together = [parameter.grad for parameter in module.parameters()]
    apart = leff()
    for crop in crops:
        apart(crop).square().sum().backward()
    torch.testing.assert_close(together, [parameter.grad for parameter in apart.parameters()])


@pytest.mark.parametrize("shape", [(12, 5), (4, 5, 3, 2)])
def test_the_batch_norm_is_torchs_in_one_process(shape: tuple[int, ...]) -> None:
    ours, theirs = GlobalBatchNorm(5).double(), (nn.BatchNorm1d(5) if len(shape) == 2 else nn.BatchNorm2d(5)).double()
    for _ in range(2):
        values = torch.randn(*shape, dtype=torch.float64)
        torch.testing.assert_close(ours(values), theirs(values))
    torch.testing.assert_close((ours.running_mean, ours.running_variance), (theirs.running_mean, theirs.running_var))
    torch.testing.assert_close(ours.eval()(values), theirs.eval()(values))


def whole_and_part(given: Tensor, module: nn.Module) -> list[Tensor]:
    """A rank's answers, the gradients averaged over ranks and its running statistics, after a step on its pairs."""
    own = given.chunk(world())[rank()]
    answer = module(own)
    (answer.square().mean() + (answer * answer.detach().roll(1, -1)).mean()).backward()
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    for gradient in gradients:
        if world() > 1:
            torch.distributed.all_reduce(gradient)
            gradient /= world()
    return [answer.detach(), *gradients, *module.buffers()]


@pytest.mark.parametrize("kind", ["leff", "maps"])
def test_two_ranks_are_one(kind: str) -> None:
    module: nn.Module = leff()
    given = tokens()
    if kind == "maps":
        module = nn.Sequential(nn.Conv2d(6, 6, 1), GlobalBatchNorm(6), nn.ReLU()).double()
        given = given[:, 1:].unflatten(1, (GRID, GRID)).permute(0, 3, 1, 2).contiguous()
    both = run_on_ranks(2, whole_and_part, given, module)
    one = whole_and_part(given, module)
    torch.testing.assert_close(torch.cat([result[0] for result in both]), one[0])
    for result in both:
        torch.testing.assert_close(result[1:], one[1:], rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("hierarchy", [True, False])
def test_the_tower_takes_leff_with_and_without_the_hierarchy(hierarchy: bool) -> None:
    model = TwoTowers(dataclasses.replace(SETTINGS, image_hierarchy=hierarchy))
    assert [isinstance(layer.mlp, Leff) for layer in model.image_tower.transformer.layers] == [True, True, False]
    images = torch.randn(3, 3, 24, 24)
    vector = model.image_tower(images).vector
    vector.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.image_tower.parameters())
    model.eval()
    # Held statistics: a picture's vector does not depend on those beside it.
    torch.testing.assert_close(model.image_tower(images).vector[:1], model.image_tower(images[:1]).vector)
    assert not torch.allclose(vector, model.image_tower(images).vector)


def test_computing_the_last_layer_where_it_is_read_changes_nothing_with_leff() -> None:
    model, images = TwoTowers(SETTINGS).double(), torch.randn(3, 3, 24, 24, dtype=torch.float64)
    torch.testing.assert_close(
        model.image_tower(images).vector, model.image_tower(images, all_tokens=True).vector, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ModelSettings(front_layers=1), "front_layers: expected null without leff and region_width, came 1"),
        (ModelSettings(leff=True), "front_layers: expected 1 to 3 with leff, came null"),
        (ModelSettings(leff=True, front_layers=4), "front_layers: expected 1 to 3, below the image tower's 4 layers"),
        (ModelSettings(leff=True, front_layers=0), "front_layers: expected a number above 0"),
    ],
)
def test_fronts_that_cannot_be_are_refused(settings: ModelSettings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(settings)


def test_what_sees_the_batch_says_so() -> None:
    assert resolve(SETTINGS).sees_the_batch
    assert not resolve(dataclasses.replace(SETTINGS, leff=False, front_layers=None)).sees_the_batch
    assert resolve(ModelSettings(size="resnet_tiny", image_hierarchy=False)).sees_the_batch


def test_a_resumed_run_has_the_running_statistics_of_one_that_never_stopped(tmp_path: Path) -> None:
    job = small_job(str(tmp_path), model={"depth": 2, "leff": True, "front_layers": 1, "patch_px": 8})
    place = RunPlace(job.out, "fingerprint of the data", None)
    states = []
    for newest in (None, f"{job.out}/checkpoints/seen-000000000024"):
        rows: list[StepRow] = []
        run_rank(job, place, newest, lambda step: random_batches(job, step), rows.append)
        towers, _ = load_towers(job.out)
        states.append(towers.state_dict())
    running = [name for name in states[0] if "running" in name]
    assert len(running) == 6
    assert all(states[0][name].ne(start).any() for name in running for start in (0 if "mean" in name else 1,))
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)
