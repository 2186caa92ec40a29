#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The guests' programs and their client, on this machine: do they notice what they are there to
notice? Prints TAP. Usage: programs_test.py DIR (with the programs in it); needs root, since it
runs in a network namespace of its own."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import traceback

TIMEOUT_S = 20
PAGE = 4096
EMPTY_HASH = 0xcbf29ce484222325


def ledger_hash(previous, number):
    """As in ledger.h: FNV-1a 64 over both, 8 bytes each."""
    value = EMPTY_HASH
    for byte in previous.to_bytes(8, "little") + number.to_bytes(8, "little"):
        value = (value ^ byte) * 0x100000001b3 % 2**64
    return value


@contextlib.contextmanager
def program(name, *args):
    """A server in the background, once it says that it listens."""
    with subprocess.Popen([f"{DIR}/{name}", *args], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL) as process:
        try:
            assert "listening" in process.stdout.readline()
            yield process
        finally:
            process.kill()


def ask(port, line):
    """The answer to one line. A conversation of its own, since lines may be odd here."""
    if isinstance(line, str):
        line = line.encode() + b"\n"
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as peer:
        peer.sendall(line)
        return peer.makefile().readline().strip()


def client(*args):
    """Runs ledger-client. Returns exit status, and the summary's figures."""
    done = subprocess.run([f"{DIR}/ledger-client", "--host", "127.0.0.1", "--interval-ms", "0",
                           "--timeout-s", "1", *args], text=True, timeout=TIMEOUT_S, check=False,
                          capture_output=True)
    summary = re.search(r"^ledger: ops=.*", done.stdout, re.M).group()
    return done.returncode, {k: float(v) for k, v in re.findall(r"(\w+)=([\d.]+)", summary)}


def test_ledger():
    with program("ledger"):
        assert ask(7000, "GET") == f"0 {EMPTY_HASH:016x}"
        first = ledger_hash(EMPTY_HASH, 5)
        assert ask(7000, "ADD 5") == f"1 5 {first:016x}"
        second = ledger_hash(first, 2**64 - 1)
        assert ask(7000, f"ADD {2**64 - 1}") == f"2 {2**64 - 1} {second:016x}"
        assert ask(7000, "GET") == f"2 {second:016x}"
        assert ask(7000, "SUM") == f"2 4 {second:016x}"


def test_ledger_bad_input():
    with program("ledger"):
        for line in (b"\n", b"ADD\n", b"ADD \n", b"ADD x\n", b"ADD -1\n", b"ADD +1\n", b"ADD  1\n",
                     b"ADD 1 \n", b"ADD 18446744073709551616\n", b"get\n", b"GET\0\n",
                     b"x" * 127 + b"\n", b"x" * 128 + b"\n", b"x" * 100000 + b"\n"):
            answer = ask(7000, line)
            assert answer.startswith("ERR "), f"{line[:40]}: {answer}"
        with socket.create_connection(("127.0.0.1", 7000), TIMEOUT_S) as peer:
            peer.sendall(b"x" * 5000 + b"\nGET\n")
            answers = peer.makefile()
            assert answers.readline() == "ERR line too long\n"
            assert answers.readline().startswith("0 ")


def test_ledger_many_clients():
    """More than there is room for: those beyond are turned away, the others are served."""
    with program("ledger"), contextlib.ExitStack() as stack:
        peers = [stack.enter_context(socket.create_connection(("127.0.0.1", 7000), TIMEOUT_S))
                 for _ in range(70)]
        served = 0
        for peer in peers:
            with contextlib.suppress(ConnectionError):
                peer.sendall(b"ADD 1\n")
                served += peer.recv(100).startswith(b"%d 1 " % (served + 1))
        assert served == 64, served


def test_client():
    with program("ledger"):
        for args in ((), ("--depth", "64"), ("--connections", "8", "--depth", "4")):
            status, found = client("--count", "2000", *args)
            assert status == 0 and found["ops"] == 2000, f"{args}: {status} {found}"
        assert ask(7000, "GET").startswith("6000 ")


class WrongLedger(threading.Thread):
    """A ledger that goes wrong at its 10th operation, as told."""

    def __init__(self, wrong):
        super().__init__(daemon=True)
        self.wrong = wrong
        self.listener = socket.create_server(("127.0.0.1", 7000))
        self.count, self.hash = 0, EMPTY_HASH
        self.start()

    def answer(self, line):
        verb, _, text = line.strip().partition(" ")
        if verb == "GET":
            return f"{self.count} {self.hash:016x}\n"
        number, before = int(text), (self.count, self.hash)
        self.count, self.hash = self.count + 1, ledger_hash(self.hash, number)
        if self.count == 10:
            wrong, self.wrong = self.wrong, None
            if wrong == "roll back":
                self.count, self.hash = before
            elif wrong == "repeat":
                self.count, self.hash = self.count + 1, ledger_hash(self.hash, number)
            elif wrong == "echo":
                number += 1
            elif wrong == "hash":
                self.hash ^= 1
            elif wrong == "junk":
                self.count, self.hash = before
                return "ERR what?\n"
            elif wrong == "endless":
                return "1" * 1000
            elif wrong == "unasked":
                return f"{self.count} {number} {self.hash:016x}\n" * 2
            elif wrong == "mute":
                return ""
            elif wrong == "close":
                return None
        return f"{self.count} {number} {self.hash:016x}\n"

    def run(self):
        with self.listener, self.listener.accept()[0] as peer:
            with contextlib.suppress(ConnectionError):
                for line in peer.makefile():
                    answer = self.answer(line)
                    if answer is None:
                        return
                    peer.sendall(answer.encode())


def test_client_notices():
    for wrong, figure in (("roll back", "lost"), ("repeat", "duplicated"), ("echo", "corrupted"),
                          ("hash", "corrupted"), ("junk", "corrupted"), ("endless", None),
                          ("unasked", None), ("mute", None), ("close", None)):
        server = WrongLedger(wrong)
        status, found = client("--count", "20")
        server.join(TIMEOUT_S)
        assert status == 1, f"{wrong}: {status}"
        for name in ("lost", "duplicated", "corrupted"):
            assert found[name] == (name == figure), f"{wrong}: {found}"
        if wrong == "mute":
            assert found["max_gap_ms"] >= 1000, found


def figures(answer):
    return {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", answer)}


def run_program(name, *args):
    """A program that ends by itself."""
    return subprocess.run([f"{DIR}/{name}", *args], text=True, timeout=TIMEOUT_S, check=False,
                          capture_output=True)


def keeper_counts(line):
    return figures(ask(7001, line))


def sweep_further(generations):
    """Lets the keeper's sweep go on, and stops it again."""
    start = keeper_counts("RATE 1000")["generation"]
    while keeper_counts("STATUS")["generation"] < start + generations:
        pass
    return keeper_counts("RATE 0")


class Memory:
    """The keeper's pages, from outside. Page 0 holds the sweep's state."""

    def __init__(self, process, pages):
        with open(f"/proc/{process.pid}/maps", encoding="ascii") as maps:
            for line in maps:
                start, end = (int(x, 16) for x in line.split()[0].split("-"))
                if end - start == (pages + 1) * PAGE:
                    self.start = start
        self.file = f"/proc/{process.pid}/mem"

    def read(self, page):
        with open(self.file, "rb") as mem:
            mem.seek(self.start + page * PAGE)
            return mem.read(PAGE)

    def write(self, page, content):
        with open(self.file, "r+b", buffering=0) as mem:
            mem.seek(self.start + page * PAGE)
            mem.write(content)


def test_keeper():
    with program("keeper", "8"):
        counts = keeper_counts("VERIFY")
        assert counts == {"pages": 2048, "generation": 1, "verified": 2048, "corrupt": 0}, counts
        assert sweep_further(3)["corrupt"] == 0
        assert keeper_counts("VERIFY")["corrupt"] == 0
        for line in ("RATE", "RATE x", "RATE -1", "RATE 1048577", "STATUS ", ""):
            assert ask(7001, line).startswith("ERR "), line


def test_keeper_notices():
    with program("keeper", "1") as process:
        memory = Memory(process, 256)
        page = bytearray(memory.read(100))
        page[2000] ^= 1                      # one bit
        memory.write(100, page)
        assert keeper_counts("VERIFY")["corrupt"] == 1
        counts = sweep_further(2)            # met once more, and made good
        assert counts["corrupt"] == 2, counts
        assert keeper_counts("VERIFY")["corrupt"] == 2

        old_page, old_state = memory.read(7), memory.read(0)
        sweep_further(2)
        page = memory.read(7)
        memory.write(7, old_page)            # whole, but of another instant
        assert keeper_counts("VERIFY")["corrupt"] == 3
        memory.write(7, page)
        assert keeper_counts("VERIFY")["corrupt"] == 3
        state = memory.read(0)
        memory.write(0, old_state)           # all pages newer than the sweep's state
        assert keeper_counts("VERIFY")["corrupt"] >= 256
        memory.write(0, state)


def test_ledger_file():
    """What was answered is in the file; at most one torn record is forgiven."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/ledger"
        with program("ledger", path):
            ask(7000, "ADD 5")
            second = ask(7000, "ADD 6")
            assert ask(7000, "SUM").startswith("2 11 ")
            with open(path, "r+b") as file:
                file.seek(8)
                hash_bytes = file.read(1)
                file.seek(8)
                file.write(bytes([hash_bytes[0] ^ 1]))
            assert ask(7000, "SUM").startswith("ERR "), "SUM does not read the file"
            with open(path, "r+b") as file:
                file.seek(8)
                file.write(hash_bytes)
        for tail in (b"", b"\1\2\3", bytes(16)):
            with open(path, "ab") as file:
                file.write(tail)
            with program("ledger", path):
                count, _, running = second.split()
                assert ask(7000, "GET") == f"{count} {running}"
        with open(path, "ab") as file:
            file.write(bytes(17))
        done = run_program("ledger", path)
        assert done.returncode == 1 and "damaged" in done.stderr, done


def test_scribe():
    """Killed and started again, it has all that it acknowledged; and its check notices damage."""
    with tempfile.TemporaryDirectory() as folder:
        acked = 0
        for _ in range(3):
            with program("scribe", folder):
                before = acked
                while acked < before + 300:
                    now = figures(ask(7002, "STATUS"))
                    assert now["acked"] >= acked and now["errno"] == 0, now
                    acked = now["acked"]
        assert run_program("scribe", "--check", folder, str(acked)).returncode == 0
        done = run_program("scribe", "--check", folder, str(acked + 1000))
        assert done.returncode == 1 and "is missing" in done.stderr, done
        with open(f"{folder}/scribe.2", "r+b") as file:
            file.seek(3000)
            byte = file.read(1)
            file.seek(3000)
            file.write(bytes([byte[0] ^ 0x80]))
        assert run_program("scribe", "--check", folder, str(acked)).returncode == 1
        with open(f"{folder}/scribe.2", "r+b") as file:
            file.seek(3000)
            file.write(byte)
        assert run_program("scribe", "--check", folder, str(acked)).returncode == 0
        os.truncate(f"{folder}/scribe.1", 20000)
        assert run_program("scribe", "--check", folder, str(acked)).returncode == 1


def test_scribe_full():
    with tempfile.TemporaryDirectory() as folder:
        with program("scribe", folder, "1"):
            while sum(os.path.getsize(f"{folder}/scribe.{i}") for i in range(4)) < 1 << 20:
                pass
            acked = figures(ask(7002, "STATUS"))["acked"]
            assert acked == figures(ask(7002, "STATUS"))["acked"]


def test_disk_model():
    # Not on a tmpfs: the model goes around the page cache.
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as disk:
        disk.truncate(8 << 20)
        with program("diskmodel", disk.name, "0"):
            while figures(ask(7003, "STATUS"))["ops"] < 2000:
                pass
            now = figures(ask(7003, "PAUSE"))
            assert now["bad"] == now["errors"] == 0 and now["syncs"] and now["trims"], now
            assert figures(ask(7003, "STATUS"))["ops"] == now["ops"], "PAUSE does not pause"
            assert figures(ask(7003, "VERIFY"))["bad"] == 0
            with open(disk.name, "rb") as file:
                old = file.read()
            ask(7003, "RUN")
            while figures(ask(7003, "STATUS"))["ops"] < now["ops"] + 2000:
                pass
            assert figures(ask(7003, "PAUSE"))["bad"] == 0
            place = next(i for i in range(0, len(old), 512) if any(old[i:i + 512]))
            with open(disk.name, "r+b") as file:
                file.seek(place + 511)       # one byte of a sector that holds something
                file.write(bytes([old[place + 511] ^ 1]))
            assert figures(ask(7003, "VERIFY"))["bad"] == 1
            with open(disk.name, "r+b") as file:
                file.write(old)              # whole, but of another instant
            assert figures(ask(7003, "VERIFY"))["bad"] > 100
        with program("diskmodel", disk.name, "0"):   # believes what it finds
            assert figures(ask(7003, "VERIFY"))["bad"] == 0


def test_runner():
    with program("runner"):
        done = run_program("guest-run", "127.0.0.1", "echo out; echo err >&2; exit 3", "10")
        assert done.returncode == 3 and done.stdout == "out\nerr\n", done
        assert run_program("guest-run", "127.0.0.1", "sleep 9", "1").returncode == 125
    assert run_program("guest-run", "127.0.0.1", "true", "1").returncode == 125


def test_small_files():
    with tempfile.TemporaryDirectory() as folder:
        done = run_program("smallfiles", folder, "50", "500")
        assert done.returncode == 0, done
        assert not [name for _, _, names in os.walk(folder) for name in names]


def main():
    tests = [f for n, f in globals().items() if n.startswith("test_")]
    failed = 0
    print(f"1..{len(tests)}", flush=True)
    for number, test in enumerate(tests, 1):
        problem = None
        try:
            test()
        except Exception:    # pylint: disable=broad-except # each test for itself
            problem = traceback.format_exc()
        failed += problem is not None
        print(f"{'not ok' if problem else 'ok'} {number} - {test.__name__[5:]}", flush=True)
        if problem:
            print("# " + problem.strip().replace("\n", "\n# "), flush=True)
    return failed > 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if os.geteuid() != 0:
        print("1..0 # SKIP network namespaces need root")
        sys.exit(0)
    if "GUEST_TEST_INSIDE" not in os.environ:
        os.environ["GUEST_TEST_INSIDE"] = "1"
        os.execvp("unshare", ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh",
                              sys.executable, *sys.argv])
    DIR = os.path.abspath(sys.argv[1])
    sys.exit(main())
