//! Transactions over raw frames: their channels, numbers and limits, and what ends a connection; and
//! through the client crate what they are for.

use ringpost_client::{Client, ErrorKind, Message, QueueConfig};
use ringpost_wire::control::{Body, Level, TransactionOpen, TransactionOpened, TransactionSettle};
use ringpost_wire::header::TRANSACTION_COMMITTED;
use ringpost_wire::{
    Code, FrameHeader, FrameKind, SettleRange, TRANSACTION_CHANNELS_MAX, TRANSACTION_MESSAGES_MAX,
    TRANSACTION_MS_DEFAULT, TRANSACTION_MS_MAX, padded,
};

use crate::client::talk;
use crate::wire::{Wire, consumer, message, payloads, queue_on, to_queue};
use crate::{Setup, on_cores};

on_cores! {
    channels_have_bounds
    numbers_go_up_by_one
    what_is_wrong_with_it_is_said_at_the_commit
    messages_and_acknowledgements_go_together
    what_was_not_committed_comes_again
    a_client_transforms_exactly_once
    a_client_rolls_back
    consumers_beside_each_other
}

/// Opens a channel for transactions.
fn open(wire: &mut Wire, channel: u16, timeout_ms: u32) -> TransactionOpened {
    let open = TransactionOpen {
        timeout_ms,
        reserved: 0,
    };
    let id = wire.request_on(FrameKind::TransactionOpen, channel, &open);
    let frame = wire.answer(id);
    assert_eq!(frame.kind(), FrameKind::TransactionOpened);
    TransactionOpened::decode(&frame.body).unwrap()
}

/// Publishes with the transaction `number` of a channel.
fn publish(wire: &mut Wire, channel: u16, number: u64, flags: u8, payloads: &[(&[u8], &[u8])]) {
    let mut body = Vec::new();
    for (queue, payload) in payloads {
        body.extend(message(&to_queue(queue, payload)));
        body.resize(padded(body.len()), 0);
    }
    let header = FrameHeader {
        flags,
        count: payloads.len() as u32,
        ..FrameHeader::bare(FrameKind::TransactionPublish, channel, number)
    };
    wire.send_frame(header, &body);
}

fn settle(wire: &mut Wire, channel: u16, number: u64, consumer: u16, range: (u64, u64)) {
    let (first, last) = range;
    let settle = TransactionSettle {
        consumer,
        reserved: 0,
        ranges: &SettleRange { first, last }.encode(),
    };
    let header = FrameHeader {
        count: 1,
        ..FrameHeader::bare(FrameKind::TransactionSettle, channel, number)
    };
    wire.send(header, &settle);
}

/// Ends a transaction; whether it was committed, or why not.
fn end(wire: &mut Wire, kind: FrameKind, channel: u16, number: u64) -> Result<bool, Code> {
    wire.send_frame(FrameHeader::bare(kind, channel, number), b"");
    let is_end = |kind| matches!(kind, FrameKind::TransactionDone | FrameKind::Failed);
    let frame = wire.wait(|frame| is_end(frame.kind()) && frame.header.channel == channel);
    assert_eq!(frame.header.sequence, number);
    match frame.kind() {
        FrameKind::TransactionDone => Ok(frame.header.flags & TRANSACTION_COMMITTED != 0),
        _ => Err(frame.code()),
    }
}

fn commit(wire: &mut Wire, channel: u16, number: u64) -> Result<bool, Code> {
    end(wire, FrameKind::TransactionCommit, channel, number)
}

//= P-94
//= P-100
fn channels_have_bounds(setup: &Setup) {
    let mut wire = setup.wire();
    let opened = open(&mut wire, 1, 0);
    assert_eq!(opened.timeout_ms, TRANSACTION_MS_DEFAULT);
    assert_eq!(opened.messages_max, TRANSACTION_MESSAGES_MAX);
    assert_eq!(
        open(&mut wire, 2, TRANSACTION_MS_MAX).timeout_ms,
        TRANSACTION_MS_MAX
    );
    let late = TransactionOpen {
        timeout_ms: TRANSACTION_MS_MAX + 1,
        reserved: 0,
    };
    let id = wire.request_on(FrameKind::TransactionOpen, 3, &late);
    assert_eq!(wire.failed(id), Code::SettingInvalid);
    for channel in 4..=TRANSACTION_CHANNELS_MAX as u16 + 1 {
        open(&mut wire, channel, 0);
    }
    let one_more = TransactionOpen {
        timeout_ms: 0,
        reserved: 0,
    };
    let id = wire.request_on(FrameKind::TransactionOpen, 3, &one_more);
    assert_eq!(wire.failed(id), Code::LimitReached);
    // One that is closed makes room.
    let id = wire.request_bare(FrameKind::TransactionClose, 2);
    assert_eq!(wire.answer_kind(id), FrameKind::TransactionClosed);
    open(&mut wire, 3, 0);
    // Its frames are late now, and ignored.
    publish(&mut wire, 2, 1, 0, &[(b"q", b"late")]);
    wire.sync();
    wire.bye();
}

//= P-95
fn numbers_go_up_by_one(setup: &Setup) {
    for number in [0, 2, u64::MAX] {
        let mut wire = setup.wire();
        open(&mut wire, 1, 0);
        publish(&mut wire, 1, number, 0, &[(b"q", b"x")]);
        assert_eq!(wire.closed(), Code::SequenceGap, "{number}");
    }
    let mut wire = setup.wire();
    wire.declare(&queue_on(b"q", 0));
    open(&mut wire, 1, 0);
    publish(&mut wire, 1, 1, 0, &[(b"q", b"x")]);
    assert_eq!(commit(&mut wire, 1, 1), Ok(true));
    assert_eq!(
        end(&mut wire, FrameKind::TransactionRollback, 1, 2),
        Ok(false)
    );
    // The next one begins when that before has ended.
    publish(&mut wire, 1, 3, 0, &[(b"q", b"y")]);
    let mut both = Vec::new();
    for number in [3, 4] {
        let header = FrameHeader::bare(FrameKind::TransactionCommit, 1, number);
        ringpost_wire::frame::write(&mut both, header, b"");
    }
    wire.send_bytes(&both);
    assert_eq!(wire.closed(), Code::UnexpectedFrame);
    // What was asked for goes on.
    setup.wire().until(b"q", |info| info.ready == 2);
}

//= P-92
//= P-96
fn what_is_wrong_with_it_is_said_at_the_commit(setup: &Setup) {
    let mut wire = setup.wire();
    wire.declare(&queue_on(b"q", 0));
    let opened = open(&mut wire, 1, 0);
    publish(&mut wire, 1, 1, 0x40, &[(b"q", b"x")]);
    publish(&mut wire, 1, 1, 0, &[(b"q", b"x")]);
    assert_eq!(commit(&mut wire, 1, 1), Err(Code::SettingInvalid));
    publish(&mut wire, 1, 2, 1, &[(b"q", b"x"), (b"nowhere", b"x")]);
    assert_eq!(commit(&mut wire, 1, 2), Err(Code::Unroutable));
    let large = vec![7; opened.bytes_max as usize / 2];
    for _ in 0..2 {
        publish(&mut wire, 1, 3, 0, &[(b"q", &large)]);
    }
    assert_eq!(commit(&mut wire, 1, 3), Err(Code::TransactionTooLarge));
    assert_eq!(wire.inspect(b"q").ready, 0);
    // What is no message ends the connection.
    let mut body = message(&to_queue(b"q", b"x"));
    body[64] ^= 1;
    body.resize(padded(body.len()), 0);
    let header = FrameHeader {
        count: 1,
        ..FrameHeader::bare(FrameKind::TransactionPublish, 1, 4)
    };
    wire.send_frame(header, &body);
    assert_eq!(wire.closed(), Code::MessageMalformed);
}

//= P-97
//= P-98
fn messages_and_acknowledgements_go_together(setup: &Setup) {
    let mut wire = setup.wire();
    let cores = setup.cores();
    for core in 0..cores {
        wire.declare(&queue_on(format!("in{core}").as_bytes(), core));
        wire.declare(&queue_on(format!("out{core}").as_bytes(), core));
    }
    let mut producer = wire.producer(1, Level::Durable);
    for core in 0..cores {
        for payload in [&b"1"[..], b"2", b"3"] {
            let queue = format!("in{core}");
            producer.publish(&mut wire, 0, &[to_queue(queue.as_bytes(), payload)]);
        }
    }
    while producer.confirmed + 1 < producer.next {
        producer.wait(&mut wire);
    }
    open(&mut wire, 9, 0);
    for core in 0..cores {
        wire.consume(20 + core, &consumer(format!("in{core}").as_bytes(), 10));
        assert_eq!(wire.deliveries(20 + core, 3).len(), 3);
    }
    for core in 0..cores {
        let out = format!("out{core}");
        publish(
            &mut wire,
            9,
            1,
            1,
            &[(out.as_bytes(), b"a"), (out.as_bytes(), b"b")],
        );
        settle(&mut wire, 9, 1, 20 + core, (1, 2));
    }
    assert_eq!(commit(&mut wire, 9, 1), Ok(true));
    for core in 0..cores {
        let name = format!("out{core}");
        wire.until(name.as_bytes(), |info| info.ready == 2);
        let name = format!("in{core}");
        wire.until(name.as_bytes(), |info| {
            info.settled == 2 && info.unacked == 1
        });
        wire.consume(40 + core, &consumer(format!("out{core}").as_bytes(), 10));
        let delivered = wire.deliveries(40 + core, 2);
        assert_eq!(payloads(&delivered), [b"a", b"b"]);
    }
    // A delivery of a channel that is no consumer's.
    settle(&mut wire, 9, 2, 1, (1, 1));
    assert_eq!(wire.closed(), Code::UnexpectedFrame);
}

//= P-99
fn what_was_not_committed_comes_again(setup: &Setup) {
    for core in 0..setup.cores() {
        let mut wire = setup.wire();
        wire.declare(&queue_on(b"in", core));
        let mut producer = wire.producer(1, Level::Durable);
        producer.publish(&mut wire, 0, &[to_queue(b"in", b"1")]);
        producer.wait(&mut wire);
        open(&mut wire, 2, 0);
        wire.consume(3, &consumer(b"in", 10));
        assert_eq!(wire.deliveries(3, 1)[0].count, 0);
        settle(&mut wire, 2, 1, 3, (1, 1));
        assert_eq!(
            end(&mut wire, FrameKind::TransactionRollback, 2, 1),
            Ok(false)
        );
        let again = wire.deliveries(3, 1);
        assert_eq!((again[0].count, again[0].queue_sequence), (1, 1));
        // Its connection goes before it is committed.
        settle(&mut wire, 2, 2, 3, (2, 2));
        wire.drop_dead();
        let mut wire = setup.wire();
        wire.consume(3, &consumer(b"in", 10));
        let again = wire.deliveries(3, 1);
        assert_eq!((again[0].count, again[0].queue_sequence), (2, 1));
        wire.delete(b"in");
    }
}

async fn ready(client: &Client, queue: &str) -> u64 {
    client.inspect_queue(queue).await.unwrap().ready
}

fn a_client_transforms_exactly_once(setup: &Setup) {
    talk(setup, |client| async move {
        for queue in ["orders", "bills", "mails"] {
            client.ensure_queue(queue, QueueConfig::durable()).await?;
        }
        let producer = client.producer("").build().await?;
        let orders = (0..200).map(|number| Message::new("orders", number.to_string()));
        producer.send_batch(orders).await?;
        let mut orders = client.consumer("orders").credit(50).subscribe().await?;
        let mut transactor = client.transactor().beside(&orders).await?;
        let (mut done, mut calls) = (0, 0);
        while done < 200 {
            calls += 1;
            let is_refused = calls % 3 == 0;
            let outcome = transactor
                .transform(&mut orders, async |batch, transaction| {
                    for order in batch {
                        let payload = order.payload().to_vec();
                        let bill = Message::new("bills", payload.clone());
                        transaction.publish("", &bill).await?;
                        transaction
                            .publish("", &Message::new("mails", payload))
                            .await?;
                    }
                    if is_refused {
                        // No queue takes it, so nothing of the batch is done.
                        transaction
                            .publish("", &Message::new("nowhere", "x"))
                            .await?;
                    }
                    Ok(())
                })
                .await;
            match outcome {
                Ok(count) => done += count.expect("the client is open"),
                Err(error) => {
                    assert!(is_refused, "{error}");
                    assert_eq!(error.kind(), ErrorKind::Unroutable);
                }
            }
        }
        assert_eq!(done, 200);
        for queue in ["bills", "mails"] {
            let mut consumer = client.consumer(queue).subscribe().await?;
            let mut seen = Vec::new();
            while seen.len() < 200 {
                let batch = consumer.next_batch().await?.expect("messages");
                seen.extend(batch.iter().map(|one| one.payload().to_vec()));
                consumer.ack(&batch).await?;
            }
            seen.sort();
            seen.dedup();
            assert_eq!(seen.len(), 200, "each once");
        }
        assert_eq!(ready(&client, "orders").await, 0);
        client.close().await
    });
}

fn a_client_rolls_back(setup: &Setup) {
    talk(setup, |client| async move {
        client.ensure_queue("q", QueueConfig::durable()).await?;
        let mut transactor = client.transactor().build().await?;
        let mut transaction = transactor.begin().await?;
        transaction.publish("", &Message::new("q", "x")).await?;
        transaction.rollback().await?;
        let mut transaction = transactor.begin().await?;
        transaction.publish("", &Message::new("q", "y")).await?;
        drop(transaction);
        let mut transaction = transactor.begin().await?;
        transaction.publish("", &Message::new("q", "z")).await?;
        transaction.commit().await?;
        let mut consumer = client.consumer("q").subscribe().await?;
        let batch = consumer.next_batch().await?.expect("a message");
        let payloads: Vec<_> = batch.iter().map(|one| one.payload().to_vec()).collect();
        assert_eq!(payloads, [b"z"]);
        let mut transaction = transactor.begin().await?;
        let error = transaction.ack(&consumer, &batch).await;
        // On one core both are on the main connection's, but not on the same connection.
        assert_eq!(error.expect_err("it is another").kind(), ErrorKind::Invalid);
        let large = Message::new("q", vec![0; 200 << 10]);
        let error = transaction.publish("", &large).await;
        assert_eq!(
            error.expect_err("it is too large").kind(),
            ErrorKind::TooLarge
        );
        transaction.rollback().await?;
        consumer.ack(&batch).await?;
        client.close().await
    });
}

fn consumers_beside_each_other(setup: &Setup) {
    talk(setup, |client| async move {
        for queue in ["a", "b", "sum"] {
            client.ensure_queue(queue, QueueConfig::durable()).await?;
        }
        let producer = client.producer("").build().await?;
        producer.send(Message::new("a", "1")).await?;
        producer.send(Message::new("b", "2")).await?;
        let mut first = client.consumer("a").subscribe().await?;
        let mut second = client.consumer("b").beside(&first).subscribe().await?;
        let mut transactor = client.transactor().beside(&second).await?;
        let one = first.next_batch().await?.expect("a message");
        let two = second.next_batch().await?.expect("a message");
        let mut transaction = transactor.begin().await?;
        transaction.ack(&first, &one).await?;
        transaction.ack(&second, &two).await?;
        transaction.publish("", &Message::new("sum", "3")).await?;
        transaction.commit().await?;
        drop((first, second));
        assert_eq!(ready(&client, "sum").await, 1);
        for queue in ["a", "b"] {
            let info = client.inspect_queue(queue).await?;
            assert_eq!((info.ready, info.settled), (0, 1), "{queue}");
        }
        client.close().await
    });
}
