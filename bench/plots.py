# SPDX-License-Identifier: Apache-2.0
"""The speed bench's runs as plots: SVG, by gnuplot."""

import os
import subprocess

import results
from figures import percentile

STYLE = ('set term svg size 640,400 font "sans-serif,12" background "white"\n'
         'set grid lc rgb "#dddddd"\nset key top left\n'
         'remus = "#d95f02"\nours = "#1b6ca8"\nplain = "#777777"\n')
COLOURS = {"remus": "remus", "default": "ours", "plain": "plain"}
BIN_MS = 10
EPOCHS = 12  # of each run, in a plot of epochs


def gnuplot(path, title, axes, series, extra=""):
    """axes: labels of x and y. series: (title, style of gnuplot, list of rows)."""
    series = [(name, style, rows) for name, style, rows in series if rows]
    if not series:
        return
    script = [STYLE, f'set output "{path}"', f'set title "{title}"', f'set xlabel "{axes[0]}"',
              f'set ylabel "{axes[1]}"', extra]
    for number, (_, _, rows) in enumerate(series):
        script.append(f"$data{number} << EOD")
        script += [" ".join(str(value) for value in row) for row in rows]
        script.append("EOD")
    script.append("plot " + ", ".join(
        f'$data{number} {style} title "{name}"' for number, (name, style, _) in enumerate(series)))
    subprocess.run(["gnuplot"], input="\n".join(script) + "\n", text=True, check=True)


def lines(mode, dashed=False):
    return (f"using 1:2 with linespoints lw 2 pt 7 ps 0.5 lc rgb {COLOURS[mode]}"
            + (" dt 2" if dashed else ""))


def slowdown(data, out):
    series = []
    for mode in ("remus", "default"):
        rows = []
        for interval, runs in sorted(results.by_interval(data).items()):
            shares = results.slowdowns([run for run in runs if run["load"] == "build"], mode)
            if shares:
                rows.append((interval, percentile(list(shares.values()), 50)))
        series.append((f"engine {mode}", lines(mode), rows))
    gnuplot(f"{out}/slowdown.svg", "Slow-down of the compile-like load",
            ("time between checkpoints, ms", "more time for the same work, %"), series,
            "set logscale x\nset xtics (10,25,50,100,200)\nset xrange [8:250]\n"
            "set yrange [0:*]\nset key top right")


def latency(data, out):
    """The published algorithm at each interval; the default engine chooses its own moments."""
    own = results.added_rtts(results.runs_of(data, "latency"), "default")
    series = []
    for percent in (50, 99):
        rows = []
        for interval, runs in sorted(results.by_interval(data).items()):
            added = results.added_rtts([run for run in runs if run["load"] == "latency"], "remus")
            if added:
                rows.append((interval, percentile(added, percent)))
        series.append((f"engine remus, p{percent}", lines("remus", percent == 99), rows))
        value = percentile(own, percent) if own else 0
        series.append((f"engine default, own interval, p{percent}",
                       lines("default", percent == 99), [(10, value), (200, value)] if own else []))
    gnuplot(f"{out}/latency.svg", "Latency that protection adds, guest idle otherwise",
            ("time between checkpoints, ms", "added round-trip time, ms"), series,
            "set logscale xy\nset xtics (10,25,50,100,200)\nset xrange [8:250]\n"
            "set yrange [0.5:*]\nset key bottom right")


def pause(data, out):
    """Some epochs of each run are points; the few that are far above all others are left out."""
    series, most = [], 0
    for mode in ("remus", "default"):
        runs = (results.runs_of(data, "writer", mode=mode)
                + results.runs_of(data, "pause", mode=mode))
        points = [point for run in runs
                  for point in list(zip(run["trace"]["pages"], run["trace"]["pause_ms"]))[:EPOCHS]]
        if points:
            most = max(most, 1.2 * percentile([pause_ms for _, pause_ms in points], 98))
        series.append((f"engine {mode}", f"using 1:2 with points pt 7 ps 0.4 lc rgb"
                       f" {COLOURS[mode]}", points))
    gnuplot(f"{out}/pause.svg", "Pause over dirty pages",
            ("dirty pages of the epoch", "pause, ms"), series, f"set yrange [0:{most}]")


def wire(data, out):
    """Bytes sent over bytes dirty, by load."""
    names, bars = [], {"remus": [], "default": []}
    for part, name in (("build", "compile"), ("kv", "key-value"), ("http", "HTTP"),
                       ("latency", "requests"), ("idle", "idle"), ("writer", "writer")):
        shares = {}
        for mode in bars:
            values = [run["bytes_sent"] / run["bytes_raw"] for run in
                      results.runs_of(data, part, mode=mode) if run.get("bytes_raw")]
            if values:
                shares[mode] = percentile(values, 50)
        if len(shares) == len(bars):
            for mode, share in shares.items():
                bars[mode].append((len(names) + (0.2 if mode == "default" else -0.2), share))
            names.append(name)
    tics = ", ".join(f'"{name}" {number}' for number, name in enumerate(names))
    gnuplot(f"{out}/wire.svg", "Bytes on the wire over bytes that were dirty",
            ("", "share"), [(f"engine {mode}", f"using 1:2 with boxes fs solid 0.8 lc rgb"
                             f" {COLOURS[mode]}", rows) for mode, rows in bars.items()],
            f"set boxwidth 0.35\nset xtics ({tics})\nset yrange [0:*]\nset xrange [-0.6:*]\n"
            "set key outside bottom center horizontal" if names else "")


def writer(data, out):
    """What a memory writer gets done of what it wants to."""
    series = []
    for mode in ("plain", "remus", "default"):
        runs = results.runs_of(data, "writer", mode=mode)
        rows = []
        for rate in sorted({run["rate"] for run in runs if run["rate"]}):
            done = [run["pages_per_s"] for run in runs if run["rate"] == rate]
            rows.append((rate, percentile(done, 50)))
        series.append(("unprotected" if mode == "plain" else f"engine {mode}", lines(mode), rows))
    gnuplot(f"{out}/writer.svg", "Memory writer", ("pages per second wanted", "written"), series,
            "set logscale xy\nset key bottom right")


def failover(data, out):
    """Answers in each 10 ms around a host's death: the failover whose outage is the median."""
    runs = sorted(results.runs_of(data, "failover"), key=lambda run: run["outage_ms"])
    if not runs:
        return
    run = runs[len(runs) // 2]
    bins = {}
    for at_ms in run["answers"]:
        start = int(at_ms // BIN_MS) * BIN_MS
        bins[start] = bins.get(start, 0) + 1
    rows = [(start, bins.get(start, 0)) for start in range(-200, 700, BIN_MS)]
    gnuplot(f"{out}/failover.svg", f"A failover, outage {run['outage_ms']:.0f} ms",
            ("ms since the order to kill the host", f"answers in {BIN_MS} ms"),
            [("answers", "using 1:2 with fillsteps fs solid 0.8 lc rgb ours", rows)],
            "set xrange [-200:700]\nset yrange [0:*]\nunset key")


def draw(data, out):
    os.makedirs(out, exist_ok=True)
    for plot in slowdown, latency, pause, wire, writer, failover:
        plot(data, out)
