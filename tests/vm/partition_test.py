#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Links break, the arbiter dies, hosts freeze, operators give orders: never two histories, never an
output that could be rolled back, never silence about lost protection."""

import os
import signal
import time

from rig import Rig, Tap, expect, protected_vm, wait_for

tap = Tap()


def frames(lab, host="hosta"):
    return lab.status(host)["released_frames"]


SNIFFER = """
import socket, sys, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind(("lan0", 0))
s.settimeout(0.1)
mac, end, n = bytes.fromhex("525400757301"), time.monotonic() + float(sys.argv[1]), 0
while time.monotonic() < end:
    try:
        n += s.recv(65536)[6:12] == mac
    except TimeoutError:
        pass
print(n)
"""


def count_frames(lab, seconds):
    """How many frames with the guest's source address the client's LAN carries meanwhile."""
    return int(lab.lab("exec", "client", "python3", "-c", SNIFFER, str(seconds)).stdout)


@tap.test
def link_between_hosts_cut():
    """the link between the hosts is cut: the primary goes solo, connections live, then it is
    protected again"""
    with protected_vm("cut") as (lab, ledger):
        lab.lab("cut", "hosta", "hostb")
        lab.wait_state("hosta", "solo", 5)
        expect(lab.cli("hosta", "status").returncode == 3, "status hides that web is unprotected")
        wait_for("the standby to discard its copy", lambda: not lab.status("hostb"), 10)
        lab.lab("heal")
        lab.wait_state("hosta", "protected", 30)
        expect(lab.cli("hosta", "status").returncode == 0, "status complains about a protected VM")
        figures = ledger.check()
        lab.check_keeper()
        return f"# longest gap {figures['max_gap_ms']:.0f} ms"


@tap.test
def isolated():
    """both links are cut: no frame leaves; the VM goes on when the standby is back"""
    with protected_vm("isolated") as (lab, ledger):
        lab.lab("cut", "hosta", "witness")
        lab.lab("cut", "hostb", "witness")
        lab.lab("cut", "hosta", "hostb")
        lab.wait_state("hosta", "isolated", 5)
        before = frames(lab)
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            expect(frames(lab) == before, "a frame left an isolated host")
            expect(lab.state("hosta") == "isolated", "the state changed without anybody to ask")
        expect(lab.status("hosta")["held_frames"] > 0, "nothing is held")
        expect("held" in lab.status("hosta")["reason"], "status does not say why")
        lab.lab("heal", "hosta", "hostb")
        wait_for("output to flow again", lambda: frames(lab) > before, 10)
        lab.lab("heal")
        lab.wait_state("hosta", "protected", 30)
        figures = ledger.check()
        lab.check_keeper()
        return f"# longest gap {figures['max_gap_ms']:.0f} ms"


@tap.test
def isolated_until_the_arbiter_is_back():
    """isolated, then only the arbiter is back: the primary goes solo and the connection lives"""
    with protected_vm("arbiter") as (lab, ledger):
        lab.lab("cut", "hosta", "witness")
        lab.lab("cut", "hosta", "hostb")
        lab.lab("cut", "hostb", "witness")
        lab.wait_state("hosta", "isolated", 5)
        lab.lab("heal", "hosta", "witness")
        lab.wait_state("hosta", "solo", 10)
        figures = ledger.check()
        return f"# longest gap {figures['max_gap_ms']:.0f} ms"


@tap.test
def witness_dead():
    """the witness dies and comes back: a protected VM does not notice"""
    with protected_vm("witness") as (lab, ledger):
        lab.lab("crash", "witness")
        time.sleep(1)  # long enough for every time-out to strike, if one did
        expect(lab.state("hosta") == "protected", "the witness's death cost the protection")
        lab.restart_host("witness")
        lab.lab("crash", "hosta")
        lab.wait_state("hostb", "solo", 10)
        ledger.check()


@tap.test
def frozen_primary():
    """a primary frozen for longer than the time-outs finds another owner and destroys its VM"""
    with protected_vm("frozen") as (lab, ledger):
        before = lab.status("hosta")
        lab.lab("freeze", "hosta")
        lab.wait_state("hostb", "solo", 10)
        lab.check_keeper()
        lab.lab("thaw", "hosta")
        wait_for("hosta to destroy its VM",
                 lambda: lab.state("hosta") not in ("protected", "isolated", "solo"), 10)
        said = lab.cli("hosta", "status", "web")
        expect("hostb" in said.stdout + said.stderr, f"status does not say who has it: {said}")
        pid = before["hypervisor_pid"]
        wait_for("its hypervisor to be gone",
                 lambda: str(pid) not in lab.lab("exec", "hosta", "pgrep", "-f", "qemu-system",
                                                 check=False).stdout.split(), 10)
        expect("lost" in lab.log("hosta"), "the log is silent about it")
        figures = ledger.check()
        lab.check_keeper()
        return f"# longest gap {figures['max_gap_ms']:.0f} ms"


@tap.test
def frozen_standby():
    """a standby frozen and thawed finds the record moved on and discards its copy"""
    with protected_vm("slow") as (lab, ledger):
        lab.lab("freeze", "hostb")
        lab.wait_state("hosta", "solo", 5)
        lab.lab("thaw", "hostb")
        lab.wait_state("hosta", "protected", 30)
        expect(lab.state("hostb") == "ready", "the old copy was not replaced")
        ledger.check()


@tap.test
def both_frozen():
    """hosts that stand still together for longer than they are patient remain a pair"""
    with protected_vm("still") as (lab, ledger):
        since = lab.status("hosta")["protected_since"]
        processes = [lab.status(host)["pid"] for host in ("hostb", "hosta")]
        for still_ms in (110, 160, 200, 250, 290):
            for signal_ in (signal.SIGSTOP, signal.SIGCONT):
                for pid in processes:  # the standby is the first one to look at the clock
                    os.kill(pid, signal_)
                if signal_ == signal.SIGSTOP:
                    time.sleep(still_ms / 1e3)
            epoch = lab.status("hosta")["committed_epoch"]
            wait_for(f"an epoch after {still_ms} ms",
                     lambda before=epoch: lab.status("hosta")["committed_epoch"] > before, 5)
        status = lab.status("hosta")
        expect(status["protected"] and status["protected_since"] == since,
               f"the pair broke: {status}")
        figures = ledger.check()
        return f"# longest gap {figures['max_gap_ms']:.0f} ms"


@tap.test
def orders():
    """failover, unprotect, protect, stop: what an operator orders happens, the rest is refused"""
    with protected_vm("orders") as (lab, ledger):
        expect(lab.cli("hosta", "failover", "web").returncode == 1, "failover on the primary")
        expect(lab.cli("hosta", "start", lab.vm_file()).returncode == 1, "a second start")
        lab.must("hosta", "unprotect", "web")
        lab.wait_state("hosta", "solo", 5)
        expect(lab.cli("hosta", "status").returncode == 0, "unprotected on purpose is no alarm")
        lab.must("hosta", "protect", "web", "--to", "hostb")
        lab.wait_state("hosta", "protected", 30)
        lab.must("hostb", "failover", "web")
        lab.wait_state("hostb", "solo", 5)
        wait_for("hosta to give up", lambda: "lost" in lab.log("hosta"), 10)
        lab.check_keeper()
        ledger.check()
        expect(lab.cli("hosta", "start", lab.vm_file()).returncode == 1, "hostb owns it")
        lab.must("hostb", "stop", "web")
        wait_for("web to be gone", lambda: not lab.status("hostb").get("pid"), 10)
        lab.must("hosta", "start", lab.vm_file(), timeout=60)
        lab.wait_state("hosta", "protected", 30)


@tap.test
def isolated_means_mute():
    """while the primary is isolated, not one frame of the guest is on the LAN, of any kind"""
    with protected_vm("mute", vm={"keeper_rate": 0}) as (lab, ledger):
        expect(count_frames(lab, 1) > 0, "the sniffer hears nothing of a guest that talks")
        lab.lab("cut", "hosta", "witness")
        lab.lab("cut", "hosta", "hostb")
        lab.lab("cut", "hostb", "witness")
        lab.wait_state("hosta", "isolated", 5)
        lab.lab("exec", "client", "ip", "neigh", "flush", "all")  # provokes ARP
        heard = count_frames(lab, 2)
        expect(heard == 0, f"{heard} frames escaped from an isolated host")
        expect(lab.status("hosta")["held_frames"] >= 1, "nothing is held")
        lab.lab("heal")
        # Both ask the arbiter as soon as they reach it: either may win.
        wait_for("the VM to be protected again",
                 lambda: "protected" in [lab.state(host) for host in lab.hosts], 30)
        ledger.check()


@tap.test
def guest_faster_than_the_link():
    """a guest that dirties faster than the link carries is slowed down, and stays protected"""
    with Rig("flood", config="staging_mib: 32\n") as lab:
        lab.start_vm(memory="512M", keeper_mib=256, keeper_rate=0)
        lab.guest_ask(7001, "RATE 2000")
        wait_for("many dirty pages", lambda: lab.status("hosta")["dirty_pages"] > 4000, 30)
        before = lab.status("hosta")["committed_epoch"]
        wait_for("epochs to be committed all the same",
                 lambda: lab.status("hosta")["committed_epoch"] > before + 10, 30)
        expect(lab.state("hosta") == "protected", "protection was lost")
        lab.lab("crash", "hosta")
        lab.wait_state("hostb", "solo", 10)
        lab.check_keeper()


if __name__ == "__main__":
    tap.run()
