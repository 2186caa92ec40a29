# SPDX-License-Identifier: Apache-2.0
"""Disks for the VM tests: images, the guests that write them, and what must be on them afterwards.

A host's image FILE is RIG.dir/HOST/disks/FILE; the VM file names it RIG.dir/disks/FILE (see
tools/lab)."""

import contextlib
import os
import re
import stat
import subprocess
import tempfile

from rig import BUILD, LEDGER_PORT, MODEL_PORT, SCRIBE_PORT, Failure, expect, wait_for

DATA_MIB = 96   # vda: ext4, for the scribe and the ledger
MODEL_MIB = 16  # vdb: for the disk model
SPARE_MIB = 8   # vdc: nobody's


def image(lab, host, name):
    return f"{lab.dir}/{host}/disks/{name}"


def make_image(lab, host, name, mib, ext4=False):
    """A sparse image, all zeros but for a file system."""
    path = image(lab, host, name)
    with open(path, "wb") as file:
        file.truncate(mib << 20)
    if ext4:
        run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", path)


@contextlib.contextmanager
def block_device(lab, host, name, mib):
    """Makes a host's image a link to a loop device, which goes when nobody has it open any more,
    however this program ends. Where there are no loop devices nothing is made."""
    if not os.path.exists("/dev/loop-control"):
        yield
        return
    make_image(lab, host, f"{name}.loop", mib)
    device = run("losetup", "--find", "--show", image(lab, host, f"{name}.loop")).strip()
    with open(device, "rb"):
        run("losetup", "--detach", device)  # once it is closed
        os.symlink(device, image(lab, host, name))
        yield


def is_block_device(lab, host, name):
    return stat.S_ISBLK(os.stat(image(lab, host, name)).st_mode)


def run(*command, ok=(0,)):
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    expect(done.returncode in ok, f"{' '.join(command)}: exit status {done.returncode}: "
           f"{done.stdout.strip()} {done.stderr.strip()}")
    return done.stdout


def vm_disks(lab, *files):
    """The VM file's section, for images that are there."""
    return "disks:\n" + "".join(f"  - path: {lab.dir}/disks/{name}\n" for name in files)


def vm_options(lab, host, **more):
    """Makes images on a host, and returns the options for Rig.vm_file() of a VM in whose guest
    everything writes: the ledger and the scribe on vda, the model on vdb, nobody on vdc."""
    make_image(lab, host, "data.img", DATA_MIB, ext4=True)
    make_image(lab, host, "model.img", MODEL_MIB)
    make_image(lab, host, "spare.img", SPARE_MIB)
    return {"keeper_mib": 16, "keeper_rate": 4,
            "extra": vm_disks(lab, "data.img", "model.img", "spare.img"),
            "words": "us.mount=vda:/data us.ledger=/data/ledger us.scribe=/data us.model=vdb"
                     " us.model_pause=4000 us.runner", **more}


def check_model(lab, question="VERIFY"):
    """The guest compares its whole raw disk with what it must hold."""
    answer = lab.guest_ask(MODEL_PORT, question, 30)
    figures = {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", answer)}
    expect(figures.get("bad") == 0 and figures["errors"] == 0 and figures["ops"] > 0,
           f"disk model: {answer}")
    return figures


def hold_still(lab):
    """Has the guest's programs write nothing, until go_on()."""
    lab.guest_ask(SCRIBE_PORT, "PAUSE")
    lab.guest_ask(MODEL_PORT, "PAUSE")
    lab.guest_run("sync")


def be_quiet(lab, primary):
    """Has the guest write nothing more, and waits until the standby has it all."""
    hold_still(lab)
    wait_for("all writes to be on stable storage on the standby",
             lambda: not sum(disk["dirty_bytes"] for disk in lab.status(primary)["disks"]), 10)


def go_on(lab):
    lab.guest_ask(SCRIBE_PORT, "RUN")
    lab.guest_ask(MODEL_PORT, "RUN")


def check_equal(lab, *files):
    """Both hosts' images, byte for byte."""
    for name in files:
        at = first_difference(*(image(lab, host, name) for host in ("hosta", "hostb")))
        expect(at is None, f"{name}: the copies differ at {at}")


def first_difference(a, b):
    with open(a, "rb") as one, open(b, "rb") as two:
        at = 0
        while True:
            x, y = one.read(4096), two.read(4096)
            if x != y:
                return at
            if not x:
                return None
            at += 4096


def check_data(lab, host, acked, ledger_ops, name="data.img"):
    """The file system of a stopped VM: clean once its journal is replayed, all that was
    acknowledged is there, whole."""
    with tempfile.TemporaryDirectory(dir=lab.dir) as folder:
        copy, files = f"{folder}/copy.img", f"{folder}/files"
        run("cp", "--sparse=always", image(lab, host, name), copy)
        run("e2fsck", "-E", "journal_only", "-y", copy, ok=(0, 1))
        run("e2fsck", "-f", "-n", copy)
        os.mkdir(files)
        run("debugfs", "-R", f"rdump / {files}", copy)
        run(f"{BUILD}/tests/guest/scribe", "--check", files, str(acked))
        check_ledger(lab, f"{files}/ledger", ledger_ops)


def check_ledger(lab, path, ops):
    """The program that wrote the file reads it, and says how much is in it."""
    with open(f"{path}.log", "w", encoding="ascii") as log:
        server = lab.spawn("client", [f"{BUILD}/tests/guest/ledger", path], log, log)
    try:
        answer = lab.lab("exec", "client", f"{BUILD}/tests/guest/guest-ask", "127.0.0.1",
                         str(LEDGER_PORT), "GET").stdout
    except Failure as none:
        with open(f"{path}.log", encoding="ascii") as log:
            raise Failure(f"the ledger's file: {log.read()}") from none
    finally:
        server.kill()
        server.wait(10)
    expect(int(answer.split()[0]) >= ops, f"{ops} numbers were acknowledged, the file has {answer}")


def disk_status(lab, host, name):
    for disk in lab.status(host).get("disks", []):
        if disk["path"].endswith("/" + name):
            return disk
    raise Failure(f"status of {host} has no disk {name}")


def check_copies(lab, primary):
    """understudy verify finds no difference."""
    done = lab.cli(primary, "verify", "web")
    expect(done.returncode == 0, f"understudy verify: {done.stdout}{done.stderr}")


def stop_vm(lab, primary):
    lab.must(primary, "stop", "web")
    for host in ("hosta", "hostb"):
        wait_for(f"web to be gone from {host}", lambda: not lab.status(host).get("pid"), 10)
