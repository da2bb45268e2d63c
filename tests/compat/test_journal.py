#!/usr/bin/env python3
"""Packs the golden vectors of the journal with nothing but `struct`: blocks, records, an index, a checkpoint.

The vectors are format 1 of a data directory: they are never regenerated. src/engine/tests/golden.rs says the same in
Rust; the layouts are tables in src/engine/data/journal.
"""

import struct
import unittest

import ringpost as r
from test_golden import EMPTY, FULL, PIECE, read

META = 65535
TRANSACTIONS = META - 1
PIECE_BYTES = struct.unpack_from("<I", PIECE)[0]
UUID = 0x0102030405060708
PRODUCER = (0x1122334455667788, 9)
WALL_US = 1_700_000_000_123_456


def continued(crc, data):
    """crc32c over more data, as crc32c(before + data)."""
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = r._CRC[(crc ^ byte) & 255] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def record(kind, body, partition=5, number=0, count=0, flags=0, term=0, queue=0, first=0, producer=(0, 0), sequence=0,
           messages=(), back=0):
    """One record, padded. A body of messages folds to the first 8 bytes of each."""
    folded = r.crc32c(b"".join(message[:8] for message in messages) if messages else body)

    def head(crc):
        return struct.pack("<BBHIIIQIIQQQII", kind, flags, partition, 64 + len(body), count, crc, number, term, queue,
                           first, producer[0], sequence, producer[1], back)

    crc = continued(folded, head(0))
    return crc, (head(crc) + body).ljust(r.padded(64 + len(body)), b"\0")


def block(records, flags, offset, sequence, durable):
    """A block without the zeros that fill it to 4 KiB."""
    content = r.crc32c(b"".join(struct.pack("<I", crc) for crc, _ in records))
    body = b"".join(data for _, data in records)
    rest = struct.pack("<HHHHQQIIQIIQQIIQIIQII16x", 1, 128, flags, 3, UUID, 9, offset, 128 + len(body), sequence, 2,
                       0x11223344, durable, WALL_US, len(records), content, 1 << 63 | 1 << 5, 4, 0, 0, 0, 0)
    return b"RPJ1" + struct.pack("<I", r.crc32c(rest)) + rest + body


def varints(*numbers):
    out = bytearray()
    for number in numbers:
        while number >= 128:
            out.append(number & 127 | 128)
            number >>= 7
        out.append(number)
    return bytes(out)


def records():
    messages = [r.pack_message(message) for message in (FULL, EMPTY)]
    padded = [message.ljust(r.padded(len(message)), b"\0") for message in messages]
    of_queue = {"term": 1, "queue": 7}
    return [
        record(1, b"".join(padded), number=10, count=2, first=100, producer=PRODUCER, sequence=42, messages=padded,
               **of_queue),
        record(2, PIECE, number=11, count=1, first=102, producer=PRODUCER, sequence=44, **of_queue),
        record(3, struct.pack("<QQQQ", 1, 9, 11, 11), number=12, count=2, **of_queue),
        record(4, padded[1], number=13, count=1, flags=1, first=50, producer=(8, 0), sequence=4224,
               messages=padded[1:], **of_queue),
        record(5, b"", number=14, count=1, first=150, **of_queue),
        record(6, struct.pack("<QQII", 3, 4, 2, 0), number=15, count=1, **of_queue),
        record(7, b"a change", partition=META, number=3),
        record(8, struct.pack("<HQHQ", META, 4, 5, 16), partition=META, count=2, flags=8),
        record(9, struct.pack("<QII", 77, 2, 0), partition=META),
        record(10, struct.pack("<QQ", 20, 30), number=16, count=1),
        record(20, struct.pack("<Q", 5), partition=6, number=5),
    ]


def scattered():
    """A run whose sequences are not consecutive, and the record that says which they are."""
    messages = [r.pack_message(message) for message in (FULL, EMPTY)]
    padded = [message.ljust(r.padded(len(message)), b"\0") for message in messages]
    of_queue = {"count": 2, "first": 100, "term": 1, "queue": 7}
    return [
        record(1, b"".join(padded), number=10, messages=padded, **of_queue),
        record(21, struct.pack("<II", 0, 1000), number=11, producer=PRODUCER, sequence=42, **of_queue),
    ]


def offsets():
    """How far groups of a stream have come; the second is no more."""
    body = b"".join(struct.pack("<QI", offset, len(name)) + name for name, offset in [(b"billing", 31), (b"audit", 0)])
    return [record(24, body, number=17, count=2, term=1, queue=7)]


def transactions():
    """A transaction that core 1 decides is prepared on this one, and one of this core is decided."""
    prepared = struct.pack("<HHIQ", 1, 0, 0, 2 << 32 | 7)
    messages = r.pack_batch([FULL, EMPTY])
    prepared += struct.pack("<IIII", 1, 1, len(messages), 0)
    prepared += struct.pack("<IIII", 7, 2, len(messages), 0) + messages
    prepared += struct.pack("<II", 8, 2) + struct.pack("<QIIQII", 3, 96, 0, 5, 112, 2)
    decided = struct.pack("<HHIQHHHH", 3, 0, 0, 2 << 32 | 9, 1, 2, 0, 1)
    return [
        record(16, prepared, partition=TRANSACTIONS, number=4),
        record(17, decided, partition=TRANSACTIONS, number=5),
    ]


def shared():
    """A body that two queues share, and what says that they have it."""
    messages = [r.pack_message(message) for message in (FULL, EMPTY)]
    padded = [message.ljust(r.padded(len(message)), b"\0") for message in messages]
    body = b"".join(padded)
    back = r.padded(64 + len(body))
    entry = {"count": 2, "term": 1, "producer": PRODUCER, "sequence": 42}
    return [
        record(13, body, partition=0, count=2, producer=(9, 0), sequence=8192 + 128, messages=padded),
        record(14, b"", number=10, queue=7, first=100, back=back, **entry),
        record(14, b"", partition=6, number=5, queue=8, first=1, back=back + 64, **entry),
    ]


def index():
    """Part 1 of an index: two blocks and three runs; the part before lies at 12288."""
    body = varints(1, 3, 70, 4, 2, 3)
    body += varints(2, 2, 5, 10, 6, META, 3, 0)
    body += varints(1, 0)
    body += varints(2, 7, 100, 2, (16384 + 128) // 16, 12)
    body += varints(4, 7, 102, 1, 256 // 16, 2, PIECE_BYTES)
    body += varints(9, 300, 1 << 40, 1, 64 // 16, 4)
    return body


def segment(slot, number, parts, made):
    out = struct.pack("<IIQIQQI", slot, 3, number, 65536, 10, 2000, 1)
    out += struct.pack("<I", len(parts)) + b"".join(struct.pack("<IIII", *part) for part in parts)
    out += struct.pack("<I", len(made)) + b"".join(struct.pack("<Q", len(body)) + body for body in made)
    return out


def checkpoint():
    rest = struct.pack("<IIQQQIQIQIQ", 1, 3, UUID, 6, 77, 0x11223344, 1 << 5, 2, 11, 4, WALL_US)
    rest += struct.pack("<IIQIQ", 2, META, 4, 5, 16)
    rest += struct.pack("<I", 1) + segment(4, 9, [(0, 16384, 16384, 20480)], [b"\1\2\3"])
    rest += struct.pack("<I", 1) + segment(5, 10, [], [])
    rest += struct.pack("<Q", len(index())) + index()
    rest += struct.pack("<IIQQIQQI", 1, 5, 20, 30, 7, 101, 9, 8192)
    rest += struct.pack("<Q", 9) + b"the state"
    return b"RPC1" + struct.pack("<I", r.crc32c(rest)) + rest


VECTORS = {
    "journal_block": lambda: block(records(), 0, 8192, 77, 75),
    "journal_scattered": lambda: block(scattered(), 0, 8192, 77, 75),
    "journal_transactions": lambda: block(transactions(), 0, 8192, 77, 75),
    "journal_offsets": lambda: block(offsets(), 0, 8192, 77, 75),
    "journal_shared": lambda: block(shared(), 0, 8192, 77, 75),
    "journal_index": lambda: block([record(11, index(), partition=META, count=1, flags=2 | 4)], 1, 28672, 72, 70),
    "journal_checkpoint": checkpoint,
}


class Journal(unittest.TestCase):
    def test_vectors(self):
        for name, pack in VECTORS.items():
            with self.subTest(name):
                self.assertEqual(pack().hex(), read(name).hex())


if __name__ == "__main__":
    unittest.main()
