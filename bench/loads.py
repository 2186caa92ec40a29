# SPDX-License-Identifier: Apache-2.0
"""What the speed bench has the guests do. A load takes (subject, seconds) and returns numbers; all
times are the host's, since the guest's clock stands still in pauses."""

import csv
import json
import re
import subprocess
import time

from subjects import DIRTIER_PORT, Window  # finds the rig, too
from rig import BUILD, Ledger, expect

UNIT_S = 1.3      # about what a unit of the compile-like load takes here
KV_REQUESTS = 700  # of each kind, for each second that the load shall last
KV_CLIENTS = 50
HTTP_CLIENTS = 32
REQUEST_MS = 20   # request/response: one in so much time


def client(subject, *command, timeout=120):
    """Runs a load generator on the lab's client; returns what it says."""
    done = subject.lab.lab("exec", "client", *command, timeout=timeout)
    return done.stdout


def build(subject, seconds):
    """Seconds for a unit: the guest compiles, assembles and compresses."""
    units = max(2, round(seconds / UNIT_S)) + 1
    command = [f"{BUILD}/tests/guest/guest-run", subject.address, f"/bench/build-load {units}",
               "300"]
    stamps = []
    with Window(subject) as window:
        process = subject.lab.spawn("client", command, subprocess.PIPE)
        with process:
            for line in process.stdout:
                if line.startswith(b"unit "):
                    stamps.append((time.monotonic(), float(line.split()[2])))
    expect(len(stamps) == units and process.returncode == 0, "the compile-like load failed")
    # The first unit warms up.
    (first, guest_first), (last, guest_last) = stamps[0], stamps[-1]
    found = window.result()
    return found | {"units": units - 1, "unit_s": (last - first) / (units - 1),
                    "guest_unit_s": (guest_last - guest_first) / (units - 1),
                    "cpu_unit_s": found["cpu_pct"]["qemu"] / 100 * found["seconds"] / units}


def key_value(subject, seconds):
    """Requests per second of redis under redis-benchmark, one at a time and in pipelines."""
    def redis_benchmark(kind, depth):
        said = client(subject, "redis-benchmark", "-h", subject.address, "-t", "set,get",
                      "-c", str(KV_CLIENTS), "-n", str(int(KV_REQUESTS * seconds) * depth),
                      "-r", "10000", "-d", "100", "-P", str(depth), "--csv")
        rows = {row[0].lower(): row for row in csv.reader(said.splitlines())}
        tests = ("set", "get")
        found = {f"{kind}_{test}_{what}": float(rows[test][column]) for test in tests
                 for what, column in (("per_s", 1), ("p50_ms", 4), ("p99_ms", 6))}
        # As many of the one kind as of the other: the harmonic mean.
        found[f"{kind}_per_s"] = 2 / sum(1 / found[f"{kind}_{test}_per_s"] for test in tests)
        return found

    with Window(subject) as window:
        single = redis_benchmark("single", 1)
    return window.result() | single | redis_benchmark("pipelined", 16)


def http(subject, seconds):
    """Requests per second of nginx under wrk."""
    with Window(subject) as window:
        said = client(subject, "wrk", "-t1", f"-c{HTTP_CLIENTS}", f"-d{max(1, round(seconds))}s",
                      "--latency", f"http://{subject.address}/")
    expect("Non-2xx" not in said and "Socket errors" not in said, f"wrk: {said}")
    scale = {"us": 1e-3, "ms": 1, "s": 1e3}

    def latency(percent):
        number, unit = re.search(rf"^ +{percent}% +([\d.]+)([mu]?s)$", said, re.M).groups()
        return float(number) * scale[unit]

    return window.result() | {"per_s": float(re.search(r"Requests/sec: +([\d.]+)", said).group(1)),
                              "p50_ms": latency(50), "p99_ms": latency(99)}


def answers(path):
    """A ledger client's answers: (when, in Unix ms; round trip in ms)."""
    with open(path, encoding="ascii") as lines:
        return [(found["t_ms"], found["rtt_ms"]) for found in map(json.loads, lines)]


def latency(subject, seconds):
    """Round trips of a request every 20 ms over one TCP connection; the guest is idle otherwise."""
    path = f"{subject.lab.dir}/latency-{len(subject.lab.clients)}.jsonl"
    ledger = Ledger(subject.lab, interval_ms=REQUEST_MS, out=path, address=subject.address)
    ledger.wait_connected()
    with Window(subject) as window:
        time.sleep(seconds)
    ledger.check()
    return window.result() | {"rtt_ms": [round(rtt, 3) for _, rtt in answers(path)[10:]]}


def idle(subject, seconds):
    """What protecting an idle VM takes of the hosts' CPUs."""
    with Window(subject) as window:
        time.sleep(seconds)
    return window.result()


def written(subject):
    """Pages that the guest's memory writer has written, and when it said so."""
    asked = time.monotonic()
    answer = subject.ask(DIRTIER_PORT, "STATUS")
    return int(answer.partition("=")[2]), asked


def writer(subject, seconds, ring=8000, rate=1000, changed=512):
    """A memory writer: `changed` random bytes in each page of a ring, `rate` pages a second."""
    subject.ask(DIRTIER_PORT, f"RUN {ring} {rate} {changed}")
    try:
        time.sleep(min(1, seconds / 2))
        with Window(subject) as window:
            start, began = written(subject)
            time.sleep(seconds)
            end, ended = written(subject)
    finally:
        subject.ask(DIRTIER_PORT, "RUN 1 0 8")
    return window.result() | {"ring": ring, "rate": rate, "pages_per_s":
                              (end - start) / (ended - began)}


def endless(subject, seconds):
    """Commands for the lab's client that keep a guest busy in every way at once."""
    return (["redis-benchmark", "-h", subject.address, "-t", "set,get", "-c", str(KV_CLIENTS),
             "-r", "10000", "-d", "100", "-q", "-l"],
            ["wrk", "-t1", f"-c{HTTP_CLIENTS}", f"-d{seconds}s", f"http://{subject.address}/"],
            [f"{BUILD}/tests/guest/guest-run", subject.address, "/bench/build-load 100000",
             seconds])
