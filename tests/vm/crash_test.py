#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Processes die while their hosts live: whatever dies, one VM goes on, its connections live, and it is
protected again by itself."""

import random
import time

import disks
from rig import Acks, Ledger, Rig, Tap, expect, other, protected_vm, wait_for

tap = Tap()


def kill(lab, host, pid):
    lab.lab("exec", host, "kill", "-KILL", str(pid))


def alive(lab, host, pid):
    return lab.lab("exec", host, "kill", "-0", str(pid), check=False).returncode == 0


def owner(lab, vm="web"):
    """The host that runs the VM, and its status there."""
    for host in lab.hosts:
        status = lab.status(host, vm)
        if status.get("role") == "primary" and status.get("state") not in ("down", "lost", None):
            return host, status
    return None, {}


def wait_protected(lab, seconds=40):
    def protected():
        host, status = owner(lab)
        return host if status.get("state") == "protected" else None
    return wait_for("the VM to be protected again", protected, seconds)


@tap.test
def guard_of_a_lone_vm():
    """the guard of an unprotected VM dies: another attaches, the guest and its connections live"""
    with Rig("lone") as lab:
        lab.start_vm(standby="")
        ledger = Ledger(lab, interval_ms=5, gap_ms=80)
        ledger.wait_connected()
        for _ in range(3):
            before = lab.status("hosta")
            kill(lab, "hosta", before["pid"])
            wait_for("another guard", lambda b=before: lab.state("hosta") == "solo" and
                     lab.status("hosta")["pid"] != b["pid"], 10)
            after = lab.status("hosta")
            expect(after["hypervisor_pid"] == before["hypervisor_pid"], "another hypervisor runs")
            expect(after["term"] > before["term"], "it went solo without a swap")
            lab.guest_ask(7000, "GET", 10)
        lab.check_keeper()
        figures = ledger.check()
        return f"# longest gap {figures['max_gap_ms']:.0f} ms"


@tap.test
def guard_of_a_protected_vm():
    """the guard of a protected VM dies, again and again: either side goes on, never both"""
    with protected_vm("paired") as (lab, ledger):
        seed, stayed = random.randrange(1 << 30), 0
        rng = random.Random(seed)
        for _ in range(4):
            host, before = owner(lab)
            time.sleep(rng.random() * 0.1)  # any phase of an epoch
            kill(lab, host, before["pid"])
            now = wait_protected(lab)
            stayed += now == host
            if now == host:
                expect(lab.status(host)["hypervisor_pid"] == before["hypervisor_pid"],
                       "another hypervisor runs")
            else:
                wait_for("the old hypervisor to be gone",
                         lambda h=host, b=before: not alive(lab, h, b["hypervisor_pid"]), 10)
            lab.check_keeper()
        figures = ledger.check()
        return f"# seed {seed}: attached {stayed} of 4, longest gap {figures['max_gap_ms']:.0f} ms"


@tap.test
def guard_and_understudyd():
    """understudyd and the guard of a lone VM die: understudyd attaches when it is back"""
    with Rig("both") as lab:
        lab.start_vm(standby="")
        ledger = Ledger(lab, interval_ms=5, gap_ms=80)
        ledger.wait_connected()
        before = lab.status("hosta")
        lab.daemons["hosta"].kill()  # `lab exec` has replaced itself by understudyd
        lab.daemons["hosta"].wait(10)
        kill(lab, "hosta", before["pid"])
        time.sleep(0.5)
        lab.start_daemon("hosta")
        wait_for("another guard", lambda: lab.state("hosta") == "solo", 10)
        expect(lab.status("hosta")["hypervisor_pid"] == before["hypervisor_pid"],
               "another hypervisor runs")
        ledger.check()


@tap.test
def guard_without_arbiter():
    """the guard of a protected VM dies and the arbiter is out of reach: mute until it is back"""
    with protected_vm("mute") as (lab, ledger):
        before = lab.status("hosta")
        lab.lab("cut", "hosta", "witness")
        lab.lab("cut", "hostb", "witness")
        kill(lab, "hosta", before["pid"])
        wait_for("another guard", lambda: lab.state("hosta") == "isolated" and
                 lab.status("hosta")["pid"] != before["pid"], 10)
        released = lab.status("hosta")["released_frames"]
        time.sleep(1)
        expect(lab.status("hosta")["released_frames"] == released == 0, "a frame got out")
        lab.lab("heal")
        wait_protected(lab)
        ledger.check()


@tap.test
def guard_with_disks():
    """the guard of a VM that writes its disks dies: no write is lost, no error seen"""
    with Rig("writes") as lab:
        lab.start_vm(**disks.vm_options(lab, "hosta"))
        lab.wait_state("hosta", "protected", 60)
        ledger, acks = Ledger(lab, interval_ms=5, gap_ms=80), Acks(lab)
        ledger.wait_connected()
        for _ in range(2):
            host, before = owner(lab)
            kill(lab, host, before["pid"])
            wait_protected(lab, 60)
            disks.check_model(lab)
        expect(acks.stop() > 0, "the scribe wrote nothing")
        lab.check_keeper()
        lab.must(owner(lab)[0], "verify", "web", timeout=120)
        figures = ledger.check()
        return f"# longest gap {figures['max_gap_ms']:.0f} ms"


@tap.test
def standby_process():
    """the standby's process dies: solo, then protected again by a new one"""
    with protected_vm("second") as (lab, ledger):
        pid = lab.status("hostb")["pid"]
        kill(lab, "hostb", pid)
        wait_for("another standby", lambda: lab.status("hostb").get("pid", pid) != pid, 20)
        expect(wait_protected(lab) == "hosta", "the VM has moved")
        ledger.check()


@tap.test
def hypervisors_die():
    """the standby's hypervisor dies: protected again; the primary's dies: failover"""
    with protected_vm("qemu") as (lab, ledger):
        pid = lab.status("hostb")["hypervisor_pid"]
        kill(lab, "hostb", pid)
        wait_for("another standby", lambda: lab.status("hostb").get("hypervisor_pid", pid)
                 not in (pid, 0), 20)
        expect(wait_protected(lab) == "hosta", "the VM has moved")
        kill(lab, "hosta", lab.status("hosta")["hypervisor_pid"])
        wait_for("hostb to take over", lambda: lab.state("hostb") in
                 ("solo", "seeding", "protected"), 10)
        expect(wait_protected(lab) == "hostb", "the VM is not where it failed over to")
        ledger.check()


@tap.test
def crash_loop():
    """a guard that dies each time it attaches is given up, and somebody is told"""
    with Rig("loop") as lab:
        lab.start_vm(standby="")
        seen = set()
        deadline = time.monotonic() + 30
        while "NOBODY ATTENDS" not in lab.log("hosta") and time.monotonic() < deadline:
            pid = lab.status("hosta").get("pid")
            if pid and pid not in seen:
                seen.add(pid)
                kill(lab, "hosta", pid)
        expect("NOBODY ATTENDS" in lab.log("hosta"), "no alarm")
        expect(len(seen) == 4, f"{len(seen)} guards were started")
        down = lab.status("hosta")
        expect(down.get("state") == "crashed", f"status: {down}")
        lab.must("hosta", "start", lab.vm_file(standby=""))
        lab.wait_guest()


@tap.test
def understudyds():
    """both understudyds die and come back: the VM notices nothing"""
    with protected_vm("daemons") as (lab, ledger):
        pids = [lab.status(host)["pid"] for host in lab.hosts]
        for host in lab.hosts:
            lab.daemons[host].kill()
            lab.daemons[host].wait(10)
            lab.start_daemon(host)
        wait_for("the VM to be found again", lambda: lab.state("hosta") == "protected", 10)
        expect([lab.status(host)["pid"] for host in lab.hosts] == pids, "another process runs it")
        lab.lab("crash", "hosta")
        wait_for("hostb to take over", lambda: lab.state(other("hosta")) == "solo", 10)
        ledger.check()


if __name__ == "__main__":
    try:
        tap.run()
    except KeyboardInterrupt as stop:
        raise SystemExit(130) from stop
