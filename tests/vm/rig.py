# SPDX-License-Identifier: Apache-2.0
"""What the demo, the VM tests and the benches stand on: a lab with understudyd on two or three
hosts and a witness, real guests, and clients of what those serve.

Everything waits for events, with a bound; nothing sleeps for luck. `with Rig(...)` leaves nothing
behind, whatever happens inside."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time

from etcd_cluster import Cluster, make_certificate
from faults import FaultFile

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.abspath(os.environ.get("BUILD", os.path.join(TOP, "build")))
GUEST = os.environ.get("GUEST_IMAGE", os.path.join(TOP, "build", "guest"))
GUEST_IP = "10.78.0.10"
LEDGER_PORT = 7000
KEEPER_PORT = 7001
SCRIBE_PORT = 7002
MODEL_PORT = 7003
MEMBERS = ("hosta", "hostb", "witness")  # where the nodes of etcd live
EMULATOR_USER = 64110  # as in tools/lab's configurations


class Failure(Exception):
    """A test's expectation that did not hold."""


def expect(condition, text):
    if not condition:
        raise Failure(text)


def other(host):
    return "hostb" if host == "hosta" else "hosta"


def wait_for(what, probe, seconds, interval=0.02):
    """Calls probe() until it returns something true, and returns that."""
    end = time.monotonic() + seconds
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > end:
            raise Failure(f"waited {seconds} s in vain for {what}")
        time.sleep(interval)


def open_to_all(path):
    """Whether any user gets there."""
    while path != "/":
        if not os.stat(path).st_mode & 0o001:
            return False
        path = os.path.dirname(path)
    return True


class Ledger:
    """A ledger client that runs until stop(); result() is its last line as numbers."""

    def __init__(self, rig, interval_ms=10, seconds=600, out=None, connections=1, gap_ms=50,
                 address=GUEST_IP):
        self.log = os.path.join(rig.dir, f"ledger-{len(rig.clients)}.log")
        command = [f"{BUILD}/tests/guest/ledger-client", "--host", address, "--port",
                   str(LEDGER_PORT), "--interval-ms", str(interval_ms), "--duration-s",
                   str(seconds), "--connections", str(connections), "--report-gap-ms", str(gap_ms)]
        if out:
            command += ["--out", out]
        with open(self.log, "w", encoding="ascii") as log:
            self.process = rig.spawn("client", command, log, log)
        rig.clients.append(self)

    def text(self):
        with open(self.log, encoding="ascii") as log:
            return log.read()

    def wait_connected(self, seconds=15):
        wait_for("the ledger client to connect", lambda: "connected" in self.text(), seconds)

    def stop(self, seconds=30):
        """Ends it after the answers still due; returns its figures as a dict of floats."""
        if self.process.poll() is None:
            self.process.terminate()  # `lab exec` has replaced itself by the client
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired as late:
            raise Failure(f"the ledger client hangs: {self.text()}") from late
        return self.result()

    def result(self):
        last = [line for line in self.text().splitlines() if line.startswith("ledger: ops=")]
        expect(last, f"the ledger client ended without a result: {self.text()}")
        return {k: float(v) for k, v in re.findall(r"(\w+)=([-\d.]+)", last[-1])}

    def gaps(self, since_unix_s=0):
        """The silences longer than gap_ms that began after that time, or a second before: a list of
        (start in seconds since 1970, length in ms)."""
        found = re.findall(r"^ledger: gap ms=([\d.]+) start_unix_ms=([\d.]+)", self.text(), re.M)
        return [(float(start) / 1e3, float(ms)) for ms, start in found
                if float(start) / 1e3 > since_unix_s - 1]

    def check(self, figures=None):
        """Nothing lost, repeated or rolled back, and the connection lived."""
        figures = figures or self.stop()
        for key in ("lost", "duplicated", "corrupted"):
            expect(figures[key] == 0, f"ledger: {key}={figures[key]:.0f}: {self.text()}")
        expect(self.process.returncode == 0, f"ledger client failed: {self.text()}")
        expect(figures["ops"] > 0, "the ledger client did nothing")
        return figures


class Acks:
    """Asks the scribe all the time how far it is on stable storage: what a client has been told,
    and may rely on."""

    def __init__(self, rig, every_ms=3):
        self.log = os.path.join(rig.dir, f"acks-{len(rig.clients)}.log")
        with open(self.log, "w", encoding="ascii") as log:
            self.process = rig.spawn("client", [f"{BUILD}/tests/guest/guest-ask", GUEST_IP,
                                                str(SCRIBE_PORT), "STATUS", "60", str(every_ms)],
                                     log, log)
        rig.clients.append(self)

    def acked(self):
        """The newest number that was acknowledged."""
        with open(self.log, encoding="ascii") as log:
            lines = log.read().rpartition("\n")[0].splitlines()
        if not lines:
            return 0
        expect(lines[-1].endswith("errno=0"), f"the scribe: {lines[-1]}")
        numbers = [int(re.match(r"acked=(\d+)", line).group(1)) for line in lines]
        expect(numbers == sorted(numbers), "the scribe took back what it had acknowledged")
        return numbers[-1]

    def stop(self):
        """Ends the asking; returns the newest number. The one connection must have lived."""
        expect(self.process.poll() is None, f"the scribe's connection was lost: see {self.log}")
        self.process.terminate()
        self.process.wait(10)
        return self.acked()


class Rig:
    """hosta, hostb (and hostc) with understudyd, and an arbiter: a witness, or etcd with a member
    on each of hosta, hostb and the witness's host."""

    def __init__(self, name="rig", hosts=("hosta", "hostb"), emulator=None, config="", faults=None,
                 arbiter="witness"):
        self.name = os.environ.get("LAB_PREFIX", "") + name  # so that two runs can be told apart
        self.hosts = hosts
        self.dir = f"/run/understudy-lab/{self.name}"
        self.env = dict(os.environ, LAB=self.name, LAB_DIR=self.dir, UNDERSTUDY_BIN=":".join(
            f"{BUILD}/{d}" for d in ("src/cli", "src/host", "src/witness", "src/guard", "src",
                                     "tools")))
        self.emulator = emulator
        self.config = config
        self.faults = faults or {}  # by host: the order that its processes start with
        self.fault_files = {}
        self.arbiter = arbiter
        self.etcd = None
        self.daemons = {}
        self.clients = []

    # -- the lab --

    def lab(self, *args, check=True, timeout=60):
        done = subprocess.run([f"{TOP}/tools/lab", *args], env=self.env, text=True,
                              capture_output=True, timeout=timeout, check=False)
        if check and done.returncode:
            raise Failure(f"lab {' '.join(args)}: {done.stderr.strip() or done.stdout.strip()}")
        return done

    def spawn(self, host, command, stdout=None, stderr=None, env=None):
        """A process on a host; ends with the lab at the latest."""
        return subprocess.Popen([f"{TOP}/tools/lab", "exec", host, *command],
                                env={**self.env, **(env or {})}, stdin=subprocess.DEVNULL,
                                stdout=stdout, stderr=stderr, start_new_session=True)

    def log_path(self, host):
        return f"{self.dir}/{host}.log"

    def log(self, host):
        try:
            with open(self.log_path(host), encoding="utf-8", errors="replace") as log:
                return log.read()
        except FileNotFoundError:
            return ""

    def start_daemon(self, host):
        command = (["understudy-witness", "--listen", "10.77.0.4:7710", "--state",
                    f"{self.dir}/witness/state"] if host == "witness" else ["understudyd"])
        if host not in self.fault_files:
            self.fault_files[host] = FaultFile(f"{self.dir}/{host}.faults")
        if host in self.faults:
            self.fault_files[host].arm(self.faults[host])
        env = {"UNDERSTUDY_FAULTS": f"{self.dir}/{host}.faults"}
        with open(self.log_path(host), "a", encoding="ascii") as log:
            self.daemons[host] = self.spawn(host, command, log, log, env)
        if host == "witness":
            wait_for("the witness to listen",
                     lambda: ":7710" in self.lab("exec", "witness", "ss", "-ltn").stdout, 10)
        else:
            sock = f"{self.dir}/{host}/run/understudyd.sock"
            wait_for(f"understudyd of {host}", lambda: os.path.exists(sock)
                     or self.daemons[host].poll() is not None, 10)

    def up(self):
        self.lab("down", check=False)
        self.lab("up")
        if self.emulator:
            self.config += f"emulator: {self.reachable_emulator()}\n"
        for host in self.hosts:
            with open(f"{self.dir}/{host}/understudy.yaml", "a", encoding="ascii") as config:
                config.write(self.config)
        if self.arbiter == "etcd":
            self.start_etcd()
        for host in self.hosts if self.etcd else ("witness", *self.hosts):
            self.start_daemon(host)
        self.lab("trust")

    def start_etcd(self):
        folder = f"{self.dir}/etcd"
        os.mkdir(folder)
        self.etcd = Cluster(folder, ["10.77.0.1", "10.77.0.2", "10.77.0.4"], env=self.env,
                            at=lambda node: [f"{TOP}/tools/lab", "exec", MEMBERS[node]])
        self.etcd.__enter__()
        make_certificate(folder, "hosts")
        for host in self.hosts:
            urls = self.etcd.urls(MEMBERS.index(host) if host in MEMBERS else 0)
            path = f"{self.dir}/{host}/understudy.yaml"
            with open(path, encoding="ascii") as config:
                text = re.sub(r"^arbiter:\n(  .*\n)*", "", config.read(), flags=re.M)
            with open(path, "w", encoding="ascii") as config:
                config.write(f"{text}arbiter:\n  etcd: [{', '.join(urls)}]\n"
                             f"  ca: {folder}/ca.pem\n  cert: {folder}/hosts.pem\n"
                             f"  key: {folder}/hosts.key\n")

    def reachable_emulator(self):
        """The emulator, or a copy: a source tree may be in a private directory."""
        folder, name = os.path.split(os.path.realpath(self.emulator))
        if open_to_all(folder):
            return self.emulator
        shutil.copytree(folder, f"{self.dir}/emulator", symlinks=True, dirs_exist_ok=True)
        return f"{self.dir}/emulator/{name}"

    def down(self):
        self.lab("down", check=False, timeout=120)
        for client in self.clients:
            client.process.wait(10)
        for daemon in self.daemons.values():
            daemon.wait(10)
        for file in self.fault_files.values():
            file.close()
        if self.etcd:
            self.etcd.__exit__()

    def __enter__(self):
        try:
            self.up()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, kind, value, trace):
        if kind is Failure:
            for host in self.daemons:
                for line in self.log(host).splitlines()[-40:]:
                    print(f"# {host}: {line}", file=sys.stderr)
        self.down()

    def restart_host(self, host):
        """A crashed host comes up again, as after a reboot, with its understudyd."""
        self.lab("restart", host)
        self.daemons[host].wait(10)
        if self.etcd:
            self.etcd.start(MEMBERS.index(host))
        self.start_daemon(host)

    # -- the VM --

    def vm_file(self, name="web", memory="256M", standby="hostb", keeper_mib=32, keeper_rate=8,
                cpus=1, machine="pc-i440fx-7.2", extra="", nics=1, interval="", words="", number=0):
        """Writes a VM file. words: for the guest (tests/guest/init); interval, extra: lines of the
        section `protect`, lines at the end; number: of the VM, which tells its addresses."""
        path = f"{self.dir}/{name}.yaml"
        console = f"{self.dir}/{name}.console"
        with open(console, "a", encoding="ascii"):
            os.chown(console, EMULATOR_USER, EMULATOR_USER)
        nic_lines = "".join(f"  - mac: 52:54:00:75:{0x73 + number:02x}:{i + 1:02x}\n    bridge: br0\n"
                            for i in range(nics))
        ips = " ".join(f"us.ip{i or ''}=10.78.{i}.{10 + number}/24" for i in range(nics))
        protect = f"protect:\n  standby: {standby}\n{interval}" if standby else ""
        with open(path, "w", encoding="ascii") as out:
            out.write(f"name: {name}\nmemory: {memory}\ncpus: {cpus}\n"
                      f"machine: {machine}\ncpu: qemu64\n"
                      f"kernel: {GUEST}/vmlinuz\ninitrd: {GUEST}/initramfs\n"
                      f"append: console=ttyS0 quiet {ips} us.keeper={keeper_mib}"
                      f" us.keeper_rate={keeper_rate} {words}\n"
                      f"nics:\n{nic_lines}{protect}{extra}"
                      f"qemu_args: [\"-serial\", \"file:{console}\"]\n")
        return path

    def cli(self, host, *args, timeout=60):
        return self.lab("exec", host, "understudy", *args, check=False, timeout=timeout)

    def must(self, host, *args, timeout=60):
        done = self.cli(host, *args, timeout=timeout)
        expect(done.returncode == 0, f"understudy {' '.join(args)} on {host}: exit status "
               f"{done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def status(self, host, vm="web"):
        """The VM's status on a host as a dict; {} when that host does not have it."""
        done = self.cli(host, "status", vm, "--json")
        try:
            status = json.loads(done.stdout)
        except json.JSONDecodeError:
            return {}
        return status[0] if isinstance(status, list) and status else status or {}

    def state(self, host, vm="web"):
        return self.status(host, vm).get("state", "")

    def wait_state(self, host, state, seconds=30, vm="web"):
        return wait_for(f"{vm} to be {state} on {host} (is {self.state(host, vm)!r})",
                        lambda: self.state(host, vm) == state and self.status(host, vm), seconds)

    def guest_ask(self, port, question, seconds=15, address=GUEST_IP):
        done = self.lab("exec", "client", f"{BUILD}/tests/guest/guest-ask", address, str(port),
                        question, str(seconds), check=False, timeout=2 * seconds + 10)
        expect(done.returncode == 0, f"the guest does not answer {question}: {done.stderr.strip()}")
        return done.stdout.strip()

    def guest_run(self, command, seconds=60, check=True, address=GUEST_IP):
        """Has the guest's runner carry out a shell command; returns what it prints."""
        done = self.lab("exec", "client", f"{BUILD}/tests/guest/guest-run", address, command,
                        str(seconds), check=False, timeout=seconds + 10)
        expect(not check or done.returncode == 0, f"the guest's '{command}': exit status"
               f" {done.returncode}: {done.stdout.strip()}{done.stderr.strip()}")
        return done.stdout if check else done

    def wait_guest(self, seconds=40):
        self.guest_ask(LEDGER_PORT, "GET", seconds)

    def start_vm(self, host="hosta", seconds=60, **options):
        """Starts the VM, protected as its file says, and waits for its guest."""
        self.must(host, "start", self.vm_file(**options), timeout=seconds)
        self.wait_guest()

    def check_keeper(self):
        """The guest verifies all of its memory pattern."""
        answer = self.guest_ask(KEEPER_PORT, "VERIFY", 30)
        figures = dict(re.findall(r"(\w+)=(\d+)", answer))
        expect(figures.get("corrupt") == "0" and int(figures.get("verified", 0)) > 0,
               f"memory keeper: {answer}")
        return answer


def wait_frozen(lab, host):
    """Until a process of the host has come to its fault point."""
    wait_for(f"{host} to stop at its fault point",
             lambda: "frozen" in [line.split()[1] for line in lab.lab("status").stdout
                                  .splitlines() if line.startswith(host + " ")], 30)


@contextlib.contextmanager
def protected_vm(name, vm=None, **rig_options):
    """A protected VM with a client at its ledger: yields (rig, ledger)."""
    with Rig(name, **rig_options) as lab:
        lab.start_vm(**(vm or {}))
        lab.wait_state("hosta", "protected", 40)
        ledger = Ledger(lab, interval_ms=5, gap_ms=80)
        ledger.wait_connected()
        yield lab, ledger


class Tap:
    """Runs test functions and prints their outcome as TAP."""

    def __init__(self):
        self.tests = []

    def test(self, function):
        self.tests.append(function)
        return function

    def run(self):
        chosen = [t for t in self.tests if len(sys.argv) < 2 or t.__name__ in sys.argv[1:]]
        print(f"1..{len(chosen)}", flush=True)
        failed = 0
        for number, test in enumerate(chosen, 1):
            title = (test.__doc__ or test.__name__).strip().splitlines()[0].rstrip(".")
            started = time.monotonic()
            try:
                note = test() or ""
                ok = True
            except (Failure, subprocess.TimeoutExpired, OSError) as problem:
                ok, note = False, ""
                failed += 1
                print(f"# {type(problem).__name__}: {problem}".replace("\n", "\n# "), flush=True)
            took = time.monotonic() - started
            print(f"{'ok' if ok else 'not ok'} {number} - {title} ({took:.1f} s)"
                  f"{' ' + note if note else ''}", flush=True)
        sys.exit(1 if failed else 0)
