#!/usr/bin/env python3
"""Reads and writes the golden vectors of tests/golden with nothing but `struct`.

The vectors are the protocol: they are never regenerated. src/wire/tests/golden.rs says the same in Rust.
"""

import pathlib
import struct
import unittest

import ringpost as r

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "golden"


def read(name):
    lines = (GOLDEN / f"{name}.hex").read_text().splitlines()
    return bytes.fromhex("".join(line for line in lines if not line.startswith("#")))


EMPTY = r.Message(b"", b"", b"")
FULL = r.Message(b"shop", b"order.7.paid", b"hello", b"\x04sizei\x00\x00\x00\x07",
                 b"\x10\x00\x02", 3, 1_700_000_000_123_456, 60_000)
NAME, KEY = b"orders", b"order.*.paid"
TABLE = b"\x07x-matchS\x00\x00\x00\x03any"
# `x-expires` is 60,000, says the policy `limits`.
OPTIONS = (b"\x09x-expiresF\x00\x00\x00\x1d"
           b"\x05valueI\x00\x00\xea\x60\x06policyS\x00\x00\x00\x06limits")
POLICY = ("PolicySet", {
    "priority": 2**32 - 5, "applies": 3, "name": b"limits", "pattern": b"^orders",
    "options": b"\x09x-expiresI\x00\x00\xea\x60"})
CREDIT = {"messages": 1000, "bytes": 8 << 20}
BROWSED = struct.pack("<QQQIIIHHBB6x", 31, 1500, 0, 1, 98, 98, 0, 0, 2, 0) + r.pack_batch([FULL])
PLACES = struct.pack("<Q", 31)
PIECE = struct.pack("<II8x", r.PIECE + 5, r.PIECE) + b"tail!"


def failure(code, reason):
    return "Failure", {"code": code, "reason": reason}


# kind: channel, sequence, count, flags, body (name and fields, or bytes)
FRAMES = {
    "Hello": (0, 0, 0, 0, ("Hello", {
        "magic": r.MAGIC, "version_min": 1, "version_max": 1, "heartbeat_ms": 10_000,
        "message_bytes_max": 1 << 24, "tenant": b"acme", "client": b"golden 1"})),
    "Welcome": (0, 0, 0, 0, ("Welcome", {
        "magic": r.MAGIC, "version": 1, "core": 1, "cores": 4, "channels_max": 4096,
        "heartbeat_ms": 10_000, "frame_bytes_max": 1 << 18, "message_bytes_max": 1 << 24,
        "credit_messages_max": 1_000_000, "connection": 0x0102030405060708,
        "server": b"ringpost 0.1.0"})),
    "Attach": (0, 1, 0, 0, ("Attach", {"queue": NAME})),
    "Attached": (0, 1, 3, 0, b""),
    "Heartbeat": (0, 0, 0, 0, b""),
    "Close": (0, 0, 0, 0, failure(1, b"going down")),
    "Failed": (0, 2, 0, 0, failure(32, b"no queue orders")),
    "Done": (0, 3, 7, 1, b""),
    "ProducerOpen": (1, 4, 0, 0, ("ProducerOpen", {
        "producer": 0x1122334455667788, "epoch": 9, "level": 2, "flags": 1})),
    "ProducerOpened": (1, 4, 0, 0, ("ProducerOpened", {"sequence": 42, **CREDIT})),
    "Publish": (1, 42, 2, 1, r.pack_batch([FULL, EMPTY])),
    "PublishFragment": (1, 44, 1, 0, PIECE),
    "Confirm": (1, 43, 0, 2, ("ProducerCredit", CREDIT)),
    "Refused": (1, 44, 2, 0, failure(50, b"no queue takes it")),
    "ProducerCredit": (1, 0, 0, 0, ("ProducerCredit", CREDIT)),
    "ProducerClose": (1, 5, 0, 0, b""),
    "ProducerClosed": (1, 5, 0, 0, failure(0, b"")),
    "ConsumerOpen": (2, 6, 0, 0, ("ConsumerOpen", {
        "credit_bytes": 1 << 20, "credit_messages": 100, "flags": 2, "queue": NAME,
        "arguments": b"\x0ax-priorityI\0\0\0\5"})),
    "ConsumerOpened": (2, 6, 3, 0, b""),
    "Deliver": (2, 7, 2, 1, struct.pack("<QI4x", 77, 3) + r.pack_batch([FULL, EMPTY])),
    "DeliverFragment": (2, 9, 1, 0, struct.pack("<QI4x", 79, 0) + PIECE),
    "Settle": (2, 10, 2, r.REQUEUE | r.CONFIRM, struct.pack("<QQQQ", 0, 6, 8, 9)),
    "Settled": (2, 10, 0, 0, b""),
    "ConsumerCredit": (2, 0, 0, 0, ("ConsumerCredit", {"bytes": 1 << 20, "messages": 200})),
    "ConsumerClose": (2, 11, 0, 0, b""),
    "ConsumerClosed": (2, 0, 0, 0, failure(60, b"queue orders was deleted")),
    "Get": (2, 12, 10, 0, ("Get", {"wait_ms": 250})),
    "GetDone": (2, 12, 2, 0, b""),
    "ConsumerActive": (2, 0, 0, 1, b""),
    "ConsumerInspect": (2, 12, 0, 0, b""),
    "ConsumerInfo": (2, 12, 0, 0, ("ConsumerInfo", {
        "messages": 3, "bytes": 1 << 20, "oldest_ms": 1500})),
    "ConsumerPosition": (2, 0, 0, 0, ("ConsumerPosition", {"offset": 31, "missed": 27})),
    "QueueDeclare": (0, 13, 0, 0, ("QueueDeclare", {
        "messages_max": 1000, "bytes_max": 1 << 30, "durability": 1, "flags": 0,
        "partition": 65535, "name": NAME, "arguments": TABLE})),
    "QueueDelete": (0, 14, 0, 0, ("Delete", {"flags": 3, "name": NAME})),
    "QueuePurge": (0, 15, 0, 0, ("Named", {"name": NAME})),
    "QueueInspect": (0, 16, 0, 0, ("Named", {"name": NAME})),
    "QueueList": (0, 17, 0, 0, b""),
    "QueueInfo": (0, 17, 0, 0, ("QueueInfo", {
        "ready": 1, "unacked": 2, "bytes": 3, "published": 4, "settled": 5, "messages_max": 6,
        "bytes_max": 7, "delayed": 8, "due_ms": 9, "dead": 10, "recent_ms": 11,
        "recent_arrived": 12, "recent_left": 13, "recent_taken": 14, "wait_mean_us": 15,
        "wait_p50_us": 16, "wait_p99_us": 17, "wait_max_us": 18, "id": 19, "consumers": 20, "core": 21,
        "partition": 22, "durability": 1, "flags": 1, "name": NAME})),
    "ExchangeDeclare": (0, 18, 0, 0, ("ExchangeDeclare", {
        "kind": 3, "durability": 1, "flags": 1, "name": b"shop", "arguments": b""})),
    "ExchangeDelete": (0, 19, 0, 0, ("Delete", {"flags": 1, "name": b"shop"})),
    "ExchangeList": (0, 20, 0, 0, b""),
    "ExchangeInfo": (0, 20, 0, 0, ("ExchangeDeclare", {
        "kind": 4, "durability": 0, "flags": 0, "name": b"shop", "arguments": TABLE})),
    "Bind": (0, 21, 0, 0, ("Bind", {
        "flags": 0, "exchange": b"shop", "target": NAME, "key": KEY, "arguments": TABLE})),
    "Unbind": (0, 22, 0, 0, ("Bind", {
        "flags": 0, "exchange": b"shop", "target": NAME, "key": KEY, "arguments": b""})),
    "BindingList": (0, 23, 0, 0, b""),
    "BindingInfo": (0, 23, 0, 0, ("Bind", {
        "flags": 0, "exchange": b"shop", "target": NAME, "key": b"", "arguments": TABLE})),
    "TenantDeclare": (0, 24, 0, 0, ("Named", {"name": b"acme"})),
    "TenantDelete": (0, 25, 0, 0, ("Named", {"name": b"acme"})),
    "TenantList": (0, 26, 0, 0, b""),
    "TenantInfo": (0, 26, 0, 0, ("Named", {"name": b"acme"})),
    "GroupList": (0, 27, 0, 0, ("Named", {"name": NAME})),
    "GroupInfo": (0, 27, 0, 0, ("GroupInfo", {
        "offset": 31, "lag": 9, "members": 2, "name": b"billing"})),
    "GroupReset": (0, 28, 0, 0, ("GroupReset", {
        "queue": NAME, "group": b"billing", "arguments": TABLE})),
    "GroupDelete": (0, 29, 0, 0, ("GroupDelete", {"queue": NAME, "group": b"billing"})),
    "TransactionOpen": (3, 30, 0, 0, ("TransactionOpen", {"timeout_ms": 30_000})),
    "TransactionOpened": (3, 30, 0, 0, ("TransactionOpened", {
        "messages_max": 10_000, "bytes_max": 260_000, "timeout_ms": 30_000})),
    "TransactionPublish": (3, 1, 2, 1, r.pack_batch([FULL, EMPTY])),
    "TransactionSettle": (3, 1, 2, 0, ("TransactionSettle", {
        "consumer": 2, "ranges": struct.pack("<QQQQ", 0, 6, 8, 9)})),
    "TransactionCommit": (3, 1, 0, 0, b""),
    "TransactionRollback": (3, 1, 0, 0, b""),
    "TransactionDone": (3, 1, 0, 1, b""),
    "TransactionClose": (3, 31, 0, 0, b""),
    "TransactionClosed": (3, 31, 0, 0, failure(0, b"")),
    "QueueBrowse": (0, 40, 0, 0, ("QueueBrowse", {
        "from": 31, "messages_max": 10, "message_bytes_max": 1000, "states": 2, "queue": NAME,
        "filter": b"size > 3"})),
    "QueueBrowsed": (0, 40, 1, 0, ("QueueBrowsed", {
        "next": 32, "newest": 40, "messages": BROWSED})),
    "QueueCancel": (0, 41, 0, 0, ("QueueCancel", {"queue": NAME, "places": PLACES})),
    "QueueMove": (0, 42, 0, 0, ("QueueMove", {
        "flags": 1, "queue": NAME, "exchange": b"shop", "routing_key": KEY, "places": PLACES})),
    "QueueOutcome": (0, 42, 0, 0, ("QueueOutcome", {
        "done": 1, "late": 2, "busy": 3, "refused": 4})),
    "QueueDescribe": (0, 27, 0, 0, ("Named", {"name": NAME})),
    "QueueDescription": (0, 27, 0, 0, ("QueueDescription", {
        "messages_max": 1000, "bytes_max": 1 << 30, "id": 8, "partition": 11, "durability": 1,
        "name": NAME, "arguments": TABLE, "options": OPTIONS})),
    "PolicySet": (0, 28, 0, 0, POLICY),
    "PolicyDelete": (0, 29, 0, 0, ("Named", {"name": b"limits"})),
    "PolicyList": (0, 30, 0, 0, b""),
    "PolicyInfo": (0, 30, 0, 0, POLICY),
}

MESSAGES = {"message_empty": EMPTY, "message_full": FULL}

# Every type of a field table, in the order of the table in docs/protocol.md.
TYPES = {
    "t": True, "b": -1, "B": 255, "s": -2, "u": 65535, "I": -3, "i": 4294967295, "l": -4,
    "f": 0.5, "d": -0.25, "D": (2, 314), "S": "text", "A": [1, None], "T": 1_700_000_000,
    "F": {"k": True}, "V": None, "x": b"\x00\xff",
}


def later(message):
    """The message as a later version might write it: 16 more bytes of fields, an ignorable flag."""
    data = bytearray(r.pack_message(message))
    for at, size in ((4, 4), (8, 2), (32, 2), (36, 2), (40, 4), (48, 4), (56, 4)):
        value = int.from_bytes(data[at : at + size], "little") + 16
        data[at : at + size] = value.to_bytes(size, "little")
    data[11] = 0x80
    data[64:64] = b"\xa5" * 16
    data[:4] = struct.pack("<I", r.crc32c(data[4:]))
    return bytes(data)


class Golden(unittest.TestCase):
    def test_every_kind_has_a_vector(self):
        self.assertEqual(set(FRAMES), set(r.KINDS))
        files = {path.stem for path in GOLDEN.glob("*.hex")}
        # Those of the journal have a test of their own.
        files = {name for name in files if not name.startswith("journal_")}
        frames = {f"frame_{number:02}_{kind}" for kind, number in r.KINDS.items()}
        self.assertEqual(files, frames | set(MESSAGES) | {"message_later", "table"})

    def test_frames(self):
        for kind, (channel, sequence, count, flags, body) in FRAMES.items():
            with self.subTest(kind):
                golden = read(f"frame_{r.KINDS[kind]:02}_{kind}")
                if isinstance(body, tuple):
                    name, fields = body
                    body = r.pack_body(name, **fields)
                    decoded = r.unpack_body(name, body)
                    self.assertEqual({**decoded, **fields}, decoded)
                written = r.pack_frame(kind, channel, sequence, body, count, flags)
                self.assertEqual(written.hex(), golden.hex())
                frame, length = r.unpack_frame(golden)
                self.assertEqual(length, len(golden))
                self.assertEqual(frame, r.Frame(kind, channel, sequence, count, flags, body))

    def test_messages(self):
        for name, message in MESSAGES.items():
            golden = read(name)
            self.assertEqual(r.pack_message(message), golden)
            self.assertEqual(r.unpack_message(golden), (message, len(golden)))
        for kind, skip in (("Publish", 0), ("Deliver", 16)):
            frame, _ = r.unpack_frame(read(f"frame_{r.KINDS[kind]:02}_{kind}"))
            self.assertEqual(list(r.unpack_batch(frame.body[skip:])), [FULL, EMPTY])

    def test_a_later_version_is_read(self):
        golden = read("message_later")
        self.assertEqual(golden, later(FULL))
        self.assertEqual(r.unpack_message(golden), (FULL, len(golden)))

    def test_table(self):
        golden = read("table")
        entries = r.unpack_table(golden)
        self.assertEqual(entries, TYPES)
        self.assertEqual(list(entries), list(TYPES))
        simple = {key: TYPES[key] for key in "tldSAFVx" if key != "A"}
        simple["A"] = ["x", {"y": [1.5]}]
        self.assertEqual(r.unpack_table(r.pack_table(simple)), simple)

    def test_damage_is_seen(self):
        for path in sorted(GOLDEN.glob("frame_*.hex")):
            golden = read(path.stem)
            for at in range(32):
                bad = bytearray(golden)
                bad[at] ^= 0x10
                with self.assertRaises(r.ProtocolError, msg=f"{path.stem} byte {at}"):
                    r.unpack_frame(bad)
            for cut in range(len(golden)):
                self.assertIsNone(r.unpack_frame(golden[:cut]))


if __name__ == "__main__":
    unittest.main()
