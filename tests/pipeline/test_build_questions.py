"""What can be asked of a build when it is done: every answer is held against what is known of a small real web."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image
from rich.console import Console, RenderableType
from small_pool import small_pool
from small_web import SmallWeb, reply, small_web

from pipeline import build_record
from pipeline.build import build, check, check_again, plan
from pipeline.build_job import BuildJob
from pipeline.command import WithValue, console, run_command
from pipeline.drift import drift, shares_of, wilson
from pipeline.explain import explain, read_pair_id
from pipeline.facts import facts_of, total_facts
from pipeline.jobfile import JobError, make_job
from pipeline.manifest import MANIFEST, DatasetError, read_manifest
from pipeline.mlflow_tracker import UNDELIVERED
from pipeline.pair import pair_id

GOOD = 40


def picture(seed: int, size: tuple[int, int] = (60, 40)) -> bytes:
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 12, 3), np.uint8)).resize(size)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def web() -> Iterator[SmallWeb]:
    answers = {f"/{number}.png": reply(picture(number)) for number in range(GOOD)}
    answers["/copy.png"] = reply(picture(0))
    answers["/small.png"] = reply(picture(99, (6, 6)))
    answers["/mine.png"] = reply(picture(98), X_Robots_Tag="noai")
    with small_web(answers) as server:
        yield server


@pytest.fixture(scope="module")
def named(web: SmallWeb) -> dict[str, dict[str, str]]:
    """The rows of the list that have a fate of their own, by that fate."""
    rows = {
        "stays": (web.url("/0.png"), "the first picture of them all", "left"),
        "copy": (web.url("/copy.png"), "the same picture at another place", "right"),
        "small": (web.url("/small.png"), "a picture of very few pixels", "right"),
        "opted out": (web.url("/mine.png"), "a picture that is not for training", "right"),
        "gone": (web.url("/gone.png"), "a picture that was there once", "right"),
        "short": (web.url("/1.png"), "word", "left"),
        "twice": (web.url("/2.png"), "a picture that stands there twice", "left"),
        "no address": ("ftp://somewhere/3.png", "a picture behind another protocol", "left"),
    }
    return {name: {"url": url, "caption": caption, "source": source} for name, (url, caption, source) in rows.items()}


def job_in(place: Path, port: int, named: dict[str, dict[str, str]], **more: Any) -> BuildJob:
    rows = [*named.values(), named["twice"]]
    rows += [
        {
            "url": f"http://127.0.0.1:{port}/{number}.png",
            "caption": f"this is picture number {number}",
            "source": "left",
        }
        for number in range(3, GOOD)
    ]
    pq.write_table(pa.Table.from_pylist(rows), place / "list.parquet")
    content = {
        "name": "asked",
        "out": str(place / "out"),
        "lists": [{"path": str(place / "list.parquet"), "columns": {"source": "source"}}],
        "download": {"allow_private": ["127.0.0.0/8"], "retries": 0, "image_px": 32, "rows_per_task": 8,
                     "cpus_per_task": 2, "connect_to": {"*.nowhere.example": "127.0.0.1:9"}},
        "annotations": ["language"],
        "filters": [{"caption_length": {"min_words": 2}}, {"language": {"min_score": 0}},
                    {"image_size": {"min_px": 20}}],
        "duplicates": {"exact": "image", "near": None},
        "shards": {"pairs_per_shard": 12, "rows_per_group": 4},
        "tasks": {"rows": 16},
        "card": {"licences": {"left": "CC0 1.0"}, "contact": "someone@example.org"},
    }  # fmt: skip
    return make_job(content | more, BuildJob, "test")


@pytest.fixture(scope="module")
def built(
    tmp_path_factory: pytest.TempPathFactory, web: SmallWeb, named: dict[str, dict[str, str]], ray_session: None
) -> BuildJob:
    one = job_in(tmp_path_factory.mktemp("asked"), web.port, named)
    build(one)
    return one


@pytest.fixture
def copied(built: BuildJob, tmp_path: Path) -> BuildJob:
    """The build in a folder that a test may spoil."""
    shutil.copytree(built.out, tmp_path / "out")
    return built.model_copy(update={"out": str(tmp_path / "out")})


def shown(what: RenderableType) -> str:
    paper = Console(width=300, file=io.StringIO(), highlight=False)
    paper.print(what)
    assert isinstance(paper.file, io.StringIO)
    return paper.file.getvalue()


def explained(job: BuildJob, row: dict[str, str]) -> list[tuple[str, str]]:
    lines = shown(explain(job, pair_id(row["url"], row["caption"]))).splitlines()[1:]
    return [(line.split()[0], " ".join(line.split()[1:])) for line in lines]


def test_a_refused_row_is_followed_to_the_step_that_refused_it(
    built: BuildJob, named: dict[str, dict[str, str]]
) -> None:
    found = {name: explained(built, row) for name, row in named.items()}
    for name, lines in found.items():
        assert ("caption", named[name]["caption"]) in lines
    last = {name: lines[-1] for name, lines in found.items()}
    assert last["no address"] == ("list", "refused: malformed_url: scheme 'ftp'")
    assert any(step == "download" and what.startswith("refused: http_404") for step, what in found["gone"])
    assert any(step == "download" and what.startswith("refused: opt_out") for step, what in found["opted out"])
    step, what = last["short"]
    assert (step, what.startswith("refused: too_few_words (")) == ("caption_length", True)
    assert "min_words 2" in what
    assert last["small"][0] == "image_size"
    picture_line = dict(found["small"])["picture"]
    assert picture_line.startswith("PNG, 6 x 6 px, ")
    passed = [step for step, what in found["small"] if what.startswith("passed")]
    assert passed == ["list", "download", "caption_length", "language"]
    assert float(dict(found["small"])["language_score"]) > 0


def test_of_duplicates_the_one_that_stays_is_named(built: BuildJob, named: dict[str, dict[str, str]]) -> None:
    names = {name: pair_id(named[name]["url"], named[name]["caption"]) for name in ("stays", "copy")}
    lines = {name: explained(built, named[name]) for name in names}
    refused, kept = sorted(names, key=lambda name: lines[name][-1][0] == "kept")
    line = next(line for line in lines[refused] if line[0] == "duplicates")
    assert line[1] == f"refused: duplicate_image: of {names[kept]}"
    assert ("stays", f"{names[kept]} {named[kept]['url']}") in lines[refused]


def test_a_kept_pair_lies_where_it_is_said(built: BuildJob) -> None:
    manifest = read_manifest(built.out)
    row = 0
    for shard in manifest.shards:
        table = pq.read_table(Path(built.out, shard.path))
        for at, pair in enumerate(table.to_pylist()):
            where = f"row group {at // 4}, row {at} (row {row} of the dataset)"
            assert ("kept", f"{built.out}/{shard.path}, {where}") in explained(built, pair)
            row += 1
    assert row == manifest.pairs > 30


def test_a_row_that_is_listed_twice_is_shown_twice(built: BuildJob, named: dict[str, dict[str, str]]) -> None:
    lines = explained(built, named["twice"])
    assert sum(name == "row" for name, _ in lines) == 2
    assert ("list", "refused: duplicate_row") in lines
    assert sum(name == "kept" for name, _ in lines) == 1


def test_unknown_pairs_and_missing_builds_are_said(built: BuildJob, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no row of the lists has the pair_id 0123456789abcdef"):
        explain(built, "0123456789abcdef")
    with pytest.raises(DatasetError, match="ledger: expected the ledger of a build, found none"):
        explain(built.model_copy(update={"out": str(tmp_path)}), "0123456789abcdef")
    with pytest.raises(JobError, match="16 hex digits, came 'abc'"):
        read_pair_id("abc")


def test_a_build_on_s3_answers_too(
    built: BuildJob, named: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        for name, value in {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
                            "AWS_DEFAULT_REGION": "us-east-1"}.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="asked")
        for file in Path(built.out).rglob("*"):
            if file.is_file():
                client.upload_file(str(file), "asked", f"out/{file.relative_to(built.out)}")
        there = built.model_copy(update={"out": "s3://asked/out"})
        assert [line for line in explained(there, named["small"]) if line[0] != "snapshot"] == [
            line for line in explained(built, named["small"]) if line[0] != "snapshot"
        ]
        check(there)
        assert "s3://asked/out: whole" in capsys.readouterr().out
    finally:
        server.stop()


def test_a_whole_dataset_is_called_whole(built: BuildJob, capsys: pytest.CaptureFixture[str]) -> None:
    check(built)
    assert f"{built.out}: whole; " in capsys.readouterr().out


def test_every_fault_of_a_dataset_is_named(copied: BuildJob, capsys: pytest.CaptureFixture[str]) -> None:
    shards = Path(copied.out, "shards")
    spoilt = bytearray((shards / "00000.parquet").read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    (shards / "00000.parquet").write_bytes(spoilt)
    (shards / "00001.parquet").unlink()
    (shards / "00077.parquet").write_bytes(b"of another dataset")
    ledger = Path(copied.out, "ledger", "00000.parquet")
    pq.write_table(pq.read_table(ledger).slice(1), ledger)
    with pytest.raises(DatasetError, match=r"out: 4 faults; the first: .*00000\.parquet: expected sha256"):
        check(copied)
    said = capsys.readouterr().out
    assert "00001.parquet: the manifest lists this shard, and it is not there" in said
    assert "00077.parquet: the manifest does not list this file" in said
    assert "ledger: " in said


def test_a_manifest_that_counts_wrongly_is_found_out(copied: BuildJob, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.manifest import dataset_fingerprint, write_manifest
    from pipeline.storage import Folder

    manifest = read_manifest(copied.out)
    shards = (manifest.shards[0].model_copy(update={"pairs": 13, "bytes": 1}), *manifest.shards[1:])
    columns = manifest.columns | {"language_score": "double"}
    altered = {"shards": shards, "pairs": manifest.pairs + 1, "columns": columns}
    altered["fingerprint"] = dataset_fingerprint(shards, columns)
    write_manifest(Folder(copied.out), manifest.model_copy(update=altered))
    with pytest.raises(DatasetError):
        check(copied)
    said = capsys.readouterr().out
    assert "00000.parquet: expected 1 bytes, found " in said
    assert "00000.parquet: expected 13 pairs, found 12" in said
    assert "column language_score: expected double, found float" in said
    assert f"ledger: kept: the manifest counts {manifest.pairs + 1}, found {manifest.pairs}" in said


def state(place: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in place.rglob("*") if path.is_file()}


def test_a_dataset_is_built_again_without_the_web(
    built: BuildJob, web: SmallWeb, capsys: pytest.CaptureFixture[str]
) -> None:
    before, asked = state(Path(built.out)), len(web.requests)
    faster = built.download.model_copy(update={"rows_per_task": 5})
    check_again(built.model_copy(update={"name": "other", "download": faster}))
    assert "built again from the snapshot it is the same" in capsys.readouterr().out
    assert (state(Path(built.out)), len(web.requests)) == (before, asked)
    assert not Path(f"{built.out}.rebuild-check").exists()


def test_what_differs_when_it_is_built_again_is_named(copied: BuildJob, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.manifest import Shard, dataset_fingerprint, write_manifest
    from pipeline.shards import write_shard
    from pipeline.storage import Folder

    manifest, place = read_manifest(copied.out), Folder(copied.out)
    table = pq.read_table(Path(copied.out, manifest.shards[1].path))
    captions = table["caption"].to_pylist()
    captions[3] = "altered"
    at = table.schema.get_field_index("caption")
    field = pa.field("caption", pa.string(), nullable=False)
    other: Shard = write_shard(table.set_column(at, field, pa.array(captions)), place, 1, 4)
    shards = (manifest.shards[0], other, *manifest.shards[2:])
    fingerprint = dataset_fingerprint(shards, manifest.columns)
    write_manifest(place, manifest.model_copy(update={"shards": shards, "fingerprint": fingerprint}))
    with pytest.raises(DatasetError, match="built again it is another dataset"):
        check_again(copied)
    said = capsys.readouterr().out
    name = table["pair_id"][3].as_py()
    assert f"shards/00001.parquet: columns caption differ, first in row 3, pair {name}" in said
    assert not Path(f"{copied.out}.rebuild-check").exists()


def test_a_snapshot_that_is_not_whole_is_not_built_from(copied: BuildJob) -> None:
    shard = Path(copied.out, "snapshot", "000001.parquet")
    content = shard.read_bytes()
    shard.write_bytes(content[:-9] + b"x" + content[-8:])
    with pytest.raises(DatasetError, match=r"000001\.parquet: its sha256 is not that of its record"):
        check_again(copied)
    shard.unlink()
    with pytest.raises(DatasetError, match=r"000001\.parquet: the dataset was built from this file, and it is not"):
        check_again(copied)
    Path(copied.out, MANIFEST).unlink()
    with pytest.raises(DatasetError, match="expected a dataset to compare with, found none"):
        check_again(copied)


def test_drift_counts_what_the_web_has_changed(built: BuildJob, copied: BuildJob, web: SmallWeb) -> None:
    same = json.loads(Path(drift(copied, 1000)).read_text())
    pairs = read_manifest(built.out).pairs
    assert (same["sample"], same["shares"][0]["pairs"], same["rows"]) == (pairs, pairs, [])
    answers = web.answers.copy()
    try:
        web.answers["/10.png"] = reply(picture(1234))
        web.answers["/11.png"] = reply(b"", status="410 Gone")
        web.answers["/12.png"] = reply(b"no picture")
        path = drift(copied, 1000)
    finally:
        web.answers = answers
    now = json.loads(Path(path).read_text())
    ends = {row["url"].rpartition("/")[2]: row["end"] for row in now["rows"]}
    assert ends.keys() == {"10.png", "11.png", "12.png"}
    assert (ends["10.png"], ends["11.png"]) == ("changed", "http_410")
    assert {one["what"]: one["pairs"] for one in now["shares"][:3]} == {"same": pairs - 3, "changed": 1, "gone": 2}
    assert Path(path).name == f"drift-{now['date'][:10]}.json"


def test_the_sample_is_the_same_every_time_and_grows(built: BuildJob, copied: BuildJob, web: SmallWeb) -> None:
    def asked(pairs: int) -> set[str]:
        before = len(web.requests)
        drift(copied, pairs)
        return {text.split(" ")[1] for text in web.requests[before:]}

    few, again, more = asked(5), asked(5), asked(9)
    assert len(few) == 5
    assert few == again < more


def test_wilsons_interval_is_the_published_one() -> None:
    low, high = wilson(81, 263)  # Newcombe 1998, table I: 0.2553 to 0.3662
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    low, high = wilson(0, 20)  # the same: 0 to 0.1611
    assert (low, round(high, 4)) == (0, 0.1611)
    assert [one.what for one in shares_of(Counter(same=1, dns=1, http_404=2))] == [
        "same", "changed", "gone", "gone: http_404", "gone: dns",
    ]  # fmt: skip


def test_the_card_says_what_was_counted(built: BuildJob) -> None:
    card, manifest = Path(built.out, "card.md").read_text(), read_manifest(built.out)
    tables = [pq.read_table(Path(built.out, shard.path)) for shard in manifest.shards]
    kept = Counter(pa.concat_tables(tables)["source"].to_pylist())
    listed = Counter(pq.read_table(built.lists[0].path)["source"].to_pylist())
    for source, licence in (("left", "CC0 1.0"), ("right", "not stated")):
        share = f"{kept[source] / listed[source]:.1%}"
        assert f"| {source} | {listed[source]} | {kept[source]} | {share} | {licence} |" in card
    words = (manifest.fingerprint, manifest.snapshot, "someone@example.org", "min_words: 2", "| image_size |",
             "`language`, version 1", "`duplicates`: `{exact: image",
             "duplicate_image 1", "Opt-outs honoured: 1 picture", "pyarrow")  # fmt: skip
    assert [word for word in words if word not in card] == []
    assert "None" not in card


def test_the_share_that_is_not_safe_is_of_the_kept_pairs_that_were_rated(tmp_path: Path) -> None:
    scores = [0.1, 0.5, 0.9, None, 0.2, 0.7, 0.95]
    rows = [{"pair_id": f"{number:016x}", "unsafe_score": score} for number, score in enumerate(scores)]
    rows[-1] |= {"step": "score", "reason": "score_too_high"}
    pool = small_pool(tmp_path, rows, pa.schema([pa.field("unsafe_score", pa.float32())]))
    facts = total_facts(facts_of(pool, span)[0] for span in range(pool.spans))
    assert (facts.unsafe, facts.rated, pool.spans) == (3, 5, 2)


def command(tmp_path: Path, job: BuildJob, *options: str) -> int:
    """The command in this process, with an option that takes a number and one that takes a name."""
    (tmp_path / "job.yaml").write_text(json.dumps(job.model_dump(mode="json")))

    def tell(job: BuildJob, pair: str) -> None:
        """Tell. And more."""
        console.print(f"told {pair} of {job.name}")

    def count(job: BuildJob, number: int) -> str:
        """Count."""
        return f"{job.name} {number + 1}"

    instead = {"tell": WithValue("NAME", read_pair_id, tell), "count": WithValue("N", int, count)}
    with pytest.raises(SystemExit) as ended:
        run_command(BuildJob, plan, build, [str(tmp_path / "job.yaml"), *options], instead)  # type: ignore[arg-type]
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_options_may_take_a_value(built: BuildJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path, built, "--tell", "0123456789ABCDEF") == 0
    assert capsys.readouterr().out == "told 0123456789abcdef of asked\n"
    assert command(tmp_path, built, "--count", "3", "name=other") == 0
    assert capsys.readouterr().out == "result: other 4\n"
    assert command(tmp_path, built, "--tell", "abc") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "expected a pair_id, which is 16 hex digits, came 'abc'" in said


def test_the_bill_counts_requests_disk_and_annotations(built: BuildJob) -> None:
    rate = {"bill": {"annotation_pictures_per_s": {"language": 20}}}
    text = shown(plan(make_job(built.model_dump(mode="json") | rate, BuildJob, "test")))
    assert "S3 requests" not in text
    assert "20 pictures a second" in text
    assert f"work/ in {built.out}" in text
    assert "no rate in bill.annotation_pictures_per_s.language" in shown(plan(built))
    remote = {"out": "s3://bucket/out"}
    assert "S3 requests" in shown(plan(built.model_copy(update=remote)))


def recorded(built: BuildJob, place: Path, **mlflow: Any) -> BuildJob:
    """The build once more, elsewhere, from the snapshot that is there."""
    content = built.model_dump(mode="json")
    content |= {"out": str(place / "out"), "snapshot": str(Path(built.out) / "snapshot"), "mlflow": mlflow}
    return make_job(content, BuildJob, "test")


def test_a_build_is_a_run_in_mlflow_with_its_dataset(built: BuildJob, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    one = recorded(built, tmp_path, experiment="builds")
    build(one, recorded=True)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("builds")
    (run,) = client.search_runs([experiment.experiment_id])
    manifest = read_manifest(one.out)
    assert (run.info.run_name, run.info.status) == ("asked", "FINISHED")
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("asked", manifest.fingerprint[:36])
    assert json.loads(used.dataset.profile) == {"num_rows": manifest.pairs, "fingerprint": manifest.fingerprint}
    assert json.loads(used.dataset.source) == {"uri": one.out}
    assert run.data.params["download.image_px"] == "32"
    assert run.data.params["download.connect_to._.nowhere.example"] == "127.0.0.1:9"
    assert run.data.metrics["kept"] == manifest.pairs
    assert run.data.metrics["refused.download.opt_out"] == 1
    assert run.data.metrics["seconds.filter"] > 0
    assert {one.path for one in client.list_artifacts(run.info.run_id)} == {"card.md", "job.yaml", "result.json"}


def test_a_tracker_that_is_away_stops_a_build_at_its_start_and_not_later(
    built: BuildJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(JobError, match=r"mlflow\.tracking_uri: http://127\.0\.0\.1:1 cannot be reached"):
        build(recorded(built, tmp_path, tracking_uri="http://127.0.0.1:1"), recorded=True)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(build_record, "PATIENCE_S", 1.0)
    with small_web({"/health": reply(b"OK")}) as server:
        one = recorded(built, tmp_path, tracking_uri=server.url(""))
    # It has answered nobody yet, and is gone: the check at the start is passed by, as by a server that dies then.
    monkeypatch.setattr("pipeline.build.check_reachable", lambda settings, out: None)
    build(one, recorded=True)
    assert read_manifest(one.out).fingerprint == read_manifest(built.out).fingerprint
    assert "did not take everything" in caplog.text
    left = [json.loads(line) for line in Path(one.out, UNDELIVERED).read_text().splitlines()]
    assert {"Dataset", "Point", "Params", "End"} <= {line["kind"] for line in left}
