# SPDX-License-Identifier: Apache-2.0
"""The speed bench's runs become figures: medians, 99th percentiles, and whether they are on
target."""

import json
import os
import re

from figures import TOP, figure, percentile

# Figure: at most or at least, for the median, and for the 99th percentile if that has a bound.
TARGETS = {
    "pause_1024_ms": ("at most", 2.5, None),
    "pause_8000_ratio": ("at most", 0.5, None),
    "build_slowdown_pct": ("at most", 15, None),
    "build_slowdown_ratio": ("at most", 0.33, None),
    "added_rtt_ms": ("at most", 5, 15),
    "kv_throughput_ratio": ("at least", 0.6, None),
    "wire_ratio": ("at most", 0.10, None),
    "scan_8g_ms": ("at most", 3, None),
    "outage_ms": ("at most", 300, None),
    "idle_core_pct": ("at most", 5, None),
}


def read(path):
    try:
        with open(path, encoding="ascii") as file:
            return json.load(file)
    except FileNotFoundError:
        return {"parts": {}}


def write(data, path):
    data["figures"] = summarize(data)
    with open(path + ".new", "w", encoding="ascii") as file:
        # Lists of numbers each on one line.
        file.write(re.sub(r"\[[-\d.,\s]+\]", lambda found: " ".join(found.group().split()),
                          json.dumps(data, indent=1)) + "\n")
    os.replace(path + ".new", path)


def median(values):
    return percentile(values, 50) if values else 0


def brief(found):
    """A run in a few words."""
    words = []
    for key, form in (("unit_s", "{:.2f} s a unit"), ("single_per_s", "{:.0f} requests/s"),
                      ("pipelined_per_s", "{:.0f} in pipelines"), ("per_s", "{:.0f} requests/s"),
                      ("pages_per_s", "{:.0f} pages/s"), ("interval_ms", "every {:.1f} ms")):
        if key in found:
            words.append(form.format(found[key]))
    if found.get("trace"):
        words.append(f"pause {median(found['trace']['pause_ms']):.2f} ms,"
                     f" {median(found['trace']['pages']):.0f} pages")
    if found.get("rtt_ms"):
        words.insert(0, f"round trip {percentile(found['rtt_ms'], 50):.2f} ms, p99"
                        f" {percentile(found['rtt_ms'], 99):.2f}")
    return ", ".join(words)


def runs_of(data, part, **want):
    """The runs of a part that have these members."""
    runs = data["parts"].get(part, {}).get("runs", [])
    return [run for run in runs if all(run.get(key) == value for key, value in want.items())]


def pairs(runs, mode, base):
    """(run, run of the base) of the same round."""
    bases = {run["round"]: run for run in runs if run["mode"] == base}
    return [(run, bases[run["round"]]) for run in runs
            if run["mode"] == mode and run["round"] in bases]


def slowdowns(runs, mode):
    """By round: how much longer a unit of the compile-like load takes, in percent."""
    return {run["round"]: 100 * (run["unit_s"] / plain["unit_s"] - 1)
            for run, plain in pairs(runs, mode, "plain")}


def by_interval(data):
    """Runs at fixed intervals: {interval: runs}, those of the part `build` among them."""
    found = {25: runs_of(data, "build")}
    for run in runs_of(data, "sweep"):
        found.setdefault(run["sweep_ms"], []).append(run)
    return found


def added_rtts(runs, mode):
    """What each round trip takes more than the unprotected median."""
    plain = [rtt for run in runs if run["mode"] == "plain" for rtt in run["rtt_ms"]]
    if not plain:
        return []
    base = percentile(plain, 50)
    return [rtt - base for run in runs if run["mode"] == mode for rtt in run["rtt_ms"]]


def traced(runs, key):
    """What the trace has of each epoch of the runs."""
    return [value for run in runs for value in run["trace"][key]]


def pause_figures(data):
    found = []
    of = {(mode, pages): traced(runs_of(data, "pause", mode=mode, ring=pages), "pause_ms")
          for mode in ("remus", "default") for pages in (1024, 8000)}
    for (mode, pages), values in of.items():
        if values:
            name = f"pause_{pages}_ms" if mode == "default" else f"pause_{pages}_remus_ms"
            found.append(figure(name, values))
    if of["default", 8000] and of["remus", 8000]:
        base = percentile(of["remus", 8000], 50)
        ratios = [value / base for value in of["default", 8000]]
        found.append(figure("pause_8000_ratio", ratios, ""))
    return found


def build_figures(data):
    runs = runs_of(data, "build")
    ours, theirs = slowdowns(runs, "default"), slowdowns(runs, "remus")
    found = []
    if ours:
        found.append(figure("build_slowdown_pct", list(ours.values()), "%"))
    if theirs:
        found.append(figure("build_slowdown_remus_pct", list(theirs.values()), "%"))
    ratios = [ours[number] / theirs[number] for number in ours if theirs.get(number, 0) > 0]
    if ratios:
        found.append(figure("build_slowdown_ratio", ratios, ""))
    for mode, name in (("default", "wire_ratio"), ("remus", "wire_remus_ratio")):
        shares = [run["bytes_sent"] / run["bytes_raw"] for run in runs
                  if run["mode"] == mode and run["bytes_raw"]]
        if shares:
            found.append(figure(name, shares, ""))
    return found


def throughput_figures(data):
    found = []
    for part, key, name in (("kv", "single_per_s", "kv_throughput"),
                            ("kv", "pipelined_per_s", "kv_pipelined"),
                            ("http", "per_s", "http_throughput")):
        for mode, suffix in (("default", "ratio"), ("remus", "remus_ratio")):
            both = pairs(runs_of(data, part), mode, "plain")
            if both:
                found.append(figure(f"{name}_{suffix}", [run[key] / plain[key]
                                                         for run, plain in both], "", True))
    return found


def latency_figures(data):
    found = []
    for mode, name in (("default", "added_rtt_ms"), ("remus", "added_rtt_remus_ms")):
        values = added_rtts(runs_of(data, "latency"), mode)
        if values:
            found.append(figure(name, values))
    for mode, name in (("default", "idle_core_pct"), ("remus", "idle_core_remus_pct")):
        shares = [run["cpu_pct"]["guard"] + run["cpu_pct"]["standby"]
                  for run in runs_of(data, "idle", mode=mode)]
        if shares:
            found.append(figure(name, shares, "%"))
    return found


def failover_figures(data):
    found = []
    outages = [run["outage_ms"] for run in runs_of(data, "failover")]
    if outages:
        found.append(figure("outage_ms", outages))
    soaks = runs_of(data, "soak")
    if soaks:
        found.append(figure("soak_alarms", [len(run["alarms"]) for run in soaks], ""))
    return found


def scan_figures():
    """What bench/scan measured, if it was run."""
    try:
        with open(os.path.join(TOP, "bench", "out", "scan.json"), encoding="ascii") as file:
            return [f for f in json.load(file) if f["figure"] == "scan_8g_ms"]
    except FileNotFoundError:
        return []


def judge(f):
    """Adds the target to a figure that has one, and whether it is met."""
    if f["figure"] not in TARGETS:
        return f
    way, median, tail = TARGETS[f["figure"]]
    target = f"{way} {median}" + (f", p99 {way} {tail}" if tail else "")
    sign = -1 if way == "at least" else 1
    met = f["p50"] * sign <= median * sign and (tail is None or f["p99"] * sign <= tail * sign)
    return f | {"target": target, "met": met}


def summarize(data):
    found = (pause_figures(data) + build_figures(data) + latency_figures(data)
             + throughput_figures(data) + failover_figures(data) + scan_figures())
    return [judge(f) for f in found]


def table(data):
    """Prints the figures. Returns 1 if a target is missed, or a figure that has one is missing."""
    missed = [name for name in TARGETS if name not in {f["figure"] for f in data["figures"]}]
    print(f"\n{'figure':26} {'p50':>9} {'p99':>9} {'unit':4} {'runs':>5}  target")
    for f in data["figures"]:
        verdict = f"{f['target']}: {'met' if f['met'] else 'MISSED'}" if "target" in f else ""
        print(f"{f['figure']:26} {f['p50']:9.3f} {f['p99']:9.3f} {f['unit']:4} {f['runs']:5}"
              f"  {verdict}")
    for name in missed:
        print(f"{name:26} not measured")
    busy = [part["background_pct"] for part in data["parts"].values()
            if part.get("background_pct") is not None]
    if busy:
        print(f"\nThe machine was {max(busy):.0f} % busy with other things at the most, when parts"
              " began.")
    print("written to bench/out/speed.json")
    return 1 if missed or any(not f.get("met", True) for f in data["figures"]) else 0
