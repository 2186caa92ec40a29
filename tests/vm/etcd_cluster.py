# SPDX-License-Identifier: Apache-2.0
"""An etcd cluster for tests: real nodes, each on an address of its own, TLS with certificates on
both sides for clients and members alike. Keys and data are in a directory that the caller makes and
removes; the processes end with `with`."""

import json
import os
import subprocess
import time

CLIENT_PORT, PEER_PORT = 2379, 2380


def openssl(*args):
    subprocess.run(["openssl", *args], check=True, capture_output=True, timeout=60)


def make_authority(folder, name="ca"):
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-keyout", f"{folder}/{name}.key", "-out", f"{folder}/{name}.pem",
            "-subj", f"/CN={name}", "-days", "2")


def make_certificate(folder, name, addresses=(), authority="ca", days="2"):
    """NAME.pem and NAME.key; for a server when it has addresses, else for a client of that name."""
    alternatives = ",".join(f"IP:{address}" for address in addresses) or f"DNS:{name}"
    with open(f"{folder}/{name}.ext", "w", encoding="ascii") as out:
        out.write(f"subjectAltName={alternatives}\nextendedKeyUsage=serverAuth,clientAuth\n")
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout",
            f"{folder}/{name}.key", "-out", f"{folder}/{name}.csr", "-subj", f"/CN={name}")
    openssl("x509", "-req", "-in", f"{folder}/{name}.csr", "-CA", f"{folder}/{authority}.pem",
            "-CAkey", f"{folder}/{authority}.key", "-CAcreateserial", "-days", days, "-extfile",
            f"{folder}/{name}.ext", "-out", f"{folder}/{name}.pem")


class Cluster:
    """Nodes 0, 1, ... at the addresses. at(node) is put before every command, to have it run where
    that node lives; env: the environment of these. election_ms: after how long without a leader
    the others elect one (default: etcd's)."""

    def __init__(self, folder, addresses, at=lambda node: [], env=None, election_ms=1000):
        self.folder = folder
        self.addresses = addresses
        self.at = at
        self.env = {**(env or os.environ), "ETCDCTL_API": "3"}
        self.election_ms = election_ms
        self.nodes = {}
        if not os.path.exists(f"{folder}/ca.pem"):
            make_authority(folder)
            make_certificate(folder, "server", addresses)
            make_certificate(folder, "root")

    def __enter__(self):
        try:
            for node in range(len(self.addresses)):
                self.start(node)
            self.wait_healthy()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for process in self.nodes.values():
            process.kill()
            process.wait(10)

    def url(self, node):
        return f"https://{self.addresses[node]}:{CLIENT_PORT}"

    def urls(self, first=0):
        """All client URLs, that node's first."""
        n = len(self.addresses)
        return [self.url((first + i) % n) for i in range(n)]

    def start(self, node):
        files = [f"{self.folder}/server.pem", f"{self.folder}/server.key", f"{self.folder}/ca.pem"]
        peers = [f"https://{address}:{PEER_PORT}" for address in self.addresses]
        options = {
            "name": f"n{node}", "data-dir": f"{self.folder}/n{node}",
            "listen-client-urls": self.url(node), "advertise-client-urls": self.url(node),
            "listen-peer-urls": peers[node], "initial-advertise-peer-urls": peers[node],
            "initial-cluster": ",".join(f"n{i}={url}" for i, url in enumerate(peers)),
            "cert-file": files[0], "key-file": files[1], "trusted-ca-file": files[2],
            "peer-cert-file": files[0], "peer-key-file": files[1],
            "peer-trusted-ca-file": files[2],
            "election-timeout": str(self.election_ms),
            "heartbeat-interval": str(self.election_ms // 10)}
        command = [*self.at(node), "etcd", "--client-cert-auth", "--peer-client-cert-auth"]
        for name, value in options.items():
            command += [f"--{name}", value]
        with open(f"{self.folder}/n{node}.log", "a", encoding="utf-8") as log:
            self.nodes[node] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log,
                                                stderr=log, env=self.env)

    def signal(self, node, number):
        self.nodes[node].send_signal(number)

    def kill(self, node):
        self.nodes[node].kill()
        self.nodes[node].wait(10)

    def ctl(self, *args, node=0, check=True, timeout=20):
        """etcdctl at one node, as root."""
        return subprocess.run(
            [*self.at(node), "etcdctl", "--endpoints", self.url(node), "--cacert",
             f"{self.folder}/ca.pem", "--cert", f"{self.folder}/root.pem", "--key",
             f"{self.folder}/root.key", *args],
            env=self.env, stdin=subprocess.DEVNULL, text=True,
            capture_output=True, check=check, timeout=timeout)

    def wait_healthy(self, nodes=None, seconds=60):
        """Until each of the nodes (default: all) carries out a request."""
        end = time.monotonic() + seconds
        for node in nodes if nodes is not None else range(len(self.addresses)):
            while self.ctl("endpoint", "health", node=node, check=False).returncode:
                if time.monotonic() > end:
                    raise TimeoutError(f"etcd {node} does not come up: see {self.folder}")
                time.sleep(0.05)

    def status(self, node):
        """(its member id, the leader's member id; 0 when it knows of none)"""
        done = self.ctl("endpoint", "status", "-w", "json", node=node, check=False, timeout=5)
        if done.returncode:
            return 0, 0
        status = json.loads(done.stdout)[0]["Status"]
        return status["header"]["member_id"], status.get("leader", 0)

    def leader(self, seconds=30):
        """The number of the node that leads."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for node, process in self.nodes.items():
                if process.poll() is None:
                    member, leader = self.status(node)
                    if member and member == leader:
                        return node
            time.sleep(0.02)
        raise TimeoutError("the cluster has no leader")

    def move_leader(self, leader, to):
        member, _ = self.status(to)
        self.ctl("move-leader", f"{member:x}", node=leader)
