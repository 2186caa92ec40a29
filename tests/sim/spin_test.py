#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks the model of the arbitration, src/core/arbitration.pml, with spin, and that each error
planted in it is found. Prints TAP, and how many states were searched.
Usage: spin_test.py [--deep]   (--deep: more faults; some minutes, 3 GiB)"""

import concurrent.futures
import os
import re
import subprocess
import sys
import tempfile

TOP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
MODEL = os.path.abspath(os.path.join(TOP, "src", "core", "arbitration.pml"))
JOBS = 2

# What is searched: its name, what the model is compiled with, whether for endless repetitions too
# (which costs more), and the upper limit of memory in MiB.
HOLDS = [
    ("safety, 3 faults", ["FAULTS=3", "EPOCHS=0"], False, 1024),
    ("safety, 2 faults, more epochs", ["FAULTS=2", "EPOCHS=2"], False, 1024),
    ("progress, 1 fault", ["FAULTS=1", "EPOCHS=1"], True, 1024),
    ("progress, 2 faults, nobody there to help", ["FAULTS=2", "EPOCHS=0", "UNATTENDED"], True,
     1024),
]
DEEP = [
    ("safety, 4 faults", ["FAULTS=4", "EPOCHS=0"], False, 4096),
    ("safety, 3 faults, more epochs", ["FAULTS=3", "EPOCHS=1"], False, 4096),
    ("safety, 4 faults, nobody there to help", ["FAULTS=4", "EPOCHS=1", "UNATTENDED"], False, 4096),
    ("progress, 2 faults", ["FAULTS=2", "EPOCHS=1"], True, 4096),
    ("progress, 3 faults, nobody there to help", ["FAULTS=3", "EPOCHS=0", "UNATTENDED"], True,
     4096),
]
# A planted error, what the search for it takes, and whether it shows only as endless repetition.
PLANTS = [
    ("SOLO_UNASKED", "a primary goes solo without the swap", ["FAULTS=1", "EPOCHS=0"], False),
    ("OUTRUN_UNASKED", "a primary that outruns its link goes solo without the swap",
     ["FAULTS=1", "EPOCHS=0"], False),
    ("NO_TERMS", "a swap compares owner and mode only", ["FAULTS=1", "EPOCHS=0"], False),
    ("TERM_REUSED", "a pair term that was given away is used again", ["FAULTS=3", "EPOCHS=0"],
     False),
    ("RESUME_UNASKED", "a VM that was handed over runs on unasked", ["FAULTS=2", "EPOCHS=1"],
     False),
    ("ATTACH_UNSWAPPED", "an attached guard takes solo for granted", ["FAULTS=1", "EPOCHS=0"],
     False),
    ("RELEASE_ON_SENT", "output leaves when its epoch is sent", ["FAULTS=2", "EPOCHS=0"], False),
    ("PROTECTED_AGAIN", "an isolated primary believes in the pair again",
     ["FAULTS=1", "EPOCHS=0"], False),
    ("TERM_IGNORED", "a standby claims whatever there is", ["FAULTS=1", "EPOCHS=0"], False),
    ("TAKE_UNASKED", "a standby activates without the swap", ["FAULTS=1", "EPOCHS=0"], False),
    ("CLAIM_GIVEN_UP", "a standby discards its copy when a claim gets no answer",
     ["FAULTS=2", "EPOCHS=0", "UNATTENDED"], False),
    ("NEVER_VOID", "a standby goes on claiming when the record has moved on",
     ["FAULTS=1", "EPOCHS=0"], True),
    ("ASK_ONCE", "an isolated primary asks only once", ["FAULTS=2", "EPOCHS=0", "UNATTENDED"],
     False),
]


def search(defines, repetitions, memory_mib):
    """Searches the model. (what was found or None, states, seconds); raises when it could not."""
    with tempfile.TemporaryDirectory(prefix="understudy-spin-") as folder:
        def run(*command):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900,
                                  check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}: {done.stdout[-500:]}{done.stderr[-500:]}")
            return done.stdout

        run("spin", "-a", *(f"-D{one}" for one in defines), MODEL)
        kind = ["-DNFAIR=3"] if repetitions else ["-DSAFETY", "-DNOCLAIM"]
        run("cc", "-O1", "-w", "-DCOLLAPSE", f"-DMEMLIM={memory_mib}", *kind, "-o", "pan", "pan.c")
        said = run("./pan", "-m100000", *(["-a", "-f"] if repetitions else []))
    # Whatever makes the search less than exhaustive makes its result worthless.
    for limit in ("max search depth too small", "out of memory", "Search not completed"):
        if limit in said and "errors: 0" in said:
            raise RuntimeError(limit)
    found = re.search(r"pan:\d+: (.*)", said)
    return (found and found.group(1), int(re.search(r"(\d+) states, stored", said).group(1)),
            re.search(r"elapsed time (\S+) s", said).group(1))


def one(case):
    name, defines, repetitions, memory_mib, planted = case
    try:
        found, states, seconds = search(defines, repetitions, memory_mib)
    except (RuntimeError, subprocess.TimeoutExpired) as problem:
        return False, name, str(problem)
    said = f"{states} states, {seconds} s" + (f": {found[:60]}" if found else "")
    return bool(found) == planted, name, said


def main():
    cases = [(*case, False) for case in (DEEP if "--deep" in sys.argv else HOLDS)]
    if "--deep" not in sys.argv:
        cases += [(f"planted: {text}", [f"PLANT_{name}", *defines], repetitions, 1024, True)
                  for name, text, defines, repetitions in PLANTS]
    print(f"1..{len(cases)}")
    good = True
    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        for number, (ok, name, said) in enumerate(pool.map(one, cases), 1):
            print(f"{'ok' if ok else 'not ok'} {number} - {name}\n# {said}", flush=True)
            good = good and ok
    return not good


if __name__ == "__main__":
    sys.exit(main())
