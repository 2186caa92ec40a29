#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""When checkpoints are made, over links of all kinds (tools/shaper): over a fast one, output waits
for one checkpoint; over 100 ms there and back, for that and not for twice that, while several epochs
are under way; a guest that writes more than a link carries is held back to what it does carry, and
leaves the pair if its file says so."""

import contextlib
import time

from rig import KEEPER_PORT, Ledger, Rig, Tap, expect, wait_for

tap = Tap()
TRIP_MS = 100
TIMEOUTS = "timeouts:\n  heartbeat_ms: 20\n  standby_ms: 1000\n  primary_ms: 1500\n"


@contextlib.contextmanager
def cable(lab, *parameters):
    """hostb's cable as a bad one, good again at the end."""
    lab.lab("link", "hostb", "mgmt", *parameters)
    try:
        yield
    finally:
        lab.lab("link", "hostb", "mgmt", "--clear")


@contextlib.contextmanager
def protected(name, **options):
    with Rig(name, config=TIMEOUTS) as lab:
        lab.must("hosta", "start", "--no-wait", lab.vm_file(**options))
        lab.wait_guest()
        lab.wait_state("hosta", "protected", 60)
        yield lab


def protect_anew(lab):
    """Over a new connection, which knows the cable as it is now."""
    lab.must("hosta", "unprotect", "web")
    lab.wait_state("hosta", "solo", 20)
    lab.must("hosta", "protect", "web", "--to", "hostb")


def latency(lab, connections, seconds=5):
    """Of an otherwise idle guest: p50 and p99 in ms, and the most epochs that were seen in flight."""
    ledger = Ledger(lab, interval_ms=10, seconds=seconds, connections=connections, gap_ms=1000)
    ledger.wait_connected()
    most = 0
    while ledger.process.poll() is None:
        most = max(most, lab.status("hosta")["pace"]["in_flight"])
    figures = ledger.check()
    return figures["rtt_p50_ms"], figures["rtt_p99_ms"], most


@tap.test
def long_link():
    """over 100 ms, output is late by a round trip and an interval"""
    with protected("long", keeper_mib=16, keeper_rate=0) as lab:
        near, near_p99, _ = latency(lab, 1)
        with cable(lab, "--delay", f"{TRIP_MS // 2}ms"):
            protect_anew(lab)
            far, far_p99, most = latency(lab, 8)
            pace = lab.status("hosta")["pace"]
        text = (f"# near: p50 {near:.1f}, p99 {near_p99:.1f} ms; over {TRIP_MS} ms: p50 {far:.1f},"
                f" p99 {far_p99:.1f} ms, {most} epochs in flight, round trip"
                f" {pace['round_trip_ms']:.1f} ms")
        expect(near < 20, "over a fast link, output waits for more than a checkpoint: " + text)
        expect(TRIP_MS < far < 1.5 * TRIP_MS, "output waits for more than a round trip: " + text)
        expect(most >= 5, "epochs wait for each other: " + text)
        expect(TRIP_MS <= pace["round_trip_ms"] < 1.4 * TRIP_MS, text)
        return text


def sent(lab):
    status = lab.status("hosta")
    return time.monotonic(), status["bytes_sent"], status["bytes_raw"]


@tap.test
def throughput():
    """over 100 ms, the link's bandwidth is used; over a slow one the guest is held back to it"""
    rate = 100e6 / 8
    with protected("wide", keeper_mib=64, keeper_rate=0) as lab:
        with cable(lab, "--delay", f"{TRIP_MS // 2}ms", "--rate", "100m", "--queue", "2000000"):
            protect_anew(lab)
            lab.guest_ask(KEEPER_PORT, "RATE 400")
            wait_for("the guest to be held back",
                     lambda: lab.status("hosta")["pace"]["held_pct"] > 10, 30)
            begin = sent(lab)
            time.sleep(6)  # of measuring
            end = sent(lab)
            status = lab.status("hosta")
        wire, raw = ((after - before) / (end[0] - begin[0])
                     for before, after in zip(begin[1:], end[1:]))
        text = (f"# {wire / 1e6:.1f} of {rate / 1e6:.1f} MB/s used, for {raw / 1e6:.1f} MB/s of"
                f" memory; held {status['pace']['held_pct']:.0f} %")
        expect(status["protected"], "the protection was lost")
        expect(wire > 0.5 * rate, "the link is not used: " + text)
        return text


@tap.test
def outrun():
    """a guest that outruns its link for long goes on alone, if its file says so"""
    with protected("outrun", keeper_mib=64, keeper_rate=0, interval="  outrun: solo\n") as lab:
        with cable(lab, "--rate", "20m", "--queue", "500000"):
            lab.guest_ask(KEEPER_PORT, "RATE 400")
            status = lab.wait_state("hosta", "solo", 40)
            expect("outran the link" in status["reason"], f"status says '{status['reason']}'")
            expect("faster than the link" in lab.log("hosta"), "nothing in the log")
            lab.guest_ask(KEEPER_PORT, "RATE 0")
        lab.must("hosta", "protect", "web", "--to", "hostb")  # before the cool-down is over
        lab.wait_state("hosta", "protected", 60)
        lab.check_keeper()


def loop_cpu_ms(lab):
    """CPU time that the main thread of the VM's guard has used."""
    pid = lab.status("hosta")["pid"]
    with open(f"/proc/{pid}/task/{pid}/schedstat", encoding="ascii") as stat:
        return int(stat.read().split()[0]) / 1e6


@tap.test
def seeding():
    """a VM is seeded without work for the loop, whose priority keeps others from the CPU"""
    with Rig("seeding", config=TIMEOUTS) as lab:
        lab.start_vm(keeper_mib=160, keeper_rate=0, standby=None)
        before = loop_cpu_ms(lab)
        lab.must("hosta", "protect", "web", "--to", "hostb")
        status = lab.wait_state("hosta", "protected", 60)
        used = loop_cpu_ms(lab) - before
        seeded_mib = status["bytes_raw"] / 2**20
        text = f"# {used:.0f} ms for {seeded_mib:.0f} MiB"
        expect(seeded_mib > 160, "little was seeded: " + text)
        expect(used < seeded_mib / 2, "the loop copies pages: " + text)
        return text


if __name__ == "__main__":
    tap.run()
