# SPDX-License-Identifier: Apache-2.0
"""The speed bench's runs as the tables of docs/performance.md."""

from results import (added_rtts, by_interval, median, pairs, runs_of, slowdowns, traced)
from figures import percentile

MODES = {"plain": "unprotected", "remus": "remus", "default": "default"}


def rows(title, head, lines):
    """A table, if it has lines."""
    if lines:
        print(f"\n### {title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
        for line in lines:
            print(f"| {' | '.join(str(cell) for cell in line)} |")


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
    rows("Figures", ("figure", "p50", "p99", "unit", "values", "target", ""),
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
    rows("Compile-like load", ("interval", "engine", "s a unit", "CPU s", "slow-down",
                               "interval seen", "pages", "pause p50 / p99, ms", "sent / dirty",
                               "CPU guard / standby, %"), lines)


def served(data):
    lines = []
    for part, key, name, latency in (
            ("kv", "single_per_s", "redis", "single_get"), ("kv", "pipelined_per_s",
             "redis, pipelines of 16", "pipelined_get"), ("http", "per_s", "nginx", "")):
        for mode, engine in MODES.items():
            of = runs_of(data, part, mode=mode)
            if not of:
                continue
            ratios = [run[key] / plain[key] for run, plain in pairs(runs_of(data, part), mode,
                                                                    "plain")]
            prefix = f"{latency}_" if latency else ""
            line = [name, engine, mid(of, key, "{:.0f}"), f"{median(ratios):.2f}" if ratios else "",
                    f"{mid(of, prefix + 'p50_ms')} / {mid(of, prefix + 'p99_ms')}"]
            if mode != "plain":
                line += [mid(of, "interval_ms", "{:.1f}"), f"{median(traced(of, 'pages')):.0f}",
                         both(traced(of, "pause_ms")), share(of), cpu(of)]
            lines.append(line + [""] * (10 - len(line)))
    rows("Servers under load", ("server", "engine", "requests/s", "of unprotected",
                                "latency p50 / p99, ms", "interval, ms", "pages",
                                "pause p50 / p99, ms", "sent / dirty", "CPU guard / standby, %"),
         lines)


def latency(data):
    lines = []
    for interval, runs in [("own", runs_of(data, "latency"))] + [
            (f"{i} ms", [r for r in of if r["load"] == "latency"])
            for i, of in sorted(by_interval(data).items())]:
        for mode, name in MODES.items():
            values = [rtt for run in runs if run["mode"] == mode for rtt in run["rtt_ms"]]
            if values:
                added = both(added_rtts(runs, mode)) if mode != "plain" else ""
                lines.append((interval if mode == "default" or interval != "own" else
                              {"remus": "25 ms"}.get(mode, ""), name, len(values), both(values),
                              added))
    rows("Request and response", ("interval", "engine", "requests", "round trip p50 / p99, ms",
                                  "added p50 / p99, ms"), lines)


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
    rows("Pause", ("pages", "engine", "epochs", "pause p50 / p99, ms", "(stop)", "state", "scan",
                   "copy", "resume", "(ahead)"), lines)


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
    rows("Memory writer", ("pages/s wanted", "unprotected", "remus", "pause, ms", "sent / dirty",
                           "default", "pause, ms", "sent / dirty"), lines)


def idle(data):
    lines = []
    for mode, name in MODES.items():
        of = runs_of(data, "idle", mode=mode)
        if of:
            lines.append((name, mid(of, "interval_ms", "{:.0f}"), cpu(of),
                          f"{median([run['cpu_pct']['qemu'] for run in of]):.0f}"))
    rows("Idle", ("engine", "interval, ms", "CPU guard / standby, %", "CPU of QEMU, %"), lines)


def show(data):
    for table in figures, pause, build, latency, served, writer, idle:
        table(data)
