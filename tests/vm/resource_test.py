#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What Understudy uses, and gives back: memory bounded by the configuration under a guest that
dirties everything over a link that cannot keep up; nothing left after many starts and stops; memory
that does not grow over many thousand epochs.

CYCLES (default 30) starts and stops, SOAK_EPOCHS (default 10000, at most 60 s) epochs; a nightly
run asks for 1,000 and for as many as the night has. The figures are printed, and kept in
build/check/resources.json and soak.json."""

import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import time

import disks
from rig import GUEST_IP, KEEPER_PORT, TOP, Failure, Ledger, Rig, Tap, expect, wait_for

tap = Tap()
CYCLES = int(os.environ.get("CYCLES", "30"))
SOAK_EPOCHS = int(os.environ.get("SOAK_EPOCHS", "0"))
OUT = os.path.join(TOP, "build", "check")

STAGING_MIB, GATE_MIB, JOURNAL_MIB, DELTA_MIB = 32, 8, 16, 8
SMALL = (f"staging_mib: {STAGING_MIB}\ngate_mib: {GATE_MIB}\n"
         f"disk_journal_mib: {JOURNAL_MIB}\ndelta_cache_mib: {DELTA_MIB}\n"
         # It is memory that is tried here: a busy machine shall not make it a failover.
         "timeouts:\n  standby_ms: 1000\n  primary_ms: 1500\n")
CODE_MIB = 24    # of a process without anything to do: program, libraries' heaps, stacks
GUEST_MIB = 384
FLOOD_S = 12


def keep(name, figures):
    """Adds figures to a file for docs/reliability.md."""
    path = os.path.join(OUT, name)
    os.makedirs(OUT, exist_ok=True)
    known = {}
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        with open(path, encoding="ascii") as file:
            known = json.load(file)
    with open(path, "w", encoding="ascii") as file:
        json.dump({**known, **figures}, file, indent=2, sort_keys=True)
        file.write("\n")


def private_kib(pid):
    """A process's own memory: without the guest's, which is a file that it shares with QEMU."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        text = status.read()
    return sum(int(n) for n in re.findall(r"^(?:RssAnon|VmSwap):\s*(\d+) kB", text, re.M))


class Memory:
    """The private memory of the processes of a lab, again and again."""

    def __init__(self, lab):
        self.lab, self.pids = lab, {}
        self.samples = []    # {name: KiB}
        self.look()

    def look(self):
        """Finds the VM's processes, which may have changed; others than these two stay."""
        self.pids = {name: daemon.pid for name, daemon in self.lab.daemons.items()}
        for host in self.lab.hosts:
            status = self.lab.status(host)
            if status.get("pid"):
                self.pids["guard" if status["role"] == "primary" else "standby"] = status["pid"]

    def sample(self):
        found = {}
        for name, pid in self.pids.items():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found[name] = private_kib(pid)
        self.samples.append(found)

    def watch(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.sample()
            time.sleep(0.05)    # the interval of the samples

    def highest(self):
        return {name: max(s.get(name, 0) for s in self.samples)
                for name in {name for s in self.samples for name in s}}

    def at(self, share):
        """The median of a tenth of the samples, around that share of all of them."""
        n = len(self.samples)
        part = self.samples[max(0, int(n * share - n / 20)):int(n * share + n / 20) + 1]
        return {name: statistics.median(s[name] for s in part) for name in self.pids}


def flood(lab):
    """Everything that a guest can do at once: dirty memory, write disks, send frames."""
    lab.guest_ask(KEEPER_PORT, "RATE 20000")
    lab.spawn("client", ["busybox", "ping", "-q", "-A", "-s", "1400", GUEST_IP],
              stdout=subprocess.DEVNULL)


@tap.test
def memory_is_bounded():
    """memory stays within what is configured when a guest dirties all and the link is slow"""
    with Rig("bounds", config=SMALL) as lab:
        options = disks.vm_options(lab, "hosta", memory=f"{GUEST_MIB}M")
        options.update(keeper_mib=GUEST_MIB - 128, keeper_rate=0,
                       words=options["words"].replace("us.model_pause=4000", "us.model_pause=0"))
        lab.start_vm(**options)
        lab.wait_state("hosta", "protected", 60)
        idle = Memory(lab)
        idle.watch(1)
        memory = Memory(lab)
        flood(lab)
        for rate in ("", "100m", "10m"):
            if rate:
                lab.lab("link", "hostb", "mgmt", "--rate", rate)
            for _ in range(4):
                memory.look()
                memory.watch(FLOOD_S / 12)
            states = [lab.state(host) for host in lab.hosts]
            print(f"# {rate or 'full speed'}: {states}", flush=True)
        highest = memory.highest()
    limits = {"guard": STAGING_MIB + GATE_MIB + JOURNAL_MIB + DELTA_MIB + CODE_MIB,
              "standby": GUEST_MIB + JOURNAL_MIB + CODE_MIB}
    for name, kib in highest.items():
        limit = limits.get(name, CODE_MIB)
        expect(kib <= limit << 10, f"{name} has {kib} KiB; {limit} MiB are its bound")
    keep("resources.json", {"flood": {"idle_kib": idle.at(0.5), "highest_kib": highest,
                                      "bound_mib": {n: limits.get(n, CODE_MIB) for n in highest}}})
    return "# highest, MiB: " + ", ".join(f"{n} {kib / 1024:.1f}" for n, kib in highest.items())


# --- starts and stops ---------------------------------------------------------------------------

TINY = {"memory": "64M", "keeper_mib": 0}


def plain(lab):
    """A VM without a standby."""
    lab.must("hosta", "start", lab.vm_file(standby=None, **TINY))
    lab.must("hosta", "stop", "web")


def protected(lab):
    """One with a standby, stopped when it is protected, or at any moment before."""
    lab.must("hosta", "start", "--no-wait", lab.vm_file(**TINY))
    if lab.cycle % 2:
        lab.wait_state("hosta", "protected", 30)
    lab.must("hosta", "stop", "web")


def moved(lab):
    """One that moves to its standby, and is stopped there."""
    lab.must("hosta", "start", lab.vm_file(**TINY))
    lab.wait_state("hosta", "protected", 30)
    lab.must("hosta", "switchover", "web")
    lab.wait_state("hostb", "protected", 30)
    lab.must("hostb", "stop", "web")
    wait_for("hosta to let go of its copy", lambda: not lab.status("hosta").get("pid"), 10)


def destroyed(lab):
    """One whose hypervisor is killed."""
    lab.must("hosta", "start", lab.vm_file(standby=None, **TINY))
    os.kill(lab.status("hosta")["hypervisor_pid"], signal.SIGKILL)
    wait_for("the VM to be gone", lambda: not lab.status("hosta").get("pid"), 10)


def refused(lab):
    """Starts that fail: before there is a process, when the hypervisor ends, on a bad bridge."""
    path = lab.vm_file(standby=None, **TINY)
    with open(path, encoding="ascii") as file:
        text = file.read()
    for old, new in (("memory: 64M", "memory: 63.5M"), ("cpu: qemu64", "cpu: none-such"),
                     ("bridge: br0", "bridge: br9")):
        with open(path, "w", encoding="ascii") as file:
            file.write(text.replace(old, new))
        expect(lab.cli("hosta", "start", path).returncode != 0, f"a start with {new} succeeds")


KINDS = (plain, protected, destroyed, refused, protected, moved)


def files_below(path):
    return {os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names}


def everything(lab):
    """What a VM could leave behind, by where."""
    found = {"/dev/shm": set(os.listdir("/dev/shm"))}
    for host in lab.hosts:
        for place in ("run", "state", "disks"):
            found[f"{host} {place}"] = files_below(f"{lab.dir}/{host}/{place}")
        ns = ["ip", "netns"]
        found[f"{host} processes"] = set(disks.run(*ns, "pids", f"us-{lab.name}-{host}").split())
        links = disks.run("ip", "-n", f"us-{lab.name}-{host}", "-o", "link").splitlines()
        found[f"{host} interfaces"] = {line.split(":")[1].strip() for line in links}
    for name, daemon in lab.daemons.items():
        fds = f"/proc/{daemon.pid}/fd"
        kinds = [re.sub(r"\d+", "N", os.readlink(f"{fds}/{fd}")) for fd in os.listdir(fds)]
        found[f"{name} descriptors"] = {f"{kinds.count(kind)} {kind}" for kind in kinds}
        found[f"{name} threads"] = {str(len(os.listdir(f"/proc/{daemon.pid}/task")))}
    found["namespaces"] = {n for n in os.listdir("/run/netns") if n.startswith(f"us-{lab.name}-")}
    return found


def differences(before, after):
    return [f"{where}: {'+' if more else '-'} {what}" for where in after
            for more, whats in ((True, after[where] - before[where]),
                                (False, before[where] - after[where])) for what in sorted(whats)]


@tap.test
def nothing_is_left():
    """after many starts and stops no descriptor, process, tap, file or namespace is left"""
    with Rig("cycles") as lab:
        lab.cycle = 0
        for kind in (*KINDS, plain):    # what is made once, for good, is made now
            kind(lab)
        time.sleep(1)    # nothing waits for this, but the snapshot is to be a quiet one
        before, started = everything(lab), time.monotonic()
        pids = {name: daemon.pid for name, daemon in lab.daemons.items()}
        memory = {name: [private_kib(pid)] for name, pid in pids.items()}
        for lab.cycle in range(CYCLES):
            kind = KINDS[lab.cycle % len(KINDS)]
            try:
                kind(lab)
            except Failure as problem:
                raise Failure(f"cycle {lab.cycle}, {kind.__name__}: {problem}") from problem
        took = time.monotonic() - started
        plain(lab)    # which takes back what is on record about the one before
        with contextlib.suppress(Failure):    # then the differences say what is left
            wait_for("all to be gone", lambda: not differences(before, everything(lab)), 10)
        left = differences(before, everything(lab))
        expect(not left, "left behind: " + "; ".join(left))
        for name, pid in pids.items():
            memory[name].append(private_kib(pid))
    for name, (first, last) in memory.items():
        expect(last - first <= 512 + CYCLES, f"{name} grew from {first} to {last} KiB")
    keep("resources.json", {"cycles": {"cycles": CYCLES, "seconds": round(took, 1),
                                       "left_behind": 0, "private_kib": memory}})
    return f"# {CYCLES} starts and stops in {took:.1f} s; KiB before and after: {memory}"


# --- the soak -----------------------------------------------------------------------------------


def slope_kib(memory, name, epochs):
    """KiB per 1,000 epochs, by least squares over the second half."""
    half = memory.samples[len(memory.samples) // 2:]
    return statistics.linear_regression(epochs[len(epochs) // 2:],
                                        [s[name] for s in half]).slope * 1000


@tap.test
def soak():
    """memory stays the same over many thousand epochs"""
    with Rig("soak", config=SMALL) as lab:
        options = disks.vm_options(lab, "hosta", memory="160M")
        # Small epochs, so that there are many.
        options["words"] = options["words"].replace("us.model_pause=4000", "us.model_pause=50000")
        lab.start_vm(**options)
        lab.wait_state("hosta", "protected", 40)
        lab.guest_ask(KEEPER_PORT, "RATE 20000")
        time.sleep(3)    # so that the pools are in use to their ends
        lab.guest_ask(KEEPER_PORT, "RATE 4")
        lab.wait_state("hosta", "protected", 40)
        ledger = Ledger(lab, interval_ms=1, connections=2, seconds=1e6, gap_ms=500)
        ledger.wait_connected()
        first, started = lab.status("hosta")["committed_epoch"], time.monotonic()
        memory, epochs = Memory(lab), []
        done = 0
        while done < (SOAK_EPOCHS or 10000) and (SOAK_EPOCHS or time.monotonic() < started + 60):
            status = lab.status("hosta")
            expect(status.get("state") == "protected", f"protection was lost: {status}")
            done = status["committed_epoch"] - first
            memory.sample()
            epochs.append(done)
            time.sleep(0.2)    # the interval of the samples
        took = time.monotonic() - started
        figures = ledger.check()
        lab.check_keeper()
        disks.check_copies(lab, "hosta")
    begin, end = memory.at(0.1), memory.at(0.95)
    slopes = {name: round(slope_kib(memory, name, epochs), 1) for name in memory.pids}
    keep("soak.json", {"epochs": done, "seconds": round(took, 1), "operations": figures["ops"],
                       "start_kib": begin, "end_kib": end,
                       "second_half_kib_per_1000_epochs": slopes})
    for name, kib in end.items():
        # What the pools have room for is used sooner or later; a leak is in every epoch.
        grew = kib - begin[name]
        expect(grew <= 512 or (grew <= 2048 and slopes[name] < 100),
               f"{name} grew from {begin[name]:.0f} to {kib:.0f} KiB, {slopes[name]} KiB per 1,000"
               " epochs at the end")
    return (f"# {done} epochs in {took:.0f} s, {figures['ops']:.0f} operations; KiB at the start"
            f" {begin}, at the end {end}")


if __name__ == "__main__":
    tap.run()
