"""PretrainJob: the keys of a pretraining job, what they mean, and what cannot work together."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from hiclip.batch import TARGETS
from hiclip.data.images import CENTRE_CROP
from hiclip.data.mixture import DatasetSettings, MixedDataset, datasets_of
from hiclip.data.stream_plan import LoaderSettings
from hiclip.data.view_settings import ViewSettings
from hiclip.evaluation.measure import METRICS
from hiclip.evaluation.sets import SetSettings
from hiclip.model.sizes import ModelSettings, resolve
from hiclip.objectives import ObjectiveSettings
from hiclip.objectives.clip import ClipSettings
from hiclip.training.optimizer import OptimizerSettings
from hiclip.training.profile import ProfileSettings
from hiclip.training.schedule import ScheduleSettings
from pipeline.jobfile import Job, Number, Settings, job_fingerprint
from pipeline.storage import absolute

NOT_THE_RESULT = (
    "name",
    "out",
    "ray",
    "mlflow",
    "loader",
    "checkpoints",
    "price",
    "profile",
    "evaluation",
    "divergence",
    "activation_checkpointing",
    "compiled",
    "engine",
    "workers",
)
"""Keys of a job that change no pair and no weight of a run that goes well, but for the order in which the last three
add numbers up (and where `compiled` rounds them in bf16): a run may be resumed under other values of these."""


class DataSettings(Settings):
    """Which pairs are shown, and how many at once."""

    dataset: DatasetSettings
    """Folder or s3:// address that `pipeline.build` wrote. Or several, mixed by weight and each in epochs
    of its own: `[{path: A, weight: 3}, {path: B, weight: 1}]`."""
    unique_pairs: Annotated[int, Field(ge=1)] | None = None
    """Show only so many pairs of the dataset, the same ones in every run: its first, which are a fair sample, as pairs
    lie in the order of a hash. What smaller numbers show is part of what larger ones do. Null: all."""
    batch: Annotated[int, Field(ge=2)]
    """Pairs of one step over all workers: every pair is told apart from all others of its batch."""
    micro_batch: Annotated[int, Field(ge=1)] | None = None
    """Pairs that a worker encodes at once, a divisor of its share of `batch`; null: all. The gradient is the same, the
    memory is that of so few pairs, and a step takes a third longer: all are encoded twice (gradient caching)."""
    window_groups: Annotated[int, Field(ge=1)] = 64
    """Row groups of a dataset whose pairs are mixed with each other; more mix better and take more memory."""
    views: ViewSettings = ViewSettings()
    """How crops and captions are drawn from a pair."""

    @property
    def datasets(self) -> tuple[MixedDataset, ...]:
        """The datasets that are mixed, or the only one."""
        return datasets_of(self.dataset)

    def placed(self) -> DataSettings:
        """The same, whose paths mean the same in any working directory."""
        synonyms = self.views.eda_synonyms
        views = replace(self.views, eda_synonyms=None if synonyms is None else absolute(synonyms))
        return self.model_copy(update={"dataset": self.absolute_dataset, "views": views})

    @property
    def absolute_dataset(self) -> str | tuple[MixedDataset, ...]:
        """`dataset` as every machine of a run means it."""
        if isinstance(self.dataset, str):
            return absolute(self.dataset)
        return tuple(one.model_copy(update={"path": absolute(one.path)}) for one in self.dataset)


class PlainEngineSettings(Settings):
    """Torch alone: one worker, nothing sharded."""

    name: Literal["plain"]


class DeepSpeedEngineSettings(Settings):
    """DeepSpeed: any number of workers, the optimizer's state shared out among them."""

    name: Literal["deepspeed"] = "deepspeed"
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """What is shared out instead of kept by every worker: 0 nothing, 1 optimizer state, 2 also gradients, 3 also
    weights."""
    offload: bool = False
    """Keep the optimizer's state on the CPU and step there, which leaves the device to the rest and takes longer: with
    `zero_stage` 1 to 3."""


EngineSettings = Annotated[PlainEngineSettings | DeepSpeedEngineSettings, Field(discriminator="name")]


class WorkerSettings(Settings):
    """The processes that train, each with one device."""

    count: Annotated[int, Field(ge=1)] = 1
    """Number of workers; divides `data.batch`."""
    least: Annotated[int, Field(ge=1)] | None = None
    """Fewest workers that the run starts or goes on with when the cluster has no room for `count`; null: it waits for
    all. Sizes between the two that do not divide `data.batch` are passed over; the pairs of a step stay the same."""
    resize_minutes: Annotated[Number, Field(gt=0)] = 10.0
    """Minutes after which the run looks whether there is room for more workers; to grow it restarts from its newest
    checkpoint."""
    cpus: Annotated[Number, Field(gt=0)] = 1.0
    """Ray CPUs that each worker takes; leave some for the tasks that read and decode. Torch gets a thread for each."""
    gpus: Annotated[Number, Field(ge=0)] = 0.0
    """Ray GPUs that each worker takes; 0 trains on CPU."""
    restarts: Annotated[int, Field(ge=0)] = 3
    """How often a lost worker may send all workers back to the newest checkpoint before the run fails."""


class CheckpointSettings(Settings):
    """When the run is saved. The end of a run is always saved."""

    every_pairs: Annotated[int, Field(ge=1)]
    """Pairs seen between two checkpoints, rounded up to whole steps."""
    at: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Pairs seen, rounded up to whole steps, after which a checkpoint is written that stays until somebody removes it:
    other runs may start from it."""
    every_minutes: Annotated[Number, Field(gt=0)] | None = None
    """Minutes after which a checkpoint is written in any case; null: pairs alone count."""
    keep: Annotated[int, Field(ge=1)] = 2
    """How many of the newest checkpoints stay."""
    keep_best: Annotated[int, Field(ge=0)] = 1
    """How many more stay because the training loss of the steps before them was lowest."""


class DivergenceSettings(Settings):
    """What is done when the loss or the length of the gradient is not a finite number."""

    skipped_in_a_row: Annotated[int, Field(ge=0)] = 3
    """Steps in a row that may be skipped: their pairs count as seen, the weights stay."""
    rollbacks: Annotated[int, Field(ge=0)] = 1
    """How often, after more than that, the run goes back to the newest checkpoint from before them and leaves out those
    batches and the one before; then it fails, and `diverged.json` in `out` names the pairs."""


class EvaluationSettings(Settings):
    """What the newest checkpoint is asked while training goes on, by one Ray task beside the workers."""

    sets: Annotated[tuple[SetSettings, ...], Field(min_length=1)]
    """Evaluation sets, see `hiclip.evaluation.sets`."""
    every_pairs: Annotated[int, Field(ge=1)]
    """Pairs seen between two evaluations; each asks the newest checkpoint, so `checkpoints` should be as frequent."""
    metrics: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names of metrics, see `hiclip.evaluation.measure.METRICS`; null: all that a set has."""
    cpus: Annotated[Number, Field(ge=0)] = 1.0
    """Ray CPUs of the task, beside those of training; 0 takes from training what it computes."""
    gpus: Annotated[Number, Field(ge=0)] = 0.0
    """Ray GPUs of the task; a part of one is allowed. 0 computes on CPU."""
    batch: Annotated[int, Field(ge=1)] = 128
    """Pictures or texts that are embedded together."""
    centre_crop: Annotated[Number, Field(gt=0, le=1)] = CENTRE_CROP
    """As in `hiclip.evaluate`: the share of a picture's shorter side that its centre square shows."""
    draws: Annotated[int, Field(ge=100)] = 200
    """Resamples behind each interval."""

    @field_validator("metrics")
    @classmethod
    def _exist(cls, metrics: tuple[str, ...] | None) -> tuple[str, ...] | None:
        unknown = [metric for metric in metrics or () if metric not in METRICS]
        if unknown:
            raise ValueError(f"expected some of {', '.join(METRICS)}, came {unknown[0]}")
        return metrics


class PriceSettings(Settings):
    """What the bill of `--dry-run` is computed from."""

    device: str
    """Name of the device, for the reader."""
    peak_tflops: Annotated[Number, Field(gt=0)]
    """Most floating-point operations of the job's precision that a device does, in 10^12 a second."""
    utilization: Annotated[Number, Field(gt=0, le=1)] = 0.3
    """Share of the peak that training is assumed to reach."""
    per_hour: Annotated[Number, Field(ge=0)]
    """Price of one device for an hour, in `currency`."""
    currency: str = "USD"
    """What the price is in."""


class PretrainJob(Job):
    """A pretraining run."""

    data: DataSettings
    model: ModelSettings = ModelSettings()
    """The towers, see `hiclip.model.sizes`."""
    objective: Annotated[ObjectiveSettings, Field(discriminator="name")] = ClipSettings()
    """What is learnt from a batch, see `hiclip.objectives`."""
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings
    engine: EngineSettings = DeepSpeedEngineSettings()
    """What runs the steps: one worker alone, or DeepSpeed with as many as are asked for."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of the forward and backward; weights and optimizer are fp32 in both."""
    activation_checkpointing: bool = False
    """Keep what enters a transformer layer alone and compute the rest again in the backward: the same numbers in much
    less memory, for one more forward."""
    compiled: bool = False
    """Let torch.compile make kernels of both towers; the first steps then take minutes."""
    workers: WorkerSettings = WorkerSettings()
    loader: LoaderSettings = LoaderSettings()
    """The processes that read and decode for the workers."""
    checkpoints: CheckpointSettings
    divergence: DivergenceSettings = DivergenceSettings()
    profile: ProfileSettings | None = None
    """A trace of a few steps by torch's profiler, as `profile/trace.json.gz` in `out`; null: none."""
    evaluation: EvaluationSettings | None = None
    """What checkpoints are asked while training goes on, recorded in MLflow beside the losses; null: nothing."""
    price: PriceSettings | None = None
    """Null: the bill says nothing of hours and money."""

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.schedule.pairs // self.data.batch

    @property
    def pairs(self) -> int:
        """Pairs that the whole run sees: `schedule.pairs`, rounded down to whole steps."""
        return self.steps * self.data.batch

    @property
    def worlds(self) -> tuple[int, ...]:
        """Numbers of workers that the job can be trained with, ascending; the last is `workers.count`."""
        least = self.workers.count if self.workers.least is None else self.workers.least
        chunk = self.data.micro_batch or 1
        return tuple(n for n in range(least, self.workers.count + 1) if self.data.batch % (n * chunk) == 0)

    @property
    def ray_cpus(self) -> float:
        """Ray CPUs that the fewest workers and their loaders take together."""
        return self.worlds[0] * (self.workers.cpus + self.loader.tasks * self.loader.cpus_per_task)

    @property
    def fingerprint(self) -> str:
        """Hex sha256 of everything in the job that can change its weights."""
        return job_fingerprint(self, leave_out=self.not_the_result)

    @property
    def not_the_result(self) -> tuple[str, ...]:
        """`NOT_THE_RESULT`, without `workers` if the objective compares the pairs of a worker with each other."""
        return tuple(key for key in NOT_THE_RESULT if key != "workers" or not self.objective.compares_a_workers_pairs)

    @model_validator(mode="after")
    def _fits(self) -> PretrainJob:
        try:
            resolve(self.model)
        except ValueError as error:
            raise ValueError(f"model.{error}") from None
        if self.data.batch % self.workers.count:
            raise ValueError(
                f"data.batch: expected a multiple of workers.count ({self.workers.count}), came {self.data.batch}"
            )
        if self.data.unique_pairs is not None and len(self.data.datasets) > 1:
            raise ValueError(
                f"data.unique_pairs: expected null with {len(self.data.datasets)} datasets, came "
                f"{self.data.unique_pairs}: it counts the pairs of one"
            )
        self._check_least()
        self.objective.check(self.model, self.data.batch // self.workers.count)
        if self.model.region_width is not None and not self.objective.views.regions:
            raise ValueError(
                f"model.region_width: expected null with objective {self.objective.name}, which is shown no regions, "
                f"came {self.model.region_width}"
            )
        self._check_micro_batch()
        self._check_engine_switches()
        guesses = any(view.endswith(TARGETS) for view in self.objective.views.texts)
        if self.engine.name == "deepspeed" and self.engine.zero_stage == 3 and guesses:
            raise ValueError(
                f"engine.zero_stage: expected at most 2 with objective {self.objective.name}, whose masked words are "
                "more on one worker than on another, came 3"
            )
        if self.engine.name == "plain" and self.workers.count > 1:
            raise ValueError(
                f"engine.name: plain trains with workers.count 1, came {self.workers.count}; use deepspeed"
            )
        if self.steps == 0:
            raise ValueError(
                f"schedule.pairs: expected at least one batch ({self.data.batch}), came {self.schedule.pairs}"
            )
        return self

    def _check_least(self) -> None:
        least = self.workers.least
        if least is None:
            return
        if least > self.workers.count:
            raise ValueError(f"workers.least: expected at most workers.count ({self.workers.count}), came {least}")
        if self.objective.compares_a_workers_pairs:
            raise ValueError(
                f"workers.least: expected null with objective {self.objective.name}, which compares the pairs of a "
                f"worker with each other, so that their number is part of the result, came {least}"
            )

    def _check_engine_switches(self) -> None:
        stage = self.engine.zero_stage if self.engine.name == "deepspeed" else None
        if self.engine.name == "deepspeed" and self.engine.offload and stage == 0:
            raise ValueError(
                "engine.offload: expected false with engine.zero_stage 0, which keeps the optimizer as it is, came true"
            )
        if self.activation_checkpointing and resolve(self.model).sees_the_batch:
            key = "model.leff true" if self.model.leff else f"model.size {self.model.size}"
            raise ValueError(
                f"activation_checkpointing: expected false with {key}, whose batch norms would count a batch twice, "
                "came true"
            )
        if self.compiled and stage == 3:
            raise ValueError(
                "compiled: expected false with engine.zero_stage 3, which fetches weights layer by layer, came true"
            )
        if self.compiled and self.activation_checkpointing:
            raise ValueError(
                "compiled: expected false with activation_checkpointing true, which torch's compiler cannot follow "
                "where captions vary in length, came true"
            )

    def _check_micro_batch(self) -> None:
        micro_batch, share = self.data.micro_batch, self.data.batch // self.workers.count
        if micro_batch is None:
            return
        if self.engine.name == "deepspeed" and self.engine.zero_stage == 3:
            raise ValueError(
                f"engine.zero_stage: expected at most 2 with data.micro_batch {micro_batch}, whose second pass needs "
                "all weights, came 3"
            )
        if share % micro_batch:
            raise ValueError(
                f"data.micro_batch: expected a divisor of a worker's {share} pairs (data.batch / workers.count), "
                f"came {micro_batch}"
            )
        if resolve(self.model).sees_the_batch:
            key = "model.leff true" if self.model.leff else f"model.size {self.model.size}"
            raise ValueError(
                f"data.micro_batch: expected null with {key}, whose batch norms would see {micro_batch} pairs "
                f"instead of a worker's {share}, came {micro_batch}"
            )
