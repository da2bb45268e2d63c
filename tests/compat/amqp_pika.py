#!/usr/bin/env python3
"""amqp_pika.py HOST PORT [NATIVE_PORT]: programs as people write them with pika 1.x, against a broker.

Each program prints a line; the last line counts them. Exits with 1 if one fails. With NATIVE_PORT
the native client of ringpost.py consumes what pika publishes, and the other way round.
"""

import os
import sys
import threading
import time
import traceback

import pika
import pika.exceptions

HOST, PORT = sys.argv[1], int(sys.argv[2])
NATIVE = int(sys.argv[3]) if len(sys.argv) > 3 else None
RUN = os.urandom(4).hex()
PROGRAMS = []


def program(function):
    PROGRAMS.append(function)
    return function


def connect(**more):
    return pika.BlockingConnection(pika.ConnectionParameters(HOST, port=PORT, **more))


def name(what):
    return f"{what}-{RUN}"


def expect(what, found, wanted):
    if found != wanted:
        raise AssertionError(f"{what}: found {found!r}, wanted {wanted!r}")


def closed_with(code, act):
    """Does what must end a channel with `code`; its connection goes on."""
    connection = connect()
    channel = connection.channel()
    try:
        act(channel)
        channel.queue_declare(queue=name("nobody"), passive=False, auto_delete=True)
    except pika.exceptions.ChannelClosedByBroker as closed:
        expect("reply code", closed.reply_code, code)
        if closed.reply_code != 312:
            assert " - " in closed.reply_text, closed.reply_text
    else:
        raise AssertionError(f"the channel was not closed with {code}")
    connection.channel().close()
    connection.close()


def ended_with(code, act):
    """Does what must end a connection with `code`."""
    connection = connect()
    channel = connection.channel()
    try:
        act(connection, channel)
        connection.process_data_events(time_limit=1)
        connection.channel()
    except pika.exceptions.ConnectionClosedByBroker as closed:
        expect("reply code", closed.reply_code, code)
    else:
        raise AssertionError(f"the connection was not closed with {code}")


def get_all(channel, queue, count, within=10):
    """Gets `count` messages with acks."""
    got, until = [], time.monotonic() + within
    while len(got) < count and time.monotonic() < until:
        method, properties, body = channel.basic_get(queue)
        if method is None:
            time.sleep(0.01)
            continue
        got.append((method, properties, body))
        channel.basic_ack(method.delivery_tag)
    expect("messages", len(got), count)
    return got


@program
def hello_world():
    """The first program of the tutorials, unmodified but for the port."""
    queue = name("hello")
    connection = connect()
    channel = connection.channel()
    channel.queue_declare(queue=queue)
    channel.basic_publish(exchange="", routing_key=queue, body="Hello World!")
    connection.close()
    connection = connect()
    channel = connection.channel()
    channel.queue_declare(queue=queue)
    bodies = []

    def callback(ch, method, properties, body):
        bodies.append(body)
        ch.basic_ack(delivery_tag=method.delivery_tag)
        ch.stop_consuming()

    channel.basic_consume(queue=queue, on_message_callback=callback)
    channel.start_consuming()
    expect("bodies", bodies, [b"Hello World!"])
    channel.queue_delete(queue)
    connection.close()


@program
def work_queue_with_a_killed_worker():
    queue = name("tasks")
    connection = connect()
    channel = connection.channel()
    channel.queue_declare(queue=queue, durable=True, arguments={"x-queue-type": "quorum"})
    persistent = pika.BasicProperties(delivery_mode=2)
    for number in range(40):
        channel.basic_publish("", queue, f"task {number}", persistent)
    # The first worker takes ten and dies with them.
    dying = connect()
    its = dying.channel()
    its.basic_qos(prefetch_count=10)
    taken = []
    its.basic_consume(queue, lambda ch, method, properties, body: taken.append(body))
    while len(taken) < 10:
        dying.process_data_events(time_limit=1)
    dying.process_data_events(time_limit=0.2)
    expect("prefetch", len(taken), 10)
    dying._impl._transport._sock.close()
    done, again = [], set()

    def work(ch, method, properties, body):
        done.append(body)
        if method.redelivered:
            again.add(body)
        expect("persistent", properties.delivery_mode, 2)
        ch.basic_ack(method.delivery_tag)
        if len(set(done)) == 40:
            ch.stop_consuming()

    channel.basic_qos(prefetch_count=1)
    channel.basic_consume(queue, work)
    channel.start_consuming()
    expect("done", sorted(set(done)), sorted(f"task {n}".encode() for n in range(40)))
    expect("redelivered", again, set(taken))
    channel.queue_delete(queue)
    connection.close()


@program
def publish_subscribe():
    exchange = name("logs")
    connection = connect()
    channel = connection.channel()
    channel.exchange_declare(exchange, "fanout")
    queues = [channel.queue_declare("", exclusive=True).method.queue for _ in range(3)]
    expect("names differ", len(set(queues)), 3)
    for queue in queues:
        assert queue.startswith("amq.gen-"), queue
        channel.queue_bind(queue, exchange)
    channel.basic_publish(exchange, "", b"to all")
    for queue in queues:
        expect("body", get_all(channel, queue, 1)[0][2], b"to all")
    channel.exchange_delete(exchange)
    connection.close()


@program
def routing():
    exchange = name("direct")
    connection = connect()
    channel = connection.channel()
    channel.exchange_declare(exchange, "direct", durable=True)
    queue = channel.queue_declare("", exclusive=True).method.queue
    for severity in ("warning", "error"):
        channel.queue_bind(queue, exchange, severity)
    for severity in ("info", "warning", "error"):
        channel.basic_publish(exchange, severity, severity)
    got = get_all(channel, queue, 2)
    expect("bodies", [body for _, _, body in got], [b"warning", b"error"])
    expect("keys", [method.routing_key for method, _, _ in got], ["warning", "error"])
    expect("exchange", got[0][0].exchange, exchange)
    channel.queue_unbind(queue, exchange, "error")
    channel.queue_unbind(queue, exchange, "never bound")
    channel.basic_publish(exchange, "error", b"nobody")
    expect("nothing", channel.basic_get(queue), (None, None, None))
    channel.exchange_delete(exchange)
    channel.exchange_delete(exchange)
    connection.close()


@program
def topics():
    exchange = name("topic")
    connection = connect()
    channel = connection.channel()
    channel.exchange_declare(exchange, "topic")
    queue = channel.queue_declare("", exclusive=True).method.queue
    channel.queue_bind(queue, exchange, "*.orange.*")
    channel.queue_bind(queue, exchange, "lazy.#")
    keys = ["quick.orange.rabbit", "lazy.pink", "quick.brown.fox", "lazy.orange.male.rabbit", "orange"]
    for key in keys:
        channel.basic_publish(exchange, key, key)
    got = [body.decode() for _, _, body in get_all(channel, queue, 3)]
    expect("keys", got, [keys[0], keys[1], keys[3]])
    # An exchange bound to an exchange, and one for what nobody takes.
    inner, spare = name("inner"), name("spare")
    channel.exchange_declare(spare, "fanout")
    channel.exchange_declare(inner, "direct", arguments={"alternate-exchange": spare})
    channel.exchange_bind(inner, exchange, "e2e.#")
    channel.queue_bind(queue, spare)
    channel.basic_publish(exchange, "e2e.x", b"around")
    expect("around", get_all(channel, queue, 1)[0][2], b"around")
    channel.exchange_unbind(inner, exchange, "e2e.#")
    for each in (inner, spare, exchange):
        channel.exchange_delete(each)
    connection.close()


@program
def headers_exchange():
    exchange = name("headers")
    connection = connect()
    channel = connection.channel()
    channel.exchange_declare(exchange, "headers")
    queue = channel.queue_declare("", exclusive=True).method.queue
    channel.queue_bind(queue, exchange, arguments={"x-match": "all", "a": 1, "b": "two"})
    for headers in ({"a": 1}, {"a": 1, "b": "two", "c": None}, {"b": "two"}):
        channel.basic_publish(exchange, "", b"x", pika.BasicProperties(headers=headers))
    got = get_all(channel, queue, 1)
    expect("headers", got[0][1].headers, {"a": 1, "b": "two", "c": None})
    channel.exchange_delete(exchange)
    connection.close()


@program
def rpc():
    queue = name("rpc")
    stop = threading.Event()
    ready = threading.Event()

    def server():
        connection = connect()
        channel = connection.channel()
        channel.queue_declare(queue)
        channel.basic_qos(prefetch_count=1)

        def answer(ch, method, properties, body):
            ch.basic_publish("", properties.reply_to, str(int(body) ** 2),
                             pika.BasicProperties(correlation_id=properties.correlation_id))
            ch.basic_ack(method.delivery_tag)

        channel.basic_consume(queue, answer)
        ready.set()
        while not stop.is_set():
            connection.process_data_events(time_limit=0.05)
        channel.queue_delete(queue)
        connection.close()

    thread = threading.Thread(target=server)
    thread.start()
    try:
        assert ready.wait(10)
        connection = connect()
        channel = connection.channel()
        replies = channel.queue_declare("", exclusive=True).method.queue
        answers = {}
        channel.basic_consume(
            replies, lambda ch, m, properties, body: answers.update({properties.correlation_id: body}),
            auto_ack=True)
        for number in range(20):
            channel.basic_publish("", queue, str(number),
                                  pika.BasicProperties(reply_to=replies, correlation_id=str(number)))
        until = time.monotonic() + 10
        while len(answers) < 20 and time.monotonic() < until:
            connection.process_data_events(time_limit=0.1)
        expect("answers", answers, {str(n): str(n * n).encode() for n in range(20)})
        connection.close()
    finally:
        stop.set()
        thread.join()


@program
def rpc_with_direct_reply_to():
    queue = name("direct-rpc")
    connection = connect()
    channel = connection.channel()
    channel.queue_declare(queue)
    closed_with(406, lambda ch: ch.basic_publish("", queue, b"", pika.BasicProperties(
        reply_to="amq.rabbitmq.reply-to")))
    closed_with(406, lambda ch: ch.basic_consume("amq.rabbitmq.reply-to", lambda *_: None))
    answers = []
    channel.basic_consume("amq.rabbitmq.reply-to", lambda ch, m, p, body: answers.append(
        (p.correlation_id, body)), auto_ack=True)
    server = connect()
    serving = server.channel()

    def answer(ch, method, properties, body):
        assert properties.reply_to != "amq.rabbitmq.reply-to"
        ch.basic_publish("", properties.reply_to, body.upper(),
                         pika.BasicProperties(correlation_id=properties.correlation_id))
        ch.basic_ack(method.delivery_tag)

    serving.basic_consume(queue, answer)
    for number in range(5):
        channel.basic_publish("", queue, f"ask {number}", pika.BasicProperties(
            reply_to="amq.rabbitmq.reply-to", correlation_id=str(number), message_id="m"))
    until = time.monotonic() + 10
    while len(answers) < 5 and time.monotonic() < until:
        server.process_data_events(time_limit=0.02)
        connection.process_data_events(time_limit=0.02)
    expect("answers", answers, [(str(n), b"ASK %d" % n) for n in range(5)])
    channel.queue_delete(queue)
    server.close()
    connection.close()


@program
def what_was_done_before_is_seen():
    queue = name("seen")
    connection = connect()
    channel = connection.channel()
    channel.queue_declare(queue, durable=True)
    for _ in range(20):
        channel.basic_publish("", queue, b"x")
        method, _, body = channel.basic_get(queue)
        expect("body", body, b"x")
        channel.basic_nack(method.delivery_tag, requeue=True)
        method, _, body = channel.basic_get(queue)
        expect("again", (method.redelivered, body), (True, b"x"))
        channel.basic_ack(method.delivery_tag)
    channel.basic_publish("", queue, b"y")
    expect("count", channel.queue_declare(queue, passive=True).method.message_count, 1)
    channel.queue_delete(queue)
    connection.close()


@program
def confirms_and_returns():
    queue = name("confirmed")
    connection = connect()
    channel = connection.channel()
    channel.confirm_delivery()
    channel.queue_declare(queue, durable=True)
    for number in range(50):
        channel.basic_publish("", queue, str(number), mandatory=True)
    try:
        channel.basic_publish("", name("nowhere"), b"lost", mandatory=True)
        raise AssertionError("what nobody takes was confirmed")
    except pika.exceptions.UnroutableError as error:
        expect("returned", [m.body for m in error.messages], [b"lost"])
        expect("reply code", error.messages[0].method.reply_code, 312)
    channel.basic_publish("", name("nowhere"), b"dropped")
    expect("count", channel.queue_declare(queue, durable=True, passive=True).method.message_count, 50)
    # A queue that is full refuses.
    full = name("full")
    channel.queue_declare(full, durable=True,
                          arguments={"x-max-length": 2, "x-overflow": "reject-publish"})
    channel.basic_publish("", full, b"1")
    channel.basic_publish("", full, b"2")
    try:
        channel.basic_publish("", full, b"3")
        raise AssertionError("a full queue confirmed")
    except pika.exceptions.NackError:
        pass
    # One that drops does not.
    drops = name("drops")
    channel.queue_declare(drops, durable=True, arguments={"x-max-length": 2})
    for body in (b"1", b"2", b"3"):
        channel.basic_publish("", drops, body)
    expect("newest", [body for _, _, body in get_all(channel, drops, 2)], [b"2", b"3"])
    expect("purged", channel.queue_purge(queue).method.message_count, 50)
    for each in (queue, full, drops):
        channel.queue_delete(each)
    expect("deleted again", channel.queue_delete(queue).method.message_count, 0)
    connection.close()


@program
def acks_nacks_and_rejects():
    queue, dead, exchange = name("settled"), name("dead"), name("dlx")
    connection = connect()
    channel = connection.channel()
    channel.exchange_declare(exchange, "fanout")
    channel.queue_declare(dead)
    channel.queue_bind(dead, exchange)
    channel.queue_declare(queue, arguments={"x-dead-letter-exchange": exchange})
    for number in range(6):
        channel.basic_publish("", queue, str(number))
    methods = []
    while len(methods) < 6:
        method, _, body = channel.basic_get(queue)
        if method:
            expect("order", body, str(len(methods)).encode())
            expect("not redelivered", method.redelivered, False)
            methods.append(method)
    expect("remaining", [m.message_count for m in methods], [5, 4, 3, 2, 1, 0])
    channel.basic_ack(methods[1].delivery_tag, multiple=True)
    channel.basic_reject(methods[2].delivery_tag, requeue=False)
    channel.basic_nack(methods[4].delivery_tag, multiple=True, requeue=True)
    got = get_all(channel, queue, 2)
    expect("requeued", [(m.redelivered, body) for m, _, body in got], [(True, b"3"), (True, b"4")])
    letter = get_all(channel, dead, 1)[0]
    expect("dead", letter[2], b"2")
    death = letter[1].headers["x-death"][0]
    expect("reason", (death["reason"], death["queue"], death["count"]), ("rejected", queue, 1))
    channel.basic_recover(requeue=True)
    expect("recovered", [(m.redelivered, b) for m, _, b in get_all(channel, queue, 1)], [(True, b"5")])
    for each in (queue, dead):
        channel.queue_delete(each)
    channel.exchange_delete(exchange)
    connection.close()


@program
def every_property_and_type_survives():
    import datetime
    import decimal

    queue = name("properties")
    connection = connect()
    channel = connection.channel()
    channel.queue_declare(queue)
    headers = {
        "int": 7, "negative": -7, "large": 1 << 40, "text": "käse", "bool": True, "none": None,
        "bytes": b"\x00\xff", "list": [1, "two", [3, None], {"four": 5}],
        "table": {"a": {"b": {"c": 1}}}, "when": datetime.datetime(2020, 2, 2, 2, 2, 2, tzinfo=datetime.timezone.utc),
        "decimal": decimal.Decimal("3.14"), "empty": {}, "nothing": [],
    }
    sent = pika.BasicProperties(
        content_type="application/json", content_encoding="gzip", headers=headers, delivery_mode=2,
        priority=5, correlation_id="c", reply_to="r", expiration="60000", message_id="m",
        timestamp=1234567890, type="t", user_id="guest", app_id="a", cluster_id="cl")
    bare = pika.BasicProperties()
    empty = pika.BasicProperties(headers={})
    for properties in (sent, bare, empty):
        channel.basic_publish("", queue, b"x", properties)
    channel.basic_publish("", queue, b"")
    got = get_all(channel, queue, 4)
    for key, value in headers.items():
        expect(f"header {key}", got[0][1].headers[key], value)
    for wanted, (_, found, _) in zip((sent, bare, empty, bare), got):
        expect("properties", found, wanted)
    expect("bodies", [body for _, _, body in got], [b"x", b"x", b"x", b""])
    channel.queue_delete(queue)
    connection.close()


@program
def contents_of_every_size():
    queue = name("sizes")
    sizes = [0, 1, 2047, 2048, 2049, 4088, 4089, 100_000, 131_064, 131_065, 196_000, 196_500, 196_544,
             196_608, 300_000, 1 << 20, (3 << 20) + 1]
    for frame_max in (131072, 4096):
        connection = connect(frame_max=frame_max)
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare(queue, durable=True)
        pattern = bytes(range(251))
        bodies = [(pattern * (size // 251 + 1))[:size] for size in sizes]
        for body in bodies:
            channel.basic_publish("", queue, body)
        for (_, _, found), wanted in zip(get_all(channel, queue, len(bodies), 30), bodies):
            assert found == wanted, (len(found), len(wanted))
        for body in bodies:
            channel.basic_publish("", queue, body)
        found = []

        def callback(ch, method, properties, body):
            found.append(body)
            ch.basic_ack(method.delivery_tag)
            if len(found) == len(bodies):
                ch.stop_consuming()

        channel.basic_consume(queue, callback)
        channel.start_consuming()
        assert found == bodies, [len(body) for body in found]
        connection.close()
    connection = connect()
    connection.channel().queue_delete(queue)
    connection.close()


@program
def errors_of_channels():
    queue = name("errors")
    closed_with(404, lambda ch: ch.queue_declare(name("missing"), passive=True))
    closed_with(404, lambda ch: ch.exchange_declare(name("missing"), passive=True))
    closed_with(404, lambda ch: ch.basic_publish(name("missing"), "", b"x"))
    closed_with(404, lambda ch: ch.queue_bind(name("missing"), "amq.direct"))
    closed_with(404, lambda ch: ch.basic_get(name("missing")))
    closed_with(404, lambda ch: ch.basic_consume(name("missing"), lambda *_: None))
    closed_with(404, lambda ch: ch.queue_purge(name("missing")))
    closed_with(403, lambda ch: ch.queue_declare("amq.mine"))
    closed_with(403, lambda ch: ch.exchange_declare("amq.mine", "direct"))
    closed_with(403, lambda ch: ch.exchange_delete("amq.direct"))
    closed_with(403, lambda ch: ch.exchange_delete(""))
    closed_with(406, lambda ch: ch.exchange_declare(name("odd"), "odd"))
    closed_with(406, lambda ch: ch.basic_ack(17))
    closed_with(406, lambda ch: ch.queue_declare(queue, arguments={"x-message-ttl": "soon"}))
    connection = connect()
    channel = connection.channel()
    channel.queue_declare(queue, durable=True)
    closed_with(403, lambda ch: ch.queue_bind(queue, "", "key"))
    closed_with(406, lambda ch: ch.queue_declare(queue, durable=False))
    closed_with(406, lambda ch: ch.basic_publish("", queue, b"", pika.BasicProperties(expiration="x")))
    channel.basic_publish("", queue, b"x")
    closed_with(406, lambda ch: ch.queue_delete(queue, if_empty=True))
    channel.basic_consume(queue, lambda *_: None, exclusive=True)
    closed_with(403, lambda ch: ch.basic_consume(queue, lambda *_: None))
    closed_with(406, lambda ch: ch.queue_delete(queue, if_unused=True))
    mine = channel.queue_declare("", exclusive=True).method.queue
    closed_with(405, lambda ch: ch.queue_declare(mine, exclusive=True))
    closed_with(405, lambda ch: ch.basic_consume(mine, lambda *_: None))
    closed_with(405, lambda ch: ch.queue_delete(mine))
    inner = name("internal")
    channel.exchange_declare(inner, "fanout", internal=True)
    closed_with(403, lambda ch: ch.basic_publish(inner, "", b"x"))
    channel.exchange_delete(inner)
    channel.queue_delete(queue)
    # Exclusive queues go with their connection.
    connection.close()
    until = time.monotonic() + 10
    while True:
        connection = connect()
        try:
            connection.channel().queue_declare(mine, passive=True)
        except pika.exceptions.ChannelClosedByBroker as closed:
            if closed.reply_code == 404:
                break
        assert time.monotonic() < until, "an exclusive queue outlives its connection"
        connection.close()
    connection.close()


@program
def errors_of_connections():
    ended_with(540, lambda connection, ch: ch.basic_qos(prefetch_size=1))
    ended_with(530, lambda connection, ch: reuse_a_tag(ch))
    for wrong in (dict(credentials=pika.PlainCredentials("guest", "wrong")),
                  dict(credentials=pika.PlainCredentials("other", "guest"))):
        try:
            connect(**wrong)
            raise AssertionError("a wrong login was let in")
        except (pika.exceptions.ProbableAuthenticationError,
                pika.exceptions.AuthenticationError):
            pass
    try:
        connect(virtual_host="nowhere")
        raise AssertionError("an unknown virtual host was opened")
    except pika.exceptions.ProbableAccessDeniedError as error:
        assert "(530) 'NOT_ALLOWED - vhost nowhere not found'" in str(error), error


def reuse_a_tag(channel):
    queue = channel.queue_declare("", exclusive=True).method.queue
    channel.basic_consume(queue, lambda *_: None, consumer_tag="same")
    method = pika.spec.Basic.Consume(queue=queue, consumer_tag="same")
    channel._impl._send_method(method)


@program
def consumers_are_cancelled():
    queue = name("cancelled")
    connection = connect()
    channel = connection.channel()
    channel.queue_declare(queue)
    for number in range(4):
        channel.basic_publish("", queue, str(number))
    got = []
    channel.basic_qos(prefetch_count=2)
    tag = channel.basic_consume(queue, lambda ch, method, p, body: got.append((method, body)))
    while len(got) < 2:
        connection.process_data_events(time_limit=0.1)
    # What was delivered before may be settled after.
    channel.basic_cancel(tag)
    channel.basic_ack(got[0][0].delivery_tag)
    channel.basic_nack(got[1][0].delivery_tag, requeue=True)
    left = [body for _, _, body in get_all(channel, queue, 3)]
    expect("left", left, [b"1", b"2", b"3"])
    # The broker cancels consumers of a queue that is deleted.
    told = []
    channel.add_on_cancel_callback(lambda frame: told.append(frame.method.consumer_tag))
    channel.basic_consume(queue, lambda *_: None, consumer_tag="mine")
    other = connect()
    other.channel().queue_delete(queue)
    until = time.monotonic() + 10
    while not told and time.monotonic() < until:
        connection.process_data_events(time_limit=0.1)
    expect("cancelled", told, ["mine"])
    # A queue goes with its last consumer.
    auto = name("auto")
    channel.queue_declare(auto, auto_delete=True)
    tag = channel.basic_consume(auto, lambda *_: None)
    channel.basic_cancel(tag)
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            other.channel().queue_declare(auto, passive=True)
        except pika.exceptions.ChannelClosedByBroker as closed:
            expect("reply code", closed.reply_code, 404)
            break
    else:
        raise AssertionError("it outlives its last consumer")
    other.close()
    connection.close()


@program
def many_consumers_and_channels():
    queue = name("shared")
    connection = connect()
    channels = [connection.channel() for _ in range(8)]
    channels[0].queue_declare(queue)
    counts = [0] * 16
    total = 4000

    def counter(idx):
        def callback(ch, method, properties, body):
            counts[idx] += 1
            ch.basic_ack(method.delivery_tag)
        return callback

    for idx, channel in enumerate(channels):
        channel.basic_qos(prefetch_count=50)
        channel.basic_consume(queue, counter(2 * idx))
        channel.basic_consume(queue, counter(2 * idx + 1))
    publisher = connect()
    publishing = [publisher.channel() for _ in range(4)]
    for number in range(total):
        publishing[number % 4].basic_publish("", queue, b"%d" % number)
    until = time.monotonic() + 30
    while sum(counts) < total and time.monotonic() < until:
        connection.process_data_events(time_limit=0.1)
    expect("received", sum(counts), total)
    assert min(counts) > 0, counts
    publisher.close()
    channels[0].queue_delete(queue)
    connection.close()


@program
def priorities_ttl_and_limits():
    connection = connect()
    channel = connection.channel()
    ranked = name("ranked")
    channel.queue_declare(ranked, durable=True, arguments={"x-max-priority": 10})
    channel.confirm_delivery()
    for priority in (1, 9, 5, None):
        channel.basic_publish("", ranked, str(priority), pika.BasicProperties(priority=priority))
    order = [body for _, _, body in get_all(channel, ranked, 4)]
    expect("order", order, [b"9", b"5", b"1", b"None"])
    brief = name("brief")
    channel.queue_declare(brief, durable=True, arguments={
        "x-message-ttl": 50, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": ranked})
    channel.basic_publish("", brief, b"old")
    letter = get_all(channel, ranked, 1)[0]
    expect("reason", letter[1].headers["x-death"][0]["reason"], "expired")
    channel.basic_publish("", ranked, b"soon gone", pika.BasicProperties(expiration="1"))
    until = time.monotonic() + 10
    while channel.queue_declare(ranked, passive=True).method.message_count:
        assert time.monotonic() < until, "it does not expire"
    channel.basic_publish("", ranked, b"later", pika.BasicProperties(headers={"x-delay": 200}))
    expect("not yet", channel.basic_get(ranked)[0], None)
    expect("later", get_all(channel, ranked, 1)[0][2], b"later")
    for each in (ranked, brief):
        channel.queue_delete(each)
    connection.close()


@program
def streams_are_read_from_an_offset():
    queue = name("stream")
    connection = connect()
    channel = connection.channel()
    channel.confirm_delivery()
    channel.queue_declare(queue, durable=True,
                          arguments={"x-queue-type": "stream", "x-max-age": "1D"})
    for number in range(10):
        channel.basic_publish("", queue, str(number))
    for _ in range(2):
        got = []
        channel.basic_qos(prefetch_count=100)

        def callback(ch, method, properties, body):
            got.append(body)
            ch.basic_ack(method.delivery_tag)
            if len(got) == 10:
                ch.stop_consuming()

        tag = channel.basic_consume(queue, callback, arguments={"x-stream-offset": "first"})
        channel.start_consuming()
        expect("read", got, [b"%d" % n for n in range(10)])
    channel.queue_delete(queue)
    connection.close()


@program
def native_and_amqp_see_each_other():
    if NATIVE is None:
        return
    import ringpost

    queue = name("both")
    connection = connect()
    channel = connection.channel()
    channel.confirm_delivery()
    channel.queue_declare(queue, durable=True)
    headers = {"n": 1, "t": "text"}
    channel.basic_publish("", queue, b"from pika", pika.BasicProperties(
        headers=headers, message_id="m", priority=3))
    with ringpost.connect(HOST, NATIVE) as native:
        consumer = native.consumer(queue, credit=10)
        delivery = consumer.receive()
        expect("body", delivery.message.payload, b"from pika")
        expect("headers", ringpost.unpack_table(delivery.message.headers), headers)
        expect("priority", delivery.message.priority, 3)
        consumer.ack(delivery)
        consumer.close()
        producer = native.producer(level="durable")
        producer.publish([ringpost.Message(b"", queue.encode(), b"from native",
                                           ringpost.pack_table({"k": "v"}), b"", 4, 5_000_000)])
        producer.flush()
        producer.close()
    method, properties, body = get_all(channel, queue, 1)[0]
    expect("body", body, b"from native")
    expect("headers", properties.headers, {"k": "v"})
    expect("priority and time", (properties.priority, properties.timestamp), (4, 5))
    channel.queue_delete(queue)
    connection.close()


def main():
    failed = []
    for run in PROGRAMS:
        start = time.monotonic()
        try:
            run()
            print(f"ok    {run.__name__} ({time.monotonic() - start:.2f} s)", flush=True)
        except BaseException:
            failed.append(run.__name__)
            print(f"FAILED {run.__name__}", flush=True)
            traceback.print_exc()
    print(f"pika {pika.__version__}: {len(PROGRAMS) - len(failed)} of {len(PROGRAMS)} programs passed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
