# SPDX-License-Identifier: Apache-2.0
"""A lab for faults: one protected VM with disks and clients, which one case after the other uses,
and the judgement after each: exactly one VM runs, protected again by itself, both copies are the
same, the clients' connections live, and nothing is left lying around."""

import contextlib
import glob
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import disks
from rig import BUILD, Acks, Failure, Ledger, Rig, expect, other, wait_for

HOSTS = ("hosta", "hostb")
SETTLE_S = 45       # until the VM is protected again
STABLE_S = 0.25     # for which it must be, while the clients get answers
LOST_S = 4          # with no process anywhere: nobody will bring the VM back
RUNS_NS = 3000000   # of CPU time in STABLE_S: a hypervisor whose guest runs
DESCRIPTORS = 3     # more than at the beginning that understudyd may have open


class Lost(Failure):
    """No host runs the VM any more, and none will by itself."""


def quietly_kill(pid):
    try:
        os.kill(pid, 9)
    except (ProcessLookupError, TypeError):
        pass  # it has ended, or never was


def cpu_ns(pid):
    """CPU time of all threads of a process."""
    total = 0
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as stat:
                total += int(stat.read().split()[0])
    except (FileNotFoundError, ProcessLookupError):
        pass  # it ends while we look
    return total


class Supervisor(threading.Thread):
    """What systemd does (Restart=on-failure): starts a daemon again that has died."""

    def __init__(self, rig):
        super().__init__(daemon=True)
        self.rig, self.over = rig, threading.Event()

    def run(self):
        while not self.over.wait(0.05):
            for host in ("witness", *HOSTS):
                if self.rig.daemons[host].poll() is not None:
                    with contextlib.suppress(Failure):  # what died again is started again
                        self.rig.start_daemon(host)

    def stop(self):
        self.over.set()
        self.join(20)


class FaultLab:
    """Used as `with FaultLab() as lab`. `primary`, `standby`: the hosts as they are now."""

    def __init__(self, name):
        self.rig = Rig(name)
        self.primary, self.standby = HOSTS
        self.supervisor = self.ledger = self.acks = self.options = None
        self.heard = 0  # bytes of the scribe's answers
        self.crashes = False   # the present case: a file that was being replaced may be left
        self.replaced = 0      # guards that died, as of the last refresh_guard()
        self.rebooting = None  # the host on which the VM is being started again
        self.starting = None   # by this process
        self.quiet_host = self.standby  # on which the present case has no fault
        self.clean = {}  # what there is when all is well

    def __enter__(self):
        self.rig.__enter__()
        self.supervisor = Supervisor(self.rig)
        try:
            self.supervisor.start()
            self.options = disks.vm_options(self.rig, "hosta", memory="192M")
            self.rig.start_vm(**self.options)
            self.connect_clients()
            self.settle()
            self.clean = {role: self.inventory(host) for role, host in self.roles()}
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, *how):
        self.supervisor.stop()
        self.rig.__exit__(*how)

    def roles(self):
        return ("primary", self.primary), ("standby", self.standby)

    def host(self, role):
        return {"primary": self.primary, "standby": self.standby}.get(role, role)

    # -- asking --

    def ask(self, host, request, timeout=2.5):
        """A request to a host's understudyd; its answer, or {} when there is none in time."""
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(timeout)
                sock.connect(f"{self.rig.dir}/{host}/run/understudyd.sock")
                sock.sendall(json.dumps(request).encode() + b"\n")
                with sock.makefile("rb") as lines:
                    for line in lines:
                        answer = json.loads(line)
                        if "progress" not in answer:
                            return answer
        except (OSError, ValueError):
            pass
        return {}

    def order(self, host, command, **members):
        """Gives an order, for whose answer nobody waits."""
        request = {"command": command, "vm": "web", **members}
        threading.Thread(target=self.ask, args=(host, request, 30), daemon=True).start()

    def status(self, host):
        """{}: understudyd does not answer."""
        answer = self.ask(host, {"command": "status", "vm": "web"})
        return (answer.get("vms") or [{"role": "none"} if answer else {}])[0]

    def register(self):
        """The arbiter's record, from its file: {"term", "mode", "owner", "standby"}."""
        for folder, _, names in os.walk(f"{self.rig.dir}/witness/state"):
            for name in names:
                text = subprocess.run([f"{BUILD}/tools/understudy-dump", f"{folder}/{name}"],
                                      capture_output=True, text=True, check=False).stdout
                found = re.search(r"web \{term (\d+), (\w+), owner \"(\w*)\", standby \"(\w*)\"",
                                  text)
                if found:
                    return dict(zip(("term", "mode", "owner", "standby"), found.groups()))
        raise Failure("the witness has no register of the VM")

    def log_ends(self):
        """How much each host has logged."""
        return {host: len(self.rig.log(host)) for host in ("witness", *HOSTS)}

    def refresh_guard(self):
        """Guards that die again and again are not replaced for ever (ATTACHES_MAX in
        src/host/vms.c): one of several cases in which that happened must not bear its blame."""
        replaced = sum(self.rig.log(host).count("another one takes its place") for host in HOSTS)
        if replaced - self.replaced >= 2:
            self.order(self.primary, "switchover")
            self.settle()
            self.replaced = replaced

    def unprotect(self):
        """Leaves the pair for good: the VM runs alone, and the standby has ended. False when that
        did not come about in time, which a fault may prevent."""
        primary, standby = self.primary, self.standby
        self.order(primary, "unprotect")
        with contextlib.suppress(Failure):
            wait_for("the VM to be alone",
                     lambda: self.status(primary).get("state") == "solo"
                     and self.status(standby).get("role") == "none", 3)
            return True
        return False

    def break_link(self):
        """The data channel fails, by the host on which the present case has no fault."""
        point = "guard.send" if self.quiet_host == self.primary else "standby.receive"
        self.rig.fault_files[self.quiet_host].arm(f"{point} 1 error ECONNRESET")

    @contextlib.contextmanager
    def frozen_witness(self):
        pid = self.rig.daemons["witness"].pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def restart_vm(self):
        """Stops the VM and starts it again; what goes wrong with that is tried anew, here and in
        settle(). The clients cannot stay."""
        self.judge_clients()
        self.rebooting = self.primary
        end = time.monotonic() + 30
        while not self.nobody_has_it():
            expect(time.monotonic() < end, "the VM does not stop")
            for host in HOSTS:
                if self.status(host).get("role", "none") == "primary":
                    self.rig.cli(host, "stop", "web")
        self.start_again()

    def start_again(self):
        """Orders the start of a VM that runs nowhere, unless that is under way."""
        if self.starting and self.starting.poll() is None:
            return
        path = self.rig.vm_file(standby=other(self.rebooting), **self.options)
        with open(f"{self.rig.dir}/start.log", "a", encoding="utf-8") as log:
            self.starting = self.rig.spawn(self.rebooting, ["understudy", "start", "--no-wait",
                                                            path], log, log)

    def booted(self):
        """After a restart: the guest answers, and has clients."""
        self.rig.wait_guest()
        self.starting.wait(30)
        self.rebooting = None
        self.connect_clients()

    # -- clients --

    def connect_clients(self):
        self.ledger = Ledger(self.rig, interval_ms=10, seconds=36000, gap_ms=2000)
        self.ledger.wait_connected()
        self.acks = Acks(self.rig, every_ms=20)
        wait_for("an answer of the scribe", self.hear, 15)

    def hear(self):
        """Has the scribe answered since the last call?"""
        before, self.heard = self.heard, os.path.getsize(self.acks.log)
        return self.heard > before

    def clients_live(self):
        if self.rebooting:
            return
        expect(self.ledger.process.poll() is None,
               f"the ledger's connection was lost: {self.ledger.text()}")
        expect(self.acks.process.poll() is None, "the scribe's connection was lost")

    def judge_clients(self):
        """Ends them: nothing was lost, repeated or corrupted. Returns the ledger's figures."""
        figures = self.ledger.check()
        self.acks.stop()
        self.heard = 0
        return figures

    # -- judgement --

    def find_roles(self):
        """(primary, standby) when the VM is protected; else None."""
        told = {host: self.status(host) for host in HOSTS}
        for host in HOSTS:
            if told[host].get("state") == "protected" and told[other(host)].get("state") == "ready":
                return host, other(host)
        return None

    def nobody_has_it(self):
        told = [self.status(host) for host in HOSTS]
        return all(status.get("role", "none") == "none" for status in told) and any(told)

    def settle(self):
        """Waits until the VM is protected and its clients get answers. Raises Lost when no host
        has a process for it any more."""
        end, good, gone = time.monotonic() + SETTLE_S, None, None
        while True:
            now, found = time.monotonic(), self.find_roles()
            if found:
                self.primary, self.standby = found
                if self.rebooting:
                    self.booted()
                if good is None:
                    good = now
                    self.hear()
                elif now - good >= STABLE_S and self.hear():
                    return
            else:
                good = None
                gone = (gone or now) if self.nobody_has_it() else None
                if gone and self.rebooting:
                    self.start_again()
                elif gone and now - gone > LOST_S:
                    raise Lost(f"the VM is lost; register {self.register()}")
                self.protect_if_nobody_wants_it()
            self.clients_live()
            if now > end:
                raise Failure(f"not protected after {SETTLE_S} s: "
                              + "; ".join(self.describe(host) for host in HOSTS))
            time.sleep(0.03)

    def protect_if_nobody_wants_it(self):
        """After an `unprotect` that was not followed by its `protect`."""
        for host in HOSTS:
            status = self.status(host)
            if status.get("state") == "solo" and not status["wanted_standby"]:
                self.order(host, "protect", to=other(host))

    def describe(self, host):
        status = self.status(host)
        return f"{host} is {status.get('role')}, {status.get('state')}: {status.get('reason')}"

    def inventory(self, host):
        """What a host has of the VM: names of processes, network devices and files."""
        daemon = self.rig.daemons[host].pid
        inside = os.readlink(f"/proc/{daemon}/ns/net")
        found = {"processes": [], "pids": {}, "descriptors": len(os.listdir(f"/proc/{daemon}/fd"))}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.readlink(f"/proc/{pid}/ns/net") == inside:
                    with open(f"/proc/{pid}/comm", encoding="ascii") as comm:
                        found["processes"].append(comm.read().strip())
                    found["pids"][int(pid)] = found["processes"][-1]
            except OSError:
                pass  # it has ended, or is none of ours
        found["processes"].sort()
        with open(f"/proc/{daemon}/net/dev", encoding="ascii") as lines:
            found["devices"] = sorted(re.findall(r"^ *(\S+):", lines.read(), re.M))
        found["files"] = sorted(
            os.path.relpath(os.path.join(folder, name), f"{self.rig.dir}/{host}")
            for part in ("state", "run") for folder, _, names in
            os.walk(f"{self.rig.dir}/{host}/{part}") for name in names
            if not (self.crashes and name.endswith(".new")))
        return found

    def litter(self, role, host):
        now, clean = self.inventory(host), self.clean[role]
        wrong = [f"{what}: {sorted(set(now[what]) ^ set(clean[what])) or now[what]}"
                 for what in ("processes", "devices", "files") if now[what] != clean[what]]
        if now["descriptors"] > clean["descriptors"] + DESCRIPTORS:
            wrong.append(f"understudyd has {now['descriptors']} descriptors open")
        return "; ".join(wrong)

    def hypervisors(self):
        """{pid: host} of all there are."""
        return {pid: host for host in HOSTS for pid, name in self.inventory(host)["pids"].items()
                if name.startswith("qemu")}

    def check_one_runs(self):
        """Exactly one guest runs, where the register says."""
        pids = self.hypervisors()
        before = {pid: cpu_ns(pid) for pid in pids}
        time.sleep(STABLE_S)
        running = [pids[pid] for pid in pids if cpu_ns(pid) - before[pid] > RUNS_NS]
        register = self.register()
        expect(running == [register["owner"]],
               f"VMs run on {running}, and the register says {register}")
        expect((register["mode"], register["owner"], register["standby"])
               == ("paired", self.primary, self.standby), f"protected, but {register}")

    def check(self, thoroughly):
        """All that must hold once it has settled."""
        self.check_one_runs()
        disks.check_copies(self.rig, self.primary)
        disks.check_model(self.rig, "VERIFY" if thoroughly else "STATUS")
        if thoroughly:
            self.rig.check_keeper()
        for role, host in self.roles():
            if self.litter(role, host):
                wait_for(f"{host} to be tidied up: {self.litter(role, host)}",
                         lambda r=role, h=host: not self.litter(r, h), 3, 0.1)
        self.clients_live()
        if self.crashes:
            for path in glob.glob(f"{self.rig.dir}/host?/state/**/*.new", recursive=True):
                os.unlink(path)
