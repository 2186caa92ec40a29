#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""etcd as the arbiter: real clusters whose nodes are killed, frozen and deposed in the middle of
swaps, and servers that lie. Prints TAP.

Runs in a network namespace of its own: a node each on 127.0.0.1, .2 and .3."""

import contextlib
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

from grpc_stub import GOAWAY, HEADER, RST_STREAM, Stub, field, register

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "vm"))
# pylint: disable=wrong-import-position
from etcd_cluster import Cluster, make_authority, make_certificate  # noqa: E402
from rig import BUILD, Tap, expect  # noqa: E402

PROBE, SEMANTICS = f"{BUILD}/tests/net/arbiter-probe", f"{BUILD}/tests/net/arbiter-semantics"
NODES = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
PREFIX = "/understudy/"
KEY = f"{PREFIX}registers/web"
DONE, CONFLICT, ERROR, NO_ANSWER = 1, 2, 3, 0
tap = Tap()


# -- asking --

class Answer:
    """A line of arbiter-probe."""

    def __init__(self, line):
        start, end, self.op, status, expected, term, self.owner, self.why = line.split(" ", 7)
        self.start, self.end = int(start) / 1e9, int(end) / 1e9
        self.status, self.expected, self.term = int(status), int(expected), int(term)

    def __repr__(self):
        return f"{self.op} status={self.status} term={self.term} owner={self.owner} {self.why}"


def arbiter(folder, urls, name="root", prefix=PREFIX):
    return ",".join(["etcd", folder, name, prefix, *urls])


def get(whom, timeout_ms=5000, vm="web"):
    done = subprocess.run([PROBE, whom, "hosta", str(timeout_ms), "get", vm], text=True,
                          capture_output=True, timeout=timeout_ms / 1000 + 10, check=False)
    expect(done.returncode == 0 and done.stdout, f"arbiter-probe: {done.returncode} {done.stderr}")
    return Answer(done.stdout.splitlines()[0])


@contextlib.contextmanager
def race(whoms, seconds, vm="race", timeout_ms=1000):
    """Hosts h0, h1, ... try to own a VM in each term; yields a function that waits for the end and
    returns what each of them heard."""
    hosts = []
    for number, whom in enumerate(whoms):
        out = tempfile.TemporaryFile("w+")
        hosts.append((out, subprocess.Popen(
            [PROBE, whom, f"h{number}", str(timeout_ms), "race", vm, str(int(seconds * 1000))],
            stdout=out)))

    def finish():
        histories = []
        for out, process in hosts:
            expect(process.wait(seconds + 20) == 0, "arbiter-probe failed")
            out.seek(0)
            histories.append([Answer(line) for line in out.read().splitlines()])
        return histories

    try:
        yield finish
    finally:
        for out, process in hosts:
            process.kill()
            process.wait(10)
            out.close()


def check_histories(histories):
    """The register was linearizable: each term has one owner, who asked for it, and nobody saw a
    term before it was asked for or an older one after a newer one had been seen."""
    owners, asked, seen = {}, {}, []
    for host, history in enumerate(histories):
        for a in history:
            if a.op == "swap":
                asked[f"h{host}", a.expected + 1] = a.start
            if a.status not in (DONE, CONFLICT):
                continue
            seen.append(a)
            expect(owners.setdefault(a.term, a.owner) == a.owner,
                   f"term {a.term} has two owners: {owners[a.term]} and {a.owner}")
            if a.op == "swap" and a.status == DONE:
                expect(a.owner == f"h{host}" and a.term == a.expected + 1, f"h{host} won {a}")
            elif a.op == "swap":
                expect(a.term != a.expected, f"a conflict that is none: {a}")
    first = min(a.term for a in seen)
    for a in seen:
        if a.term > first:
            expect(asked.get((a.owner, a.term), a.end) < a.end, f"nobody had asked for {a}")
    newest, ended = 0, sorted(seen, key=lambda a: a.end)
    i = 0
    for a in sorted(seen, key=lambda a: a.start):
        while ended[i].end < a.start:
            newest = max(newest, ended[i].term)
            i += 1
        expect(a.term >= newest, f"went back from term {newest}: {a}")
    wins = [a for a in seen if a.op == "swap" and a.status == DONE]
    expect(len({a.term for a in wins}) == len(wins), "a term was won twice")
    return sorted(wins, key=lambda a: a.end)


def until_answered(histories, since):
    """Seconds from then until the first swap that was asked for later was carried out."""
    later = [a.end for history in histories for a in history
             if a.op == "swap" and a.status == DONE and a.start > since]
    expect(later, "nothing was answered any more")
    return min(later) - since


def figures(name, seconds):
    ordered = sorted(seconds)
    return (f"{name}: n={len(ordered)} p50={ordered[len(ordered) // 2] * 1e3:.0f} ms"
            f" max={ordered[-1] * 1e3:.0f} ms")


# -- tests --

@contextlib.contextmanager
def cluster(n=3, **options):
    with tempfile.TemporaryDirectory(prefix="us-etcd-") as folder, \
            Cluster(folder, NODES[:n], **options) as nodes:
        yield nodes


def check_semantics(whom):
    done = subprocess.run([SEMANTICS, whom], text=True, capture_output=True, timeout=120,
                          env={**os.environ, "CMOCKA_MESSAGE_OUTPUT": "TAP"}, check=False)
    expect(done.returncode == 0, f"{done.stdout}{done.stderr}")


@tap.test
def semantics():
    """the tests of an arbiter pass on one node and on three, over whichever endpoint"""
    with cluster(1) as nodes:
        check_semantics(arbiter(nodes.folder, nodes.urls()))
    with cluster(3) as nodes:
        for first in range(3):
            check_semantics(arbiter(nodes.folder, nodes.urls(first), prefix=f"/{first}/"))


@tap.test
def many_hosts():
    """of many hosts that want the same term exactly one gets it"""
    with cluster() as nodes:
        with race([arbiter(nodes.folder, nodes.urls(i)) for i in range(8)], 3) as finish:
            histories = finish()
        wins = check_histories(histories)
        expect(len(wins) > 50, f"only {len(wins)} swaps")
        expect(all(a.status != NO_ANSWER for h in histories for a in h), "answers were lost")
        return f"# {len(wins)} terms in 3 s"


def disturb(name, seconds, disturbance, rounds=4, **options):
    """Runs races on a cluster, which is disturbed in the middle of each: disturbance(nodes) returns
    when it was done, and how to repair it. Returns the figures of the time without answers."""
    gaps = []
    with cluster(**options) as nodes:
        for number in range(rounds):
            whoms = [arbiter(nodes.folder, nodes.urls(i)) for i in range(3)]
            with race(whoms, seconds, vm=f"race{number}") as finish:
                time.sleep(random.uniform(0.5, 1))  # anywhere in the stream
                since, repair = disturbance(nodes)
                histories = finish()
            check_histories(histories)
            gaps.append(until_answered(histories, since))
            repair()
            nodes.wait_healthy()
    return figures(name, gaps)


def kill_node(nodes, node):
    since = time.monotonic()
    nodes.kill(node)
    return since, lambda: nodes.start(node)


def kill_follower(nodes):
    return kill_node(nodes, (nodes.leader() + 1) % 3)


def kill_leader(nodes):
    return kill_node(nodes, nodes.leader())


def freeze_leader(nodes):
    leader, since = nodes.leader(), time.monotonic()
    nodes.signal(leader, signal.SIGSTOP)
    return since, lambda: nodes.signal(leader, signal.SIGCONT)


def move_leader(nodes):
    leader = nodes.leader()
    since = time.monotonic()
    nodes.move_leader(leader, (leader + 1) % 3)
    return since, lambda: None


def move_and_kill_leader(nodes):
    leader = nodes.leader()
    mover = threading.Thread(target=nodes.ctl, args=(
        "move-leader", f"{nodes.status((leader + 1) % 3)[0]:x}"),
        kwargs={"node": leader, "check": False})
    mover.start()
    time.sleep(random.uniform(0, 0.05))
    since, repair = kill_node(nodes, leader)
    mover.join(30)
    return since, repair


@tap.test
def follower_killed():
    """a follower is killed in the middle of swaps: no term is won twice, none goes back"""
    return "# " + disturb("until answered", 4, kill_follower)


@tap.test
def leader_killed():
    """the leader is killed in the middle of swaps"""
    return "# " + disturb("until answered", 6, kill_leader)


@tap.test
def leader_killed_fast_election():
    """the leader is killed, in a cluster tuned for a LAN"""
    return "# " + disturb("until answered", 4, kill_leader, election_ms=200)


@tap.test
def leader_frozen():
    """the leader is frozen, and thaws when another has long taken its place"""
    return "# " + disturb("until answered", 7, freeze_leader)


@tap.test
def leader_moved():
    """the leader is moved in the middle of swaps"""
    return "# " + disturb("until answered", 3, move_leader)


@tap.test
def leader_moved_and_killed():
    """the leader is killed in the middle of being moved in the middle of swaps"""
    return "# " + disturb("until answered", 6, move_and_kill_leader)


@tap.test
def minority():
    """with two of three nodes dead nothing is answered and nothing changes; then it goes on"""
    with cluster() as nodes:
        whom = arbiter(nodes.folder, nodes.urls())
        with race([whom], 0.5, vm="web") as finish:
            check_histories(finish())
        before = get(whom)
        expect(before.term > 0, f"{before}")
        for node in (1, 2):
            nodes.kill(node)
        with race([arbiter(nodes.folder, nodes.urls(i)) for i in range(3)], 3, vm="web") as finish:
            heard = [a for history in finish() for a in history]
        expect(heard and all(a.status == NO_ANSWER and a.why for a in heard), f"{heard}")
        for node in (1, 2):
            nodes.start(node)
        nodes.wait_healthy()
        after = get(whom)
        # A swap that was waiting for a majority may have been carried out at last: one of those
        # that were asked for, and no more, since every other one expected an older term.
        expect(after.status == DONE and after.term in (before.term, before.term + 1), f"{after}")
        with race([whom], 0.5, vm="web") as finish:
            expect(check_histories(finish()), "it does not go on")


@tap.test
def endpoints():
    """a dead endpoint costs nothing, a frozen one a time-out; then the next one is asked"""
    with cluster() as nodes:
        whom = arbiter(nodes.folder, nodes.urls())
        expect(get(whom).status == DONE, "the cluster does not answer")
        nodes.kill(0)
        nodes.leader()
        answer = get(whom, 3000)
        expect(answer.status == DONE and answer.end - answer.start < 1, f"{answer}")
        nodes.start(0)
        nodes.wait_healthy()
        leader = nodes.leader()
        if leader == 0:
            nodes.move_leader(0, 1)
        with race([whom], 4, vm="web") as finish:
            time.sleep(1)
            nodes.signal(0, signal.SIGSTOP)
            [history] = finish()
        nodes.signal(0, signal.SIGCONT)
        check_histories([history])
        lost = [a for a in history if a.status == NO_ANSWER]
        expect(len(lost) == 1 and "no answer within 1000 ms" in lost[0].why, f"{lost}")
        then = history[history.index(lost[0]) + 1]
        expect(then.end - then.start < 0.3, f"the frozen one was tried again: {then}")
        expect(get(arbiter(nodes.folder, nodes.urls()), 3000).status == DONE, "after the thaw")


@tap.test
def certificates():
    """only a certificate of our authority for that address is believed, on both sides"""
    with cluster(1) as nodes:
        folder = nodes.folder
        other = f"{folder}/other"
        os.mkdir(other)
        make_authority(other)
        make_certificate(other, "stranger")
        url = nodes.url(0)
        for suffix in ("pem", "key"):
            shutil.copy(f"{folder}/root.{suffix}", other)
            shutil.copy(f"{other}/stranger.{suffix}", folder)
        for whom, what in (
                (arbiter(other, [url]), "unable to get local issuer certificate"),
                (arbiter(folder, [url.replace("127.0.0.1", "localhost")]), "no alternative"),
                (arbiter(folder, [url], name="nobody"), "could not load PEM"),
                (arbiter(folder, [url], name="stranger"), ""),  # they close it, now or then
                (arbiter(folder, [url.replace("https", "http")]), "not supported or disabled")):
            answer = get(whom, 2000)
            expect(answer.status == NO_ANSWER and answer.why and what in answer.why,
                   f"{what}: {answer}")
        expect(get(arbiter(folder, [url])).status == DONE, "the right ones are refused")


@tap.test
def roles():
    """a certificate opens the registers of its own pair of hosts and no others"""
    with cluster(1) as nodes:
        for pair in ("pair1", "pair2"):
            make_certificate(nodes.folder, pair)
            nodes.ctl("user", "add", pair, "--no-password")
            nodes.ctl("role", "add", pair)
            nodes.ctl("role", "grant-permission", pair, "--prefix=true", "readwrite",
                      f"/understudy/{pair}/")
            nodes.ctl("user", "grant-role", pair, pair)
        nodes.ctl("user", "add", "root", "--no-password")
        nodes.ctl("user", "grant-role", "root", "root")
        nodes.ctl("auth", "enable")
        urls = nodes.urls()
        own = arbiter(nodes.folder, urls, "pair1", "/understudy/pair1/")
        check_semantics(own)
        for prefix in ("/understudy/pair2/", "/understudy/", "/"):
            answer = get(arbiter(nodes.folder, urls, "pair1", prefix))
            expect(answer.status == ERROR and "permission denied" in answer.why, f"{answer}")
        make_certificate(nodes.folder, "stranger")
        answer = get(arbiter(nodes.folder, urls, "stranger", "/understudy/pair1/"))
        expect(answer.status in (ERROR, NO_ANSWER) and answer.why, f"{answer}")
        with race([arbiter(nodes.folder, urls, "pair1", "/understudy/pair2/")], 0.3) as finish:
            expect(all(a.status == ERROR for h in finish() for a in h), "it got somewhere")


@tap.test
def foreign_values():
    """a register with anything in it but what we write is an error, and never void"""
    with cluster(1) as nodes:
        whom = arbiter(nodes.folder, nodes.urls())
        good = '{"term":3,"owner":"hosta","mode":"paired","standby":"hostb"}'
        for value in ("", "x", "{}", "null", good + " ", good.replace(",", ", "),
                      good.replace("3", "03"), good.replace("3", "0"), good.replace("3", "-1"),
                      good.replace("3", "3.0"), good.replace("3", "99999999999999999999"),
                      good.replace("hosta", "hostb"), good.replace("hosta", "HOSTA"),
                      good.replace("hosta", "a" * 64), good.replace("paired", "solo"),
                      good.replace("paired", "x"), good[:-1] + ',"more":1}',
                      good[:-1] + ',"term":3}', "[" * 200, "x" * 10000):
            nodes.ctl("put", KEY, "--", value)
            answer = get(whom)
            expect(answer.status == ERROR and "not written by Understudy" in answer.why,
                   f"{value[:80]!r}: {answer}")
        nodes.ctl("put", KEY, "--", "x" * 100000)
        answer = get(whom)
        expect(answer.status == NO_ANSWER and "too long" in answer.why, f"{answer}")
        nodes.ctl("put", KEY, "--", good)
        answer = get(whom)
        expect((answer.status, answer.term, answer.owner) == (DONE, 3, "hosta"), f"{answer}")


# -- servers that lie --

def make_keys(folder):
    make_authority(folder)
    for name, addresses in (("server", ["127.0.0.1"]), ("root", ())):
        make_certificate(folder, name, addresses)


WEB = register(KEY, '{"term":3,"owner":"hosta","mode":"solo","standby":""}')


def sends(message, status="0", text=None, http="200", prefix=None):
    """Plays an answer with all its parts."""
    def play(exchange):
        exchange.start(http)
        exchange.data((b"\0" + len(message).to_bytes(4, "big") if prefix is None else prefix) +
                      message)
        exchange.end(status, text)
    return play


def endless(exchange):
    exchange.start()
    while True:
        exchange.data(b"\0" * 16384)


def endless_headers(exchange):
    for number in range(100000):
        exchange.headers((f"x{number}", "y" * 100))


def slowly(exchange):
    """The right answer in pieces of a byte."""
    exchange.start()
    for byte in b"\0" + len(HEADER + WEB).to_bytes(4, "big") + HEADER + WEB:
        exchange.data(bytes([byte]))
        time.sleep(0.002)
    exchange.end()


LIES = {
    "silence": lambda exchange: None,
    "hangs up": lambda exchange: True,
    "no frames": lambda exchange: exchange.raw(b"HTTP/1.1 200 OK\r\n\r\n" * 100),
    "a frame without end": lambda exchange: exchange.raw(b"\xff\xff\xff\0\0\0\0\0\1" + b"x" * 99),
    "no headers": lambda exchange: exchange.data(HEADER + WEB, end=True),
    "no trailers": lambda exchange: (exchange.start(), exchange.data(b"\0\0\0\0\0", end=True)),
    "hangs up in the middle": lambda exchange: (exchange.start(), True),
    "endless": endless,
    "endless headers": endless_headers,
    "an empty message": sends(b""),
    "no message": lambda exchange: (exchange.start(), exchange.end()),
    "no header in the message": sends(WEB),
    "no revision": sends(field(1, field(1, 77)) + WEB),
    "too short a length": sends(HEADER + WEB, prefix=b"\0\0\0\0\5"),
    "too long a length": sends(HEADER + WEB, prefix=b"\0\xff\xff\xff\xff"),
    "compressed": sends(HEADER + WEB, prefix=b"\1" + len(HEADER + WEB).to_bytes(4, "big")),
    "two messages": sends(2 * (b"\0" + len(HEADER).to_bytes(4, "big") + HEADER), prefix=b""),
    "two registers": sends(HEADER + WEB + WEB),
    "another register": sends(HEADER + register(KEY + "x", "{}")),
    "more of it": sends(HEADER + WEB + field(3, 1)),
    "cut off": sends((HEADER + WEB)[:-3]),
    "no protobuf": sends(b"\xff" * 40),
    "an error": sends(b"", "14", "etcdserver: no leader"),
    "another error": sends(b"", "99999999999999999999", "x" * 120),
    "an error that is none": sends(HEADER + WEB, "zero"),
    "HTTP error": sends(HEADER + WEB, http="503"),
    "redirection": lambda exchange: exchange.headers(
        (":status", "302"), ("location", "https://127.0.0.1:1/"), end=True),
}


@tap.test
def lies():
    """what a server says that cannot be an answer is not taken for one"""
    with tempfile.TemporaryDirectory(prefix="us-etcd-") as folder:
        make_keys(folder)

        def ask(play, timeout_ms=400, **options):
            with Stub(folder, play, **options) as stub:
                return get(arbiter(folder, [stub.url]), timeout_ms)

        for play in (sends(HEADER + WEB), slowly):
            answer = ask(play, 5000)
            expect((answer.status, answer.term) == (DONE, 3), f"the truth: {answer}")
        answer = ask(sends(b"", "7", "etcdserver: permission denied"))
        expect(answer.status == ERROR and "permission denied" in answer.why, f"{answer}")
        for name, play in LIES.items():
            answer = ask(play)
            expect(answer.status == NO_ANSWER and answer.why, f"{name}: {answer}")
        answer = ask(sends(HEADER + WEB), alpn=None)
        expect(answer.status == NO_ANSWER, f"HTTP/1.1: {answer}")
        for name, before in (("no TLS", lambda plain: plain.sendall(b"\0" * 1000)),
                             ("nothing", lambda plain: None),
                             ("an alert", lambda plain: plain.sendall(b"\x15\3\3\0\2\2\x28"))):
            answer = ask(None, before=before)
            expect(answer.status == NO_ANSWER and answer.why, f"{name}: {answer}")


@tap.test
def damage():
    """an answer with random damage never crashes the asker"""
    with tempfile.TemporaryDirectory(prefix="us-etcd-") as folder:
        make_keys(folder)
        seed = time.time_ns()
        chance = random.Random(seed)

        def play(exchange):
            whole = bytearray()
            real, exchange.raw = exchange.raw, whole.extend
            exchange.answer(HEADER + WEB)
            for _ in range(chance.randint(1, 4)):
                whole[chance.randrange(len(whole))] = chance.randrange(256)
            real(bytes(whole[:chance.choice((len(whole), chance.randrange(len(whole))))]))
            return True

        with Stub(folder, play) as stub:
            whom = arbiter(folder, [stub.url])
            with race([whom] * 2, 4, timeout_ms=100) as finish:
                n = sum(len(history) for history in finish())
        expect(n > 50, f"only {n} answers")
        return f"# {n} answers, seed {seed}"


@tap.test
def another_history():
    """a cluster that is another than before, or was set back, decides nothing any more"""
    with tempfile.TemporaryDirectory(prefix="us-etcd-") as folder:
        make_keys(folder)
        done = field(2, 1) + field(3, field(2, b""))  # to a swap
        for later in (field(1, field(1, 78) + field(3, 6)), field(1, field(1, 77) + field(3, 4))):
            def play(exchange, later=later):
                exchange.answer((HEADER if len(stub.messages) <= 2 else later) +
                                (done if b"term" in exchange.message else b""))

            with Stub(folder, play) as stub, race([arbiter(folder, [stub.url])], 0.5) as finish:
                [history] = finish()
            expect([a.status for a in history[:2]] == [DONE, DONE], f"{history[:3]}")
            expect(len(history) > 3 and all(a.status == NO_ANSWER and "not the cluster" in a.why
                                            for a in history[2:]), f"{history}")


BREAKS = {  # of a kept connection, or of the exchange on it
    "end": lambda exchange: True,
    "reset": lambda exchange: exchange.connection.setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)) or True,
    "refused stream": lambda exchange: exchange.frame(RST_STREAM, 0, (7).to_bytes(4, "big")),
    "HTTP/1.1 required": lambda exchange: exchange.frame(RST_STREAM, 0, (13).to_bytes(4, "big")),
    "goaway": lambda exchange: exchange.frame(GOAWAY, 0, bytes(8), stream=0) or True,
}


@tap.test
def never_twice():
    """a swap whose kept connection breaks before the answer is not sent again by itself"""
    with tempfile.TemporaryDirectory(prefix="us-etcd-") as folder:
        make_keys(folder)
        web = register(f"{PREFIX}registers/race",
                       '{"term":3,"owner":"hosta","mode":"solo","standby":""}')
        for name, broken in BREAKS.items():
            def play(exchange, broken=broken):
                if b'"term":4' in exchange.message:  # the swap
                    return broken(exchange)
                return exchange.answer(HEADER + web)

            with Stub(folder, play) as stub, race([arbiter(folder, [stub.url])], 0.7) as finish:
                [history] = finish()
            sent = sum(b'"term":4' in message for message in stub.messages)
            asked = sum(a.op == "swap" for a in history)
            expect(asked > 2 and sent == asked, f"{name}: {asked} swaps asked for, {sent} sent")
            expect(all(a.status == NO_ANSWER for a in history if a.op == "swap"), f"{history}")


def main():
    if os.geteuid() != 0:
        print("1..0 # SKIP network namespaces need root")
        return
    if os.environ.get("ETCD_TEST_INSIDE") != "1":
        os.environ["ETCD_TEST_INSIDE"] = "1"
        os.execvp("unshare", ["unshare", "--net", "--", sys.executable, *sys.argv])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=10)
    tap.run()


if __name__ == "__main__":
    main()
