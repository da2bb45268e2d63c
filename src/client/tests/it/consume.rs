//! Deliveries, settling, pulling, damage, large messages.

use std::time::Duration;

use ringpost_client::{
    ByteSize, Client, Consumer, ErrorKind, HeaderValue, Headers, Message, QueueConfig, Settlement,
    Start,
};
use ringpost_wire::header::{
    SETTLE_ACK, SETTLE_CONFIRM, SETTLE_OUTCOME, SETTLE_REJECT, SETTLE_REQUEUE,
};
use ringpost_wire::{
    Code, DeliverHead, FrameHeader, FrameKind, SettleRange, control, control::Body,
    control::ConsumerCredit, control::ConsumerInfo, control::ConsumerOpen,
    control::ConsumerPosition, frame,
};

use crate::builder;
use crate::fake::Fake;
use crate::peer::{Door, Peer, deliver_frame, delivery, message};

/// A fake broker with a queue `q` that holds `0`, `1`, … in text.
async fn filled(count: usize) -> (Fake, Client) {
    let fake = Fake::start().await;
    let client = builder(&fake.address).connect().await.unwrap();
    client
        .ensure_queue("q", QueueConfig::durable())
        .await
        .unwrap();
    let producer = client.producer("").build().await.unwrap();
    let messages = (0..count).map(|n| Message::new("q", n.to_string()));
    producer.send_batch(messages).await.unwrap();
    (fake, client)
}

async fn by_hand(credit: u32) -> (Client, Consumer, Peer, Peer, u16) {
    let door = Door::open().await;
    let (client, main) = tokio::join!(builder(&door.address()).connect(), door.welcome());
    let client = client.unwrap();
    let opening = async {
        let mut peer = door.welcome().await;
        let channel = peer.open_consumer().await;
        (peer, channel)
    };
    let (consumer, (peer, channel)) =
        tokio::join!(client.consumer("q").credit(credit).subscribe(), opening);
    (client, consumer.unwrap(), main, peer, channel)
}

fn number(payload: &[u8]) -> usize {
    std::str::from_utf8(payload).unwrap().parse().unwrap()
}

#[tokio::test]
async fn everything_is_delivered_once_and_in_order() -> ringpost_client::Result<()> {
    let (fake, client) = filled(1_000).await;
    let mut consumer = client.consumer("q").credit(100).subscribe().await?;
    let mut next = 0;
    while next < 1_000 {
        let batch = consumer.next_batch().await?.unwrap();
        for delivery in &batch {
            assert_eq!(number(delivery.payload()), next);
            assert_eq!(delivery.queue_sequence(), next as u64 + 1);
            assert_eq!(delivery.routing_key(), "q");
            assert!(!delivery.is_redelivered());
            next += 1;
        }
        assert_eq!(consumer.ack(&batch).await?, Settlement::Sent);
    }
    assert!(fake.ready("q").is_empty());
    assert_eq!(client.stats().deliveries, 1_000);
    client.close().await?;
    assert!(consumer.next_batch().await?.is_none());
    Ok(())
}

#[tokio::test]
async fn every_part_of_a_message_is_read() -> ringpost_client::Result<()> {
    let fake = Fake::start().await;
    let client = builder(&fake.address).connect().await?;
    client.ensure_queue("q", QueueConfig::durable()).await?;
    let producer = client.producer("").build().await?;
    let at = std::time::UNIX_EPOCH + Duration::from_secs(5);
    let message = Message::new("q", "payload")
        .headers(Headers::new().with("n", 5))
        .properties("props")
        .priority(3)
        .ttl(Duration::from_secs(1))
        .timestamp(at);
    producer.send(message).await?;
    producer.send(Message::new("q", "")).await?;
    let mut consumer = client.consumer("q").subscribe().await?;
    let mut kept = Vec::new();
    while kept.len() < 2 {
        let batch = consumer.next_batch().await?.unwrap();
        kept.extend(batch.iter().map(|delivery| delivery.to_owned()));
    }
    let first = kept[0].as_ref();
    assert_eq!(first.payload(), b"payload");
    assert_eq!(first.properties(), b"props");
    assert_eq!(first.header("n"), Some(HeaderValue::Integer(5)));
    assert_eq!(first.headers(), Headers::new().with("n", 5));
    assert_eq!((first.priority(), first.exchange().as_ref()), (3, ""));
    assert_eq!(
        (first.ttl(), first.timestamp()),
        (Some(Duration::from_secs(1)), Some(at))
    );
    let second = kept[1].as_ref();
    assert_eq!(
        (second.ttl(), second.timestamp(), second.header("n")),
        (None, None, None)
    );
    consumer.ack(&kept[0]).await?;
    consumer.ack(kept[1].tag()).await?;
    client.close().await
}

/// The ranges of the next `Settle` frame, with its outcome.
async fn settled(peer: &mut Peer) -> (u8, Vec<SettleRange>) {
    let (header, body) = peer.expect(FrameKind::Settle).await;
    (
        header.flags & SETTLE_OUTCOME,
        SettleRange::parse(&body, header.count).unwrap().collect(),
    )
}

#[tokio::test]
async fn each_way_to_settle_says_what_it_means() {
    let (_client, mut consumer, _main, mut peer, channel) = by_hand(100).await;
    peer.deliver(
        channel,
        1,
        &[b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8"],
    )
    .await;
    peer.deliver(channel, 9, &[b"9", b"10"]).await;
    let first = consumer.next_batch().await.unwrap().unwrap();
    let second = consumer.next_batch().await.unwrap().unwrap();
    let tags: Vec<_> = first.iter().map(|delivery| delivery.tag()).collect();
    let range = |first, last| SettleRange { first, last };

    consumer.ack(tags[0]).await.unwrap();
    assert_eq!(settled(&mut peer).await, (SETTLE_ACK, vec![range(1, 1)]));
    consumer.nack(tags[1]).await.unwrap();
    assert_eq!(
        settled(&mut peer).await,
        (SETTLE_REQUEUE, vec![range(2, 2)])
    );
    consumer.reject(first.iter().nth(2).unwrap()).await.unwrap();
    assert_eq!(settled(&mut peer).await, (SETTLE_REJECT, vec![range(3, 3)]));
    consumer
        .ack(&[tags[3]..=tags[4], tags[7]..=tags[7]][..])
        .await
        .unwrap();
    assert_eq!(
        settled(&mut peer).await,
        (SETTLE_ACK, vec![range(4, 5), range(8, 8)])
    );
    consumer.ack(&tags[5..7]).await.unwrap();
    assert_eq!(settled(&mut peer).await, (SETTLE_ACK, vec![range(6, 7)]));
    let settler = consumer.settler();
    let (last, durable) = (*second.tags().end(), settler.ack_durable(&second));
    let answering = async {
        let (header, body) = peer.expect(FrameKind::Settle).await;
        assert_eq!(header.flags, SETTLE_ACK | SETTLE_CONFIRM);
        assert_eq!(
            SettleRange::parse(&body, 1).unwrap().next(),
            Some(range(9, 10))
        );
        peer.bare(FrameKind::Settled, channel, header.sequence)
            .await;
    };
    assert_eq!(
        tokio::join!(durable, answering).0.unwrap(),
        Settlement::Sent
    );
    settler.ack_through(last).await.unwrap();
    assert_eq!(settled(&mut peer).await, (SETTLE_ACK, vec![range(0, 10)]));
    let backwards = consumer.ack(tags[1]..=tags[0]).await.unwrap_err();
    assert_eq!(backwards.kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn acks_that_follow_each_other_are_sent_as_one() -> ringpost_client::Result<()> {
    let (_client, mut consumer, _main, mut peer, channel) = by_hand(100).await;
    peer.deliver(channel, 1, &[&b"x"[..]; 50]).await;
    let batch = consumer.next_batch().await?.unwrap();
    for delivery in &batch {
        // Never gives way in between: the writer has no chance to write.
        consumer.ack(delivery).await?;
    }
    let (header, body) = peer.expect(FrameKind::Settle).await;
    let ranges: Vec<_> = SettleRange::parse(&body, header.count).unwrap().collect();
    assert_eq!(ranges, [SettleRange { first: 1, last: 50 }]);
    Ok(())
}

#[tokio::test]
async fn what_is_nacked_comes_again_and_says_so() -> ringpost_client::Result<()> {
    let (_fake, client) = filled(2).await;
    let mut consumer = client.consumer("q").credit(2).subscribe().await?;
    let batch = consumer.next_batch().await?.unwrap();
    assert_eq!(batch.len(), 2);
    consumer.nack(&batch).await?;
    let again = consumer.next_batch().await?.unwrap();
    assert!(again.is_redelivered());
    let first = again.iter().next().unwrap();
    assert_eq!((first.payload(), first.delivery_count()), (&b"0"[..], 1));
    drop(consumer);
    client.close().await
}

#[tokio::test]
async fn a_dropped_consumer_gives_its_messages_back() -> ringpost_client::Result<()> {
    let (_fake, client) = filled(3).await;
    let mut consumer = client.consumer("q").subscribe().await?;
    let batch = consumer.next_batch().await?.unwrap();
    consumer.ack(batch.iter().next().unwrap()).await?;
    drop(consumer);
    let mut consumer = client.consumer("q").subscribe().await?;
    let batch = consumer.next_batch().await?.unwrap();
    assert_eq!(
        batch
            .iter()
            .map(|delivery| number(delivery.payload()))
            .collect::<Vec<_>>(),
        [1, 2]
    );
    client.close().await
}

#[tokio::test]
async fn pulling_takes_what_is_there() -> ringpost_client::Result<()> {
    let (fake, client) = filled(5).await;
    let mut consumer = client.consumer("q").pull().await?;
    let count = |batches: &[ringpost_client::Batch]| batches.iter().map(|b| b.len()).sum::<usize>();
    let batches = consumer.get(3, Duration::ZERO).await?;
    assert_eq!(count(&batches), 3);
    for batch in &batches {
        consumer.ack_durable(batch).await?;
    }
    let batches = consumer.get(10, Duration::ZERO).await?;
    assert_eq!(count(&batches), 2);
    assert!(consumer.get(10, Duration::ZERO).await?.is_empty());
    assert!(consumer.get(0, Duration::ZERO).await?.is_empty());
    for batch in &batches {
        consumer.nack(batch).await?;
    }
    let again = consumer.get(1, Duration::from_secs(60)).await?;
    assert_eq!((count(&again), again[0].is_redelivered()), (1, true));
    // A get that waits is answered by what comes.
    consumer.get(1, Duration::from_secs(60)).await?;
    let producer = client.producer("").build().await?;
    let (got, sent) = tokio::join!(
        consumer.get(1, Duration::from_secs(60)),
        producer.send(Message::new("q", "new"))
    );
    sent?;
    assert_eq!(got?[0].iter().next().unwrap().payload(), b"new");
    assert!(fake.ready("q").is_empty());
    client.close().await
}

#[tokio::test]
async fn no_queue_no_consumer() -> ringpost_client::Result<()> {
    let fake = Fake::start().await;
    let client = builder(&fake.address).connect().await?;
    let missing = client.consumer("q").subscribe().await.unwrap_err();
    assert_eq!(
        (missing.kind(), missing.code()),
        (ErrorKind::NotFound, Some("queue_unknown"))
    );
    client.ensure_queue("q", QueueConfig::durable()).await?;
    for consumer in [
        client.consumer("q").credit(0),
        client.consumer("q").credit(100_001),
        client.consumer("q").credit_bytes(ByteSize::new(0)),
        client
            .consumer("q")
            .credit_bytes(ByteSize::new((1 << 30) + 1)),
        client.consumer(""),
    ] {
        assert_eq!(
            consumer.subscribe().await.unwrap_err().kind(),
            ErrorKind::Invalid
        );
    }
    let consumer = client.consumer("q").credit(100_000).subscribe().await?;
    assert!(consumer.set_credit(100_001, ByteSize::mib(1)).is_err());
    client.close().await
}

#[tokio::test]
async fn credit_may_change() {
    let (_client, consumer, _main, mut peer, channel) = by_hand(10).await;
    consumer.set_credit(20, ByteSize::kib(1)).unwrap();
    let (header, body) = peer.expect(FrameKind::ConsumerCredit).await;
    let credit = ConsumerCredit::decode(&body).unwrap();
    assert_eq!(
        (header.channel, credit.messages, credit.bytes),
        (channel, 20, 1_024)
    );
}

#[tokio::test]
async fn more_than_the_credit_is_not_taken() {
    let (client, mut consumer, _main, mut peer, channel) = by_hand(2).await;
    peer.deliver(channel, 1, &[b"1", b"2", b"3"]).await;
    let (_, body) = peer.expect(FrameKind::Close).await;
    assert_eq!(
        control::Failure::decode(&body).unwrap().code,
        Code::CreditExceeded as u16
    );
    drop(client);
    // The consumer subscribes again on another connection; nobody answers here.
    assert!(crate::publish::is_pending(std::pin::pin!(
        consumer.next_batch()
    )));
}

#[tokio::test]
async fn large_messages_are_put_together() -> ringpost_client::Result<()> {
    let fake = Fake::start().await;
    let client = builder(&fake.address).connect().await?;
    client.ensure_queue("q", QueueConfig::durable()).await?;
    let producer = client.producer("").build().await?;
    let sizes = [1, 200 * 1024, 3 << 20, 5, 192 * 1024];
    let payload = |size: usize| (0..size).map(|n| (n % 253) as u8).collect::<Vec<u8>>();
    producer
        .send_batch(sizes.map(|size| Message::new("q", payload(size))))
        .await?;
    let mut consumer = client.consumer("q").subscribe().await?;
    let mut received = Vec::new();
    while received.len() < sizes.len() {
        let batch = consumer.next_batch().await?.unwrap();
        received.extend(batch.iter().map(|delivery| delivery.to_owned()));
        consumer.ack(&batch).await?;
    }
    for (delivery, size) in received.iter().zip(sizes) {
        assert!(
            delivery.as_ref().payload() == payload(size),
            "of {size} bytes"
        );
    }
    client.close().await
}

#[tokio::test]
async fn damaged_messages_are_named_and_the_others_delivered() {
    let (client, mut consumer, _main, mut peer, channel) = by_hand(100).await;
    // 80 bytes each; one bit of the payload of the third.
    let mut frame = delivery(channel, 1, &[b"1", b"2", b"3", b"4", b"5"]);
    frame[32 + 16 + 2 * 80 + 67] ^= 1;
    peer.send(&frame).await;
    let before = consumer.next_batch().await.unwrap().unwrap();
    assert_eq!(before.len(), 2);
    let error = consumer.next_batch().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(!error.is_retryable());
    let after = consumer.next_batch().await.unwrap().unwrap();
    assert_eq!(
        after.iter().map(|d| d.payload()).collect::<Vec<_>>(),
        [b"4", b"5"]
    );
    consumer.reject(error.delivery().unwrap()).await.unwrap();
    let three = SettleRange { first: 3, last: 3 };
    assert_eq!(settled(&mut peer).await, (SETTLE_REJECT, vec![three]));
    // A damaged length takes everything after it along, one error for each.
    let mut frame = delivery(channel, 6, &[b"6", b"7", b"8"]);
    frame[32 + 16 + 80 + 4] ^= 0x40;
    peer.send(&frame).await;
    assert_eq!(consumer.next_batch().await.unwrap().unwrap().len(), 1);
    for number in ["7", "8"] {
        let error = consumer.next_batch().await.unwrap_err();
        assert_eq!(
            error.delivery().map(|tag| tag.to_string()).as_deref(),
            Some(number)
        );
    }
    peer.deliver(channel, 9, &[b"9"]).await;
    assert_eq!(consumer.next_batch().await.unwrap().unwrap().len(), 1);
    assert_eq!(client.stats().deliveries_damaged, 3);
}

#[tokio::test]
async fn flags_and_heads_are_read() {
    let (_client, mut consumer, _main, mut peer, channel) = by_hand(100).await;
    let head = DeliverHead {
        queue_sequence: 40,
        delivery_count: 3,
    };
    let body = [message(b"a"), message(b"b")].concat();
    peer.send(&deliver_frame(channel, 1, 2, 1, &head, &body))
        .await;
    let batch = consumer.next_batch().await.unwrap().unwrap();
    let last = batch.iter().last().unwrap();
    assert_eq!((last.queue_sequence(), last.delivery_count()), (41, 3));
    assert!(last.is_redelivered() && batch.is_redelivered());
    assert_eq!(batch.iter().len(), 2);
}

#[tokio::test]
async fn the_broker_may_end_a_consumer() {
    let (client, mut consumer, _main, mut peer, channel) = by_hand(100).await;
    peer.deliver(channel, 1, &[b"1"]).await;
    let batch = consumer.next_batch().await.unwrap().unwrap();
    peer.fail(FrameKind::ConsumerClosed, channel, 0, Code::QueueDeleted)
        .await;
    let error = consumer.next_batch().await.unwrap_err();
    assert_eq!(
        (error.kind(), error.code()),
        (ErrorKind::NotFound, Some("queue_deleted"))
    );
    assert_eq!(consumer.ack(&batch).await.unwrap(), Settlement::Stale);
    drop(client);
}

#[tokio::test]
async fn the_broker_may_end_a_pull_consumer() {
    let door = Door::open().await;
    let (client, _main) = tokio::join!(builder(&door.address()).connect(), door.welcome());
    let client = client.unwrap();
    let opening = async {
        let mut peer = door.welcome().await;
        let channel = peer.open_consumer().await;
        (peer, channel)
    };
    let (consumer, (mut peer, channel)) = tokio::join!(client.consumer("q").pull(), opening);
    let mut consumer = consumer.unwrap();
    let answering = async {
        peer.expect(FrameKind::Get).await;
        peer.fail(FrameKind::ConsumerClosed, channel, 0, Code::QueueDeleted)
            .await;
    };
    // The channel's end is the answer to all of it (P-15).
    let (result, ()) = tokio::join!(consumer.get(1, Duration::from_secs(60)), answering);
    assert_eq!(result.unwrap_err().code(), Some("queue_deleted"));
    let again = consumer.get(1, Duration::ZERO).await.unwrap_err();
    assert_eq!(again.code(), Some("queue_deleted"));
}

#[tokio::test]
async fn deliveries_of_another_consumer_are_not_settled() -> ringpost_client::Result<()> {
    let (_fake, client) = filled(4).await;
    let mut one = client.consumer("q").credit(2).subscribe().await?;
    let mut two = client.consumer("q").credit(2).subscribe().await?;
    let (first, second) = (
        one.next_batch().await?.unwrap(),
        two.next_batch().await?.unwrap(),
    );
    assert_eq!(
        one.ack(&second).await.unwrap_err().kind(),
        ErrorKind::Invalid
    );
    one.ack(&first).await?;
    two.ack(&second).await?;
    client.close().await
}

#[tokio::test]
async fn a_consumer_that_settles_nothing_is_read_at_its_pace() -> ringpost_client::Result<()> {
    let fake = Fake::start().await;
    let client = builder(&fake.address).connect().await?;
    client.ensure_queue("q", QueueConfig::volatile()).await?;
    let producer = client.producer("").allow_downgrade().build().await?;
    // Four times as much as is held for it.
    let payload = vec![7; 64 * 1024];
    let message = Message::new("q", payload);
    producer
        .send_batch(std::iter::repeat_n(&message, 256))
        .await?;
    let mut consumer = client.consumer("q").auto_settle().subscribe().await?;
    let mut count = 0;
    while count < 256 {
        let batch = consumer.next_batch().await?.unwrap();
        assert_eq!(consumer.ack(&batch).await?, Settlement::NotNeeded);
        count += batch.len();
    }
    client.close().await
}

#[tokio::test]
async fn a_consumer_is_told_whether_it_is_active_and_what_it_holds() {
    let (_client, consumer, _main, mut peer, channel) = by_hand(10).await;
    let mut activity = consumer.activity();
    assert!(!activity.is_active());
    let active = |flags| {
        let mut out = Vec::new();
        let header = FrameHeader {
            flags,
            ..FrameHeader::bare(FrameKind::ConsumerActive, channel, 0)
        };
        frame::write(&mut out, header, &[]);
        out
    };
    peer.send(&active(1)).await;
    assert_eq!(activity.changed().await, Some(true));
    assert!(consumer.activity().is_active());
    peer.send(&active(0)).await;
    assert_eq!(activity.changed().await, Some(false));
    let answer = async {
        let (header, body) = peer.expect(FrameKind::ConsumerInspect).await;
        assert!(body.is_empty());
        let info = ConsumerInfo {
            messages: 3,
            bytes: 4_096,
            oldest_ms: 1_500,
        };
        let header = FrameHeader::bare(FrameKind::ConsumerInfo, channel, header.sequence);
        peer.send_body(header, &info).await;
    };
    let (held, ()) = tokio::join!(consumer.held(), answer);
    let held = held.unwrap();
    assert_eq!((held.messages, held.bytes.bytes()), (3, 4_096));
    assert_eq!(held.oldest, Duration::from_millis(1_500));
    // It held something for too long.
    let closed = FrameKind::ConsumerClosed;
    peer.fail(closed, channel, 0, Code::HoldExceeded).await;
    assert_eq!(activity.changed().await, None);
    let error = consumer.held().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.is_retryable());
}

#[tokio::test]
async fn a_consumer_says_its_priority_and_weight() {
    let door = Door::open().await;
    let (client, _main) = tokio::join!(builder(&door.address()).connect(), door.welcome());
    let client = client.unwrap();
    let asks = client.consumer("q").priority(-3).weight(7).subscribe();
    let opening = async {
        let mut peer = door.welcome().await;
        let (header, _) = peer.expect(FrameKind::Attach).await;
        peer.bare(FrameKind::Attached, 0, header.sequence).await;
        let (header, body) = peer.expect(FrameKind::ConsumerOpen).await;
        let open = ConsumerOpen::decode(&body).unwrap();
        let arguments = Headers::from_encoded(open.arguments.to_vec()).unwrap();
        let expected = Headers::new().with("x-priority", -3).with("x-weight", 7);
        assert_eq!(arguments, expected);
        peer.bare(FrameKind::ConsumerOpened, header.channel, 0)
            .await;
        peer
    };
    let (consumer, _peer) = tokio::join!(asks, opening);
    assert!(consumer.is_ok());
}

/// Opens what asks next; what its arguments were.
async fn opened(peer: &mut Peer) -> (u16, Headers) {
    let (header, _) = peer.expect(FrameKind::Attach).await;
    peer.bare(FrameKind::Attached, 0, header.sequence).await;
    let (header, body) = peer.expect(FrameKind::ConsumerOpen).await;
    let open = ConsumerOpen::decode(&body).unwrap();
    let arguments = Headers::from_encoded(open.arguments.to_vec()).unwrap();
    peer.bare(FrameKind::ConsumerOpened, header.channel, 0)
        .await;
    (header.channel, arguments)
}

async fn tell_position(peer: &mut Peer, channel: u16, offset: u64, missed: u64) {
    let position = ConsumerPosition { offset, missed };
    let header = FrameHeader::bare(FrameKind::ConsumerPosition, channel, 0);
    peer.send_body(header, &position).await;
}

#[tokio::test]
async fn a_reader_goes_on_behind_what_it_handed_out() {
    for group in [None, Some("g")] {
        let door = Door::open().await;
        let (client, _main) = tokio::join!(builder(&door.address()).connect(), door.welcome());
        let client = client.unwrap();
        let mut asks = client.stream("q").from(Start::Offset(5)).filter("a = 1");
        if let Some(name) = group {
            asks = asks.group(name);
        }
        let opening = async {
            let mut peer = door.welcome().await;
            let (channel, arguments) = opened(&mut peer).await;
            (peer, channel, arguments)
        };
        let (reader, (mut peer, channel, arguments)) = tokio::join!(asks.subscribe(), opening);
        let mut reader = reader.unwrap();
        assert_eq!(
            arguments.get("x-stream-offset"),
            Some(HeaderValue::Integer(5))
        );
        assert_eq!(arguments.get("x-stream-filter"), Some("a = 1".into()));
        assert_eq!(
            arguments.get("x-stream-group"),
            group.map(HeaderValue::from)
        );
        tell_position(&mut peer, channel, 31, 26).await;
        let head = DeliverHead {
            queue_sequence: 31,
            delivery_count: 0,
        };
        let two = [message(b"a"), message(b"b")].concat();
        peer.send(&deliver_frame(channel, 1, 2, 0, &head, &two))
            .await;
        let batch = reader.next_batch().await.unwrap().unwrap();
        assert_eq!(
            batch.iter().next().map(|one| one.queue_sequence()),
            Some(31)
        );
        assert_eq!((reader.position(), reader.missed()), (Some(31), 26));
        drop(peer);
        let mut peer = door.welcome().await;
        let (channel, arguments) = opened(&mut peer).await;
        // Where a group is the broker knows.
        let again = if group.is_some() { 5 } else { 33 };
        assert_eq!(
            arguments.get("x-stream-offset"),
            Some(HeaderValue::Integer(again))
        );
        assert_eq!(arguments.get("x-stream-filter"), Some("a = 1".into()));
        tell_position(&mut peer, channel, 40, 7).await;
        let head = DeliverHead {
            queue_sequence: 40,
            delivery_count: 0,
        };
        let one = message(b"c");
        peer.send(&deliver_frame(channel, 1, 1, 0, &head, &one))
            .await;
        reader.next_batch().await.unwrap().unwrap();
        assert_eq!((reader.position(), reader.missed()), (Some(40), 33));
    }
}

#[tokio::test]
async fn a_reader_that_was_given_nothing_begins_where_it_began() {
    let door = Door::open().await;
    let (client, _main) = tokio::join!(builder(&door.address()).connect(), door.welcome());
    let client = client.unwrap();
    let opening = async {
        let mut peer = door.welcome().await;
        let (channel, arguments) = opened(&mut peer).await;
        (peer, channel, arguments)
    };
    let asks = client.stream("q").subscribe();
    let (reader, (mut peer, channel, arguments)) = tokio::join!(asks, opening);
    let reader = reader.unwrap();
    assert_eq!(arguments.get("x-stream-offset"), Some("next".into()));
    tell_position(&mut peer, channel, 12, 0).await;
    while reader.position().is_none() {
        tokio::task::yield_now().await;
    }
    drop(peer);
    let mut peer = door.welcome().await;
    let (_, arguments) = opened(&mut peer).await;
    // Else what came meanwhile were left out.
    assert_eq!(
        arguments.get("x-stream-offset"),
        Some(HeaderValue::Integer(12))
    );
}

#[tokio::test]
async fn a_start_that_is_none_is_refused_here() {
    let fake = Fake::start().await;
    let client = builder(&fake.address).connect().await.unwrap();
    let refused = client.stream("q").from(Start::Offset(0)).subscribe().await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid);
}
