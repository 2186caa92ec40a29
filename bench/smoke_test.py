#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Each load of `make bench` once, for a moment, so that it does not rot: figures come out, and are
such as a guest at work under protection can have. Nothing is measured here."""

import contextlib
import tempfile

import loads
import plots
import results
from subjects import Kind, Session
from rig import Tap, expect

SECONDS = 1.5

tap = Tap()
stack = contextlib.ExitStack()
opened = []
runs = {}


def protected_vm():
    if not opened:
        opened.append(stack.enter_context(Session((Kind("default"),))))
    return opened[0].enter("default")


def run(part, load, **options):
    """A run of a load, checked for what all runs have in common."""
    found = load(protected_vm(), SECONDS, **options)
    expect(found["still_protected"], f"{part}: the VM did not stay protected")
    pauses = found["trace"]["pause_ms"]
    expect(found["epochs"] > 0 and pauses and 0 < max(pauses) < 1000, f"{part}: {found}")
    expect(0 < found["bytes_sent"] < 2 * found["bytes_raw"], f"{part}: {found}")
    runs[part] = [{"load": part, "mode": "default", "round": 0} | found]
    return found


@tap.test
def compile_like():
    """the guest compiles"""
    found = run("build", loads.build)
    expect(0.1 < found["guest_unit_s"] < found["unit_s"] + 0.5 < 60, f"{found}")


@tap.test
def key_value():
    """redis answers redis-benchmark"""
    found = run("kv", loads.key_value)
    expect(10 < found["single_per_s"] < found["pipelined_per_s"], f"{found}")


@tap.test
def http():
    """nginx answers wrk"""
    found = run("http", loads.http)
    expect(found["per_s"] > 10 and 0 < found["p50_ms"] <= found["p99_ms"], f"{found}")


@tap.test
def latency():
    """one request after the other is answered"""
    found = run("latency", loads.latency)
    expect(len(found["rtt_ms"]) > 5 and 0 < min(found["rtt_ms"]) < 1000, f"{found}")


@tap.test
def idle():
    """an idle guest"""
    found = run("idle", loads.idle)
    expect(0 <= found["cpu_pct"]["guard"] < 150, f"{found}")


@tap.test
def writer():
    """the memory writer keeps its pace"""
    found = run("writer", loads.writer, rate=2000)
    expect(500 < found["pages_per_s"] < 4000, f"{found}")


@tap.test
def figures_and_plots():
    """runs become figures and plots"""
    stack.close()
    plain = {part: [r | {"mode": "plain"} for r in of] for part, of in runs.items()}
    data = {"parts": {part: {"runs": plain[part] + of} for part, of in runs.items()}}
    names = [f["figure"] for f in results.summarize(data)]
    for name in ("build_slowdown_pct", "added_rtt_ms", "kv_throughput_ratio", "wire_ratio",
                 "idle_core_pct"):
        expect(name in names, f"{name} is not among {names}")
    with tempfile.TemporaryDirectory() as folder:
        plots.draw(data, folder)


if __name__ == "__main__":
    with stack:
        tap.run()
