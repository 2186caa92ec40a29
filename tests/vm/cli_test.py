#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What people see: help, checks, refusals that name the thing and the way out, no litter."""

import os
import re
import subprocess

from rig import BUILD, GUEST, Rig, Tap, expect, wait_for

tap = Tap()
COMMANDS = ("start", "status", "protect", "unprotect", "failover", "switchover", "verify",
            "recover", "stop", "check")


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
