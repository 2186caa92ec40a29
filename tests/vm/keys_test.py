#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Keys: hosts change theirs while they protect a VM, strangers knock, and no VM notices."""

import re
import subprocess
import time

from rig import Tap, expect, other, protected_vm, wait_for

tap = Tap()

ADDRESS = {"hosta": "10.77.0.1:7700", "hostb": "10.77.0.2:7700", "witness": "10.77.0.4:7710"}


def witness(lab, *args):
    return lab.lab("exec", "witness", "understudy-witness", "--state", f"{lab.dir}/witness/state",
                   *args)


def states(lab, host, since):
    """The states that the VM's process on the host has been in since then (a length of its log)."""
    return re.findall(r"web: \w+ -> (\w+):", lab.log(host)[since:])


@tap.test
def change_of_keys():
    """both hosts change their keys under a protected VM: it stays protected, frames flow"""
    with protected_vm("change") as (lab, ledger):
        marks = {host: len(lab.log(host)) for host in lab.hosts}
        pids = [lab.status(host)["pid"] for host in lab.hosts]
        epoch = lab.status("hosta")["committed_epoch"]
        for host in lab.hosts:
            peer, old = other(host), lab.must(host, "key").strip()
            new = lab.must(host, "key", "new").strip()
            expect(old != new and lab.must(host, "key").strip() == old, "the key changed too early")
            lab.must(peer, "peer", "add", host, ADDRESS[host], new)
            witness(lab, "allow", host, new)
            lab.must(host, "key", "use")
            lab.must(peer, "peer", "remove", host, old)
            witness(lab, "forbid", host, old)
            expect(lab.must(host, "key").strip() == new, "the key has not changed")
        wait_for("links with the new keys",
                 lambda: lab.log("hosta").count("the link was made anew") >= 2, 10)
        wait_for("epochs to be committed", lambda: lab.status("hosta")["committed_epoch"]
                 > epoch + 20, 10)
        expect(lab.state("hosta") == "protected", f"it is {lab.state('hosta')}")
        for host in lab.hosts:
            expect(not states(lab, host, marks[host]),
                   f"the protection was touched on {host}: {states(lab, host, marks[host])}")
        expect([lab.status(host)["pid"] for host in lab.hosts] == pids, "a process was replaced")
        gap = max([ms for _, ms in ledger.gaps()], default=0)
        lab.lab("crash", "hosta")  # and it is worth something, with the new keys at the arbiter too
        lab.wait_state("hostb", "solo", 10)
        ledger.check()
        return f"# longest gap while the keys changed {gap:.0f} ms"


@tap.test
def witness_key():
    """the witness changes its key under a protected VM, which fails over by the new one"""
    with protected_vm("witnesskey") as (lab, ledger):
        marks = {host: len(lab.log(host)) for host in lab.hosts}
        old = witness(lab, "key").stdout.strip()
        new = witness(lab, "key", "new").stdout.strip()
        witness(lab, "key", "use")
        lab.lab("crash", "witness")  # drops the connections that were made with the old one
        lab.restart_host("witness")
        for host in lab.hosts:
            path = f"{lab.dir}/{host}/understudy.yaml"
            with open(path, encoding="ascii") as file:
                text = file.read()
            expect(old in text, "the witness's key is not in understudy.yaml")
            with open(path, "w", encoding="ascii") as file:
                file.write(text.replace(old, new))
            lab.daemons[host].terminate()
            lab.daemons[host].wait(10)
            lab.start_daemon(host)
        for host in lab.hosts:
            expect(not states(lab, host, marks[host]), f"the protection was touched on {host}")
        lab.lab("crash", "hosta")
        lab.wait_state("hostb", "solo", 10)
        ledger.check()


@tap.test
def removed_peer():
    """a peer that was removed gets in no more; added again, it protects again"""
    with protected_vm("removed") as (lab, ledger):
        key = lab.must("hosta", "key").strip()
        lab.must("hostb", "peer", "remove", "hosta")
        lab.wait_state("hosta", "solo", 10)
        wait_for("status to say why", lambda: lab.status("hosta")["reason"], 10)
        wait_for("the standby to be gone", lambda: not lab.status("hostb"), 10)
        time.sleep(2)  # two attempts to protect it again
        expect(lab.state("hosta") == "solo" and not lab.status("hostb"), "it was let in")
        lab.must("hostb", "peer", "add", "hosta", ADDRESS["hosta"], key)
        lab.wait_state("hosta", "protected", 30)
        ledger.check()


KNOCK = """
import os, socket, sys, time
host, port = sys.argv[1].split(":")
end, n, held = time.monotonic() + float(sys.argv[2]), 0, []
noise = [b"", b"\\0", b"GET / HTTP/1.0\\r\\n\\r\\n", b"\\x16\\x03\\x01\\x02\\x00\\x01\\x00\\x01\\xfc\\x03\\x03",
         os.urandom(4096), b"undrstdy" + bytes(248)]
while time.monotonic() < end:
    s = socket.create_connection((host, int(port)), 2)
    try:
        s.sendall(noise[n % len(noise)])
    except OSError:
        pass
    held.append(s)
    n += 1
    if len(held) > 300:
        held.pop(0).close()
print(n)
"""


def rss_kib(lab, host):
    """Of the host's daemon: `lab exec` has replaced itself by it."""
    with open(f"/proc/{lab.daemons[host].pid}/status", encoding="ascii") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1))


@tap.test
def strangers():
    """strangers flood the daemons' ports: the VM stays protected, memory and log stay small"""
    with protected_vm("flood") as (lab, ledger):
        before = {host: rss_kib(lab, host) for host in ADDRESS}
        lines = {host: lab.log(host).count("\n") for host in ADDRESS}
        marks = {host: len(lab.log(host)) for host in lab.hosts}
        floods = [lab.spawn("hostc", ["python3", "-c", KNOCK, address, "5"],
                            stdout=subprocess.PIPE) for address in ADDRESS.values()]
        knocks = [int(flood.communicate(timeout=60)[0]) for flood in floods]
        expect(min(knocks) > 100, f"no flood: {knocks}")
        expect(lab.state("hosta") == "protected", f"it is {lab.state('hosta')}")
        for host in lab.hosts:
            expect(not states(lab, host, marks[host]), f"the protection was touched on {host}")
        # 64 strangers at a time at a host, 1,024 at the witness, some 60 KiB each
        limits = {"hosta": 8192, "hostb": 8192, "witness": 65536}
        for host in ADDRESS:
            grown, said = rss_kib(lab, host) - before[host], lab.log(host).count("\n")
            expect(grown < limits[host], f"the daemon of {host} has grown by {grown} KiB")
            expect(said - lines[host] < 20, f"{said - lines[host]} lines in {host}'s log")
        lab.lab("crash", "hosta")
        lab.wait_state("hostb", "solo", 10)
        ledger.check()
        return f"# {sum(knocks)} connections"


if __name__ == "__main__":
    try:
        tap.run()
    except KeyboardInterrupt as stop:
        raise SystemExit(130) from stop
