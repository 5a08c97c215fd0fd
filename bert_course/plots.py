"""Every figure of the course. A lesson computes the numbers and asserts on them; a function here draws and shows them."""

from collections.abc import Sequence
from html import escape

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm, to_hex, to_rgb
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from .lesson import COLOURS


def line_panels(x, panels: dict[str, dict], xlabel: str, xscale: str = "linear", yscales=None, markers: bool = True) -> None:
    """Panels of labelled lines side by side, {y label: {line: values}}.

    Values (X,) are one line; (seeds, X) are drawn as their mean with the range as a band. A line may be shorter than `x`.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(max(6, 4 * len(panels)), 3.6), squeeze=False)
    x = np.asarray(x)
    for number, (axis, (ylabel, lines)) in enumerate(zip(axes[0], panels.items(), strict=True)):
        for (label, values), style, marker, colour in zip(lines.items(), ["-", "--", "-.", ":"], "osD^", COLOURS, strict=False):
            values = np.atleast_2d(np.asarray(values, dtype=float))
            where = x[: values.shape[1]]
            axis.plot(where, values.mean(0), style, color=colour, marker=marker if markers else None, markersize=4, label=label)
            if len(values) > 1:
                axis.fill_between(where, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
        axis.set(xlabel=xlabel, ylabel=ylabel, xscale=xscale, yscale=yscales[number] if yscales else "linear")
        if len(x) <= 8:
            axis.set_xticks(x, [f"{value:g}" for value in x], minor=False)
            axis.minorticks_off()
    axes[0, 0].legend(edgecolor="none", framealpha=1)  # no line runs through it
    plt.show()


def attention_maps(weights, tokens: list[str], title: str | Sequence[str]) -> None:
    """Maps (H, S, S), two in a row, on one colour scale: the heads of one layer, or maps with a title each."""
    weights = np.asarray(weights)
    rows = -(-len(weights) // 2)
    size = 1.4 + 0.17 * len(tokens)
    figure, axes = plt.subplots(rows, 2, figsize=(8, rows * size), sharex=True, sharey=True, squeeze=False)
    for head, axis in enumerate(axes.flat):
        if head >= len(weights):
            axis.set_axis_off()
            continue
        image = axis.imshow(weights[head], cmap="Blues", vmin=0, vmax=weights.max())
        axis.set_title(f"{title}, head {head + 1}" if isinstance(title, str) else title[head], fontsize=10)
        axis.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=9)
        axis.set_yticks(range(len(tokens)), tokens, fontsize=9)
        axis.spines[:].set_visible(False)
    figure.supxlabel("token that is listened to", fontsize=10)
    figure.supylabel("token that asks", fontsize=10)
    figure.colorbar(image, ax=axes, label="attention weight (share of 1)", shrink=0.5)
    plt.show()


def token_boundaries(text: str, rows: dict[str, list[tuple[int, int]]]) -> None:
    """A text cut into tokens in several ways, one row each; a token is a box over its characters (start, end)."""
    figure, axes = plt.subplots(figsize=(8, 0.6 * len(rows) + 0.8))
    for y, spans in enumerate(rows.values()):
        for n, (start, end) in enumerate(spans):
            axes.barh(y, end - start - 0.12, left=start + 0.06, height=0.7, color=COLOURS[(0, 5)[n % 2]], alpha=0.35)
            for i in range(start, end):
                axes.text(i + 0.5, y, text[i], ha="center", va="center", family="monospace", fontsize=12)
    axes.set_yticks(range(len(rows)), [f"{name}: {len(spans)}" for name, spans in rows.items()])
    axes.set_xlabel("position in the text (characters)")
    axes.set_xlim(0, len(text))
    axes.invert_yaxis()
    plt.show()


def reading_paths(tokens: list[str], at: int, layers: int = 2) -> None:
    """What reaches the top state at token `at`: in ELMo's forward half, in its backward half and in BERT.

    A dot is a state, the lowest row the embeddings; the ways that end in that state are coloured.
    """
    figure, axes = plt.subplots(1, 3, figsize=(9, 3), sharey=True)
    places = range(len(tokens))
    panels = {"ELMo, forward half": -1, "ELMo, backward half": 1, "BERT": None}
    for axis, (name, side), colour in zip(axes, panels.items(), COLOURS):
        ways = []
        for layer in range(1, layers + 1):
            for i in places:
                below = places if side is None else [i]
                ways += [((j, layer - 1), (i, layer)) for j in below]
                if side is not None and i + side in places:
                    ways.append(((i + side, layer), (i, layer)))
        reached = {(at, layers)}
        for _ in range(layers * len(tokens)):
            reached |= {start for start, end in ways if end in reached}
        for start, end in ways:
            used = end in reached
            line = dict(color=colour if used else "0.85", linewidth=1.2 if used else 0.6, zorder=used)
            axis.plot(*zip(start, end), **line)
        for place in ((i, layer) for layer in range(layers + 1) for i in places):
            axis.plot(*place, "o", markersize=7, color=colour if place in reached else "0.8", zorder=2)
        axis.plot(at, layers, "s", markersize=13, markerfacecolor="none", markeredgecolor=colour, zorder=3)
        axis.set_title(name)
        axis.set_xticks(places, tokens, rotation=90)
        axis.spines[:].set_visible(False)
    axes[0].set_yticks(range(layers + 1), ["embeddings", *(f"layer {n}" for n in range(1, layers + 1))])
    plt.show()


def influence_maps(maps: dict, tokens: list[str]) -> None:
    """Influence (S, S) of each panel as `probes.influence` returns it, on its own logarithmic scale; exact zeros are hatched."""
    figure, axes = plt.subplots(1, len(maps), figsize=(9, 3.6), sharey=True)
    for axis, (name, values) in zip(axes, maps.items(), strict=True):
        axis.set_facecolor("0.92")
        axis.patch.set_hatch("///")
        axis.patch.set_edgecolor("0.75")
        axis.imshow(np.ma.masked_equal(values, 0), cmap="Blues", norm=LogNorm(vmin=values[values > 0].min() / 3))
        axis.set_title(name)
        axis.set_xticks(range(len(tokens)), tokens, rotation=90)
        axis.set_yticks(range(len(tokens)), tokens)
        axis.spines[:].set_visible(False)
    axes[0].set_ylabel("state at token i")
    figure.supxlabel("embedding of token j", fontsize=10)
    plt.show()


def similarity_map(similarity, names: list[str], title: str) -> None:
    """Cosine similarities (N, N) as a heat map with the numbers in it."""
    figure, axes = plt.subplots(figsize=(7, 5.5))
    low, high = float(similarity.min()), float(similarity.max())
    image = axes.imshow(similarity, cmap="cividis", vmin=low, vmax=high)
    for row in range(len(names)):
        for column in range(len(names)):
            value = float(similarity[row, column])
            dark = value < (low + high) / 2
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=9, color="white" if dark else "black")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.spines[:].set_visible(False)
    axes.set_title(title)
    figure.colorbar(image, ax=axes, label="cosine similarity")
    plt.show()


def projections(panels: dict, labels: list[str]) -> None:
    """Vectors (N, D) of each panel in the two directions in which they vary most (PCA); one marker for each label."""
    figure, axes = plt.subplots(1, len(panels), figsize=(8, 3.2), squeeze=False)
    for axis, (name, vectors) in zip(axes[0], panels.items(), strict=True):
        points = PCA(2).fit_transform(vectors)
        for label, marker, colour in zip(sorted(set(labels)), "osD^", COLOURS, strict=False):
            chosen = points[np.array(labels) == label]
            axis.scatter(*chosen.T, marker=marker, color=colour, s=28, alpha=0.8, label=label)
        axis.set(title=name, xlabel="first direction (no unit)", xticks=[], yticks=[])
    axes[0, 0].set_ylabel("second direction (no unit)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(set(labels)), frameon=False)
    plt.show()


def position_tables(tables: dict, rows: int = 128) -> None:
    """The first `rows` rows of position tables (S, D) as heat maps side by side, each on its own colour scale."""
    figure, axes = plt.subplots(1, len(tables), figsize=(8, 4.2), sharey=True)
    for axis, (name, table) in zip(axes, tables.items(), strict=True):
        table = np.asarray(table[:rows])
        limit = np.quantile(abs(table), 0.99)
        image = axis.imshow(table, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
        axis.set(title=name, xlabel="dimension of the vector")
        figure.colorbar(image, ax=axis, location="bottom", label="value (no unit)", shrink=0.8)
    axes[0].set_ylabel("position in the sequence (tokens)")
    plt.show()


def token_bars(tokens: list[str], panels: dict[str, Sequence[float]]) -> None:
    """What each way of explaining an answer gives to each token: bars to the right speak for it, to the left against it."""
    figure, axes = plt.subplots(1, len(panels), figsize=(9, 0.8 + 0.24 * len(tokens)), sharey=True)
    for axis, (name, values) in zip(axes, panels.items(), strict=True):
        axis.barh(range(len(tokens)), values, color=[COLOURS[value < 0] for value in values])
        axis.axvline(0, color="0.3", linewidth=0.8)
        axis.set_xlabel(name)
    axes[0].set_yticks(range(len(tokens)), tokens)
    axes[0].invert_yaxis()
    plt.show()


def confusion_matrix(counts, labels: list[str]) -> None:
    """How often each true label (rows) got each answer (columns)."""
    counts = np.asarray(counts)
    figure, axis = plt.subplots(figsize=(1.6 + 1.3 * len(labels), 1.2 + 1.1 * len(labels)))
    axis.imshow(counts, cmap="cividis_r", vmin=0)
    for (row, column), count in np.ndenumerate(counts):
        axis.text(column, row, count, ha="center", va="center", color="white" if count > counts.max() / 2 else "black")
    axis.set_xticks(range(len(labels)), labels)
    axis.set_yticks(range(len(labels)), labels)
    axis.set(xlabel="answer of the model (number of texts)", ylabel="truth")
    axis.spines[:].set_visible(False)
    plt.show()


def pretraining_curve(log: list[dict], unigram: float) -> None:
    """Training loss of the masked language model against tokens read; lines as `pretraining.pretrain` logs them."""
    tokens = np.array([line["tokens"] for line in log]) / 1e6
    loss = np.array([line["mlm_loss"] for line in log])
    window = max(1, len(log) // 60)
    smooth = np.convolve(loss, np.ones(window) / window, mode="valid")
    figure, axes = plt.subplots(figsize=(7, 3.6))
    axes.plot(tokens, loss, color=COLOURS[5], linewidth=0.6, label="as logged")
    middle = tokens[window // 2 :][: len(smooth)]
    axes.plot(middle, smooth, color=COLOURS[0], linewidth=2, label=f"mean of {window} log entries")
    axes.axhline(unigram, color=COLOURS[1], linestyle="--", label="knowing only how often each piece occurs")
    axes.set(xlabel="tokens read (millions)", ylabel="masked language model loss (nats)", ylim=(2.5, 9))
    axes.legend(frameon=False)
    plt.show()


def training_curves(log: list[dict], path) -> None:
    """A PNG file: losses and accuracies against tokens read, as `pretraining.pretrain` logs them. Nothing is shown."""
    tokens = np.array([line["tokens"] for line in log]) / 1e6
    panels = {"loss (nats)": "loss", "accuracy (share right)": "accuracy"}
    panels = {label: names for label, end in panels.items() if (names := [name for name in log[0] if name.endswith(end)])}
    figure = Figure(figsize=(1 + 5 * len(panels), 3.6), layout="constrained")
    for axis, (label, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        for name, style, colour in zip(names, ["-", "--"], COLOURS, strict=False):
            values = [line[name] for line in log]
            axis.plot(tokens, values, style, color=colour, label=name.replace("_", " "), marker="." if len(log) < 30 else None)
        axis.set(xlabel="tokens read (millions)", ylabel=label)
        axis.legend(frameon=False)
    figure.savefig(path, format="png")


def learning_curves(curves: dict[str, Sequence[tuple[float, float, float]]], ylabel: str) -> None:
    """The same points (tokens, seconds, value) of each model twice: against the tokens read, and against the seconds."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), sharey=True)
    for (name, points), style, marker, colour in zip(curves.items(), ["-", "--", ":", "-."], "os^D", COLOURS):
        tokens, seconds, values = np.array(points).T
        marker = marker if len(points) <= 12 else None
        for axis, x in zip(axes, (tokens / 1e6, seconds)):
            axis.plot(x, values, style, color=colour, marker=marker, markersize=4, label=name)
    axes[0].set(xlabel="tokens read (millions)", ylabel=ylabel)
    axes[1].set(xlabel="seconds of training")
    axes[0].legend(frameon=False)
    plt.show()


def grouped_bars(groups: dict[str, dict[str, Sequence[float]]], ylabel: str, baseline: tuple[str, float], path) -> None:
    """Bars side by side, {group: {bar: one value per seed}}: the height is the mean, the whisker from least to greatest.

    Args:
        baseline: name and height of a dashed line.
        path: of the PNG file to write.
    """
    figure, axes = plt.subplots(figsize=(8, 3.6))
    names = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    width = 0.8 / len(names)
    for number, (name, colour) in enumerate(zip(names, COLOURS)):
        values = [groups[group].get(name, [np.nan]) for group in groups]
        mean, least, most = (np.array([f(v) for v in values]) for f in (np.mean, np.min, np.max))
        x = np.arange(len(groups)) + (number - (len(names) - 1) / 2) * width
        axes.bar(x, mean, 0.9 * width, yerr=[mean - least, most - mean], color=colour, capsize=2, label=name)
    axes.axhline(baseline[1], color="0.4", linestyle="--", linewidth=1, label=baseline[0])
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_ylabel(ylabel)
    axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def stacked_shares(rows: dict[str, dict[str, float]], xlabel: str) -> None:
    """One horizontal bar of full length per row, cut into its parts, {row: {part: amount}}; shares of 4% and more as numbers."""
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(rows) + 1.4))
    parts = list(next(iter(rows.values())))
    left = np.zeros(len(rows))
    for part, colour, hatch in zip(parts, COLOURS, ["", "//", "", "..", "", "xx"], strict=False):
        share = np.array([100 * row[part] / sum(row.values()) for row in rows.values()])
        axes.barh(range(len(rows)), share, left=left, color=colour, alpha=0.55, hatch=hatch, edgecolor="white", label=part)
        for y, (start, width) in enumerate(zip(left, share)):
            if width >= 4:
                box = dict(boxstyle="round,pad=0.15", facecolor="white", edgecolor="none", alpha=0.8)
                axes.text(start + width / 2, y, f"{width:.0f}", ha="center", va="center", fontsize=10, bbox=box)
        left += share
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set(xlabel=xlabel, xlim=(0, 100))
    axes.invert_yaxis()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=len(parts), frameon=False)
    plt.show()


def highlighted(rows: Sequence[tuple[str, str, Sequence[tuple[int, int, str]]]], labels: Sequence[str]):
    """Texts with marked spans, as HTML: each span in brackets with its label, and in the label's colour.

    Args:
        rows: (heading, text, spans); a span is (start, end, label), in characters; spans do not overlap.
        labels: all labels, at most 7, so that a label has the same colour everywhere.
    Raises:
        ValueError: if there are more.
    """
    from IPython.display import HTML

    if len(labels) > len(COLOURS):
        raise ValueError(f"{len(labels)} labels, but there are colours for at most {len(COLOURS)} labels.")
    style = "color:black; background:{}; border-bottom:3px solid {}; padding:0 2px"
    styles = {label: style.format(to_hex(0.8 + 0.2 * np.array(to_rgb(colour))), colour) for label, colour in zip(labels, COLOURS)}
    lines = []
    for heading, text, spans in rows:
        parts, done = [f"<b>{escape(heading)}</b>: " if heading else ""], 0
        for start, end, label in sorted(spans):
            inside = f"[{escape(text[start:end])} <b><small>{escape(label)}</small></b>]"
            parts += [escape(text[done:start]), f'<span style="{styles[label]}">{inside}</span>']
            done = end
        lines.append(f'<p style="margin:0.3em 0">{"".join(parts)}{escape(text[done:])}</p>')
    return HTML("\n".join(lines))
