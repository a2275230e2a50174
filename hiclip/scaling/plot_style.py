"""What the pictures of a study have in common: colours that colour-blind people tell apart, axes, and the PNG."""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

INK, SOFT, LINE, PAPER = "#1d1f21", "#6b6f76", "#e3e2dc", "#ffffff"
METHODS = ("#2f7d6b", "#8d5a97", "#33658a", "#b8860b")
"""A colour for each method."""
GROUPS = ("#33658a", "#e0a458", "#8d5a97", "#86a873", "#b4503e", "#5a6a72", "#1d1f21", "#c98bb0")
"""A colour for each group where there is one method."""
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
HELD_OUT = "#b4503e"
_DPI = 160
_ACROSS, _SIGN = 132, 6  # letters of a legend from side to side, and what stands for the sign before each name


def new_figure(width: float = 8.6, height: float = 5.4) -> Figure:
    """An empty figure of so many inches."""
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as PNG."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def dress(axes: Axes, title: str, across: str, up: str) -> None:
    """Title, names of the axes, a quiet grid and no frame."""
    axes.set_title(verbatim(title), loc="left", color=INK, fontsize=12, pad=12)
    axes.set_xlabel(verbatim(across), color=SOFT)
    axes.set_ylabel(verbatim(up), color=SOFT)
    axes.grid(which="major", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=SOFT, which="both")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(LINE)


def verbatim(said: str) -> str:
    """Text of others, in which matplotlib would take dollars for the ends of formulae."""
    return said.replace("$", r"\$")


def log_ticks_up(axes: Axes) -> None:
    """A log axis upwards with readable ticks: errors seldom span decades, so at 1, 2 and 5 times powers of ten, and at
    round numbers where those are too few."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    few = high / low < 5
    axes.yaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 2.5, 5, 10]) if few else LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def log_ticks_across(axes: Axes) -> None:
    """A log axis across, with small ticks between powers of ten."""
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(LogLocator(subs=[float(k) for k in range(2, 10)]))
    axes.xaxis.set_minor_formatter(NullFormatter())


def legend_below(figure: Figure, axes: Axes, columns: int = 3) -> None:
    """The legend outside of the data, below, in fewer columns where names are long."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = min(columns, max(1, _ACROSS // (_SIGN + max(map(len, labels)))))
        figure.legend(
            handles,
            [verbatim(label) for label in labels],
            loc="outside lower left",
            ncols=columns,
            frameon=False,
            fontsize=8.5,
            labelcolor=INK,
        )
