# SPDX-License-Identifier: Apache-2.0
"""The speed bench's runs as the tables and plots of docs/performance.md."""

import os
import shutil
import textwrap

from results import (added_rtts, by_interval, median, pairs, runs_of, slowdowns, traced)
from figures import TOP, percentile

DOCUMENT = os.path.join(TOP, "docs", "performance.md")
BEGIN = "<!-- what follows is by bench/speed --docs -->\n"
END = "<!-- so far by bench/speed --docs -->\n"
MODES = {"plain": "unprotected", "remus": "remus", "default": "default"}


def rows(title, head, lines, plot=None):
    """A section with a table and a plot; nothing if there are no lines."""
    if not lines:
        return ""
    picture = f"![{title}](performance/{plot}.svg)\n\n" if plot else ""
    return (f"### {title}\n\n{picture}| {' | '.join(head)} |\n|{'---|' * len(head)}\n" + "".join(
        f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines) + "\n")


def both(values, form="{:.2f}"):
    """Median and 99th percentile."""
    return f"{form} / {form}".format(percentile(values, 50), percentile(values, 99))


def mid(runs, key, form="{:.2f}"):
    values = [run[key] for run in runs if key in run]
    return form.format(median(values)) if values else ""


def share(runs):
    """Bytes sent over bytes dirty."""
    values = [run["bytes_sent"] / run["bytes_raw"] for run in runs if run.get("bytes_raw")]
    return f"{median(values):.3f}" if values else ""


def cpu(runs):
    """CPU of guard and standby, in percent of a core."""
    return " / ".join(f"{median([run['cpu_pct'][who] for run in runs]):.0f}"
                      for who in ("guard", "standby") if who in runs[0]["cpu_pct"])


def figures(data):
    return rows("Figures", ("figure", "p50", "p99", "unit", "values", "target", ""),
         [(f"`{f['figure']}`", f"{f['p50']:.2f}", f"{f['p99']:.2f}", f["unit"], f["runs"],
           f.get("target", ""), {True: "met", False: "**missed**"}.get(f.get("met"), ""))
          for f in data["figures"]])


def build(data):
    lines = []
    for interval, runs in sorted(by_interval(data).items()):
        runs = [run for run in runs if run["load"] == "build"]
        for mode, name in MODES.items():
            of = [run for run in runs if run["mode"] == mode]
            if not of:
                continue
            line = [f"{interval} ms", name, mid(of, "unit_s"), mid(of, "cpu_unit_s")]
            if mode != "plain":
                slow = slowdowns(runs, mode).values()
                line += [f"{median(list(slow)):.0f} %", f"{mid(of, 'interval_ms', '{:.1f}')} ms",
                         f"{median(traced(of, 'pages')):.0f}", both(traced(of, "pause_ms")),
                         share(of), cpu(of)]
            lines.append(line + [""] * (10 - len(line)))
    head = ("interval", "engine", "s a unit", "CPU s", "slow-down", "interval seen", "pages",
            "pause p50 / p99, ms", "sent / dirty", "CPU guard / standby, %")
    return rows("Compile-like load", head, lines, "slowdown")


def served(data):
    lines = []
    for part, key, name, prefix in (
            ("kv", "single_per_s", "redis", "single_get_"),
            ("kv", "pipelined_per_s", "redis, pipelines of 16", "pipelined_get_"),
            ("http", "per_s", "nginx", "")):
        for mode, engine in MODES.items():
            of = runs_of(data, part, mode=mode)
            if not of:
                continue
            ratios = [run[key] / plain[key] for run, plain in pairs(runs_of(data, part), mode,
                                                                    "plain")]
            line = [name, engine, mid(of, key, "{:.0f}"), f"{median(ratios):.2f}" if ratios else "",
                    f"{mid(of, prefix + 'p50_ms')} / {mid(of, prefix + 'p99_ms')}"]
            if mode != "plain" and key != "pipelined_per_s":  # of that, only the rate is known
                line += [mid(of, "interval_ms", "{:.1f}"), f"{median(traced(of, 'pages')):.0f}",
                         both(traced(of, "pause_ms")), share(of), cpu(of)]
            lines.append(line + [""] * (10 - len(line)))
    head = ("server", "engine", "requests/s", "of unprotected", "latency p50 / p99, ms",
            "interval, ms", "pages", "pause p50 / p99, ms", "sent / dirty",
            "CPU guard / standby, %")
    return rows("Servers under load", head, lines)


def latency(data):
    lines = []
    for interval, runs in [("own", runs_of(data, "latency"))] + [
            (f"{i} ms", [r for r in of if r["load"] == "latency"])
            for i, of in sorted(by_interval(data).items())]:
        for mode, name in MODES.items():
            values = [rtt for run in runs if run["mode"] == mode for rtt in run["rtt_ms"]]
            if values:
                added = both(added_rtts(runs, mode)) if mode != "plain" else ""
                shown = "25 ms" if interval == "own" and mode == "remus" else interval
                lines.append(("" if mode == "plain" else shown, name, len(values), both(values),
                              added))
    head = ("interval", "engine", "requests", "round trip p50 / p99, ms", "added p50 / p99, ms")
    return rows("Request and response", head, lines, "latency")


def pause(data):
    lines = []
    keys = ("stop_ms", "state_ms", "scan_ms", "copy_ms", "resume_ms", "ahead_ms")
    for pages in sorted({run["ring"] for run in runs_of(data, "pause")}):
        for mode in ("remus", "default"):
            of = runs_of(data, "pause", mode=mode, ring=pages)
            if of:
                lines.append([f"{median(traced(of, 'pages')):.0f}", mode,
                              len(traced(of, "pages")), both(traced(of, "pause_ms"))]
                             + [f"{median(traced(of, key)):.2f}" for key in keys])
    head = ("pages", "engine", "epochs", "pause p50 / p99, ms", "(stop)", "state", "scan", "copy",
            "resume", "(ahead)")
    return rows("Pause", head, lines, "pause")


def writer(data):
    lines = []
    runs = runs_of(data, "writer")
    for rate in sorted({run["rate"] for run in runs}):
        line = [rate]
        for mode in MODES:
            of = [run for run in runs if run["rate"] == rate and run["mode"] == mode]
            line.append(mid(of, "pages_per_s", "{:.0f}"))
            if mode != "plain" and of:
                line += [both(traced(of, "pause_ms")), share(of)]
        lines.append(line)
    head = ("pages/s wanted", "unprotected", "remus", "pause, ms", "sent / dirty", "default",
            "pause, ms", "sent / dirty")
    return rows("Memory writer", head, lines, "writer")


def wire(data):
    return "### Bytes on the wire\n\n![Bytes on the wire](performance/wire.svg)\n\n"


def failover(data):
    runs = runs_of(data, "failover")
    return rows("Failover", ("failovers", "outage p50 / p99, ms", "decision to running guest, ms"),
                [(len(runs), both([run["outage_ms"] for run in runs], "{:.0f}"),
                  both([run["takeover_ms"] for run in runs], "{:.0f}"))] if runs else [],
                "failover")


def idle(data):
    lines = []
    for mode, name in MODES.items():
        of = runs_of(data, "idle", mode=mode)
        if of:
            lines.append((name, mid(of, "interval_ms", "{:.0f}"), cpu(of),
                          f"{median([run['cpu_pct']['qemu'] for run in of]):.0f}"))
    head = ("engine", "interval, ms", "CPU guard / standby, %", "CPU of QEMU, %")
    return rows("Idle", head, lines)


def machine(data):
    about, parts = data["machine"], data["parts"].values()
    dates = sorted(part["date"][:16] for part in parts)
    busy = max((part["background_pct"] or 0 for part in parts), default=0)
    late = median([part["noise"]["p50"] for part in parts])
    if not dates:
        return ""
    said = (f"{about['cpu']}, {about['cores']} cores, Linux {about['kernel'].partition('-')[0]},"
            f" {about['qemu']}; {dates[0]} to {dates[-1]} UTC. Before parts began, the machine was"
            f" up to {busy:.0f} % busy with other things; a process that sleeps for a millisecond"
            f" woke up {late:.2f} ms late (median).")
    return textwrap.fill(said, 120) + "\n\n"


def text(data):
    return machine(data) + "".join(
        table(data) for table in (figures, pause, build, latency, served, wire, writer, failover,
                                  idle))


def write(data, plots_dir):
    """Puts tables and plots into the documentation."""
    with open(DOCUMENT, encoding="utf-8") as document:
        before, _, rest = document.read().partition(BEGIN)
    after = rest.partition(END)[2]
    with open(DOCUMENT, "w", encoding="utf-8") as document:
        document.write(before + BEGIN + "\n" + text(data) + END + after)
    folder = os.path.splitext(DOCUMENT)[0]
    os.makedirs(folder, exist_ok=True)
    for name in os.listdir(plots_dir):
        if name.endswith(".svg"):
            shutil.copy(os.path.join(plots_dir, name), folder)
