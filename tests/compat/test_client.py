#!/usr/bin/env python3
"""Runs the client and roundtrip.py against a toy broker: one queue at a time, all in memory.

The toy proves the client's side of docs/protocol.md and nothing of the real broker, which
roundtrip.py is for. It uses the codec of ringpost.py, so it cannot find a wrong byte: the golden
vectors do that.
"""

import collections
import re
import socket
import struct
import threading
import unittest

import ringpost as r
import roundtrip

CREDIT_BYTES = 4 * r.PIECE  # less than the large message: it needs credit piece by piece


class Toy:
    """One connection of a broker."""

    def __init__(self, sock):
        self.sock, self.queues, self.exchanges, self.bindings = sock, {}, set(), set()
        self.produced, self.consumers, self.large = {}, {}, bytearray()

    def send(self, kind, channel=0, sequence=0, body=b"", count=0, flags=0):
        self.sock.sendall(r.pack_frame(kind, channel, sequence, body, count, flags))

    def fail(self, frame, code, reason):
        body = r.pack_body("Failure", code=code, reason=reason)
        self.send("Failed", frame.channel, frame.sequence, body)

    def run(self):
        received = bytearray()
        while True:
            found = r.unpack_frame(received)
            if found is None:
                more = self.sock.recv(1 << 16)
                if not more:
                    return
                received += more
                continue
            del received[: found[1]]
            getattr(self, found[0].kind)(found[0])
            if found[0].kind == "Close":
                self.sock.close()
                return

    def Hello(self, frame):
        hello = r.unpack_body("Hello", frame.body)
        assert (hello["magic"], hello["version_min"]) == (r.MAGIC, 1)
        self.send("Welcome", body=r.pack_body(
            "Welcome", magic=r.MAGIC, version=1, cores=1, channels_max=8, heartbeat_ms=1000,
            frame_bytes_max=r.FRAME_MAX, message_bytes_max=1 << 24, credit_messages_max=1000,
            server=b"toy"))

    def Close(self, _):
        self.send("Close", body=r.pack_body("Failure"))

    def Heartbeat(self, _):
        self.send("Heartbeat")  # the toy has no clock: it speaks when spoken to

    def done(self, frame, changed, count=0):
        self.send("Done", 0, frame.sequence, b"", count, int(changed))

    def QueueDeclare(self, frame):
        name = r.unpack_body("QueueDeclare", frame.body)["name"]
        self.done(frame, name not in self.queues)
        self.queues.setdefault(name, collections.OrderedDict())

    def QueueDelete(self, frame):
        name = r.unpack_body("Delete", frame.body)["name"]
        self.done(frame, True, len(self.queues.pop(name)))

    def QueueInspect(self, frame):
        name = r.unpack_body("Named", frame.body)["name"]
        if name not in self.queues:
            return self.fail(frame, 32, b"no such queue")
        unacked = sum(len(consumer["out"]) for consumer in self.consumers.values())
        body = r.pack_body("QueueInfo", name=name, ready=len(self.queues[name]), unacked=unacked)
        self.send("QueueInfo", 0, frame.sequence, body)

    def ExchangeDeclare(self, frame):
        name = r.unpack_body("ExchangeDeclare", frame.body)["name"]
        self.done(frame, name not in self.exchanges)
        self.exchanges.add(name)

    def ExchangeDelete(self, frame):
        self.exchanges.discard(r.unpack_body("Delete", frame.body)["name"])
        self.done(frame, True)

    def Bind(self, frame):
        body = r.unpack_body("Bind", frame.body)
        assert body["flags"] == 0, "it is a queue"
        bind = tuple(body[name] for name in ("exchange", "target", "key", "arguments"))
        self.done(frame, bind not in self.bindings)
        self.bindings.add(bind)

    def ProducerOpen(self, frame):
        self.produced[frame.channel] = [0, 0, 1]  # messages, bytes, next sequence
        body = r.pack_body("ProducerOpened", sequence=1, messages=100, bytes=CREDIT_BYTES)
        self.send("ProducerOpened", frame.channel, frame.sequence, body)

    def account(self, frame, messages, size):
        """Counts what was published; the credit that replaces it."""
        state = self.produced[frame.channel]
        state[0], state[1] = state[0] + messages, state[1] + size
        return r.pack_body("ProducerCredit", messages=state[0] + 100, bytes=state[1] + CREDIT_BYTES)

    def route(self, frame, sequence, message):
        """Stores the message; true unless it was mandatory and no queue takes it."""
        state = self.produced[frame.channel]
        assert sequence == state[2], "sequence_gap"
        state[2] += 1
        targets = set()
        for exchange, queue, key, _ in self.bindings:
            pattern = re.escape(key).replace(rb"\*", rb"[^.]*")
            if exchange == message.exchange and re.fullmatch(pattern, message.routing_key):
                targets.add(queue)
        for queue in targets:
            self.stored = getattr(self, "stored", 0) + 1
            self.queues[queue][self.stored] = (message, 0)
        if targets or not frame.flags & r.MANDATORY:
            return True
        body = r.pack_body("Failure", code=50, reason=b"no queue takes it")
        self.send("Refused", frame.channel, sequence, body, 1)
        return False

    def Publish(self, frame):
        messages = list(r.unpack_batch(frame.body))
        assert len(messages) == frame.count
        routed = [self.route(frame, frame.sequence + idx, message)
                  for idx, message in enumerate(messages)]
        credit = self.account(frame, len(messages), len(frame.body))
        # One that is refused last is passed by no confirm: its credit comes alone.
        kind = "Confirm" if routed[-1] else "ProducerCredit"
        last = frame.sequence + frame.count - 1 if routed[-1] else 0
        self.send(kind, frame.channel, last, credit, 0, 2 if routed[-1] else 0)
        self.push()

    def PublishFragment(self, frame):
        total, offset = struct.unpack_from("<II8x", frame.body)
        assert offset == len(self.large)
        self.large += frame.body[16:]
        credit = self.account(frame, int(offset == 0), r.padded(len(frame.body) - 16))
        if len(self.large) < total:
            return self.send("ProducerCredit", frame.channel, 0, credit)
        self.route(frame, frame.sequence, r.unpack_message(bytes(self.large))[0])
        self.large.clear()
        self.send("Confirm", frame.channel, frame.sequence, credit, 0, 2)
        self.push()

    def ProducerClose(self, frame):
        self.send("ProducerClosed", frame.channel, frame.sequence, r.pack_body("Failure"))

    def ConsumerOpen(self, frame):
        opened = r.unpack_body("ConsumerOpen", frame.body)
        if opened["queue"] not in self.queues:
            return self.fail(frame, 32, b"no such queue")
        self.consumers[frame.channel] = {
            "queue": opened["queue"], "credit": opened["credit_messages"], "tag": 0,
            "out": collections.OrderedDict(),
        }
        self.send("ConsumerOpened", frame.channel, frame.sequence)
        self.push()

    def push(self):
        for channel, consumer in self.consumers.items():
            while len(consumer["out"]) < consumer["credit"] and self.queues[consumer["queue"]]:
                self.deliver(channel, consumer)

    def deliver(self, channel, consumer):
        place, (message, count) = self.queues[consumer["queue"]].popitem(last=False)
        consumer["tag"] += 1
        consumer["out"][consumer["tag"]] = (place, message, count)
        head = struct.pack("<QI4x", place, count)
        data, flags = r.pack_message(message), int(count > 0)
        if len(data) <= r.PIECE:
            body = head + r.pack_batch([message])
            return self.send("Deliver", channel, consumer["tag"], body, 1, flags)
        for offset in range(0, len(data), r.PIECE):
            body = head + struct.pack("<II8x", len(data), offset) + data[offset : offset + r.PIECE]
            self.send("DeliverFragment", channel, consumer["tag"], body, 1, flags)

    def Settle(self, frame):
        consumer = self.consumers[frame.channel]
        for first, last in struct.iter_unpack("<QQ", frame.body):
            tags = [tag for tag in consumer["out"] if first <= tag <= last]
            if last > consumer["tag"] or first and len(tags) != last - first + 1:
                self.consumers.pop(frame.channel)
                body = r.pack_body("Failure", code=20, reason=b"not outstanding")
                return self.send("ConsumerClosed", frame.channel, 0, body)
            for tag in tags:
                place, message, count = consumer["out"].pop(tag)
                if frame.flags & 3 == r.REQUEUE:
                    queue = self.queues[consumer["queue"]]
                    queue[place] = (message, count + 1)
                    queue.move_to_end(place, last=False)
        if frame.flags & r.CONFIRM:
            self.send("Settled", frame.channel, frame.sequence)
        self.push()

    def ConsumerCredit(self, frame):
        credit = r.unpack_body("ConsumerCredit", frame.body)["messages"]
        self.consumers[frame.channel]["credit"] = credit
        self.push()

    def Get(self, frame):
        consumer, given = self.consumers[frame.channel], 0
        while given < frame.count and self.queues[consumer["queue"]]:
            self.deliver(frame.channel, consumer)
            given += 1
        self.send("GetDone", frame.channel, frame.sequence, b"", given)

    def ConsumerClose(self, frame):
        self.consumers.pop(frame.channel)
        self.send("ConsumerClosed", frame.channel, frame.sequence, r.pack_body("Failure"))


class Client(unittest.TestCase):
    def setUp(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.errors = []
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        try:
            Toy(self.listener.accept()[0]).run()
        except Exception as error:  # shown by the test, which would otherwise only hang
            self.errors.append(repr(error))

    def tearDown(self):
        self.listener.close()
        self.thread.join(5)
        self.assertFalse(self.thread.is_alive())
        self.assertEqual(self.errors, [])

    def test_roundtrip(self):
        self.assertEqual(roundtrip.roundtrip("127.0.0.1", self.port, 300, has_streams=False), 301)

    def test_one_call_may_publish_more_than_the_credit(self):
        with r.connect("127.0.0.1", self.port, timeout=5) as connection:
            connection.declare_queue("orders")
            connection.declare_exchange("shop", "topic")
            connection.bind("orders", "shop", "k")
            producer = connection.producer()
            self.assertEqual(producer.publish([r.Message(b"shop", b"k", b"x")] * 350), 1)
            producer.flush()
            self.assertEqual(producer.confirmed, 350)
            self.assertEqual(connection.inspect_queue("orders")["ready"], 350)

    def test_a_broker_that_errs_fails_the_roundtrip(self):
        deliver, count = Toy.deliver, [0]

        def lossy(toy, channel, consumer):
            count[0] += 1
            if count[0] == 20:
                toy.queues[consumer["queue"]].popitem(last=False)
            deliver(toy, channel, consumer)

        Toy.deliver = lossy
        try:
            with self.assertRaisesRegex(AssertionError, "message 19"):
                roundtrip.roundtrip("127.0.0.1", self.port, 100, has_streams=False)
        finally:
            Toy.deliver = deliver

    def test_refusals_reach_the_caller(self):
        with r.connect("127.0.0.1", self.port, timeout=5) as connection:
            with self.assertRaises(r.Refusal) as caught:
                connection.consumer("nothing")
            self.assertEqual(caught.exception.code, 32)
            connection.declare_queue("orders")
            consumer = connection.consumer("orders")
            self.assertIsNone(consumer.receive(timeout=0.01))
            with self.assertRaises(r.Refusal) as caught:
                consumer.settle([(1, 1)])
            self.assertEqual(caught.exception.code, 20)
            again = connection.consumer("orders")
            self.assertEqual(again.number, consumer.number)


if __name__ == "__main__":
    unittest.main()
