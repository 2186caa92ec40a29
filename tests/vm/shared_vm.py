# SPDX-License-Identifier: Apache-2.0
"""A VM that one test after the other uses, since starting one takes longest."""

import contextlib
import sys

from rig import Rig, other


class SharedVm:
    """A test is called with (lab, primary, standby), and leaves the VM protected, on whichever
    host; after a failed one it is made anew. start(lab, stack) starts it on hosta; what it enters
    into the stack ends with the lab."""

    def __init__(self, tap, name, start):
        self.tap, self.name, self.start = tap, name, start
        self.stack = contextlib.ExitStack()
        self.lab = None
        self.primary = "hosta"

    def get(self):
        if not self.lab:
            self.primary = "hosta"
            self.lab = self.stack.enter_context(Rig(self.name))
            self.start(self.lab, self.stack)
        self.lab.wait_state(self.primary, "protected", 40)
        return self.lab

    def drop(self):
        self.lab = None
        self.stack.__exit__(*sys.exc_info())  # which tells the rig whether to print its logs

    def test(self, function):
        def with_vm():
            try:
                return function(self.get(), self.primary, other(self.primary))
            except BaseException:
                self.drop()
                raise

        with_vm.__name__, with_vm.__doc__ = function.__name__, function.__doc__
        return self.tap.test(with_vm)

    def fail_over(self):
        """The primary dies; the standby takes over. Returns its account of it."""
        self.lab.lab("crash", self.primary)
        self.primary = other(self.primary)
        return self.lab.wait_state(self.primary, "solo", 10)["takeover"]
