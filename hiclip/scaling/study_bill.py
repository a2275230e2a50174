"""What a study costs, rung by rung, and whether its budget allows it: said before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from hiclip.scaling.ladder import Ladder, Rung, shown
from hiclip.scaling.scale_job import ScaleJob
from hiclip.training.cost import parameters
from hiclip.training.counted_flops import formula_error
from pipeline.jobfile import JobError


@dataclass(frozen=True)
class Need:
    """What something takes."""

    pairs: int
    """Pairs that are trained on."""
    flops: float
    """Training FLOPs."""
    device_hours: float | None
    """None: the base job has no price."""
    money: float | None


@dataclass(frozen=True)
class Budget:
    """What a study may take at most; None: as much as it needs."""

    flops: float | None = None
    device_hours: float | None = None


def budget_of(job: ScaleJob, ladder: Ladder) -> Budget:
    """The job's budget, its money as device-hours. JobError if a price is needed and the base job has none."""
    hours = job.budget_hours
    if job.budget_money is not None:
        price = ladder.rungs[0].job.price
        if price is None or price.per_hour == 0:
            raise JobError(
                f"budget_money: {job.base.job} has no price (price.per_hour), so money is unknown; give it one"
            )
        affordable = job.budget_money / price.per_hour
        hours = affordable if hours is None else min(hours, affordable)
    return Budget(job.budget_flops, hours)


def need_of(ladder: Ladder, rungs: Sequence[Rung]) -> Need:
    """What the rungs take, each from where it branches off."""
    needed = [rung.device_hours_from(ladder.start(rung)) for rung in rungs]
    hours = None if None in needed else sum(one for one in needed if one is not None)
    price = ladder.rungs[0].job.price
    return Need(
        sum(rung.job.pairs - ladder.start(rung) for rung in rungs),
        sum(ladder.own_compute(rung) for rung in rungs),
        hours,
        None if hours is None or price is None else hours * price.per_hour,
    )


def search_need(job: ScaleJob, ladder: Ladder, searched: Sequence[Rung]) -> Need | None:
    """What the search takes at most, were no trial stopped early; None without one."""
    if job.search is None:
        return None
    trials = job.search.trials  # fewer where two draws are one run
    needed = [rung.device_hours_from(0) for rung in searched]
    hours = None if None in needed else trials * sum(one for one in needed if one is not None)
    price = ladder.rungs[0].job.price
    return Need(
        trials * sum(rung.job.pairs for rung in searched),
        trials * sum(rung.compute for rung in searched),
        hours,
        None if hours is None or price is None else hours * price.per_hour,
    )


def check_budget(job: ScaleJob, ladder: Ladder, searched: Sequence[Rung] = ()) -> Budget:
    """The study's budget; JobError if the study needs more than that."""
    budget = budget_of(job, ladder)
    needs = [need_of(ladder, ladder.all), *([search] if (search := search_need(job, ladder, searched)) else [])]
    flops = sum(need.flops for need in needs)
    smallest = min(ladder.all, key=lambda rung: rung.compute)
    if budget.flops is not None and flops > budget.flops:
        raise JobError(
            f"budget_flops: the study needs {flops:.4g} FLOPs, the budget is {budget.flops:.4g}; "
            f"its smallest rung needs {smallest.compute:.4g}"
        )
    if budget.device_hours is None:
        return budget
    key = "budget_hours" if budget.device_hours == job.budget_hours else "budget_money"
    hours = [need.device_hours for need in needs]
    if None in hours:
        raise JobError(f"{key}: {job.base.job} has no price, so its hours are unknown; give it one")
    total = sum(one for one in hours if one is not None)
    if total > budget.device_hours:
        alone = smallest.device_hours_from(0) or 0.0
        raise JobError(
            f"{key}: the study needs {total:,.3g} device-hours, the budget is {budget.device_hours:,.4g}; "
            f"its smallest rung needs {alone:,.3g}"
        )
    return budget


def bill(job: ScaleJob, ladder: Ladder, searched: Sequence[Rung] = ()) -> Table:
    """What every rung and the whole study will see, compute and, where the base job has a price, take and cost."""
    search = search_need(job, ladder, searched)
    total = _sum([need_of(ladder, ladder.all), *([search] if search else [])])
    priced = total.device_hours is not None
    table = Table(title=f"{job.name}: the bill", title_justify="left", show_footer=True, box=SIMPLE_HEAD)
    table.add_column("rung", footer="the study")
    currency = ladder.rungs[0].job.price.currency if ladder.rungs[0].job.price else ""
    footers = ["", *_cells(total, currency, priced)]
    off = {rung.job.model: formula_error(rung.job.model) for rung in ladder.all}
    footers.insert(0, "")
    footers.insert(4, f"{max(off.values(), key=abs):+.1%}")
    heads = ["from pair", "parameters", "pairs", "FLOPs", "off torch's count", "device h", "money"]
    for head, footer in zip(heads, footers, strict=False):
        table.add_column(head, footer=footer, justify="right", no_wrap=True)
    for rung in ladder.all:
        start = ladder.start(rung)
        said = [rung.full_name, *(["(held out)"] if rung is ladder.held_out else [])]
        cells = _cells(need_of(ladder, [rung]), currency, priced)
        cells.insert(2, f"{off[rung.job.model]:+.1%}")
        table.add_row(escape(" ".join(said)), shown(start), shown(parameters(rung.job.model)), *cells)
    if search is not None and job.search is not None:
        name = f"search: {job.search.trials} trials of {', '.join(rung.full_name for rung in searched)}, at most"
        cells = _cells(search, currency, priced)
        table.add_row(escape(name), "", "", *cells[:2], "", *cells[2:])
    return table


def _sum(needs: Sequence[Need]) -> Need:
    hours = [need.device_hours for need in needs]
    money = [need.money for need in needs]
    return Need(
        sum(need.pairs for need in needs),
        sum(need.flops for need in needs),
        None if None in hours else sum(one for one in hours if one is not None),
        None if None in money else sum(one for one in money if one is not None),
    )


def _cells(need: Need, currency: str, priced: bool) -> list[str]:
    """Pairs, FLOPs, device-hours and money as people read them."""
    cells = [shown(need.pairs), f"{need.flops:.3g}"]
    if not priced:
        return cells
    money = "" if need.money is None else f"{need.money:,.2f} {currency}"
    return [*cells, "" if need.device_hours is None else f"{need.device_hours:,.3g}", money]
