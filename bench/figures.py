# SPDX-License-Identifier: Apache-2.0
"""What the benches have in common: figures of many values, their table and their file."""

import json
import os
import sys
import time

TOP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path.insert(0, os.path.join(TOP, "tests", "vm"))


def percentile(values, percent):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def figure(name, values, unit="ms", more_is_better=False):
    """p99: 99 of 100 values are no worse."""
    worst = 1 if more_is_better else 99
    return {"figure": name, "unit": unit, "p50": round(percentile(values, 50), 3),
            "p99": round(percentile(values, worst), 3), "runs": len(values)}


def cpu_seconds(pid):
    """CPU time that a process has used."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def noise():
    """How late this machine wakes up a process that sleeps for a millisecond."""
    late = []
    for _ in range(1000):
        start = time.monotonic()
        time.sleep(0.001)
        late.append((time.monotonic() - start - 0.001) * 1e3)
    return figure("noise_wakeup_ms", late)


def finish(name, figures, at_most=None, at_least=None):
    """Writes bench/out/NAME.json, prints a table. Returns 1 if a target for a p50 is missed."""
    at_most, at_least = at_most or {}, at_least or {}
    out = os.path.join(TOP, "bench", "out")
    os.makedirs(out, exist_ok=True)
    with open(os.path.join(out, f"{name}.json"), "w", encoding="ascii") as file:
        json.dump(figures, file, indent=1)
        file.write("\n")
    print(f"\n{'figure':22} {'p50':>9} {'p99':>9} {'unit':5} {'runs':>5}  target (p50)")
    missed = 0
    for f in figures:
        verdict, key = "", f["figure"]
        if key in at_most:
            met = f["p50"] <= at_most[key]
            verdict = f"at most {at_most[key]}: {'met' if met else 'MISSED'}"
        elif key in at_least:
            met = f["p50"] >= at_least[key]
            verdict = f"at least {at_least[key]}: {'met' if met else 'MISSED'}"
        missed += "MISSED" in verdict
        print(f"{key:22} {f['p50']:9.2f} {f['p99']:9.2f} {f['unit']:5} {f['runs']:5}  {verdict}")
    print(f"\nwritten to bench/out/{name}.json")
    return 1 if missed else 0
