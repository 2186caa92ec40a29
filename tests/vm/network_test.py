#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The network at its worst (tools/shaper): loss, delay, disorder, a modem, black holes in one
direction, peers that stop reading, flipped bits that no checksum of the network finds. Whatever it
does: never two VMs, nothing lost, repeated or corrupted, the client's one TCP connection lives, and
once the network is good the VM is protected again.

One VM for all tests, with a ledger client that stays connected through all of them, and a watch on
the LAN that sees which host the guest's frames come from. NETWORK=all runs all tests, not only the
quick ones."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import disks
from rig import LEDGER_PORT, Ledger, Tap, expect, other, wait_for
from shared_vm import SharedVm

tap = Tap()
ALL = os.environ.get("NETWORK") == "all"
HOSTS = ("hosta", "hostb")
OVERLAP_S = 0.1  # a former owner may be a slow wire (docs/design.md, I2)

WATCH = """
import select, socket, sys, time
ports = {}
for host in ("hosta", "hostb"):
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    s.bind((f"l-{host}", 0))
    s.setsockopt(263, 23, 1)    # SOL_PACKET, PACKET_IGNORE_OUTGOING
    ports[s] = host
mac, last = bytes.fromhex("525400757301"), None
while True:
    for s in select.select(list(ports), [], [])[0]:
        try:
            frame = s.recv(2048)
        except OSError:    # its cable was pulled
            continue
        if frame[6:12] == mac and ports[s] != last:
            last = ports[s]
            print(time.time(), last, flush=True)
"""


class Watch:
    """Which host the guest's frames came from: a line whenever that changes."""

    def __init__(self, lab):
        self.path = f"{lab.dir}/watch.log"
        with open(self.path, "w", encoding="ascii") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", f"us-{lab.name}-net", sys.executable, "-c", WATCH],
                stdin=subprocess.DEVNULL, stdout=log, start_new_session=True)

    def stop(self):
        self.process.kill()
        self.process.wait(10)

    def owners(self):
        """[(UNIX time, host)...]: who sent from then on."""
        expect(self.process.poll() is None, "the watch on the LAN has ended")
        with open(self.path, encoding="ascii") as log:
            lines = [line.split() for line in log.read().rpartition("\n")[0].splitlines()]
        return [(float(at), host) for at, host in lines]

    def check(self, since, expected):
        """From then on the hosts in `expected` had the VM, in this order. One that had it but
        briefly may have sent nothing, the last one has."""
        owners = [one for one in self.owners() if one[0] >= since]
        # What the wire still had when the VM came up elsewhere does not count.
        hosts = [one[1] for one, after in zip(owners, owners[1:] + [(1e12, "")])
                 if after[0] - one[0] > OVERLAP_S]
        hosts = [host for host, before in zip(hosts, [""] + hosts) if host != before]
        rest = iter(expected)
        expect(all(host in rest for host in hosts)
               and (hosts or expected[:1])[-1] == expected[-1],
               f"the guest's frames came from {owners}, not from {expected}")


class Net:
    """What the tests share besides the VM."""
    ledger = watch = None


def start(lab, stack):
    options = disks.vm_options(lab, "hosta")
    # As much as a bad link can carry: the standby keeps up, so that it is the link that is tried.
    options["words"] = options["words"].replace("us.model_pause=4000", "us.model_pause=100000")
    lab.start_vm(**options)
    Net.watch = Watch(lab)
    stack.callback(Net.watch.stop)
    Net.ledger = Ledger(lab, interval_ms=5, gap_ms=200, seconds=3600)
    Net.ledger.wait_connected()


vm = SharedVm(tap, "network", start)


def test(quick=True):
    def wrap(function):
        return vm.test(function) if quick or ALL or function.__name__ in sys.argv[1:] else function
    return wrap


@contextlib.contextmanager
def bad_cables(lab, *cables):
    """Each cable: (host, parameters...). Good ones again at the end."""
    for host, *parameters in cables:
        lab.lab("link", host, "mgmt", *parameters)
    try:
        yield
    finally:
        for host in {cable[0] for cable in cables}:
            lab.lab("link", host, "mgmt", "--clear")


def figures(lab, host, way):
    """The counters of a bad cable."""
    shown = lab.lab("link", host, "mgmt", "--show").stdout
    line = next(line for line in shown.splitlines() if line.startswith(way + ":"))
    return {k: float(v) for k, v in re.findall(r"(\w+)=([\d.e+-]+)", line)}


def count(lab):
    """How many numbers the ledger has: only the client adds any, after each answer one."""
    return int(lab.guest_ask(LEDGER_PORT, "GET").split()[0])


def wait_answers(lab, seconds=20):
    """Until the client has had new answers over its one connection."""
    before = count(lab)
    wait_for("the ledger to answer its client", lambda: count(lab) > before + 1, seconds)
    expect(Net.ledger.process.poll() is None, f"the client has ended: {Net.ledger.text()}")


def settle(lab, since, owners, copies=False):
    """The network is good again: the last of the owners is the only one, and gets protected. Its
    memory, its disks (copies: both copies of them) and the connection are as they should be."""
    vm.primary = owners[-1]
    lab.wait_state(vm.primary, "protected", 40)
    expect(lab.state(other(vm.primary)) in ("ready", "receiving"), "two hosts have the VM")
    lab.check_keeper()
    disks.check_model(lab, "STATUS")
    if copies:
        disks.check_copies(lab, vm.primary)
    wait_answers(lab)
    Net.watch.check(since, owners)


def takeovers(lab, term):
    """The hosts that took the VM over after that term, in order."""
    found = [(int(at), host) for host in HOSTS
             for at in re.findall(r"took over at epoch \d+ under term (\d+)", lab.log(host))]
    return [host for at, host in sorted(found) if at > term]


def protecting(lab):
    """The host that has the VM, once it is protected: not twice in one look, so it is the one."""
    def found():
        running = [host for host in HOSTS if lab.state(host) == "protected"]
        return running if len(running) == 1 else None
    return wait_for("one host to have the VM, protected", found, 40)[0]


def fails_over_with(name, *parameters, quick=True):
    """A test in which the standby's cable is bad, epochs are committed all the same, and the
    primary dies: what the standby got over the bad cable is right. Who finds the other one silent
    on such a cable may break the pair or take over, so who dies is who has the VM by then."""
    def case(lab, primary, standby):
        since, term = time.time(), lab.status(primary)["term"]
        with bad_cables(lab, (standby, *parameters)):
            commits(lab)
            shown = figures(lab, standby, "in")
            vm.primary = died = protecting(lab)
            vm.fail_over()
            lab.check_keeper()
            disks.check_model(lab)
            wait_answers(lab)
        lab.restart_host(died)
        owners = takeovers(lab, term)
        settle(lab, since, [primary] + owners, copies=True)
        noted = ("lost", "duplicated", "reordered", "overflowed")
        said = [f"{shown[key]:.0f} frames {key}" for key in noted if shown[key]]
        if len(owners) > 1:
            said.append(f"{len(owners) - 1} takeovers from a living host")
        return "# " + ", ".join(said or ["order and number of frames as sent"])

    case.__name__ = name
    case.__doc__ = f"replication and a failover over a cable with {' '.join(parameters)}"
    test(quick)(case)


def commits(lab, n=15, seconds=40):
    """Until n more epochs are committed, by whoever has the VM, with the standby lost in between
    or not."""
    def newest():
        return max(lab.status(host).get("committed_epoch", 0) for host in HOSTS)
    before = newest()
    wait_for(f"{n} epochs to be committed", lambda: newest() > before + n, seconds)


fails_over_with("loss_1", "--loss", "1%", quick=False)
fails_over_with("loss_5", "--loss", "5%", quick=False)
fails_over_with("loss_10", "--loss", "10%")
fails_over_with("delay", "--delay", "20ms", "--jitter", "10ms")
fails_over_with("reorder", "--delay", "2ms", "--reorder", "10%", quick=False)
fails_over_with("duplicate", "--duplicate", "10%", quick=False)
fails_over_with("disorder", "--delay", "1ms", "--jitter", "1ms", "--reorder", "5%", "--duplicate",
                "5%", "--loss", "1%")
fails_over_with("fast_ethernet", "--rate", "100m", quick=False)


@test()
def modem(lab, primary, standby):
    """over a modem the VM runs alone, says so, and is protected when there is a network again"""
    since = time.time()
    with bad_cables(lab, (standby, "--rate", "56k")):
        wait_for("the VM to be no longer protected",
                 lambda: lab.status(primary).get("protected") is False, 20)
        wait_for("status to say why", lambda: lab.status(primary)["reason"], 5)
        expect(lab.cli(primary, "status").returncode == 3, "status hides that web is unprotected")
        for _ in range(10):
            wait_answers(lab)
            expect(not lab.status(primary)["protected"], "a modem replicates a busy VM")
    settle(lab, since, [primary])


def hole(name, cables, outcome, quick=True):
    """A test with black holes. cables: {"primary" | "standby" | "witness": way}. outcome: "none"
    (nobody notices), "solo" (the primary goes on), "takeover", "isolated" (the primary is mute,
    and nobody can take over, until the network is good; then who is first), "either" (who was
    first in the arbiter's record has the VM, and knows once the answer can reach it)."""
    def case(lab, primary, standby):
        hosts = {"primary": primary, "standby": standby, "witness": "witness"}
        since, epoch = time.time(), lab.status(primary)["committed_epoch"]
        with bad_cables(lab, *((hosts[who], "--blackhole", way) for who, way in cables.items())):
            owners = outcomes[outcome](lab, primary, standby, epoch)
        settle(lab, since, owners or one_owner(lab, primary, standby))

    case.__name__ = name
    case.__doc__ = "black hole: " + ", ".join(f"the {who}'s cable, {way}"
                                              for who, way in cables.items()) + f": {outcome}"
    test(quick)(case)


def goes_unnoticed(lab, primary, standby, epoch):
    del standby
    wait_for("epochs to be committed",
             lambda: lab.status(primary)["committed_epoch"] > epoch + 20, 20)
    expect(lab.state(primary) == "protected", "the protection was lost")
    return [primary]


def goes_solo(lab, primary, standby, epoch):
    del epoch
    lab.wait_state(primary, "solo", 10)
    expect(lab.cli(primary, "status").returncode == 3, "status hides that web is unprotected")
    wait_answers(lab)
    expect(lab.state(standby) not in ("solo", "protected"), "two hosts have the VM")
    return [primary]


def takes_over(lab, primary, standby, epoch):
    del epoch
    lab.wait_state(standby, "solo", 10)
    wait_answers(lab)
    wait_for("the former primary to hold its output", lambda: lab.state(primary) == "isolated", 5)
    return [primary, standby]


def is_isolated(lab, primary, standby, epoch):
    del epoch
    status = lab.wait_state(primary, "isolated", 10)
    before = status["released_frames"]
    expect("output is held" in status["reason"] and not status["reason"].startswith(";"),
           f"status does not say why: '{status['reason']}'")
    time.sleep(1)  # long enough for every time-out to strike, if one did
    expect(lab.status(primary)["released_frames"] == before, "a frame left an isolated host")
    expect(lab.state(standby) not in ("solo", "protected"), "the standby runs the VM")


def is_anybodys(lab, primary, standby, epoch):
    del epoch
    wait_for("somebody to notice",
             lambda: lab.state(primary) != "protected" or lab.state(standby) != "ready", 10)
    time.sleep(1)  # for both to act as they can


def one_owner(lab, primary, standby):
    """Whoever it is."""
    del standby
    last = protecting(lab)
    return [primary] if last == primary else [primary, last]


outcomes = {"none": goes_unnoticed, "solo": goes_solo, "takeover": takes_over,
            "isolated": is_isolated, "either": is_anybodys}

hole("hole_to_standby", {"standby": "in"}, "either")
hole("hole_from_standby", {"standby": "out"}, "solo")
hole("hole_around_standby", {"standby": "both"}, "solo", quick=False)
hole("hole_to_primary", {"primary": "in"}, "isolated")
hole("hole_from_primary", {"primary": "out"}, "takeover")
hole("hole_around_primary", {"primary": "both"}, "takeover", quick=False)
hole("hole_to_witness", {"witness": "in"}, "none", quick=False)
hole("hole_from_witness", {"witness": "out"}, "none", quick=False)
hole("hole_to_witness_from_standby", {"witness": "in", "standby": "out"}, "isolated")
hole("hole_from_witness_to_standby", {"witness": "out", "standby": "in"}, "either", quick=False)
hole("hole_everywhere", {"witness": "both", "primary": "both", "standby": "both"}, "isolated",
     quick=False)


@contextlib.contextmanager
def stopped(pid):
    """A process that reads nothing, but whose kernel takes what comes."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@test()
def standby_stops_reading(lab, primary, standby):
    """the standby's process is stopped: the primary goes solo, and has it back when it goes on"""
    since = time.time()
    with stopped(lab.status(standby)["pid"]):
        goes_solo(lab, primary, standby, 0)
    settle(lab, since, [primary])


@test()
def guard_stops_reading(lab, primary, standby):
    """the primary's guard is stopped: the standby takes over, the guard destroys what it had"""
    since, before = time.time(), lab.status(primary)
    with stopped(before["pid"]):
        lab.wait_state(standby, "solo", 10)
        lab.check_keeper()
        wait_answers(lab)
    hypervisor = before["hypervisor_pid"]
    wait_for("the former primary's hypervisor to go",
             lambda: not os.path.exists(f"/proc/{hypervisor}"), 10)
    settle(lab, since, [primary, standby])


@test(quick=False)
def witness_stops_reading(lab, primary, standby):
    """the witness is stopped: nobody notices, but who has to ask waits"""
    since, epoch = time.time(), lab.status(primary)["committed_epoch"]
    with stopped(lab.daemons["witness"].pid):
        goes_unnoticed(lab, primary, standby, epoch)
        with bad_cables(lab, (standby, "--blackhole", "both")):
            is_isolated(lab, primary, standby, 0)
    settle(lab, since, one_owner(lab, primary, standby))


def flips_on(name, way, quick=True):
    """A test in which bits flip on the standby's cable below the digest of TLS."""
    def case(lab, primary, standby):
        since, links = time.time(), [len(lab.log(host)) for host in (primary, standby)]
        # Acknowledgements are few bytes: what comes from the standby needs more flips.
        rate = "3e-7" if way == "in" else "2e-5"
        with bad_cables(lab, (standby, "--flip", rate, "--repair-checksum", "--only", way)):
            flipped = wait_for("bits to flip", lambda: (n := figures(lab, standby, way)["flipped"])
                               >= 5 and n, 60)
            said = "".join(lab.log(host)[n:] for host, n in zip((primary, standby), links))
        expect("damaged" in said, f"nobody says that something was damaged: {said}")
        lab.wait_state(primary, "protected", 40)
        vm.fail_over()
        lab.check_keeper()
        disks.check_model(lab)
        lab.restart_host(primary)
        settle(lab, since, [primary, standby], copies=True)
        return f"# {flipped:.0f} frames with a flipped bit"

    case.__name__ = name
    case.__doc__ = f"bits flip on the standby's cable, {way}, unseen by TCP: every one is noticed"
    test(quick)(case)


flips_on("flips_to_standby", "in")
flips_on("flips_from_standby", "out", quick=False)


@test()
def flips_at_the_arbiter(lab, primary, standby):
    """bits flip on the arbiter's cable, unseen by TCP: takeovers happen all the same, one each"""
    since, owners, flipped = time.time(), [primary], 0
    for _ in range(3 if ALL else 2):
        with bad_cables(lab, ("witness", "--flip", "5e-5", "--repair-checksum")):
            vm.fail_over()
            lab.restart_host(primary)
            primary, standby = standby, primary
            owners.append(primary)
            lab.wait_state(primary, "protected", 40)
            flipped += sum(figures(lab, "witness", way)["flipped"] for way in ("in", "out"))
    settle(lab, since, owners)
    return f"# {flipped:.0f} frames with a flipped bit"


@test()
def bad_lan(lab, primary, standby):
    """the guest's own network loses and delays frames: a failover is as always"""
    since = time.time()
    lab.lab("link", "client", "lan", "--loss", "2%", "--delay", "2ms", "--duplicate", "1%")
    try:
        wait_answers(lab)
        vm.fail_over()
        wait_answers(lab)
    finally:
        lab.lab("link", "client", "lan", "--clear")
    lab.restart_host(primary)
    settle(lab, since, [primary, standby])


@test()
def nothing_lost(lab, primary, standby):
    """the one connection of all these tests: nothing lost, repeated or corrupted"""
    del lab, primary, standby
    done = Net.ledger.check()
    return f"# {done['ops']:.0f} operations, longest gap {done['max_gap_ms']:.0f} ms"


if __name__ == "__main__":
    try:
        tap.run()
    finally:
        vm.drop()
