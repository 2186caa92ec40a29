#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Replicated disks under real guests: hosts die, links break, disks fail, while the guest's
programs write: a journaling service on ext4 (the scribe), the ledger with its numbers in a file,
and a model of a raw disk. Whatever was acknowledged is on the disk that is left, memory and disk
agree, and both copies are the same. A failure prints the seed of the random moments (DISK_SEED)."""

import os
import random
import subprocess
import time

import disks
from rig import (LEDGER_PORT, MODEL_PORT, SCRIBE_PORT, Acks, Failure, Ledger, Rig, Tap, expect,
                 other, wait_for, wait_frozen)
from shared_vm import SharedVm

tap = Tap()
FAILOVERS = int(os.environ.get("DISK_FAILOVERS", "30"))
SEED = int(os.environ.get("DISK_SEED", str(random.randrange(1 << 32))))


def start(lab, stack):
    # The model's disk is a file on one host and a block device on the other.
    stack.enter_context(disks.block_device(lab, "hostb", "model.img", disks.MODEL_MIB))
    lab.start_vm(**disks.vm_options(lab, "hosta"))


vm = SharedVm(tap, "disks", start)


def switch_over(lab, primary, standby):
    """The hosts change roles on purpose. Returns the new primary and the new standby."""
    lab.must(primary, "switchover", "web")
    vm.primary = standby
    lab.wait_state(standby, "protected", 40)
    return standby, primary


@vm.test
def random_moments(lab, primary, standby):
    """hosts die at random moments while everything writes: nothing acknowledged is lost"""
    print(f"# DISK_SEED={SEED}")
    moments = random.Random(SEED)
    holes = [os.stat(disks.image(lab, h, "data.img")).st_blocks for h in (standby, primary)]
    expect(holes[0] < holes[1] + 4096, f"the copy has lost its holes: {holes} blocks")
    ledger, acks = Ledger(lab, interval_ms=5, gap_ms=500), Acks(lab)
    ledger.wait_connected()
    for _ in range(FAILOVERS):
        lab.wait_state(primary, "protected", 40)
        time.sleep(moments.uniform(0.0, 0.5))  # the moment is what is random here
        vm.fail_over()
        disks.check_model(lab, "STATUS")
        lab.restart_host(primary)
        primary, standby = standby, primary
    disks.check_model(lab)
    lab.check_keeper()
    lab.wait_state(primary, "protected", 40)
    disks.check_copies(lab, primary)
    figures, acked = ledger.check(), acks.stop()
    vm.fail_over()  # and once more: judged is what the standby had
    disks.stop_vm(lab, standby)
    disks.check_data(lab, standby, acked, figures["ops"])
    vm.drop()
    return (f"# {FAILOVERS} failovers, {acked} entries and {figures['ops']:.0f} numbers, longest"
            f" gap {figures['max_gap_ms']:.0f} ms")


def restart_standby(lab, primary, standby, fault=None):
    """The standby dies and comes back, with a fault point armed or without one."""
    lab.lab("crash", standby)
    lab.wait_state(primary, "solo", 10)
    lab.faults = {standby: fault} if fault else {}
    lab.restart_host(standby)


def dies_at(name, point, hits, recovering=False):
    """A test in which the standby is killed at a step of keeping and applying an epoch: when it is
    back, its copy is brought up to date and is the same as the primary's."""
    def test(lab, primary, standby):
        acks = Acks(lab)  # whose answers make epochs frequent
        if recovering:
            restart_standby(lab, primary, standby, f"{point} {hits} stop")
        else:
            lab.fault_files[standby].arm(f"{point} {hits} stop")
        wait_frozen(lab, standby)
        restart_standby(lab, primary, standby)
        lab.wait_state(primary, "protected", 40)
        disks.check_copies(lab, primary)
        disks.check_model(lab, "STATUS")
        acks.stop()

    test.__name__ = name
    test.__doc__ = f"the standby {name.replace('_', ' ')}; its copy is brought up to date"
    vm.test(test)


dies_at("dies_before_the_log", "redo.append", 11)
dies_at("dies_in_the_log", "redo.appending", 11)
dies_at("dies_behind_the_log", "redo.appended", 11)
dies_at("dies_after_a_sync", "redo.synced", 10)
dies_at("dies_while_recovering", "redo.apply", 40, recovering=True)
dies_at("dies_while_applying", "redo.apply", 200)
dies_at("dies_after_applying", "applier.applied", 60)
dies_at("dies_with_images_synced", "applier.images-synced", 1, recovering=True)
dies_at("dies_while_the_log_starts", "redo.reset", 1, recovering=True)
dies_at("dies_when_the_log_has_started", "redo.was-reset", 1, recovering=True)


@vm.test
def equal_after_a_stop(lab, primary, standby):
    """stopped at a quiet moment, both copies are the same, byte for byte"""
    acks = Acks(lab)
    wait_for("some entries", acks.acked, 10)
    acked = acks.stop()
    disks.check_model(lab)
    disks.be_quiet(lab, primary)
    disks.stop_vm(lab, primary)
    disks.check_equal(lab, "data.img", "model.img", "spare.img")
    disks.check_data(lab, standby, acked, 0)
    lab.must(primary, "start", f"{lab.dir}/web.yaml", timeout=60)
    lab.wait_guest()
    lab.wait_state(primary, "protected", 40)
    disks.check_model(lab)  # what it found is what it had left


@vm.test
def block_device(lab, primary, standby):
    """a disk that is a file on one host and a block device on the other moves between them"""
    if not disks.is_block_device(lab, "hostb", "model.img"):
        return "# SKIP no loop devices"
    for _ in range(2):
        primary, standby = switch_over(lab, primary, standby)
        disks.check_model(lab)
        disks.check_copies(lab, primary)
    return ""


@vm.test
def speculative_writes_are_undone(lab, primary, standby):
    """what a cut-off primary wrote after its last commit is undone when it is back"""
    ledger, acks = Ledger(lab, interval_ms=5, gap_ms=500), Acks(lab)
    ledger.wait_connected()
    for peer in (standby, "witness"):
        lab.lab("cut", primary, peer)
    lab.wait_state(standby, "solo", 10)
    lab.wait_state(primary, "isolated", 10)
    time.sleep(0.5)  # in which the isolated VM writes what nobody has seen
    lab.lab("heal")
    vm.primary = standby
    lab.wait_state(standby, "protected", 40)
    disks.check_copies(lab, standby)
    disks.check_model(lab)
    ledger.check()
    acks.stop()
    disks.be_quiet(lab, standby)
    disks.stop_vm(lab, standby)
    disks.check_equal(lab, "data.img", "model.img", "spare.img")
    vm.drop()


@vm.test
def resync_copies_what_differs(lab, primary, standby):
    """after a standby's absence no more than twice of what was written is copied"""
    disks.hold_still(lab)
    lab.lab("crash", standby)
    lab.wait_state(primary, "solo", 10)
    lab.guest_run("for i in 1 2 3; do dd if=/dev/urandom of=/data/fill bs=1M count=12; sync; done")
    dirty = sum(d["dirty_bytes"] for d in lab.status(primary)["disks"])
    expect(12 << 20 <= dirty < 40 << 20, f"{dirty} bytes are called dirty")
    lab.restart_host(standby)
    after = lab.wait_state(primary, "protected", 40)
    copied = sum(d["copied_bytes"] for d in after["disks"])
    expect(12 << 20 <= copied <= 2 * dirty, f"{copied} bytes copied, {dirty} were dirty")
    disks.check_copies(lab, primary)
    disks.go_on(lab)
    return f"# {copied >> 20} MiB copied, {dirty >> 20} MiB dirty"


@vm.test
def guest_sees_its_own_disk_fail(lab, primary, standby):
    """an error of the primary's disk is the guest's to see, and of no other disk"""
    read = "dd if=/dev/vdc of=/dev/null bs=4k count=1 iflag=direct"
    lab.guest_run(read)
    os.truncate(disks.image(lab, primary, "spare.img"), 0)
    done = lab.guest_run(read, check=False)
    expect(done.returncode and "error" in done.stdout, f"the guest reads what is not there: {done}")
    disks.check_model(lab, "STATUS")
    os.truncate(disks.image(lab, primary, "spare.img"), disks.SPARE_MIB << 20)
    lab.guest_run(read)
    expect(lab.state(primary) == "protected", "protection was lost")


@vm.test
def switchover(lab, primary, standby):
    """five times back and forth on purpose: nothing is lost, hardly anybody notices"""
    ledger, acks = Ledger(lab, interval_ms=2, gap_ms=150), Acks(lab)
    ledger.wait_connected()
    for _ in range(10):
        primary, standby = switch_over(lab, primary, standby)
    figures = ledger.check()
    acks.stop()
    disks.check_model(lab)
    disks.check_copies(lab, primary)
    expect(figures["max_gap_ms"] < 1000, f"an outage of {figures['max_gap_ms']:.0f} ms")
    return f"# longest gap {figures['max_gap_ms']:.0f} ms"


@vm.test
def both_hosts_lost(lab, primary, standby):
    """both hosts die: recover refuses the older copy, and starts from the newer one"""
    ledger, acks = Ledger(lab, interval_ms=5), Acks(lab)
    ledger.wait_connected()
    lab.lab("crash", standby)
    lab.wait_state(primary, "solo", 10)
    before = acks.acked()
    wait_for("more entries", lambda: acks.acked() > before + 100, 20)
    figures, acked = ledger.check(), acks.stop()
    lab.lab("crash", primary)
    lab.restart_host(standby)
    refused = lab.cli(standby, "recover", "web")
    expect(refused.returncode == 1 and primary in refused.stderr,
           f"recover from the older copy: exit status {refused.returncode}: {refused.stderr}")
    expect(not lab.status(standby).get("pid"), "it was started all the same")
    lab.restart_host(primary)
    lab.must(primary, "recover", "web", timeout=90)
    check_recovered(lab, acked, figures["ops"])
    lab.wait_state(primary, "protected", 40)
    disks.check_copies(lab, primary)


def check_recovered(lab, acked, ops):
    """The guest has booted anew: what its programs found on their disks."""
    lab.wait_guest()
    count = int(lab.guest_ask(LEDGER_PORT, "GET").split()[0])
    expect(count >= ops, f"{ops} numbers were acknowledged, the ledger has {count}")
    lab.guest_ask(LEDGER_PORT, "SUM")
    found = lab.guest_ask(SCRIBE_PORT, "STATUS")
    expect(int(found.split()[0].partition("=")[2]) >= acked, f"{acked} were acknowledged: {found}")
    disks.check_model(lab)


@vm.test
def standby_disk_full(lab, primary, standby):
    """the standby's disk fills up: the VM goes on alone, status says why; protected when it fits"""
    # The new file system has no images: they are made anew, and everything is copied.
    folder = disks.image(lab, standby, "")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], check=True)
    restart_standby(lab, primary, standby)
    lab.wait_state(primary, "protected", 60)
    lab.guest_run("dd if=/dev/urandom of=/data/fill bs=1M count=56; sync")
    reason = wait_for("status to say that the disk is full",
                      lambda: "space" in lab.status(primary)["reason"]
                      and lab.status(primary)["reason"], 20)
    expect(lab.cli(primary, "status").returncode == 3, "status hides that web is unprotected")
    disks.check_model(lab)
    subprocess.run(["mount", "-o", "remount,size=300m", folder], check=True)
    lab.wait_state(primary, "protected", 60)
    disks.check_copies(lab, primary)
    return f"# {reason}"


@tap.test
def both_lost_after_an_acknowledgement():
    """both hosts die, the standby before it has applied: its copy has all that was acknowledged"""
    with Rig("lost") as lab:
        # Long epochs: what the client is told of an epoch was written in it, too.
        options = disks.vm_options(lab, "hosta", interval="  interval:\n    min: 200ms\n")
        lab.start_vm(**options)
        lab.wait_state("hosta", "protected", 40)
        restart_standby(lab, "hosta", "hostb", "standby.acked 45 stop")
        lab.wait_state("hosta", "protected", 40)
        for host in ("hosta", "hostb"):
            lab.lab("cut", host, "witness")  # so that the primary cannot go on without its standby
        acks = Acks(lab, every_ms=120)
        wait_frozen(lab, "hostb")
        acked = acks.stop()
        expect(acked > 0, "nothing was acknowledged")
        for host in ("hosta", "hostb"):
            lab.lab("crash", host)
        lab.lab("heal")
        lab.faults.clear()
        lab.restart_host("hostb")
        refused = lab.cli("hostb", "recover", "web")
        expect(refused.returncode == 1, "hosta may have the newer copy")
        lab.must("hostb", "recover", "web", "--seize", "--no-wait", timeout=90)
        check_recovered(lab, acked, 0)
        lab.restart_host("hosta")
        lab.wait_state("hostb", "protected", 40)
        disks.check_copies(lab, "hostb")


if __name__ == "__main__":
    try:
        tap.run()
    except KeyboardInterrupt as stop:
        raise SystemExit(130) from stop
    except Failure as problem:
        raise SystemExit(str(problem)) from problem
    finally:
        vm.drop()
