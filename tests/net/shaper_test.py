#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The lab's bad cables (tools/shaper, `lab link`): each parameter does what it says, in the
direction that it is meant for, while the cable is in use; and nothing is left behind.

    hosta (mgmt0) --- m-hosta [shaper] mgmt --- m-hostb --- (mgmt0) hostb

Datagrams carry their number and the time at which they were sent; the receiver's kernel says when
they came. All namespaces have one clock, so delays are measured one way. Prints TAP."""

import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys

from lab_test import LAB, NAME, TIMEOUT_S, Lab, expect, line_of, main, pings

BUILD = os.path.abspath(os.environ.get("BUILD", os.path.join(os.path.dirname(LAB), "../build")))
LATE_MS = 2    # by which a median may be late: on a busy machine; tests say how late it was
ADDRESS = {"hosta": "10.77.0.1", "hostb": "10.77.0.2", "client": "10.78.0.100"}

RECEIVER = """
import json, socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)    # SO_RCVBUFFORCE
s.setsockopt(socket.SOL_SOCKET, 35, 1)           # SO_TIMESTAMPNS
s.bind(('', 9000))
print('ready')
got = []
s.settimeout(20)
while True:
    try:
        data, extra = s.recvmsg(2000, 100)[:2]
    except TimeoutError:
        break
    number, sent_ns = struct.unpack_from('<qq', data)
    if number < 0:          # the sender is done: wait for what is under way
        s.settimeout(%s)
        continue
    seconds, ns = struct.unpack('@ll', extra[0][2])
    came_ns = seconds * 10**9 + ns
    got.append((number, (came_ns - sent_ns) / 1e6, came_ns / 1e6))
print(json.dumps(got))
"""

# The end is told to the receiver often enough that a bad cable lets it through at least once.
SENDER = """
import socket, struct, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect((%r, 9000))
count, gap_s, size = %d, %f, %d
start = time.monotonic()
for number in range(count):
    while gap_s and time.monotonic() < start + number * gap_s:
        time.sleep(gap_s / 10)
    s.send(struct.pack('<qq', number, time.time_ns()).ljust(size, b'x'))
for _ in range(10):
    s.send(struct.pack('<qq', -1, 0))
    time.sleep(0.02)
print('sent')
"""


class Datagram:
    """One that arrived: its number, its delay, and when it came."""

    def __init__(self, number, delay_ms, at_ms):
        self.number, self.delay_ms, self.at_ms = number, delay_ms, at_ms


@contextlib.contextmanager
def cable(*parameters):
    """A lab with hosta's cable as the parameters say, once hosta and hostb know each other."""
    lab = Lab(NAME)
    lab.env["UNDERSTUDY_BIN"] = f"{BUILD}/tools"
    with lab.up():
        assert pings(lab, "hosta", ADDRESS["hostb"]) and pings(lab, "hostb", ADDRESS["hosta"])
        if parameters:
            lab.ok("link", "hosta", "mgmt", *parameters)
        yield lab


def send(lab, source="hosta", target="hostb", count=500, gap_ms=1.0, size=100, quiet_s=0.3):
    """Sends datagrams; returns those that arrived, in the order in which they did."""
    with lab.python(target, RECEIVER % quiet_s) as receiver:
        expect(receiver, "ready")
        with lab.python(source, SENDER % (ADDRESS[target], count, gap_ms / 1e3, size)) as sender:
            expect(sender, "sent")
        return [Datagram(*one) for one in json.loads(line_of(receiver))]


def counters(lab, direction, host="hosta", network="mgmt"):
    """The figures that the shaper shows for a direction."""
    shown = lab.ok("link", host, network, "--show")
    line = re.search(rf"^{direction}: (.*)$", shown, re.M)
    assert line, f"no line for {direction}: {shown}"
    return {k: float(v) for k, v in re.findall(r"(\w+)=([\d.e+-]+)(?=ms|\s|$)", line.group(1))}


def delays(datagrams):
    return [one.delay_ms for one in datagrams]


def assert_between(value, low, high, what):
    assert low <= value <= high, f"{what} is {value:.6g}, not between {low} and {high}"


def test_delay():
    """A delay in one direction, then in the other."""
    with cable("--delay", "20ms", "--only", "out") as lab:
        there, back = delays(send(lab)), delays(send(lab, "hostb", "hosta"))
        assert min(there) >= 20, f"{min(there)} ms is early"
        assert_between(statistics.median(there), 20, 20 + LATE_MS, "the delay")
        assert_between(statistics.median(back), 0, LATE_MS, "the delay back")
        lab.ok("link", "hosta", "mgmt", "--delay", "0", "--only", "out")
        lab.ok("link", "hosta", "mgmt", "--delay", "7ms", "--only", "in")
        assert_between(statistics.median(delays(send(lab))), 0, LATE_MS, "no delay out")
        back = delays(send(lab, "hostb", "hosta"))
        assert_between(statistics.median(back), 7, 7 + LATE_MS, "delay in")
        return f"20 ms: median {statistics.median(there):.3f} ms, longest {max(there):.3f} ms"


def test_jitter():
    """Delays spread over the range, and the order stays all the same."""
    with cable("--delay", "20ms", "--jitter", "5ms") as lab:
        # Far apart: what waits for its predecessor would not be spread evenly.
        got = send(lab, count=150, gap_ms=11)
        assert [one.number for one in got] == list(range(150))
        assert_between(min(delays(got)), 15, 17, "the shortest delay")
        assert_between(sorted(delays(got))[-8], 23, 25 + LATE_MS, "a long delay")
        assert_between(statistics.pstdev(sorted(delays(got))[:-8]), 2, 3.6, "the deviation")
        got = send(lab, count=1000)
        assert [one.number for one in got] == list(range(1000)), "jitter changed the order"
        assert counters(lab, "out")["reordered"] == 0


def test_loss():
    with cable("--loss", "10%", "--only", "out") as lab:
        got = send(lab, count=3000, gap_ms=0.3)
        lost = 3000 - len(got)
        assert_between(lost / 3000, 0.08, 0.12, "the loss")
        assert lost <= counters(lab, "out")["lost"] <= lost + 10    # and of the sender's "done"
        assert len(send(lab, "hostb", "hosta")) == 500
        assert counters(lab, "in")["lost"] == 0


def test_seed():
    """The same seed loses the same frames, another one others."""
    lost = []
    with cable() as lab:
        for seed in ("7", "7", "8"):
            lab.ok("link", "hosta", "mgmt", "--loss", "10%", "--only", "out", "--seed", seed)
            got = {one.number for one in send(lab, count=400)}
            lost.append([n for n in range(400) if n not in got])
            lab.ok("link", "hosta", "mgmt", "--clear")
    assert lost[0] == lost[1], f"{lost[0]} and {lost[1]}"
    assert lost[0] != lost[2]


def test_duplicate():
    with cable("--duplicate", "10%", "--only", "out") as lab:
        got = send(lab, count=2000, gap_ms=0.3)
        twice = len(got) - 2000
        assert {one.number for one in got} == set(range(2000))
        assert_between(twice / 2000, 0.07, 0.13, "the share of duplicates")
        assert twice <= counters(lab, "out")["duplicated"] <= twice + 10


def test_reorder():
    with cable("--delay", "5ms", "--reorder", "10%") as lab:
        got = [one.number for one in send(lab, count=2000)]
        assert sorted(got) == list(range(2000)), "something was lost or came twice"
        late = sum(later < max(got[:at + 1]) for at, later in enumerate(got) if at)
        assert_between(late / 2000, 0.06, 0.11, "the share that was overtaken")
        assert late <= counters(lab, "out")["reordered"] <= late + 10


def test_rate():
    """Frames pass at the wire's speed, and what the queue does not hold is dropped."""
    with cable("--rate", "1m", "--queue", "1m") as lab:
        got = send(lab, count=150, gap_ms=0, size=1000)
        assert len(got) == 150
        took_ms = got[-1].at_ms - got[0].at_ms
        assert_between(149 * 1042 * 8 / took_ms * 1e3, 0.98e6, 1.02e6, "the rate in bits/s")
        lab.ok("link", "hosta", "mgmt", "--queue", "20k")
        got = send(lab, count=150, gap_ms=0, size=1000)
        assert_between(len(got), 19, 23, "what a queue of 20 KiB holds")
        assert counters(lab, "out")["overflowed"] >= 150 - len(got)
        # A modem: 100 bytes are 20 ms.
        lab.ok("link", "hosta", "mgmt", "--rate", "56k")
        got = send(lab, count=10, gap_ms=100)
        took_ms = 142 * 8 / 56
        assert_between(statistics.median(delays(got)), took_ms, took_ms + LATE_MS, "a modem")


def test_black_hole():
    with cable("--blackhole", "out") as lab:
        for way, out, back in (("out", 0, 50), ("in", 50, 0), ("both", 0, 0), ("none", 50, 50)):
            lab.ok("link", "hosta", "mgmt", "--blackhole", way)
            sending = {"count": 50, "quiet_s": 0.05}
            for source, target, want in (("hosta", "hostb", out), ("hostb", "hosta", back)):
                if want:
                    assert len(send(lab, source, target, **sending)) == want, f"{way}: {source}"
                    continue
                direction = "out" if source == "hosta" else "in"
                before = counters(lab, direction)
                with lab.python(source, SENDER % (ADDRESS[target], 50, 0, 100)) as sender:
                    expect(sender, "sent")
                after = counters(lab, direction)
                assert after["passed"] == before["passed"], f"{way}: {source} gets through"
                assert after["lost"] >= before["lost"] + 50


TCP_RECEIVER = """
import socket
listener = socket.create_server(('', 9001))
print('ready')
peer, _ = listener.accept()
peer.settimeout(20)
data = b''
while len(data) < %(n)d:
    piece = peer.recv(1 << 16)
    if not piece:
        break
    data += piece
wrong = sum(((byte ^ (at * 7 + at // 256)) & 255).bit_count() for at, byte in enumerate(data))
print(wrong, len(data))
"""

TCP_SENDER = """
import socket
peer = socket.create_connection(('10.77.0.2', 9001), 20)
peer.sendall(bytes((at * 7 + at // 256) & 255 for at in range(%(n)d)))
peer.shutdown(socket.SHUT_WR)
peer.recv(1)
print('sent')
"""


def transfer(lab, n_bytes=400000):
    """Sends a known text over TCP; returns how many of its bits arrived wrong."""
    with lab.python("hostb", TCP_RECEIVER % {"n": n_bytes}) as receiver:
        expect(receiver, "ready")
        with lab.python("hosta", TCP_SENDER % {"n": n_bytes}):
            wrong, length = map(int, line_of(receiver).split())
    assert length == n_bytes
    return wrong


def test_flips():
    """TCP finds flipped bits, unless the checksum was repaired; then all of them arrive."""
    with cable("--flip", "2e-6", "--only", "out") as lab:
        assert transfer(lab) == 0
        flipped = counters(lab, "out")["flipped_bits"]
        assert_between(flipped, 1, 40, "flips in 3.2 million bits and what was sent again")
        assert counters(lab, "in")["flipped_bits"] == 0
        # The payload of UDP is nobody's to repair: it stays as it is.
        lab.ok("link", "hosta", "mgmt", "--flip", "1e-5", "--repair-checksum", "--only", "out")
        before = counters(lab, "out")["flipped_bits"]
        assert len(send(lab, size=1000)) == 500
        assert counters(lab, "out")["flipped_bits"] == before
        for _ in range(5):
            before = counters(lab, "out")["flipped_bits"]
            wrong = transfer(lab)
            flipped = counters(lab, "out")["flipped_bits"] - before
            if wrong == flipped:
                break  # else TCP has sent a segment twice, as it does on a busy machine
        assert wrong == flipped, f"{wrong} of {flipped} flipped bits arrived"
        assert_between(wrong, 15, 55, "flips in 3.2 million bits")
        return f"{wrong} bits reached the application"


def test_changes_in_use():
    """A cable becomes bad, worse and good again under a connection: it lives, nothing is lost."""
    echo = """
import socket
listener = socket.create_server(('', 9001))
print('ready')
peer, _ = listener.accept()
while data := peer.recv(65536):
    peer.sendall(data)
"""
    client = """
import socket, sys, time
peer = socket.create_connection(('10.77.0.2', 9001), 20)
print('connected')
longest = 0
for number in range(600):
    start = time.monotonic()
    peer.sendall(b'%06d' % number)
    answer = b''
    while len(answer) < 6:
        answer += peer.recv(6 - len(answer))
    assert answer == b'%06d' % number, answer
    longest = max(longest, time.monotonic() - start)
    time.sleep(0.005)
print('%.1f' % (longest * 1e3))
"""
    with cable() as lab, lab.python("hostb", echo) as server:
        expect(server, "ready")
        with lab.python("hosta", client) as talker:
            expect(talker, "connected")
            for parameters in (("--delay", "3ms"), ("--jitter", "1ms"), ("--delay", "1ms"),
                               ("--clear",), ("--rate", "10m"), ("--rate", "1m"), ("--clear",)):
                lab.ok("link", "hosta", "mgmt", *parameters)
            longest = float(line_of(talker))
        assert_between(longest, 3, 1000, "the longest answer in ms")
        return f"longest answer {longest} ms"


def test_nothing_queued_is_dropped():
    """Frames that wait when the cable changes, or becomes a good one, arrive."""
    for parameters in (("--delay", "0"), ("--rate", "100m"), ("--loss", "0", "--clear")):
        with cable("--delay", "1s", "--rate", "10m", "--queue", "1m") as lab:
            with lab.python("hostb", RECEIVER % 1.5) as receiver:
                expect(receiver, "ready")
                with lab.python("hosta", SENDER % (ADDRESS["hostb"], 200, 0, 100)) as sender:
                    expect(sender, "sent")
                assert counters(lab, "out")["queued"] >= 200
                lab.ok("link", "hosta", "mgmt", *parameters)
                got = [Datagram(*one).number for one in json.loads(line_of(receiver))]
            assert got == list(range(200)), f"{parameters}: {len(got)} of 200"


def test_bounded():
    """The shaper drops what it has no room for, and its memory stays bounded."""
    with cable("--delay", "30s", "--only", "out") as lab:
        pid = shaper_pid(lab)
        with lab.python("hosta", SENDER % (ADDRESS["hostb"], 20000, 0, 1000)) as sender:
            expect(sender, "sent")
        shown = counters(lab, "out")
        assert shown["queued"] == 8192 and shown["overflowed"] >= 1000, shown
        with open(f"/proc/{pid}/status", encoding="ascii") as status:
            resident_kib = int(re.search(r"VmRSS:\s*(\d+)", status.read()).group(1))
        assert_between(resident_kib, 8000, 24000, "resident memory in KiB")
        return f"resident {resident_kib} KiB with its queue full"


def test_lan():
    """The VM LAN's cables can be bad, too."""
    with cable() as lab:
        lab.ok("exec", "hosta", "ip", "addr", "add", "10.78.0.1/24", "dev", "br0")
        lab.ok("link", "client", "lan", "--delay", "10ms", "--only", "in")
        got = send(lab, "hosta", "client", count=100)
        assert_between(statistics.median(delays(got)), 10, 10 + LATE_MS, "the delay")
        lab.ok("link", "hosta", "lan", "--delay", "5ms")
        got = send(lab, "hosta", "client", count=100)
        assert_between(statistics.median(delays(got)), 15, 15 + 2 * LATE_MS, "two cables' delay")
        assert "no network" in lab.refused("link", "witness", "lan", "--delay", "1ms")


def test_with_cuts_and_crashes():
    """Cuts, crashes and restarts are the same with a bad cable."""
    with cable("--delay", "1ms") as lab:
        lab.ok("cut", "hosta", "hostb")
        assert not pings(lab, "hosta", "10.77.0.2") and not pings(lab, "hostb", "10.77.0.1")
        assert pings(lab, "hosta", "10.77.0.4")
        shown = lab.ok("status")
        assert shown.count("cut:") == 2 and "link: hosta-mgmt out: delay=1ms" in shown, shown
        lab.ok("link", "hosta", "mgmt", "--clear")
        assert not pings(lab, "hosta", "10.77.0.2")
        lab.ok("link", "hostb", "mgmt", "--delay", "1ms")
        assert not pings(lab, "hosta", "10.77.0.2")
        lab.ok("heal", "hostb", "hosta")
        assert pings(lab, "hosta", "10.77.0.2") and "cut:" not in lab.ok("status")
        lab.ok("crash", "hostb")
        assert not pings(lab, "hosta", "10.77.0.2")
        lab.ok("restart", "hostb")
        assert pings(lab, "hosta", "10.77.0.2")
        assert counters(lab, "in", "hostb")["delay"] == 1


def shaper_pid(lab):
    found = subprocess.run(["ip", "netns", "pids", f"us-{lab.name}-net"], text=True, check=True,
                           capture_output=True, timeout=TIMEOUT_S).stdout.split()
    assert len(found) == 1, f"processes in the switch: {found}"
    return int(found[0])


def switch_ports(lab):
    shown = subprocess.run(["ip", "-n", f"us-{lab.name}-net", "-br", "link"], text=True, check=True,
                           capture_output=True, timeout=TIMEOUT_S).stdout
    return [line.split()[0] for line in shown.splitlines()]


def test_litter():
    """A good cable costs nothing: no process, no port; also when the shaper was killed."""
    with cable() as lab:
        before = switch_ports(lab)
        lab.ok("link", "hosta", "mgmt", "--clear")    # it is one
        assert lab.ok("link", "hosta", "mgmt", "--show").strip() == "a good cable"
        for kill in (False, True):
            lab.ok("link", "hosta", "mgmt", "--delay", "1ms")
            pid = shaper_pid(lab)
            assert len(switch_ports(lab)) == len(before) + 3
            if kill:
                os.kill(pid, signal.SIGKILL)
            lab.ok("link", "hosta", "mgmt", "--clear")
            wait_ended(pid)
            assert switch_ports(lab) == before and pings(lab, "hosta", "10.77.0.2")
            assert not [name for name in os.listdir(lab.dir) if name.endswith(".link")]
        lab.ok("link", "hosta", "mgmt", "--delay", "1ms")
        lab.ok("link", "client", "lan", "--loss", "1%")
        # Now down: main() looks at what is left.


def wait_ended(pid):
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            signalled = subprocess.run(["timeout", str(TIMEOUT_S), "tail", "-s", "0.01",
                                        f"--pid={pid}", "-f", "/dev/null"], check=False)
            assert signalled.returncode == 0, f"process {pid} lives on"
        finally:
            os.close(fd)


def test_refusals():
    """What is wrong is refused, as a whole."""
    with cable("--delay", "3ms") as lab:
        for wrong in (("--delay", "3"), ("--loss", "101%"), ("--loss", "-1%"), ("--rate", "fast"),
                      ("--blackhole", "up"), ("--only", "up", "--delay", "1ms"), ("--delay",),
                      ("--delay", "61s"), ("--flip", "nan"), ("--jitter", "1ms", "--loss", "2")):
            said = lab.refused("link", "hosta", "mgmt", *wrong)
            assert said.strip(), f"{wrong} is refused without a word"
        shown = counters(lab, "out")
        assert shown["delay"] == 3 and "loss" not in shown and "jitter" not in shown, shown
        assert "unknown host" in lab.refused("link", "hostx", "mgmt", "--delay", "1ms")
        assert "no network" in lab.refused("link", "hosta", "wan", "--delay", "1ms")


def test_cost():
    """A shaper without parameters: what it adds, and what it carries."""
    with cable() as lab:
        plain = statistics.median(delays(send(lab, count=1000)))
        lab.ok("link", "hosta", "mgmt", "--delay", "0")
        shaped = statistics.median(delays(send(lab, count=1000)))
        assert_between(shaped - plain, -0.2, LATE_MS, "the added delay in ms")
        got = send(lab, count=50000, gap_ms=0)
        per_s = (len(got) - 1) / (got[-1].at_ms - got[0].at_ms) * 1e3
        assert per_s > 20000, f"{per_s:.0f} frames per second"
        return (f"adds {(shaped - plain) * 1e3:.0f} us, carries at least {per_s:.0f} frames/s"
                f" ({len(got)} of 50000)")


if __name__ == "__main__":
    sys.exit(main(globals()))
