# SPDX-License-Identifier: Apache-2.0
"""The file by which a host's processes are told what shall go wrong where (src/base/fault.h)."""

import mmap
import struct

ORDER_AT, ORDER_BYTES, SEEN_AT, POINTS_MAX = 16, 240, 256, 496
FILE_BYTES = SEEN_AT + 16 * POINTS_MAX


def name_hash(name):
    value = 14695981039346656037
    for byte in name.encode():
        value = (value ^ byte) * 1099511628211 % (1 << 64)
    return value


class FaultFile:
    def __init__(self, path):
        with open(path, "w+b") as file:
            file.truncate(FILE_BYTES)
            self.bytes = mmap.mmap(file.fileno(), FILE_BYTES)
        self.generation = 0

    def close(self):
        self.bytes.close()

    def arm(self, order):
        """Gives an order, "POINT N crash" for example. None: takes it back."""
        self.bytes[0:16] = bytes(16)
        self.bytes[ORDER_AT:ORDER_AT + ORDER_BYTES] = (order or "").encode().ljust(ORDER_BYTES, b"\0")
        if order:
            self.generation += 1
            self.bytes[0:4] = struct.pack("<I", self.generation)

    def taken(self):
        """How often the order was carried out."""
        return struct.unpack_from("<I", self.bytes, 8)[0]

    def pid(self):
        """Of the process that carried it out last."""
        return struct.unpack_from("<I", self.bytes, 12)[0]

    def seen(self):
        """How often each point was passed since the file was made: {name's hash: times}."""
        pairs = struct.iter_unpack("<QQ", self.bytes[SEEN_AT:])
        return {name: hits for name, hits in pairs if name}
