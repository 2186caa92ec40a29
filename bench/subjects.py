# SPDX-License-Identifier: Apache-2.0
"""The VMs that the speed bench measures: guests with real programs (tools/bench-image), all on one
lab's hosta, each started with an engine and an interval of its own, protected one at a time."""

import dataclasses
import json
import os
import sys
import time

from figures import TOP, cpu_seconds  # finds the rig, too
os.environ.setdefault("GUEST_IMAGE", os.path.join(TOP, "build", "bench-guest"))
from rig import LEDGER_PORT, Rig, expect, wait_for  # pylint: disable=wrong-import-position

DIRTIER_PORT = 7005
DIRTIER_MIB = 64
TRACED = ("pages", "ahead_pages", "ahead_ms", "stop_ms", "pause_ms", "state_ms", "scan_ms",
          "copy_ms", "resume_ms")


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a VM's file says about checkpoints. interval_ms None: the engine's default."""
    mode: str  # "remus" or "default"
    interval_ms: int | None = None

    def name(self):
        return f"{self.mode}{self.interval_ms or ''}"

    def section(self):
        lines = f"  engine: {self.mode}\n"
        if self.interval_ms:
            # The interval shall be what it says; so the bound on the slow-down is no bound.
            lines += (f"  max_slowdown: 90%\n  interval:\n    min: {self.interval_ms}ms\n"
                      f"    max: {self.interval_ms}ms\n")
        return lines


class Subject:
    """One VM. run(), ask(): as the rig's, for this VM's guest."""

    def __init__(self, lab, kind, number):
        self.lab, self.kind, self.number = lab, kind, number
        self.name = kind.name()
        self.address = f"10.78.0.{10 + number}"
        self.protected = False

    def start(self, memory="512M"):
        path = self.lab.vm_file(name=self.name, memory=memory, keeper_mib=1, keeper_rate=0,
                                words="us.runner", number=self.number,
                                interval=self.kind.section())
        self.lab.must("hosta", "start", "--no-wait", path)
        self.protect(False)

    def wait_ready(self):
        """Until the guest and the servers in it listen."""
        self.ask(LEDGER_PORT, "GET", 60)
        self.run("mkdir -p /bench/www && echo hello, world >/bench/www/index.html &&"
                 " /bench/nginx -c /bench/nginx.conf")
        self.run("/bench/redis-server --save '' --appendonly no --protected-mode no"
                 " --bind 0.0.0.0 --daemonize yes >/dev/null")
        self.run(f"/bench/dirtier {DIRTIER_MIB} </dev/null >/dev/null 2>&1 &")
        self.ask(DIRTIER_PORT, "STATUS", 20)

    def ask(self, port, question, seconds=30):
        return self.lab.guest_ask(port, question, seconds, address=self.address)

    def run(self, command, seconds=60):
        return self.lab.guest_run(command, seconds, address=self.address)

    def status(self, host="hosta"):
        return self.lab.status(host, self.name)

    def trace(self, since_epoch):
        """The last epochs, at most 256, after that one: a list for each thing that is traced."""
        said = self.lab.must("hosta", "trace", self.name, "--json")
        epochs = [epoch for epoch in json.loads(said) if epoch["epoch"] > since_epoch]
        return {key: [round(epoch[key], 3) for epoch in epochs] for key in TRACED}

    def protect(self, wanted):
        if wanted:
            self.lab.must("hosta", "protect", self.name, "--to", "hostb")
            self.lab.wait_state("hosta", "protected", 90, vm=self.name)
            # The epochs after seeding are not yet those of a steady state.
            seen = self.status()["committed_epoch"]
            wait_for("epochs", lambda: self.status()["committed_epoch"] > seen + 3, 30)
        else:
            self.lab.must("hosta", "unprotect", self.name)
            self.lab.wait_state("hosta", "solo", 30, vm=self.name)
        self.protected = wanted


class Session:
    """A lab with a VM of each kind; enter() protects the one that a mode names, and no other."""

    def __init__(self, kinds):
        self.kinds = tuple(kinds)
        self.lab = Rig("speed")
        self.subjects = {}

    def __enter__(self):
        self.lab.__enter__()
        try:
            for number, kind in enumerate(self.kinds):
                self.subjects[kind.mode] = Subject(self.lab, kind, number)
                self.subjects[kind.mode].start()
            for subject in self.subjects.values():
                subject.wait_ready()
        except BaseException:
            self.lab.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, kind, value, trace):
        self.lab.__exit__(kind, value, trace)

    def enter(self, mode):
        """The VM to put under load. "plain": none is protected; it is the last kind's VM."""
        chosen = self.subjects.get(mode)
        for subject in self.subjects.values():
            if subject.protected and subject is not chosen:
                subject.protect(False)
        if chosen and not chosen.protected:
            chosen.protect(True)
        expect(chosen or mode == "plain", f"no VM for {mode}")
        return chosen or self.subjects[self.kinds[-1].mode]


class Window:
    """What a VM's protection did, and cost, while the block ran: result() after it."""

    def __init__(self, subject):
        self.subject = subject

    def look(self):
        status = self.subject.status()
        pids = {"qemu": status["hypervisor_pid"], "guard": status["pid"]}
        if self.subject.protected:
            pids["standby"] = self.subject.status("hostb")["pid"]
        return time.monotonic(), status, {who: cpu_seconds(pid) for who, pid in pids.items()}

    def __enter__(self):
        self.start = self.look()
        return self

    def __exit__(self, *_):
        self.end = self.look()
        self.trace = (self.subject.trace(self.start[1]["epoch"]) if self.subject.protected
                      else None)

    def result(self):
        (start, before, cpu_before), (end, after, cpu_after) = self.start, self.end
        seconds = end - start
        found = {"seconds": seconds, "cpu_pct": {
            who: 100 * (cpu_after[who] - cpu_before[who]) / seconds for who in cpu_before}}
        if not self.subject.protected:
            return found
        epochs = after["epoch"] - before["epoch"]
        found |= {"epochs": epochs, "interval_ms": 1e3 * seconds / max(1, epochs),
                  "bytes_raw": after["bytes_raw"] - before["bytes_raw"],
                  "bytes_sent": after["bytes_sent"] - before["bytes_sent"],
                  "trace": self.trace,
                  "still_protected": after["state"] == "protected"
                                     and after["term"] == before["term"]}
        return found
