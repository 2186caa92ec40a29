#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Everything goes wrong once: each fault point of the source (tools/fault-points) crashes, waits,
and fails where it is a call; each process is killed at random moments. Afterwards exactly one VM
runs, it is protected again by itself, both copies of its disks are the same, its clients' TCP
connections live and nothing that they were told is lost, and nothing is left lying around.

One lab and one VM serve one case after the other, in an order and at moments that a seed decides.
First it is learnt which points each stimulus (something that happens to a VM) comes by.

  FAULT_SEED=N       the seed; printed, too
  FAULT_SECONDS=N    no case begins later (default: all are tried)
  FAULT_REPORT=FILE  a summary as JSON
  fault_test.py WORD...  only cases in whose title each word occurs, "standby.won crash" for
                     example. A whole title is that case, as it was"""

import collections
import json
import os
import random
import re
import subprocess
import sys
import time

import disks
import fault_lab
from fault_lab import FaultLab, Lost, quietly_kill
from faults import name_hash
from rig import TOP, Failure, expect, other, wait_for

SEED = int(os.environ.get("FAULT_SEED", str(random.randrange(1 << 32))))
SECONDS = float(os.environ.get("FAULT_SECONDS", "1e9"))
REACH_S = 4       # until a stimulus has come by a point
SHORT_S = 600     # a shorter run is a short one
LASTING_S = 1.0   # for which a call goes on failing
STEADY_S = 0.8    # of looking at a VM to which nothing happens
SLOW_S = 12        # a case that takes longer is worth a look at its log
FAILURES_MAX = 25  # then it is of no use to go on

# What really fails, and how. The first pattern that fits the point's name counts.
ERRNOS = (
    (r"room|run-list|copy-set|ranges|record-task|hyp\.watch", "ENOMEM"),
    (r"accept|pipe|hyp\.arm|pidfd|take-uffd|open-pagemap|save-file", "EMFILE"),
    (r"hyp\.lift", "EFAULT"),
    (r"spawn", "EAGAIN ENOMEM"),
    (r"tcp\.connect", "ENETUNREACH ECONNREFUSED"),
    (r"(tcp|tls)\.read|guard\.send|standby\.receive", "ECONNRESET ETIMEDOUT"),
    (r"(tcp|tls)\.write", "ECONNRESET EPIPE"),
    (r"hyp\.attach", "ECONNREFUSED EAGAIN"),
    (r"net\.tap-write", "EAGAIN EIO"),
    (r"net\.guest-write", "EAGAIN ENOBUFS"),
    (r"net\.(tap|guest)-read|qmp\.read|hyp\.state-read|disk\.image-cached", "EAGAIN"),
    (r"qmp\.write|restore-write|control\.|disk\.reply|read-ready", "EAGAIN"),
    (r"net\.tap-open", "EMFILE EBUSY"),
    (r"net\.tap-plug-in", "ENOMEM"),
    (r"read", "EIO"),
    (r"", "EIO ENOSPC"),
)

# An error of the disk of the host where the VM runs is its guest's to see (I6): the VM goes on, and
# is of no use to the cases after it. So is one of the redo log that is to be emptied before its
# guest may write after a takeover (docs/disks.md).
GUEST_SEES = r"disk\.(image-(read|write|zero|sync)|read|sync)|redo\.(write-header|sync)"


# -- stimuli: what happens to a protected VM. Each leads back to a protected one. --

def steady(lab):
    time.sleep(STEADY_S)


def verify(lab):
    lab.order(lab.primary, "verify")
    time.sleep(STEADY_S)


def standby_dies(lab):
    quietly_kill(lab.status(lab.standby).get("pid"))


def hypervisor_dies(lab):
    quietly_kill(lab.status(lab.primary).get("hypervisor_pid"))


def guard_dies(lab):
    quietly_kill(lab.status(lab.primary).get("pid"))


def failover(lab):
    lab.order(lab.standby, "failover")


def switchover(lab):
    lab.order(lab.primary, "switchover")


def daemons_die(lab):
    for host in fault_lab.HOSTS:
        quietly_kill(lab.rig.daemons[host].pid)


def protect_anew(lab):
    """... by a standby that has lost its copy of a disk meanwhile."""
    primary, standby = lab.primary, lab.standby
    if lab.unprotect():
        os.unlink(disks.image(lab.rig, standby, "spare.img"))
    lab.order(primary, "protect", to=standby)


def estimate(lab):
    """What its protection would cost, while it is alone."""
    lab.unprotect()
    lab.order(lab.primary, "estimate", seconds=1)
    time.sleep(1.2)
    lab.order(lab.primary, "protect", to=lab.standby)


def link_breaks(lab):
    """The data channel fails under the host on which the case has no fault of its own."""
    lab.break_link()


def link_breaks_unseen(lab):
    """... while the arbiter does not answer, so that the session has to go on."""
    with lab.frozen_witness():
        lab.break_link()
        time.sleep(0.6)


def switchover_in_doubt(lab):
    """The standby is handed the VM and cannot claim it before the primary wants it back."""
    with lab.frozen_witness():
        lab.order(lab.primary, "switchover")
        time.sleep(2.1)


def switchover_fails(lab):
    """The standby is handed the VM and cannot claim it at all: the primary takes it back."""
    standby = lab.standby
    lab.rig.lab("cut", standby, "witness")
    try:
        lab.order(lab.primary, "switchover")
        time.sleep(2.5)
    finally:
        lab.rig.lab("heal", standby, "witness")


def much_is_written(lab):
    """More than the standby's redo log is to hold."""
    lab.rig.guest_run("for i in 1 2 3 4 5; do dd if=/dev/urandom of=/data/fill bs=1M count=16;"
                      " sync; done", check=False)


def start_anew(lab):
    """Stopped and started by a person, who tries again when that fails."""
    lab.restart_vm()


STIMULI = {f.__name__: f for f in (
    steady, verify, standby_dies, hypervisor_dies, guard_dies, failover, switchover, daemons_die,
    protect_anew, estimate, link_breaks, link_breaks_unseen, switchover_in_doubt, switchover_fails,
    much_is_written, start_anew)}
SLOW = ("switchover_in_doubt", "switchover_fails", "much_is_written", "start_anew")
MOVING = ("hypervisor_dies", "guard_dies", "failover", "switchover", "switchover_in_doubt")
KILLED = ("guard", "standby", "hypervisor", "waiting-hypervisor", "daemon", "peer-daemon", "witness")
KILLED_DURING = ("steady", "verify", "standby_dies", "switchover", "protect_anew")


def settle_after(lab, stimulus):
    """Has the stimulus happen; then everything must come back in order."""
    STIMULI[stimulus](lab)
    lab.settle()


# -- cases --

class Case:
    """One fault during one stimulus. kind: crash, delay, error, errors, kill."""

    def __init__(self, kind, title, stimulus):
        self.kind, self.title, self.stimulus = kind, title, stimulus

    def __str__(self):
        return f"{self.title} during {self.stimulus}"

    @staticmethod
    def of(title):
        """The case of that title, or None."""
        found = re.fullmatch(r"(\w+): (\S+) (\d+ .+) during (\w+)", title)
        if found:
            role, point, order, stimulus = found.groups()
            return PointCase(role, point, stimulus, order)
        found = re.fullmatch(r"(\S+) killed after ([\d.]+) s during (\w+)", title)
        return found and KillCase(found.group(1), found.group(3), float(found.group(2)))


class PointCase(Case):
    """A fault point on one host (by its role at the beginning)."""

    def __init__(self, role, point, stimulus, order):
        super().__init__(order.split()[1], f"{role}: {point} {order}", stimulus)
        self.role, self.point, self.order = role, point, order

    def earlier(self):
        """The stimulus came by less often than when it was learnt."""
        self.order = re.sub(r"^\d+", "1", self.order)

    def run(self, lab):
        """True when the fault was injected."""
        self.host = lab.host(self.role)
        file = lab.rig.fault_files[self.host]
        lab.quiet_host = other(self.host)
        file.arm(f"{self.point} {self.order}")
        try:
            STIMULI[self.stimulus](lab)
            end = time.monotonic() + REACH_S
            while not file.taken() and time.monotonic() < end:
                time.sleep(0.02)
            if self.kind == "errors" and file.taken():
                time.sleep(LASTING_S)
            return file.taken() > 0
        finally:
            file.arm(None)

    def may_lose(self):
        """Two faults at once: the only host that has the VM fails before it has started it, or
        while it has a hypervisor under its knife."""
        return ((self.role == "standby" and self.stimulus in MOVING)
                or re.fullmatch(r"hyp\.(seized|take-uffd|injected)", self.point))

    def guest_sees(self):
        runs_there = self.role == "primary" or self.stimulus in MOVING
        return (runs_there and self.kind in ("error", "errors")
                and re.fullmatch(GUEST_SEES, self.point))


class KillCase(Case):
    """A process is killed at a random moment."""

    def __init__(self, who, stimulus, after_s):
        super().__init__("kill", f"{who} killed after {after_s:.2f} s", stimulus)
        self.who, self.after_s = who, after_s

    def run(self, lab):
        self.host = "witness" if self.who == "witness" else \
            lab.standby if self.who in ("standby", "waiting-hypervisor", "peer-daemon") \
            else lab.primary
        pid = (lab.rig.daemons[self.host].pid if self.who in ("daemon", "peer-daemon", "witness")
               else lab.status(self.host).get("hypervisor_pid" if "hypervisor" in self.who
                                              else "pid"))
        lab.quiet_host = lab.standby
        end = time.monotonic() + self.after_s
        STIMULI[self.stimulus](lab)
        time.sleep(max(0.0, end - time.monotonic()))
        quietly_kill(pid)
        return True

    def may_lose(self):
        return "hypervisor" in self.who and self.stimulus != "steady"

    def guest_sees(self):
        return False


def listed_points():
    """{name: kind} of the source's fault points."""
    listed = subprocess.run([f"{TOP}/tools/fault-points"], capture_output=True, text=True,
                            check=True).stdout
    return {line.split()[0]: line.split()[1] for line in listed.splitlines()}


def learn(lab, points):
    """Which points each stimulus comes by: {(role, point): {stimulus: times}}."""
    reached = collections.defaultdict(dict)
    names = {name_hash(name): name for name in points}
    for stimulus in STIMULI:
        if SECONDS < SHORT_S and stimulus in SLOW:
            continue  # in a short run
        lab.quiet_host = lab.standby
        roles = (*lab.roles(), ("witness", "witness"))
        before = {host: lab.rig.fault_files[host].seen() for _, host in roles}
        settle_after(lab, stimulus)
        for role, host in roles:
            for code, hits in lab.rig.fault_files[host].seen().items():
                times = hits - before[host].get(code, 0)
                if times and code in names:
                    reached[role, names[code]][stimulus] = times
    return reached


def errnos_of(point):
    return next(names.split() for pattern, names in ERRNOS if re.search(pattern, point))


def make_cases(reached, points, rng):
    cases = []
    for (role, point), stimuli in sorted(reached.items()):
        orders = ["crash", f"delay {rng.choice((40, 1500))}"]
        if points[point] == "call":
            orders += [f"{how} {rng.choice(errnos_of(point))}" for how in ("error", "errors")]
        for order in orders:
            stimulus = rng.choice(sorted(stimuli))
            nth = rng.randint(1, max(1, min(stimuli[stimulus] * 2 // 3, 200)))
            cases.append(PointCase(role, point, stimulus, f"{nth} {order}"))
    for who in KILLED:
        for stimulus in KILLED_DURING:
            cases.append(KillCase(who, stimulus, rng.uniform(0, 2.5)))
    rng.shuffle(cases)
    return cases


# -- the run --

class Run:
    def __init__(self):
        self.lab, self.number, self.failed, self.missed = None, 0, [], []
        self.counts = collections.defaultdict(collections.Counter)  # by kind
        self.ledger_ops = 0

    def get_lab(self):
        if not self.lab:
            self.lab = FaultLab("faults").__enter__()
        return self.lab

    def drop_lab(self, judge=False):
        """judge: its clients must not have noticed anything."""
        lab, self.lab = self.lab, None
        if not lab:
            return
        try:
            if judge:
                self.ledger_ops += lab.judge_clients()["ops"]
        finally:
            lab.__exit__(*sys.exc_info())

    def say(self, ok, text, note=""):
        self.number += 1
        print(f"{'ok' if ok else 'not ok'} {self.number} - {text}{note}", flush=True)

    def outcome(self, lab, case, thoroughly):
        """Injects and judges. Returns a word for the statistics."""
        if not case.run(lab):
            lab.settle()
            case.earlier()
            if not case.run(lab):
                lab.settle()
                return "missed"
        try:
            lab.settle()
        except Lost:
            register = lab.register()
            if register["owner"] not in (case.host, "") or not case.may_lose():
                raise
            said = lab.status(case.host)
            expect(said.get("state") in ("down", "crashed", "lost") and said.get("reason"),
                   f"the VM is lost, and status says {said}")
            return "lost with its only owner"
        if case.guest_sees():
            lab.check_one_runs()
            return "seen by the guest"
        lab.check(thoroughly)
        return "survived"

    def run_case(self, case):
        lab, started = self.get_lab(), time.monotonic()
        before = lab.log_ends()
        try:
            lab.crashes = case.kind in ("crash", "kill")
            lab.refresh_guard()
            what = self.outcome(lab, case, self.number % 8 == 0)
        except (Failure, subprocess.TimeoutExpired, OSError) as problem:
            self.failed.append(str(case))
            self.counts[case.kind]["failed"] += 1
            text = f"{type(problem).__name__}: {problem}".replace("\n", "\n# ")
            print(f"# {text}", flush=True)
            self.show_logs(lab, before)
            self.say(False, str(case))
            self.drop_lab()
            return
        self.counts[case.kind][what] += 1
        if what == "missed":
            self.missed.append(str(case))
            print(f"# not reached: {case}", flush=True)
            return
        took = time.monotonic() - started
        if took > SLOW_S:
            self.show_logs(lab, before)
        self.say(True, f"{case}: {what} ({took:.1f} s)")
        if what != "survived":
            self.drop_lab()

    def show_logs(self, lab, since):
        for host, at in since.items():
            for line in lab.rig.log(host)[at:].splitlines()[-60:]:
                print(f"#   {line}", flush=True)

    def report(self, points, reached):
        path = os.environ.get("FAULT_REPORT")
        never = sorted(set(points) - {point for _, point in reached})
        print(f"# {len(points)} points, {len(points) - len(never)} reached; never: {' '.join(never)}")
        for kind, outcomes in sorted(self.counts.items()):
            print(f"# {kind}: {dict(outcomes)}")
        if path:
            with open(path, "w", encoding="ascii") as out:
                json.dump({"seed": SEED, "points": len(points), "never_reached": never,
                           "outcomes": self.counts, "failed": self.failed, "missed": self.missed,
                           "ledger_operations": self.ledger_ops}, out, indent=2)


def main():
    rng, run, points = random.Random(SEED), Run(), listed_points()
    end = time.monotonic() + SECONDS
    print(f"# FAULT_SEED={SEED}", flush=True)
    reached = {}
    try:
        if not all(map(Case.of, sys.argv[1:])) or not sys.argv[1:]:
            reached = learn(run.get_lab(), points)
        cases = [case for case in map(Case.of, sys.argv[1:]) if case] or \
            [case for case in make_cases(reached, points, rng)
             if all(word in str(case) for word in sys.argv[1:])]
        print(f"# {len(cases)} cases", flush=True)
        for case in cases:
            if time.monotonic() > end or len(run.failed) >= FAILURES_MAX:
                break
            run.run_case(case)
        run.drop_lab(judge=True)
        run.say(True, "the clients' last connections lived, nothing lost or repeated")
    except (Failure, subprocess.TimeoutExpired) as problem:
        run.failed.append("the lab itself")
        print(f"# {type(problem).__name__}: {problem}".replace("\n", "\n# "), flush=True)
        run.say(False, "the lab, its clients")
    finally:
        run.drop_lab()
        run.report(points, reached)
    print(f"1..{run.number}")
    return 1 if run.failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
