#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The same with QEMU 10.0, two vCPUs and two NICs. QEMU10 names the emulator; empty: skipped."""

import os

from rig import Tap, protected_vm

tap = Tap()
EMULATOR = os.environ.get("QEMU10", "")


@tap.test
def failover_and_back():
    """a VM under QEMU 10.0 survives two host deaths"""
    vm = {"machine": "pc-q35-10.0", "cpus": 2, "nics": 2}
    with protected_vm("qemu10", vm, emulator=EMULATOR) as (lab, ledger):
        primary, standby = "hosta", "hostb"
        for _ in range(2):
            lab.wait_state(primary, "protected", 40)
            lab.lab("crash", primary)
            lab.wait_state(standby, "solo", 10)
            lab.check_keeper()
            lab.restart_host(primary)
            primary, standby = standby, primary
        figures = ledger.check()
        return f"# longest gap {figures['max_gap_ms']:.0f} ms"


if __name__ == "__main__":
    if EMULATOR:
        tap.run()
    print("1..1\nok 1 - QEMU 10 # SKIP no QEMU 10.0 (tools/qemu10)")
