#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tools/lab, tried from outside: hosts, cuts, crashes, and that nothing is left behind.

The topology is drawn at the top of tools/lab. Prints TAP.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import traceback

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LAB = os.path.join(TOP, "tools", "lab")
NAME = f"test{os.getpid()}"
TIMEOUT_S = 20    # for anything that ought to happen
QUIET_S = 0.3     # of watching for what ought not to happen


class Lab:
    """One lab, by its name."""

    def __init__(self, name):
        self.name = name
        self.env = {k: v for k, v in os.environ.items() if k != "LAB_DIR"} | {"LAB": name}
        self.dir = f"/run/understudy-lab/{name}"

    def run(self, *args):
        return subprocess.run([LAB, *args], env=self.env, timeout=TIMEOUT_S, text=True,
                              stdin=subprocess.DEVNULL, capture_output=True)

    def ok(self, *args):
        done = self.run(*args)
        assert done.returncode == 0, f"lab {args}: {done.returncode}: {done.stderr}"
        return done.stdout

    def refused(self, *args):
        done = self.run(*args)
        assert done.returncode == 1, f"lab {args}: {done.returncode}"
        return done.stderr

    @contextlib.contextmanager
    def start(self, *args):
        """Runs a lab command in a session of its own, which ends with the context."""
        process = subprocess.Popen([LAB, *args], env=self.env, text=True, start_new_session=True,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(TIMEOUT_S)
            process.stdout.close()

    def python(self, host, code):
        """Starts Python code on a host."""
        return self.start("exec", host, sys.executable, "-u", "-c", code)

    @contextlib.contextmanager
    def up(self):
        self.ok("up")
        try:
            yield
        finally:
            self.ok("down")

    def leftovers(self):
        """Everything of this lab that exists."""
        found = [f"namespace {n}" for n in os.listdir("/run/netns")
                 if n.startswith(f"us-{self.name}-")] if os.path.isdir("/run/netns") else []
        if os.path.exists(self.dir):
            found.append(self.dir)
        with open("/proc/mounts", encoding="utf-8") as mounts:
            found += [line for line in mounts if self.dir + "/" in line]
        return found + sorted(set(os.listdir("/sys/class/net")) - LINKS_BEFORE)


def line_of(process, timeout_s=TIMEOUT_S):
    """The next line that a process prints; None when none comes in time."""
    if not select.select([process.stdout], [], [], timeout_s)[0]:
        return None
    return process.stdout.readline().strip()


def expect(process, want):
    line = line_of(process)
    assert line == want, f"expected {want!r}, got {line!r}"


def pings(lab, host, address):
    """Whether a datagram from host to address comes back."""
    done = lab.run("exec", host, "busybox", "ping", "-c", "1", "-W", "1", address)
    return done.returncode == 0


SERVER = """
import socket
listener = socket.create_server(('', 9000))
print('listening')
peer, _ = listener.accept()
while True:
    peer.settimeout(20)
    data = peer.recv(100)
    if not data:
        break
    print('got', data.decode())
    peer.sendall(data)
    if data == b'watch':
        # From here on nothing may come: neither data nor the end of the connection.
        peer.settimeout(%s)
        print('watching')
        try:
            print('heard', peer.recv(100))
        except TimeoutError:
            print('silence')
        except OSError as e:
            print(e)
        break
""" % (1 + QUIET_S)

CLIENT = """
import socket
peer = socket.create_connection(('10.77.0.2', 9000), 20)
def exchange(text):
    peer.sendall(text)
    return peer.recv(100).decode()
"""


def test_up_and_ping():
    lab = Lab(NAME)
    with lab.up():
        for host, address in (("hosta", "10.77.0.2"), ("hostb", "10.77.0.4"),
                              ("witness", "10.77.0.100"), ("client", "10.77.0.3")):
            assert pings(lab, host, address), f"{host} does not reach {address}"
        # The VM LAN joins the hosts' bridges: an address put on one is seen from the client.
        lab.ok("exec", "hosta", "ip", "addr", "add", "10.78.0.1/24", "dev", "br0")
        assert pings(lab, "client", "10.78.0.1")
        assert not pings(lab, "client", "10.78.0.2")
        config = lab.ok("exec", "hostb", "sh", "-c", "cat $UNDERSTUDY_CONFIG")
        assert "listen: 10.77.0.2:7700" in config and "key: ed25519:" in config
        assert "is up" in lab.ok("status")
        assert "up already" in lab.refused("up")
    assert "not up" in lab.refused("exec", "hosta", "true")
    assert lab.run("status").returncode == 3


def test_cut_and_heal():
    lab = Lab(NAME)
    with lab.up():
        lab.ok("cut", "hosta", "hostb")
        assert "cut: hosta -> hostb" in lab.ok("status")
        assert not pings(lab, "hosta", "10.77.0.2") and not pings(lab, "hostb", "10.77.0.1")
        assert pings(lab, "hosta", "10.77.0.4") and pings(lab, "hostb", "10.77.0.4")
        lab.ok("cut", "hosta", "witness")
        lab.ok("heal", "hostb", "hosta")
        assert pings(lab, "hosta", "10.77.0.2") and not pings(lab, "hosta", "10.77.0.4")
        lab.ok("heal")
        assert pings(lab, "hosta", "10.77.0.4")
        assert "cut:" not in lab.ok("status")
        assert "unknown host" in lab.refused("cut", "hosta", "hostx")


def test_one_way_cut():
    """Datagrams pass from B to A, and none from A to B; the sender is told nothing."""
    receive = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('', 9000))
print('ready')
s.settimeout(%s)
try:
    print(s.recv(100).decode())
except TimeoutError:
    print('silence')
"""
    send = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for i in range(3):
    s.sendto(b'hello', ('%s', 9000))
print('sent')
"""
    lab = Lab(NAME)
    with lab.up():
        lab.ok("cut", "hosta", "hostb", "--one-way")
        for source, target, address, want in (("hostb", "hosta", "10.77.0.1", "hello"),
                                              ("hosta", "hostb", "10.77.0.2", "silence")):
            timeout_s = TIMEOUT_S if want == "hello" else QUIET_S
            with lab.python(target, receive % timeout_s) as receiver:
                expect(receiver, "ready")
                with lab.python(source, send % address) as sender:
                    expect(sender, "sent")
                expect(receiver, want)


def test_cut_of_a_connection():
    """An established connection stalls under a cut, and goes on after it."""
    lab = Lab(NAME)
    with lab.up(), lab.python("hostb", SERVER) as server:
        expect(server, "listening")
        with lab.python("hosta", CLIENT + """
import subprocess
print(exchange(b'one'))
subprocess.check_call([%r, 'cut', 'hosta', 'hostb'])
peer.sendall(b'two')
peer.settimeout(%s)
try:
    print(peer.recv(100))
except TimeoutError:
    print('silence')
subprocess.check_call([%r, 'heal'])
peer.settimeout(20)
print(peer.recv(100).decode())
""" % (LAB, QUIET_S, LAB)) as client:
            for want in ("one", "silence", "two"):
                expect(client, want)


def test_freeze_and_thaw():
    lab = Lab(NAME)
    ticking = """
import time
while True:
    print('tick')
    time.sleep(0.02)
"""
    with lab.up(), lab.python("hosta", ticking) as process:
        expect(process, "tick")
        lab.ok("freeze", "hosta")
        assert "frozen" in lab.ok("status")
        while line_of(process, QUIET_S) is not None:
            pass    # what lay in the pipe; a running process would never fall silent
        with open(f"/proc/{process.pid}/stat", encoding="utf-8") as stat:
            assert stat.read().rpartition(")")[2].split()[0] == "T"
        lab.ok("thaw", "hosta")
        expect(process, "tick")
        assert "frozen" not in lab.ok("status")
        lab.ok("crash", "hosta")


def test_crash():
    """Everything on the host dies, and its peers hear nothing of it."""
    lab = Lab(NAME)
    with lab.up(), lab.python("hostb", SERVER) as server:
        expect(server, "listening")
        with lab.python("hosta", CLIENT + """
import time
print(exchange(b'watch'))
time.sleep(1000)
""") as client, lab.start("exec", "hosta", "sh", "-c", "trap '' TERM INT HUP; "
                          "sleep 1001 & echo two; wait") as pair:
            expect(server, "got watch")
            expect(client, "watch")
            expect(server, "watching")
            expect(pair, "two")
            lab.ok("crash", "hosta")
            assert client.wait(TIMEOUT_S) == -signal.SIGKILL
            assert pair.wait(TIMEOUT_S) == -signal.SIGKILL
            # Its own end of the pipe is gone as well: no process holds it any more.
            assert pair.stdout.read() == ""
            expect(server, "silence")
        assert not pings(lab, "hostb", "10.77.0.1")
        assert "crashed" in lab.ok("status")
        assert "restart" in lab.refused("exec", "hosta", "true")


def test_restart():
    """After a restart the state is there, the run directory and the taps are not."""
    lab = Lab(NAME)
    with lab.up():
        assert "not crashed" in lab.refused("restart", "hosta")
        lab.ok("exec", "hosta", "sh", "-c", "echo kept >$LAB_DIR/hosta/state/x; "
               "echo lost >$LAB_DIR/hosta/run/x; ip tuntap add tap-web0 mode tap; "
               "ip link set tap-web0 master br0")
        assert "tap-web0" in lab.ok("status")
        lab.ok("crash", "hosta")
        lab.ok("restart", "hosta")
        assert os.listdir(f"{lab.dir}/hosta/state") == ["x"]
        assert os.listdir(f"{lab.dir}/hosta/run") == []
        assert "tap-web0" not in lab.ok("status")
        assert pings(lab, "hosta", "10.77.0.2")


def test_disks():
    """The same path is a directory of its own on each host, and survives a crash."""
    lab = Lab(NAME)
    with lab.up():
        for host in ("hosta", "hostb"):
            lab.ok("exec", host, "sh", "-c", f"echo {host} >$LAB_DIR/disks/x")
        lab.ok("crash", "hosta")
        lab.ok("restart", "hosta")
        for host in ("hosta", "hostb"):
            assert lab.ok("exec", host, "cat", f"{lab.dir}/disks/x").strip() == host
        assert os.listdir(f"{lab.dir}/disks") == []


def test_down_leaves_nothing():
    lab = Lab(NAME)
    with contextlib.ExitStack() as stack:
        stack.enter_context(lab.up())
        processes = []
        for host in ("hosta", "witness", "client"):
            processes.append(stack.enter_context(
                lab.start("exec", host, "sh", "-c", "trap '' TERM; echo up; sleep 1000; :")))
            expect(processes[-1], "up")
        lab.ok("freeze", "witness")    # a stopped process must go as well
        lab.ok("exec", "hosta", "sh", "-c", "echo x >$LAB_DIR/hosta/run/x")
        assert lab.leftovers()         # so this does see something
        lab.ok("down")
        for process in processes:
            assert process.wait(TIMEOUT_S) == -signal.SIGKILL
        assert not lab.leftovers(), lab.leftovers()
    # A lab of which parts have gone already.
    lab.ok("up")
    subprocess.run(["ip", "netns", "del", f"us-{NAME}-hostb"], check=True, timeout=TIMEOUT_S)
    lab.ok("down")


def test_foreign_directory():
    """A directory that lab did not make is neither used nor removed."""
    lab = Lab(NAME)
    with contextlib.ExitStack() as stack:
        os.makedirs(lab.dir)
        stack.callback(os.rmdir, lab.dir)
        with open(f"{lab.dir}/precious", "w", encoding="utf-8"):
            pass
        stack.callback(os.unlink, f"{lab.dir}/precious")
        assert "no lab's" in lab.refused("up")
        lab.ok("down")
        assert os.path.exists(f"{lab.dir}/precious")


def test_run():
    lab = Lab(NAME)
    assert "10.77.0.2" in lab.ok("run", LAB, "exec", "hostb", "ip", "addr")
    assert not lab.leftovers()
    assert lab.run("run", "sh", "-c", "exit 7").returncode == 7


def interrupt(process):
    """As a person does who presses the keys again: the shell may lose one while it starts a
    program."""
    for _ in range(TIMEOUT_S):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
            return
    raise AssertionError("interrupted in vain")


def test_run_interrupted():
    lab = Lab(NAME)
    for sig, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        script = f"echo $$; {LAB} exec hosta sleep 1000 & sleep 1001; :"
        with lab.start("run", "sh", "-c", script) as process:
            script_pid = int(line_of(process))
            os.kill(process.pid, sig)
            assert process.wait(TIMEOUT_S) == status
            assert process.stdout.read() == ""    # ends only when the last of them is gone
        assert not os.path.exists(f"/proc/{script_pid}")
        assert not lab.leftovers(), lab.leftovers()
    # At any moment while the lab comes up, too.
    for delay_ms in range(10, 300, 40):
        with lab.start("run", "sleep", "1000") as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(delay_ms / 1000)
            interrupt(process)
        assert not lab.leftovers(), f"after {delay_ms} ms: {lab.leftovers()}"


def test_two_labs():
    one, two = Lab(NAME), Lab(NAME + "b")
    with one.up(), two.up():
        one.ok("cut", "hosta", "hostb")
        two.ok("crash", "hostc")
        assert not pings(one, "hosta", "10.77.0.2") and pings(two, "hosta", "10.77.0.2")
        assert pings(one, "hosta", "10.77.0.3") and not pings(two, "hosta", "10.77.0.3")
        two.ok("down")
        assert pings(one, "hosta", "10.77.0.3")
    assert not two.leftovers(), two.leftovers()


def main(module):
    """Runs the functions test_* of a module, which may return a note; prints TAP."""
    if os.geteuid() != 0:
        print("1..0 # SKIP network namespaces need root")
        return 0
    # A shell that runs us in the background has it ignored, and what we start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tests = [f for n, f in module.items() if n.startswith("test_")]
    if len(sys.argv) > 1:
        tests = [f for f in tests if f.__name__[5:] in sys.argv[1:]]
    failed = 0
    print(f"1..{len(tests)}", flush=True)
    for number, test in enumerate(tests, 1):
        problem = note = None
        try:
            note = test()
            left = Lab(NAME).leftovers()
            assert not left, f"left behind: {left}"
        except Exception:    # pylint: disable=broad-except # each test for itself
            problem = traceback.format_exc()
            for name in (NAME, NAME + "b"):
                Lab(name).run("down")
        failed += problem is not None
        print(f"{'not ok' if problem else 'ok'} {number} - {test.__name__[5:]}"
              + (f" # {note}" if note else ""), flush=True)
        if problem:
            print("# " + problem.strip().replace("\n", "\n# "), flush=True)
    return failed > 0


LINKS_BEFORE = set(os.listdir("/sys/class/net"))

if __name__ == "__main__":
    sys.exit(main(globals()))
