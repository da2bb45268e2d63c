#!/usr/bin/env python3
"""roundtrip.py HOST PORT [COUNT]: everything published durably comes back whole, once, in order.

Publishes COUNT messages (default 1000) and one of 1 MiB through a topic exchange with durable
confirms, consumes and acks them, and exits with 1 unless everything matches.
"""

import os
import sys

import ringpost
from ringpost import Message


def expect(what, found, wanted):
    if found != wanted:
        raise AssertionError(f"{what}: found {found!r}, wanted {wanted!r}")


def roundtrip(host, port, count, has_streams=True):
    run = os.urandom(6).hex()
    queue, exchange = f"roundtrip-{run}", f"roundtrip-{run}-topic"
    large = bytes(range(256)) * 4096  # 1 MiB
    headers = ringpost.pack_table({"run": run, "nested": {"n": [1, None, 0.5]}})
    wanted = [
        Message(exchange.encode(), b"order.%d.paid" % idx, b"payload %d " % idx * (idx % 9),
                headers if idx % 3 == 0 else b"", b"", idx % 10, 1_000_000 + idx)
        for idx in range(count)
    ]
    wanted.insert(count // 2, Message(exchange.encode(), b"order.large.paid", large))

    with ringpost.connect(host, port) as connection:
        expect("queue is new", connection.declare_queue(queue), True)
        expect("queue is declared again", connection.declare_queue(queue), False)
        connection.declare_exchange(exchange, "topic")
        expect("binding is new", connection.bind(queue, exchange, "order.*.paid"), True)
        expect("bound again", connection.bind(queue, exchange, "order.*.paid"), False)

        producer = connection.producer(level="durable")
        for start in range(0, len(wanted), 64):
            producer.publish(wanted[start : start + 64])
        producer.publish([Message(exchange.encode(), b"nobody.wants.this", b"")])
        producer.flush()
        expect("level of confirms", producer.level, ringpost.LEVELS["durable"])
        unroutable = producer.publish(
            [Message(exchange.encode(), b"nobody.wants.this", b"")], mandatory=True
        )
        try:
            producer.flush()
            raise AssertionError("a mandatory publish that no queue takes was not refused")
        except ringpost.Refusal as refusal:
            expect("code of the refusal", refusal.code, 50)
            expect("refused sequences", sorted(producer.refused), [unroutable])
        producer.close()
        expect("messages in the queue", connection.inspect_queue(queue)["ready"], len(wanted))

        consumer = connection.consumer(queue, credit=200)
        returned = None
        for idx, message in enumerate(wanted):
            delivery = consumer.receive()
            if delivery is None:
                raise AssertionError(f"message {idx} of {len(wanted)} did not come")
            expect(f"message {idx}", delivery.message, message)  # P-25: every part as it was
            expect(f"redelivered, message {idx}", delivery.redelivered, False)
            expect(f"tag of message {idx}", delivery.tag, idx + 1)
            expect(f"place of message {idx}", delivery.queue_sequence, idx + 1)
            if idx == len(wanted) - 1:
                returned = delivery
            elif idx % 50 == 49 or idx == len(wanted) - 2:
                consumer.ack_upto(delivery, confirm=idx % 100 == 99)
        consumer.credit(0)
        consumer.nack(returned, requeue=True)
        (again,) = consumer.get(5, wait=5.0)
        expect("the requeued message", again.message, wanted[-1])
        expect("its place", again.queue_sequence, returned.queue_sequence)
        expect("redelivered after a requeue", again.redelivered, True)
        consumer.ack(again)
        expect("an empty queue", consumer.get(1), [])
        consumer.close()

        info = connection.inspect_queue(queue)
        expect("ready and unacked at the end", (info["ready"], info["unacked"]), (0, 0))
        expect("dropped with the queue", connection.delete_queue(queue), 0)
        connection.delete_exchange(exchange)
        try:
            connection.inspect_queue(queue)
            raise AssertionError("a deleted queue was found")
        except ringpost.Refusal as refusal:
            expect("code for a deleted queue", refusal.code, 32)
        if has_streams:
            stream(connection, f"roundtrip-{run}-stream")
    return len(wanted)


def stream(connection, name):
    """A stream is read twice, by one of a group and by one from its middle (P-81 to P-86)."""
    connection.declare_queue(name, arguments={"x-queue-type": "stream"})
    producer = connection.producer(level="durable")
    producer.publish([Message(b"", name.encode(), b"%d" % idx) for idx in range(10)])
    producer.flush()
    producer.close()
    for first, arguments in [(0, {"x-stream-offset": "first", "x-stream-group": "g"}), (6, {"x-stream-offset": 7})]:
        consumer = connection.consumer(name, arguments=arguments)
        for idx in range(first, 10):
            delivery = consumer.receive()
            found = delivery.queue_sequence, delivery.message.payload, delivery.redelivered
            expect("what lies in the stream", found, (idx + 1, b"%d" % idx, False))
            if idx == 4:
                consumer.ack_upto(delivery, confirm=True)
        expect("where it began", consumer.position, (first + 1, 0))
        consumer.close()
    (group,) = connection.groups(name)
    found = group["name"], group["offset"], group["lag"], group["members"]
    expect("the group", found, (b"g", 6, 5, 0))
    connection.reset_group(name, "g", 9)
    expect("the group that was reset", connection.groups(name)[0]["offset"], 9)
    expect("a group that was there", connection.delete_group(name, "g"), True)
    expect("a group that was not there", connection.delete_group(name, "g"), False)
    connection.delete_queue(name)


def main():
    if not 3 <= len(sys.argv) <= 4:
        sys.exit(__doc__)
    host, port = sys.argv[1], int(sys.argv[2])
    count = int(sys.argv[3]) if len(sys.argv) == 4 else 1000
    done = roundtrip(host, port, count)
    print(f"{done} messages made the round trip")


if __name__ == "__main__":
    try:
        main()
    except (AssertionError, ringpost.Refusal, ringpost.ProtocolError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
