#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""etcd decides, with a member on each host: hosts die together with its leader, or while that
moves, and no operation of the ledger is lost, repeated or rolled back."""

import os
import random
import threading
import time

from rig import MEMBERS, Tap, expect, other, protected_vm, wait_for

tap = Tap()
ROUNDS = int(os.environ.get("ETCD_ROUNDS", "3"))
WITNESS = MEMBERS.index("witness")


def lead(lab, host):
    """Makes the member on that host the leader."""
    leader = lab.etcd.leader()
    if MEMBERS[leader] != host:
        lab.etcd.move_leader(leader, MEMBERS.index(host))
        wait_for(f"{host} to lead", lambda: MEMBERS[lab.etcd.leader()] == host, 10)


def failovers(name, disturb):
    """Crashes the primary's host again and again, each time with disturb(lab, primary) right
    before. That returns what is to be done afterwards."""
    primary, took = "hosta", []
    with protected_vm(name, arbiter="etcd") as (lab, ledger):
        for _ in range(ROUNDS):
            standby = other(primary)
            repair = disturb(lab, primary)
            since = time.monotonic()
            lab.lab("crash", primary)
            lab.wait_state(standby, "solo", 40)
            took.append(time.monotonic() - since)
            repair()
            lab.check_keeper()
            lab.restart_host(primary)
            lab.wait_state(standby, "protected", 60)
            lab.etcd.wait_healthy()
            primary = standby
        figures = ledger.check()
    return (f"# {ROUNDS} failovers, {figures['ops']:.0f} operations, crash to solo"
            f" {', '.join(f'{seconds:.1f}' for seconds in took)} s")


@tap.test
def follower_dies_too():
    """the primary's host dies, and with it a member of etcd that does not lead"""
    def disturb(lab, primary):
        lead(lab, other(primary))
        return lambda: None

    return failovers("etcd", disturb)


@tap.test
def leader_dies_too():
    """the primary's host dies, and with it the leader of etcd"""
    def disturb(lab, primary):
        lead(lab, primary)
        return lambda: None

    return failovers("etcd", disturb)


@tap.test
def leader_moves():
    """the primary's host dies while etcd's leader moves away from it, or to it"""
    def disturb(lab, primary):
        here, there = random.sample((primary, other(primary)), 2)
        lead(lab, here)
        member, _ = lab.etcd.status(MEMBERS.index(there))
        mover = threading.Thread(target=lab.etcd.ctl, args=("move-leader", f"{member:x}"),
                                 kwargs={"node": MEMBERS.index(here), "check": False})
        mover.start()
        time.sleep(random.uniform(0, 0.1))  # the moment is what is random here
        return lambda: mover.join(30)

    return failovers("etcd", disturb)


@tap.test
def no_majority():
    """the primary's host dies, and another member: nobody takes over until there is a majority"""
    with protected_vm("etcd", arbiter="etcd") as (lab, ledger):
        lab.etcd.kill(WITNESS)
        lab.wait_state("hosta", "protected", 5)  # the others are enough
        lab.lab("crash", "hosta")
        time.sleep(3)  # for nothing to happen in
        expect(lab.state("hostb") not in ("solo", "protected"), "a takeover without a majority")
        lab.etcd.start(WITNESS)
        lab.wait_state("hostb", "solo", 40)
        lab.check_keeper()
        ledger.check()


@tap.test
def link_breaks():
    """the hosts lose each other while etcd's leader is frozen: the primary goes on alone"""
    with protected_vm("etcd", arbiter="etcd") as (lab, ledger):
        lead(lab, "witness")
        lab.lab("freeze", "witness")
        lab.lab("cut", "hosta", "hostb")
        time.sleep(1)
        lab.lab("thaw", "witness")
        wait_for("one of them to be the owner",
                 lambda: "solo" in (lab.state("hosta"), lab.state("hostb")), 40)
        lab.lab("heal")
        lab.check_keeper()
        ledger.check()


if __name__ == "__main__":
    tap.run()
