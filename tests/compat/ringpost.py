"""A client of the Ringpost protocol in plain Python: docs/protocol.md, without any code of ours.

It exists to show that the protocol is open, and as an example to port from: one thread, blocking
calls, nothing but the standard library. The first half is bytes (pure functions that the golden
vectors check), the second half is the connection.
"""

import collections
import random
import socket
import struct
import time

MAGIC = int.from_bytes(b"RPST", "little")
VERSION = 1
PIECE = 192 * 1024  # FRAGMENT_BYTES_MAX
FRAME_MAX = 256 * 1024

KINDS = {
    "Hello": 1, "Welcome": 2, "Attach": 3, "Attached": 4, "Heartbeat": 5, "Close": 6, "Failed": 7,
    "Done": 8, "ProducerOpen": 16, "ProducerOpened": 17, "Publish": 18, "PublishFragment": 19,
    "Confirm": 20, "Refused": 21, "ProducerCredit": 22, "ProducerClose": 23, "ProducerClosed": 24,
    "ConsumerOpen": 32, "ConsumerOpened": 33, "Deliver": 34, "DeliverFragment": 35, "Settle": 36,
    "Settled": 37, "ConsumerCredit": 38, "ConsumerClose": 39, "ConsumerClosed": 40, "Get": 41,
    "GetDone": 42, "ConsumerActive": 43, "ConsumerInspect": 44, "ConsumerInfo": 45,
    "ConsumerPosition": 46,
    "QueueDeclare": 48, "QueueDelete": 49, "QueuePurge": 50, "QueueInspect": 51,
    "QueueList": 52, "QueueInfo": 53, "QueueDescribe": 54, "QueueDescription": 55,
    "ExchangeDeclare": 56, "ExchangeDelete": 57,
    "ExchangeList": 58, "ExchangeInfo": 59, "Bind": 60, "Unbind": 61, "BindingList": 62,
    "BindingInfo": 63, "TenantDeclare": 64, "TenantDelete": 65, "TenantList": 66, "TenantInfo": 67,
    "GroupList": 80, "GroupInfo": 81, "GroupReset": 82, "GroupDelete": 83,
    "TransactionOpen": 88, "TransactionOpened": 89, "TransactionPublish": 90,
    "TransactionSettle": 91, "TransactionCommit": 92, "TransactionRollback": 93,
    "TransactionDone": 94, "TransactionClose": 95, "TransactionClosed": 96,
    "QueueBrowse": 104, "QueueBrowsed": 105, "QueueCancel": 106, "QueueMove": 107,
    "QueueOutcome": 108,
    "PolicySet": 72, "PolicyDelete": 73, "PolicyList": 74, "PolicyInfo": 75,
}
NAMES = {number: name for name, number in KINDS.items()}

MANDATORY = 1
ACK, REQUEUE, REJECT, CONFIRM = 0, 1, 2, 4
LEVELS = {"none": 0, "volatile": 1, "durable": 2}
EXCHANGES = {"direct": 1, "fanout": 2, "topic": 3, "headers": 4}
INDETERMINATE = (55, 59)

# --- checksums (P-1) ---------------------------------------------------------------------------


def _crc_table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC = _crc_table()


def crc32c(data):
    crc, table = 0xFFFFFFFF, _CRC
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def padded(count):
    return (count + 15) & ~15


# --- frames (P-2 to P-5) -----------------------------------------------------------------------

Frame = collections.namedtuple("Frame", "kind channel sequence count flags body")


class ProtocolError(Exception):
    """The peer sent what the protocol does not allow."""


def covered(kind, body):
    return b"" if kind in ("Publish", "TransactionPublish") else body[:16] if kind == "Deliver" else body


def pack_frame(kind, channel=0, sequence=0, body=b"", count=0, flags=0):
    length = 32 + padded(len(body))
    head = struct.pack(
        "<IBBHQIII", length, KINDS[kind], flags, channel, sequence, count, len(body),
        crc32c(covered(kind, body)),
    )
    head += struct.pack("<I", crc32c(head))
    return head + body + bytes(length - 32 - len(body))


def unpack_frame(data):
    """One frame at the start of `data` and its length, or None if more bytes are needed."""
    if len(data) < 32:
        return None
    head = bytes(data[:32])
    length, number, flags, channel, sequence, count, size, body_crc, crc = struct.unpack(
        "<IBBHQIIII", head
    )
    if crc32c(head[:28]) != crc or number not in NAMES or length != 32 + padded(size):
        raise ProtocolError("frame_malformed")
    if length > FRAME_MAX:
        raise ProtocolError("frame_too_large")
    if len(data) < length:
        return None
    kind, body = NAMES[number], bytes(data[32 : 32 + size])
    if crc32c(covered(kind, body)) != body_crc:
        raise ProtocolError("body_malformed")
    return Frame(kind, channel, sequence, count, flags, body), length


# --- bodies (P-6): integers of the structure, then byte parts whose lengths end it -------------

BODIES = {
    "Hello": ("IHHII", "magic version_min version_max heartbeat_ms message_bytes_max",
              "tenant client"),
    "Welcome": ("IHHHHIIIIQ", "magic version core cores channels_max heartbeat_ms frame_bytes_max "
                "message_bytes_max credit_messages_max connection", "server"),
    "Attach": ("", "", "queue"),
    "Failure": ("HH", "code reserved", "reason"),
    "ProducerOpen": ("QIBBH", "producer epoch level flags reserved", ""),
    "ProducerOpened": ("QQQ", "sequence messages bytes", ""),
    "ProducerCredit": ("QQ", "messages bytes", ""),
    "ConsumerOpen": ("QII", "credit_bytes credit_messages flags", "queue arguments"),
    "ConsumerInfo": ("QQQ", "messages bytes oldest_ms", ""),
    "ConsumerPosition": ("QQ", "offset missed", ""),
    "ConsumerCredit": ("QII", "bytes messages reserved", ""),
    "Get": ("II", "wait_ms reserved", ""),
    "QueueDeclare": ("QQBBH", "messages_max bytes_max durability flags partition",
                     "name arguments"),
    "Delete": ("I", "flags", "name"),
    "Named": ("", "", "name"),
    "QueueInfo": ("QQQQQQQQQQQQQQQQQQIIHHBBH", "ready unacked bytes published settled messages_max "
                  "bytes_max delayed due_ms dead recent_ms recent_arrived recent_left recent_taken "
                  "wait_mean_us wait_p50_us wait_p99_us wait_max_us "
                  "id consumers core partition durability flags reserved", "name"),
    "GroupInfo": ("QQII", "offset lag members reserved", "name"),
    "GroupReset": ("", "", "queue group arguments"),
    "GroupDelete": ("", "", "queue group"),
    "TransactionOpen": ("II", "timeout_ms reserved", ""),
    "TransactionOpened": ("IIII", "messages_max bytes_max timeout_ms reserved", ""),
    "TransactionSettle": ("HH", "consumer reserved", "ranges"),
    "QueueBrowse": ("QIIII", "from messages_max message_bytes_max states reserved",
                    "queue filter"),
    "QueueBrowsed": ("QQ", "next newest", "messages"),
    "QueueCancel": ("", "", "queue places"),
    "QueueMove": ("I", "flags", "queue exchange routing_key places"),
    "QueueOutcome": ("IIII", "done late busy refused", ""),
    "QueueDescription": ("QQIHBB", "messages_max bytes_max id partition durability reserved",
                         "name arguments options"),
    "PolicySet": ("IBBH", "priority applies flags reserved", "name pattern options"),
    "ExchangeDeclare": ("BBBB", "kind durability flags reserved", "name arguments"),
    "Bind": ("I", "flags", "exchange target key arguments"),
}


def pack_body(name, /, **fields):
    integers, names, parts = BODIES[name]
    parts = [fields.pop(part, b"") for part in parts.split()]
    values = [fields.pop(field, 0) for field in names.split()]
    if fields:
        raise TypeError(f"{name} has no {sorted(fields)}")
    lengths = [len(part) for part in parts]
    return struct.pack(f"<{integers}{len(parts)}I", *values, *lengths) + b"".join(parts)


def unpack_body(name, body):
    integers, names, parts = BODIES[name]
    names, parts = names.split(), parts.split()
    layout = struct.Struct(f"<{integers}{len(parts)}I")
    if len(body) < layout.size:
        raise ProtocolError("body_malformed")
    values = layout.unpack_from(body)
    fields = dict(zip(names, values))
    at = layout.size
    for part, length in zip(parts, values[len(names) :]):
        fields[part] = body[at : at + length]
        at += length
    if at != len(body) or fields.get("reserved"):
        raise ProtocolError("body_malformed")
    return fields


def pack_ranges(ranges):
    return b"".join(struct.pack("<QQ", first, last) for first, last in ranges)


# --- messages (P-20 to P-25) -------------------------------------------------------------------

Message = collections.namedtuple(
    "Message",
    "exchange routing_key payload headers properties priority timestamp_us ttl_ms delay_ms",
    defaults=(b"", b"", 0, 0, 0, 0),
)


def pack_message(message):
    """The bytes of a message, without padding."""
    parts = (message.exchange, message.routing_key, message.properties, message.headers,
             message.payload)
    places, at = [], 64
    for part in parts:
        places += (at, len(part))
        at += len(part)
    rest = struct.pack(
        "<IHBBB3xQIIHHHHIIIIII", at, 64, 0, 0, message.priority, message.timestamp_us,
        message.ttl_ms, message.delay_ms, *places,
    ) + b"".join(parts)
    return struct.pack("<I", crc32c(rest)) + rest


def unpack_message(data):
    """The message that starts `data` and its length; fields of later versions are skipped."""
    if len(data) < 64:
        raise ProtocolError("message_malformed")
    crc, length, header_bytes, critical, _, priority, timestamp_us, ttl_ms, delay_ms = (
        struct.unpack_from("<IIHBBB3xQII", data)
    )
    places = struct.unpack_from("<HHHHIIIIII", data, 32)
    at = header_bytes
    for offset, size in zip(places[::2], places[1::2]):
        if offset != at:
            raise ProtocolError("message_malformed")
        at += size
    if (at != length or length > len(data) or critical or header_bytes % 16
            or not 64 <= header_bytes <= 1024 or any(data[14:16])
            or crc32c(data[4:length]) != crc):
        raise ProtocolError("message_malformed")
    exchange, key, properties, headers, payload = (
        bytes(data[offset : offset + size]) for offset, size in zip(places[::2], places[1::2])
    )
    message = Message(
        exchange, key, payload, headers, properties, priority, timestamp_us, ttl_ms, delay_ms
    )
    return message, length


def pack_batch(messages):
    out = bytearray()
    for message in messages:
        out += pack_message(message)
        out += bytes(-len(out) % 16)
    return bytes(out)


def unpack_batch(body):
    at = 0
    while at < len(body):
        message, length = unpack_message(memoryview(body)[at:])
        end = at + padded(length)
        if end > len(body) or any(body[at + length : end]):
            raise ProtocolError("message_malformed")
        yield message
        at = end


def pack_table(entries):
    """A field table (P-65) of text, bytes, bool, int, float, None, list and dict."""
    out = bytearray()
    for key, value in entries.items():
        key = key.encode()
        out += bytes([len(key)]) + key + _pack_value(value)
    return bytes(out)


def _pack_value(value):
    if value is None:
        return b"V"
    if isinstance(value, bool):
        return b"t" + bytes([value])
    if isinstance(value, int):
        return b"l" + struct.pack(">q", value)
    if isinstance(value, float):
        return b"d" + struct.pack(">d", value)
    if isinstance(value, str):
        value, kind = value.encode(), b"S"
    elif isinstance(value, dict):
        value, kind = pack_table(value), b"F"
    elif isinstance(value, (list, tuple)):
        value, kind = b"".join(map(_pack_value, value)), b"A"
    else:
        kind = b"x"
    return kind + struct.pack(">I", len(value)) + value


_NUMBERS = {"b": ">b", "B": ">B", "s": ">h", "u": ">H", "I": ">i", "i": ">I", "l": ">q",
            "f": ">f", "d": ">d", "T": ">Q"}


def unpack_table(data):
    entries, at = {}, 0
    while at < len(data):
        end = at + 1 + data[at]
        value, after = _unpack_value(data, end)
        entries.setdefault(bytes(data[at + 1 : end]).decode(), value)
        at = after
    return entries


def _unpack_value(data, at):
    kind = chr(data[at])
    at += 1
    if kind == "V":
        return None, at
    if kind == "t":
        return data[at] != 0, at + 1
    if kind == "D":
        scale, value = struct.unpack_from(">BI", data, at)
        return (scale, value), at + 5
    if kind in _NUMBERS:
        layout = struct.Struct(_NUMBERS[kind])
        return layout.unpack_from(data, at)[0], at + layout.size
    (length,) = struct.unpack_from(">I", data, at)
    start, end = at + 4, at + 4 + length
    inner = data[start:end]
    if kind not in "SxFA" or len(inner) != length:
        raise ProtocolError("a field table is malformed")
    if kind == "S":
        return inner.decode(), end
    if kind == "x":
        return bytes(inner), end
    if kind == "F":
        return unpack_table(inner), end
    values, at = [], 0
    while at < length:
        value, at = _unpack_value(inner, at)
        values.append(value)
    return values, end


# --- the connection ----------------------------------------------------------------------------


class Refusal(Exception):
    """The broker said no: `code` is one of docs/protocol.md, `reason` is for people."""

    def __init__(self, what, body):
        failure = unpack_body("Failure", body)
        self.code, self.reason = failure["code"], failure["reason"].decode(errors="replace")
        super().__init__(f"{what}: code {self.code}: {self.reason}")


def _bytes(text):
    return text.encode() if isinstance(text, str) else bytes(text)


class Connection:
    """One connection. Calls block; frames that they do not wait for are kept where they belong."""

    def __init__(self, host, port, tenant="", timeout=30.0, heartbeat_ms=0):
        self.timeout = timeout
        self._socket = socket.create_connection((host, port), timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = bytearray()
        self._request = 0
        self._answers = {}  # request id -> frames
        self._asked = {}  # request id -> channel
        self._channels = {}
        self._closed = None
        self._heartbeat = None
        hello = pack_body(
            "Hello", magic=MAGIC, version_min=VERSION, version_max=VERSION,
            heartbeat_ms=heartbeat_ms, tenant=_bytes(tenant), client=b"ringpost.py 1",
        )
        self._send("Hello", body=hello)
        frame = self._frame(time.monotonic() + timeout)
        if frame is None:
            raise TimeoutError("no Welcome")
        if frame.kind == "Close":
            raise Refusal("connect", frame.body)
        if frame.kind != "Welcome":
            raise ProtocolError(f"{frame.kind} instead of Welcome")
        self.welcome = unpack_body("Welcome", frame.body)
        if self.welcome["magic"] != MAGIC or self.welcome["version"] != VERSION:
            raise ProtocolError("version_unsupported")
        self._heartbeat = self.welcome["heartbeat_ms"] / 1000
        self._heard = time.monotonic()

    # bytes in and out

    def _send(self, kind, channel=0, sequence=0, body=b"", count=0, flags=0):
        self._socket.settimeout(self.timeout)
        self._socket.sendall(pack_frame(kind, channel, sequence, body, count, flags))
        self._spoke = time.monotonic()

    def _frame(self, deadline):
        """The next frame, or None at the deadline; keeps the heartbeat (P-12)."""
        while True:
            found = unpack_frame(self._received)
            if found is not None:
                del self._received[: found[1]]
                return found[0]
            now = time.monotonic()
            if now >= deadline:
                return None
            wait = deadline - now
            if self._heartbeat:
                if now - self._heard > 2 * self._heartbeat:
                    raise TimeoutError("the broker was silent for two heartbeat intervals")
                if now - self._spoke > self._heartbeat / 2:
                    self._send("Heartbeat")
                wait = min(wait, self._heartbeat / 4)
            self._socket.settimeout(wait)
            try:
                more = self._socket.recv(1 << 18)
            except socket.timeout:
                continue
            if not more:
                raise ConnectionError("the broker hung up")
            self._received += more
            self._heard = time.monotonic()

    def pump(self, until, timeout=None):
        """Serves frames until `until()` is true; false at the timeout."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while not until():
            if self._closed:
                raise self._closed
            frame = self._frame(deadline)
            if frame is None:
                return False
            self._dispatch(frame)
        return True

    def _dispatch(self, frame):
        if frame.kind == "Heartbeat":
            return
        if frame.kind == "Close":
            self._closed = Refusal("closed by the broker", frame.body)
            if "Close" not in self._answers:
                self._send("Close", body=pack_body("Failure"))
            return
        if frame.sequence in self._answers and frame.kind not in (
            "Confirm", "Refused", "Deliver", "DeliverFragment"
        ):
            self._answers[frame.sequence].append(frame)
        elif frame.kind in ("ProducerClosed", "ConsumerClosed"):
            # Nobody asked for it: it answers every request of the channel (P-15).
            for request, number in self._asked.items():
                if number == frame.channel:
                    self._answers[request].append(frame)
        channel = self._channels.get(frame.channel)
        if channel is not None:
            channel._take(frame)

    # requests (P-9)

    def _ask(self, kind, channel=0, body=b"", count=0, flags=0):
        self._request += 1
        self._answers[self._request], self._asked[self._request] = [], channel
        self._send(kind, channel, self._request, body, count, flags)
        return self._request

    def _answer(self, request, *last, timeout=None):
        """Frames up to one whose kind is in `last`."""
        frames = self._answers[request]
        try:
            ends = last + ("Failed", "ProducerClosed", "ConsumerClosed")
            if not self.pump(lambda: frames and frames[-1].kind in ends, timeout):
                raise TimeoutError(f"request {request} was not answered")
        finally:
            del self._answers[request], self._asked[request]
        if frames[-1].kind not in last:
            raise Refusal(f"request {request}", frames[-1].body)
        return frames

    def _done(self, kind, body=b""):
        """The `Done` of a request: (changed, count)."""
        done = self._answer(self._ask(kind, body=body), "Done")[-1]
        return bool(done.flags & 1), done.count

    def _list(self, kind, body, about=b""):
        frames = self._answer(self._ask(kind, body=about), "Done")
        return [unpack_body(body, frame.body) for frame in frames[:-1]]

    # topology

    def attach(self, queue):
        request = self._ask("Attach", body=pack_body("Attach", queue=_bytes(queue)))
        return self._answer(request, "Attached")[-1].count

    def declare_queue(self, name, durable=True, passive=False, messages_max=0, bytes_max=0,
                      partition=65535, arguments=None):
        return self._done("QueueDeclare", pack_body(
            "QueueDeclare", name=_bytes(name), durability=int(durable), flags=int(passive),
            messages_max=messages_max, bytes_max=bytes_max, partition=partition,
            arguments=pack_table(arguments or {}),
        ))[0]

    def delete_queue(self, name, if_unused=False, if_empty=False):
        flags = int(if_unused) | int(if_empty) << 1
        return self._done("QueueDelete", pack_body("Delete", name=_bytes(name), flags=flags))[1]

    def purge_queue(self, name):
        return self._done("QueuePurge", pack_body("Named", name=_bytes(name)))[1]

    def inspect_queue(self, name):
        request = self._ask("QueueInspect", body=pack_body("Named", name=_bytes(name)))
        return unpack_body("QueueInfo", self._answer(request, "QueueInfo")[-1].body)

    def groups(self, stream):
        """What the groups of a stream are, by name (P-85)."""
        return self._list("GroupList", "GroupInfo", pack_body("Named", name=_bytes(stream)))

    def reset_group(self, stream, group, offset):
        """Sets a group to another place, as `x-stream-offset` says (P-86)."""
        return self._done("GroupReset", pack_body(
            "GroupReset", queue=_bytes(stream), group=_bytes(group),
            arguments=pack_table({"x-stream-offset": offset}),
        ))[0]

    def delete_group(self, stream, group):
        """Forgets a group; whether it was there (P-86)."""
        body = pack_body("GroupDelete", queue=_bytes(stream), group=_bytes(group))
        return self._done("GroupDelete", body)[0]

    def queues(self):
        return self._list("QueueList", "QueueInfo")

    def declare_exchange(self, name, kind="direct", durable=True, passive=False, arguments=None):
        return self._done("ExchangeDeclare", pack_body(
            "ExchangeDeclare", name=_bytes(name), kind=EXCHANGES[kind], durability=int(durable),
            flags=int(passive), arguments=pack_table(arguments or {}),
        ))[0]

    def delete_exchange(self, name, if_unused=False):
        body = pack_body("Delete", name=_bytes(name), flags=int(if_unused))
        return self._done("ExchangeDelete", body)[0]

    def exchanges(self):
        return self._list("ExchangeList", "ExchangeDeclare")

    def _binding(self, kind, target, exchange, key, arguments, flags):
        return self._done(kind, pack_body(
            "Bind", flags=flags, target=_bytes(target), exchange=_bytes(exchange), key=_bytes(key),
            arguments=pack_table(arguments or {}),
        ))[0]

    def bind(self, queue, exchange, key="", arguments=None):
        return self._binding("Bind", queue, exchange, key, arguments, 0)

    def unbind(self, queue, exchange, key="", arguments=None):
        return self._binding("Unbind", queue, exchange, key, arguments, 0)

    def bind_exchange(self, target, exchange, key="", arguments=None):
        return self._binding("Bind", target, exchange, key, arguments, 1)

    def unbind_exchange(self, target, exchange, key="", arguments=None):
        return self._binding("Unbind", target, exchange, key, arguments, 1)

    def bindings(self):
        return self._list("BindingList", "Bind")

    # channels

    def _number(self):
        numbers = range(1, self.welcome["channels_max"] + 1)
        return next(number for number in numbers if number not in self._channels)

    def producer(self, level="durable", producer=None, epoch=0):
        return Producer(self, level, producer or random.getrandbits(63) | 1, epoch)

    def consumer(self, queue, credit=100, credit_bytes=0, no_ack=False, exclusive=False, arguments=None):
        flags = int(no_ack) | int(exclusive) << 1
        return Consumer(self, queue, credit, credit_bytes, flags, pack_table(arguments or {}))

    def close(self):
        """Ends the connection (P-11). Close producers first to know what became of publishes."""
        if self._closed is None:
            self._answers["Close"] = []
            self._send("Close", body=pack_body("Failure"))
            try:
                self.pump(lambda: self._closed is not None, 5)
            except ConnectionError:
                pass
        self._socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def connect(host, port, **options):
    return Connection(host, port, **options)


class _Channel:
    """What producers and consumers share: a number, opening, closing."""

    def __init__(self, connection, kind, body):
        self.connection, self.number, self.closed = connection, connection._number(), None
        connection._channels[self.number] = self
        request = connection._ask(kind + "Open", self.number, body)
        try:
            self.opened = connection._answer(request, kind + "Opened")[-1]
        except Refusal:
            del connection._channels[self.number]
            raise
        self._kind = kind

    def _pump(self, until, timeout=None):
        done = self.connection.pump(lambda: self.closed or until(), timeout)
        if self.closed:
            raise self.closed
        return done

    def _ended(self, frame):
        self.closed = Refusal(f"channel {self.number} ended", frame.body)
        self.connection._channels.pop(self.number, None)

    def close(self):
        if self.closed is None:
            request = self.connection._ask(self._kind + "Close", self.number)
            self.connection._answer(request, self._kind + "Closed")
        if self.closed.code != 0:
            raise self.closed


class Producer(_Channel):
    """Publishes within its credit and knows what became of every publish."""

    def __init__(self, connection, level, producer, epoch):
        super().__init__(connection, "Producer", pack_body(
            "ProducerOpen", producer=producer, epoch=epoch, level=LEVELS[level]
        ))
        opened = unpack_body("ProducerOpened", self.opened.body)
        self.next = opened["sequence"]
        self.confirmed = self.next - 1  # every outcome up to here is known
        self.level = None  # of the last confirm
        self.refused = {}  # sequence -> Refusal
        self._sent = [0, 0]
        self._credit = [opened["messages"], opened["bytes"]]

    def _take(self, frame):
        if frame.kind in ("Confirm", "ProducerCredit"):
            credit = unpack_body("ProducerCredit", frame.body)
            self._credit = [max(self._credit[0], credit["messages"]),
                            max(self._credit[1], credit["bytes"])]
            if frame.kind == "Confirm":
                self.confirmed, self.level = max(self.confirmed, frame.sequence), frame.flags
        elif frame.kind == "Refused":
            refusal = Refusal(f"publish {frame.sequence} refused", frame.body)
            for sequence in range(frame.sequence, frame.sequence + frame.count):
                self.refused[sequence] = refusal
        elif frame.kind == "ProducerClosed":
            self._ended(frame)

    def _has_credit(self, messages, size):
        return (self._sent[0] + messages <= self._credit[0]
                and self._sent[1] + size <= self._credit[1])

    def _wait_for_credit(self, messages, size):
        if not self._pump(lambda: self._has_credit(messages, size)):
            raise TimeoutError("no credit to publish")
        self._sent[0] += messages
        self._sent[1] += size

    def publish(self, messages, mandatory=False):
        """Sends messages, as many to a frame as fit; returns the sequence of the first."""
        first, batch, count = self.next, bytearray(), 0
        for message in messages:
            data = pack_message(message)
            size = padded(len(data))
            # What is batched is sent before waiting for credit, which only its confirm may bring.
            if batch and (len(batch) + size > PIECE or not self._has_credit(1, size)):
                self._publish_batch(batch, count, mandatory)
                batch, count = bytearray(), 0
            if len(data) > PIECE:
                self._publish_pieces(data, mandatory)
                continue
            self._wait_for_credit(1, size)
            batch += data + bytes(size - len(data))
            count += 1
        if batch:
            self._publish_batch(batch, count, mandatory)
        return first

    def _publish_batch(self, batch, count, mandatory):
        self.connection._send("Publish", self.number, self.next, bytes(batch), count,
                              MANDATORY if mandatory else 0)
        self.next += count

    def _publish_pieces(self, data, mandatory):
        for offset in range(0, len(data), PIECE):
            piece = data[offset : offset + PIECE]
            self._wait_for_credit(int(offset == 0), padded(len(piece)))
            if self.next in self.refused:
                break
            self.connection._send("PublishFragment", self.number, self.next,
                                  struct.pack("<II8x", len(data), offset) + piece, 1,
                                  MANDATORY if mandatory else 0)
        self.next += 1

    def flush(self):
        """Waits until the outcome of every publish is known; raises the first refusal."""
        def known():
            return all(sequence in self.refused
                       for sequence in range(self.confirmed + 1, self.next))

        if not self._pump(known):
            raise TimeoutError(f"no outcome of publishes after {self.confirmed}")
        if self.refused:
            raise self.refused[min(self.refused)]


Delivery = collections.namedtuple(
    "Delivery", "tag queue_sequence redelivered delivery_count message"
)


class Consumer(_Channel):
    """Receives from one queue. Deliveries are settled by tag."""

    def __init__(self, connection, queue, credit, credit_bytes, flags, arguments=b""):
        self.is_active = False  # of a queue with a single active consumer (P-52), or of a group (P-84)
        self.position = None  # of a stream: the offset and the messages missed, as told last (P-83)
        self._ready = collections.deque()
        self._pieces = bytearray()
        super().__init__(connection, "Consumer", pack_body(
            "ConsumerOpen", queue=_bytes(queue), credit_messages=credit, credit_bytes=credit_bytes,
            flags=flags, arguments=arguments,
        ))

    def _take(self, frame):
        if frame.kind in ("Deliver", "DeliverFragment"):
            queue_sequence, delivery_count = struct.unpack_from("<QI4x", frame.body)
            if frame.kind == "Deliver":
                messages = list(unpack_batch(frame.body[16:]))
            else:
                total, offset = struct.unpack_from("<II8x", frame.body, 16)
                if offset != len(self._pieces):
                    raise ProtocolError("a piece is missing")
                self._pieces += frame.body[32:]
                if len(self._pieces) < total:
                    return
                messages = [unpack_message(bytes(self._pieces))[0]]
                self._pieces.clear()
            if len(messages) != frame.count:
                raise ProtocolError("body_malformed")
            for idx, message in enumerate(messages):
                self._ready.append(Delivery(frame.sequence + idx, queue_sequence + idx,
                                            bool(frame.flags & 1), delivery_count, message))
        elif frame.kind == "ConsumerActive":
            self.is_active = bool(frame.flags & 1)
        elif frame.kind == "ConsumerPosition":
            position = unpack_body("ConsumerPosition", frame.body)
            self.position = position["offset"], position["missed"]
        elif frame.kind == "ConsumerClosed":
            self._ended(frame)

    def receive(self, timeout=None):
        """The next delivery, or None at the timeout."""
        if not self._pump(lambda: self._ready, timeout):
            return None
        return self._ready.popleft()

    def get(self, count=1, wait=0.0):
        """Takes up to `count` messages, waiting for the first (P-43)."""
        request = self.connection._ask(
            "Get", self.number, pack_body("Get", wait_ms=int(wait * 1000)), count
        )
        timeout = wait + self.connection.timeout
        done = self.connection._answer(request, "GetDone", timeout=timeout)[-1]
        return [self._ready.popleft() for _ in range(done.count)]

    def inspect(self):
        """What it holds: messages, bytes and the age of the oldest in ms (P-53)."""
        request = self.connection._ask("ConsumerInspect", self.number)
        info = self.connection._answer(request, "ConsumerInfo")[-1]
        return unpack_body("ConsumerInfo", info.body)

    def credit(self, messages, size=0):
        body = pack_body("ConsumerCredit", messages=messages, bytes=size)
        self.connection._send("ConsumerCredit", self.number, body=body)

    def settle(self, ranges, outcome=ACK, confirm=True):
        """Settles ranges of tags (first, last); with `confirm` waits until it is durable."""
        body, count = pack_ranges(ranges), len(ranges)
        if not confirm:
            self.connection._send("Settle", self.number, 0, body, count, outcome)
            return
        request = self.connection._ask("Settle", self.number, body, count, outcome | CONFIRM)
        self.connection._answer(request, "Settled")

    def ack(self, delivery, confirm=True):
        self.settle([(delivery.tag, delivery.tag)], ACK, confirm)

    def ack_upto(self, delivery, confirm=True):
        self.settle([(0, delivery.tag)], ACK, confirm)

    def nack(self, delivery, requeue=True, confirm=True):
        self.settle([(delivery.tag, delivery.tag)], REQUEUE if requeue else REJECT, confirm)
