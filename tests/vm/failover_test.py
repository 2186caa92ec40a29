#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A host dies, at random moments and in chosen phases, again and again: no operation of the ledger
is lost, repeated or rolled back, no page of the memory keeper is damaged, the one TCP connection
lives through all of it. A failure prints the seed of the random moments (FAILOVER_SEED)."""

import os
import random
import time

from rig import Ledger, Rig, Tap, expect, other, protected_vm, wait_for, wait_frozen

tap = Tap()
FAILOVERS = int(os.environ.get("FAILOVERS", "20"))
SEED = int(os.environ.get("FAILOVER_SEED", str(random.randrange(1 << 32))))


def protect_again(lab, primary, standby):
    expect(lab.cli(primary, "status").returncode == 3, "status hides that a VM runs alone")
    lab.restart_host(standby)
    lab.wait_state(primary, "protected", 40)


def fail_over(times, tracking="asynchronous, synchronous where it is cold"):
    """Hosts die `times` times. Returns a comment."""
    moments = random.Random(SEED)
    primary, outages = "hosta", []
    print(f"# FAILOVER_SEED={SEED}")
    with protected_vm("failover", vm={"keeper_mib": 32, "keeper_rate": 40}) as (lab, ledger):
        for _ in range(times):
            standby = other(primary)
            lab.wait_state(primary, "protected", 40)
            time.sleep(moments.uniform(0.0, 0.7))  # the moment is what is random here
            lab.lab("crash", primary)
            took = lab.wait_state(standby, "solo", 10)["takeover"]
            outages.append(took["running_unix_ms"] - took["decided_unix_ms"])
            lab.check_keeper()
            protect_again(lab, standby, primary)
            expect(f"dirty tracking: {tracking}" in lab.log(standby), f"not tracked {tracking}")
            primary = standby
        figures = ledger.check()
        lab.check_keeper()
    outages.sort()
    return (f"# {times} failovers, {figures['ops']:.0f} operations, longest gap"
            f" {figures['max_gap_ms']:.0f} ms, decision to running p50"
            f" {outages[len(outages) // 2]:.1f} ms")


@tap.test
def random_moments():
    """hosts die at random moments under load, the connection and all data live"""
    return fail_over(FAILOVERS)


def tracked(how, name):
    os.environ["UNDERSTUDY_DIRTY"] = how
    try:
        return fail_over(3, name)
    finally:
        del os.environ["UNDERSTUDY_DIRTY"]


@tap.test
def tracked_synchronously():
    """the same with dirty tracking as on kernels before 6.7"""
    return tracked("sync", "synchronous")


@tap.test
def tracked_asynchronously():
    """the same with dirty tracking as where nobody may have the other kind"""
    return tracked("async", "asynchronous\n")


def die_at(point, host="hosta"):
    """The named process stops at that point; then its host dies."""
    with Rig("phase", faults={host: point}) as lab:
        lab.must("hosta", "start", "--no-wait", lab.vm_file(keeper_rate=40))
        lab.wait_guest()
        lab.wait_state("hosta", "protected", 40)
        ledger = Ledger(lab, interval_ms=5, gap_ms=80)
        ledger.wait_connected()
        wait_frozen(lab, host)
        lab.lab("crash", host)
        lab.wait_state(other(host), "solo", 10)
        lab.check_keeper()
        figures = ledger.check()
        return f"# longest gap {figures['max_gap_ms']:.0f} ms"


@tap.test
def dies_in_a_pause():
    """the primary dies while the VM is paused for a checkpoint"""
    return die_at("guard.paused 300 stop")


@tap.test
def dies_in_a_transfer():
    """the primary dies in the middle of a transfer"""
    return die_at("guard.sending 1500 stop")


@tap.test
def dies_before_the_acknowledgement():
    """the primary dies when an epoch is sent and not acknowledged"""
    return die_at("guard.sent 300 stop")


@tap.test
def dies_after_the_acknowledgement():
    """the primary dies between an acknowledgement and the release of its frames"""
    return die_at("guard.acked 300 stop")


@tap.test
def standby_dies_before_acknowledging():
    """the standby dies with a whole epoch that it has not acknowledged"""
    return die_at("standby.staged 300 stop", "hostb")


@tap.test
def standby_dies_after_acknowledging():
    """the standby dies right after an acknowledgement"""
    return die_at("standby.acked 300 stop", "hostb")


@tap.test
def dies_while_seeding():
    """a VM that dies while it is seeded dies with its host, and nobody claims otherwise"""
    with Rig("seeding", faults={"hosta": "guard.seeding 3 stop"}) as lab:
        lab.must("hosta", "start", "--no-wait", lab.vm_file())
        wait_frozen(lab, "hosta")
        expect(not lab.status("hostb").get("protected"), "a half copy counts as protection")
        lab.lab("crash", "hosta")
        wait_for("the standby to discard its half copy", lambda: not lab.status("hostb"), 10)
        lab.faults.clear()
        lab.restart_host("hosta")
        after = lab.status("hosta")
        expect(after.get("state") == "down" and not after.get("protected"),
               f"status after the host is back: {after}")
        lab.must("hosta", "start", lab.vm_file(), timeout=60)
        lab.wait_state("hosta", "protected", 30)


if __name__ == "__main__":
    try:
        tap.run()
    except KeyboardInterrupt as stop:
        raise SystemExit(130) from stop
