#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What people see: help, checks, refusals that name the thing and the way out, no litter."""

import json
import os
import re
import subprocess

from rig import BUILD, GUEST, Rig, Tap, expect, wait_for

tap = Tap()
COMMANDS = ("start", "status", "protect", "unprotect", "failover", "switchover", "verify",
            "estimate", "trace", "recover", "stop", "check")


def write(lab, name, text):
    path = f"{lab.dir}/{name}"
    with open(path, "w", encoding="ascii") as out:
        out.write(text)
    return path


def base(**changes):
    """A good VM file as lines, with some of them changed, added or (None) left out."""
    lines = {"name": "web", "memory": "128M", "cpus": "1", "machine": "pc-i440fx-7.2",
             "kernel": f"{GUEST}/vmlinuz", "initrd": f"{GUEST}/initramfs",
             "nics": "[{bridge: br0}]", "protect": "{standby: hostb}"}
    lines.update(changes)
    return "".join(f"{key}: {value}\n" for key, value in lines.items() if value is not None)


def trace_of(lab):
    return json.loads(lab.must("hosta", "trace", "web", "--json"))


def devices(lab):
    listed = lab.lab("exec", "hosta", "ip", "-br", "link").stdout
    return {line.split()[0] for line in listed.splitlines()}


@tap.test
def help_and_usage():
    """every command has a help text, and wrong usage exits with 2"""
    cli = f"{BUILD}/src/cli/understudy"
    for args in (["--help"], *([c, "--help"] for c in COMMANDS)):
        done = subprocess.run([cli, *args], capture_output=True, text=True, check=False)
        expect(done.returncode == 0 and "sage:" in done.stdout, f"{args}: {done}")
    for args in ([], ["no-such-command"], ["start"], ["status", "--no-such-option"],
                 ["protect", "web"]):
        done = subprocess.run([cli, *args], capture_output=True, text=True, check=False)
        expect(done.returncode == 2, f"{args}: exit status {done.returncode}: {done.stderr}")


@tap.test
def refusals():
    """check refuses what cannot work, names file, line or device, and starts nothing"""
    cases = [
        ("unknown key", base() + "nonsense: 1\n", r"bad\.yaml:9.*nonsense"),
        ("bad size", base(memory="12parsecs"), r"bad\.yaml:2.*memory"),
        ("too large", base(memory="900G"), r"room|memory"),
        ("a disk", base() + "disks: [{path: /dev/null}]\n", r"disks.*/dev/null is neither"),
        ("unknown machine", base(machine="pc-i440fx-99.9"), r"pc-i440fx-99\.9"),
        ("no such kernel", base(kernel="/nonexistent/vmlinuz"), r"/nonexistent/vmlinuz"),
        ("no such bridge", base(nics="[{bridge: br77}]"), r"br77"),
        ("unknown standby", base(protect="{standby: hostz}"), r"hostz"),
        ("itself as standby", base(protect="{standby: hosta}"), r"hosta"),
        ("passed-through device", base(qemu_args="[-device, \"vfio-pci,host=00:02.0\"]"), r"vfio"),
        ("a drive", base(qemu_args="[-drive, \"file=/x\"]"), r"-drive|disk"),
        ("not YAML", "name: [web\n", r"bad\.yaml:\d"),
    ]
    with Rig("refuse") as lab:
        good = lab.cli("hosta", "check", write(lab, "good.yaml", base()))
        expect(good.returncode == 0, f"a good file: {good.stdout}{good.stderr}")
        for what, text, pattern in cases:
            path = write(lab, "bad.yaml", text)
            for command in ("check", "start"):
                done = lab.cli("hosta", command, path)
                said = done.stdout + done.stderr
                expect(done.returncode == 1, f"{what}: {command}: exit {done.returncode}: {said}")
                expect(re.search(pattern, said), f"{what}: {command} says only: {said}")
        expect(not lab.status("hosta"), "something was started")


@tap.test
def machine_is_pinned():
    """a machine type without a version is pinned and recorded; stop leaves no litter"""
    with Rig("pin") as lab:
        path = write(lab, "web.yaml", base(machine="pc", protect=None))
        before = devices(lab)
        lab.must("hosta", "start", path)
        machine = lab.status("hosta")["machine"]
        expect(re.fullmatch(r"pc-i440fx-\d+\.\d+", machine), f"machine is {machine}")
        lab.must("hosta", "stop", "web")
        wait_for("the VM to be gone", lambda: not lab.status("hosta"), 10)
        left = []
        for folder in ("run/vms", "run/memory", "state/vms"):
            path = f"{lab.dir}/hosta/{folder}"
            names = os.listdir(path) if os.path.isdir(path) else []
            left += [f"{folder}/{name}" for name in names]
        expect(not left, f"left behind: {left}")
        expect(devices(lab) == before, f"left behind: {devices(lab) - before}")


@tap.test
def what_protection_costs():
    """estimate tells what protecting a VM would cost, trace where the pauses of a protected one go"""
    with Rig("estimate") as lab:
        lab.start_vm(standby=None)
        lab.wait_guest()
        said = lab.must("hosta", "estimate", "web", "--seconds", "4", "--json")
        outcome = json.loads(said)
        expect(not outcome["error"] and 3.5 < outcome["elapsed_s"] < 6, f"{outcome}")
        expect(outcome["epochs"] >= 8 and 0 < outcome["pause"]["p50_ms"] < 100
               and 0 < outcome["slowdown_pct"] < 90
               and 0 < outcome["wire_bytes_per_s"] < outcome["raw_bytes_per_s"], f"{outcome}")
        # The keeper writes to its memory all the time: most of it must have been seen.
        expect(outcome["pages_per_s"] > 200, f"{outcome}")
        for seconds in ("0", "4000"):
            done = lab.cli("hosta", "estimate", "web", "--seconds", seconds)
            expect(done.returncode, f"{seconds} seconds are accepted")

        # An order to protect the VM ends an estimate.
        with lab.spawn("hosta", ["understudy", "estimate", "web"],
                       stderr=subprocess.PIPE) as cli:
            wait_for("the estimate", lambda: lab.status("hosta")["estimate"]["running"], 10)
            lab.must("hosta", "protect", "web", "--to", "hostb")
            error = cli.stderr.read()
            expect(cli.wait(10) == 1 and b"being protected" in error, f"{error}")
        lab.wait_state("hosta", "protected", 40)
        done = lab.cli("hosta", "estimate", "web")
        expect(done.returncode == 1 and "is protected" in done.stderr, f"{done}")
        wait_for("epochs", lambda: len(trace_of(lab)) >= 10, 20)
        for epoch in trace_of(lab):
            parts = sum(epoch[f"{part}_ms"] for part in ("state", "scan", "copy", "resume"))
            expect(0 < parts <= epoch["pause_ms"] + 0.001, f"{epoch}")
        lines = lab.must("hosta", "trace", "web").splitlines()
        expect(lines[0].startswith("EPOCH") and len(lines) > 10, f"{lines[:3]}")
        # The copy that was made after the estimate is as good as any.
        lab.lab("crash", "hosta")
        lab.wait_state("hostb", "solo", 10)
        lab.wait_guest()
        lab.check_keeper()


@tap.test
def daemon_restart():
    """understudyd is killed and started again: the VM does not notice, status works again"""
    with Rig("restart") as lab:
        lab.start_vm()
        lab.wait_state("hosta", "protected", 30)
        before = lab.status("hosta")
        for host in ("hosta", "hostb"):
            pids = lab.lab("exec", host, "pgrep", "-x", "understudyd").stdout.split()
            inside = subprocess.run(["ip", "netns", "pids", f"us-{lab.name}-{host}"],
                                    capture_output=True, text=True, check=True).stdout.split()
            for pid in set(pids) & set(inside):
                os.kill(int(pid), 9)
            lab.daemons[host].wait(10)
        done = lab.cli("hosta", "status")
        expect(done.returncode == 1 and "understudyd" in done.stderr,
               f"without a daemon, status says: {done.stdout}{done.stderr}")
        for host in ("hosta", "hostb"):
            sock = f"{lab.dir}/{host}/run/understudyd.sock"
            if os.path.exists(sock):
                os.unlink(sock)
            lab.start_daemon(host)
        after = lab.wait_state("hosta", "protected", 10)
        expect(after["pid"] == before["pid"] and after["term"] == before["term"],
               "the VM was touched")
        lab.lab("crash", "hosta")
        lab.wait_state("hostb", "solo", 10)
        lab.wait_guest()


@tap.test
def qemu_dies():
    """the primary's hypervisor dies: the standby takes over at once"""
    with Rig("qemudies") as lab:
        lab.start_vm()
        pid = lab.wait_state("hosta", "protected", 30)["hypervisor_pid"]
        os.kill(pid, 9)
        lab.wait_state("hostb", "solo", 10)
        lab.check_keeper()


@tap.test
def lone_hypervisor_dies():
    """the hypervisor of an unprotected VM dies: status says so, until it is started again"""
    with Rig("lonedies") as lab:
        lab.start_vm(standby="")
        os.kill(lab.status("hosta")["hypervisor_pid"], 9)
        said = lab.wait_state("hosta", "crashed", 10)
        expect("signal 9" in said["reason"], f"status does not say why: {said}")
        lab.must("hosta", "start", f"{lab.dir}/web.yaml", timeout=60)
        lab.wait_guest()


if __name__ == "__main__":
    tap.run()
