//! Receipts, refusals, levels, batches, back-pressure, credit, large messages.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use ringpost_client::{
    ByteSize, Client, ErrorKind, Headers, Level, Message, Producer, QueueConfig,
};
use ringpost_wire::{Code, FRAGMENT_BYTES_MAX, FrameHeader, FrameKind, Messages, control};

use crate::builder;
use crate::fake::{Fake, Settings};
use crate::peer::{Door, Peer};

/// Whether a future is not ready yet, without waiting.
pub fn is_pending<F: Future>(future: std::pin::Pin<&mut F>) -> bool {
    matches!(
        future.poll(&mut Context::from_waker(Waker::noop())),
        Poll::Pending
    )
}

async fn by_hand(messages: u64, bytes: u64) -> (Client, Producer, Peer, u16) {
    let door = Door::open().await;
    let (client, mut peer) = tokio::join!(builder(&door.address()).connect(), door.welcome());
    let client = client.unwrap();
    let (producer, channel) = tokio::join!(
        client.producer("").build(),
        peer.open_producer(1, messages, bytes)
    );
    (client, producer.unwrap(), peer, channel)
}

#[tokio::test]
async fn what_is_sent_arrives_whole_and_in_order() -> ringpost_client::Result<()> {
    let fake = Fake::start().await;
    let client = builder(&fake.address).connect().await?;
    client.ensure_queue("q", QueueConfig::durable()).await?;
    let producer = client.producer("").build().await?;
    let receipt = producer.send(Message::new("q", "0")).await?;
    assert_eq!((receipt.level, receipt.messages), (Level::Durable, 1));
    let mut pendings = Vec::new();
    for n in 1..500 {
        pendings.push(producer.enqueue(Message::new("q", n.to_string())).await?);
    }
    for pending in pendings {
        assert_eq!(pending.await?.level, Level::Durable);
    }
    let batch: Vec<_> = (500..2_000)
        .map(|n| Message::new("q", n.to_string()))
        .collect();
    let receipt = producer.enqueue_batch(&batch).await?.await?;
    assert_eq!((receipt.level, receipt.messages), (Level::Durable, 1_500));
    let expected: Vec<_> = (0..2_000).map(|n| n.to_string().into_bytes()).collect();
    assert_eq!(fake.ready("q"), expected);
    let stats = client.stats();
    assert_eq!(
        (stats.confirmed, stats.in_flight, stats.in_flight_bytes),
        (2_000, 0, 0)
    );
    client.close().await
}

#[tokio::test]
async fn every_part_of_a_message_travels() {
    let (_client, producer, mut peer, channel) = by_hand(10, 1 << 20).await;
    let headers = Headers::new().with("colour", "red");
    let message = Message::new("key", "payload")
        .headers(headers.clone())
        .properties("props")
        .priority(7)
        .ttl(std::time::Duration::from_millis(1_500))
        .timestamp(std::time::UNIX_EPOCH + std::time::Duration::from_micros(99));
    let pending = producer.enqueue(message).await.unwrap();
    let (header, body) = peer.expect(FrameKind::Publish).await;
    assert_eq!(
        (header.channel, header.sequence, header.count),
        (channel, 1, 1)
    );
    let message = Messages::new(&body).next().unwrap().unwrap().envelope;
    message.check_crc().unwrap();
    assert_eq!(message.routing_key(), b"key");
    assert_eq!(message.payload(), b"payload");
    assert_eq!(message.properties(), b"props");
    assert_eq!(message.headers(), headers.as_encoded());
    assert_eq!(
        (message.priority(), message.ttl_ms(), message.timestamp_us()),
        (7, 1_500, 99)
    );
    peer.confirm(channel, 1, control::Level::Durable).await;
    pending.await.unwrap();
}

#[tokio::test]
async fn refusals_name_their_messages_and_spare_the_others() {
    let (client, producer, mut peer, channel) = by_hand(100, 1 << 20).await;
    let messages: Vec<_> = (0..6).map(|_| Message::new("q", "x")).collect();
    let batch = producer.enqueue_batch(&messages).await.unwrap();
    let single = producer.enqueue(Message::new("q", "y")).await.unwrap();
    let mut count = 0;
    while count < 7 {
        count += peer.expect(FrameKind::Publish).await.0.count;
    }
    peer.refuse(channel, 2, 2, Code::QueueFull).await;
    peer.refuse(channel, 5, 1, Code::Unroutable).await;
    peer.refuse(channel, 7, 1, Code::JournalFailed).await;
    peer.confirm(channel, 7, control::Level::Durable).await;
    let error = batch.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full);
    let failed: Vec<_> = error
        .failed()
        .iter()
        .map(|(places, error)| (places.clone(), error.kind()))
        .collect();
    assert_eq!(
        failed,
        [(1..3, ErrorKind::Full), (4..5, ErrorKind::Unroutable)]
    );
    assert_eq!(single.await.unwrap_err().kind(), ErrorKind::Indeterminate);
    assert_eq!(producer.flush().await.unwrap_err().kind(), ErrorKind::Full);
    producer.flush().await.unwrap();
    let stats = client.stats();
    assert_eq!(
        (stats.refused, stats.indeterminate, stats.in_flight),
        (3, 1, 0)
    );
}

#[tokio::test]
async fn receipts_tell_the_level_of_their_confirm() {
    let (_client, producer, mut peer, channel) = by_hand(100, 1 << 20).await;
    let first = producer.enqueue(Message::new("q", "1")).await.unwrap();
    let second = producer.enqueue(Message::new("q", "2")).await.unwrap();
    let both = [Message::new("q", "3"), Message::new("q", "4")];
    let batch = producer.enqueue_batch(&both).await.unwrap();
    let mut count = 0;
    while count < 4 {
        count += peer.expect(FrameKind::Publish).await.0.count;
    }
    peer.confirm(channel, 1, control::Level::Durable).await;
    peer.confirm(channel, 3, control::Level::Volatile).await;
    peer.confirm(channel, 4, control::Level::Durable).await;
    assert_eq!(first.await.unwrap().level, Level::Durable);
    assert_eq!(second.await.unwrap().level, Level::Volatile);
    assert_eq!(batch.await.unwrap().level, Level::Volatile);
}

#[tokio::test]
async fn level_none_is_settled_by_being_written() -> ringpost_client::Result<()> {
    let fake = Fake::start().await;
    let client = builder(&fake.address).connect().await?;
    client.ensure_queue("q", QueueConfig::volatile()).await?;
    let producer = client.producer("").level(Level::None).build().await?;
    assert_eq!(
        producer.send(Message::new("q", "x")).await?.level,
        Level::None
    );
    producer
        .send_batch((0..3_000).map(|_| Message::new("q", "x")))
        .await?;
    client.close().await
}

#[tokio::test]
async fn a_volatile_target_needs_leave() -> ringpost_client::Result<()> {
    let fake = Fake::start().await;
    let client = builder(&fake.address).connect().await?;
    client.ensure_queue("q", QueueConfig::volatile()).await?;
    let strict = client.producer("").build().await?;
    let refused = strict.send(Message::new("q", "x")).await.unwrap_err();
    assert_eq!(
        (refused.kind(), refused.code()),
        (ErrorKind::Unroutable, Some("level_unavailable"))
    );
    let lenient = client.producer("").allow_downgrade().build().await?;
    assert_eq!(
        lenient.send(Message::new("q", "x")).await?.level,
        Level::Volatile
    );
    client.close().await
}

#[tokio::test]
async fn mandatory_messages_need_a_queue() -> ringpost_client::Result<()> {
    let fake = Fake::start().await;
    let client = builder(&fake.address).connect().await?;
    let producer = client.producer("").mandatory().build().await?;
    let refused = producer
        .send(Message::new("nowhere", "x"))
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unroutable);
    let producer = client.producer("").build().await?;
    producer.send(Message::new("nowhere", "x")).await?;
    client.close().await
}

#[tokio::test]
async fn credit_is_never_exceeded() {
    // A message takes 80 bytes. Three of five messages fit, then bytes are short, then none is.
    let (_client, producer, mut peer, channel) = by_hand(3, 3 * 80).await;
    let messages: Vec<_> = (0..8).map(|_| Message::new("q", "0123456789")).collect();
    let pending = producer.enqueue_batch(&messages).await.unwrap();
    let (header, _) = peer.expect(FrameKind::Publish).await;
    assert_eq!((header.sequence, header.count), (1, 3));
    peer.credit(channel, 100, 4 * 80 + 79).await;
    let (header, _) = peer.expect(FrameKind::Publish).await;
    assert_eq!((header.sequence, header.count), (4, 1));
    peer.credit(channel, 5, 1 << 20).await;
    // Credit never goes down: 100 messages stay.
    let (header, _) = peer.expect(FrameKind::Publish).await;
    assert_eq!((header.sequence, header.count), (5, 4));
    peer.confirm(channel, 8, control::Level::Durable).await;
    assert_eq!(pending.await.unwrap().messages, 8);
}

#[tokio::test]
async fn enqueueing_waits_in_line_while_too_much_is_in_flight() {
    let door = Door::open().await;
    let (client, mut peer) = tokio::join!(builder(&door.address()).connect(), door.welcome());
    let client = client.unwrap();
    // Room for two messages of 80 bytes.
    let build = client
        .producer("")
        .in_flight_max(ByteSize::new(160))
        .build();
    let (producer, channel) = tokio::join!(build, peer.open_producer(1, 100, 1 << 20));
    let producer = producer.unwrap();
    let message = || Message::new("q", "0123456789");
    let first = producer.enqueue(message()).await.unwrap();
    let second = producer.enqueue(message()).await.unwrap();
    let mut third = pin!(producer.enqueue(message()));
    assert!(is_pending(third.as_mut()));
    let four = vec![message(); 4];
    let mut batch = pin!(producer.enqueue_batch(&four));
    assert!(is_pending(batch.as_mut()));
    assert_eq!(client.stats().in_flight_bytes, 160);
    peer.confirm(channel, 0, control::Level::Durable).await;
    let mut seen = 0;
    while seen < 2 {
        seen += u64::from(peer.expect(FrameKind::Publish).await.0.count);
    }
    peer.confirm(channel, 1, control::Level::Durable).await;
    first.await.unwrap();
    let third = third.await.unwrap();
    peer.expect(FrameKind::Publish).await;
    peer.confirm(channel, 3, control::Level::Durable).await;
    second.await.unwrap();
    third.await.unwrap();
    let confirming = async {
        let mut seen = 3;
        while seen < 7 {
            seen += u64::from(peer.expect(FrameKind::Publish).await.0.count);
            peer.confirm(channel, seen, control::Level::Durable).await;
        }
    };
    let (batch, ()) = tokio::join!(batch, confirming);
    assert_eq!(batch.unwrap().await.unwrap().messages, 4);
}

#[tokio::test]
async fn a_wait_that_is_given_up_leaves_the_line() {
    let (_client, producer, mut peer, channel) = by_hand(100, 1 << 20).await;
    let big = Message::new("q", vec![0; 5 << 20]);
    let first = producer.enqueue(big.clone()).await.unwrap();
    {
        let mut second = pin!(producer.enqueue(big));
        assert!(is_pending(second.as_mut()));
    }
    // Small ones still fit beside it.
    let third = producer.enqueue(Message::new("q", "small")).await.unwrap();
    peer.credit(channel, 100, 1 << 30).await;
    loop {
        let (header, _) = peer.next().await.unwrap();
        if header.kind == FrameKind::Publish {
            break;
        }
    }
    peer.confirm(channel, 2, control::Level::Durable).await;
    first.await.unwrap();
    third.await.unwrap();
}

#[tokio::test]
async fn large_messages_travel_in_pieces() -> ringpost_client::Result<()> {
    let fake = Fake::start().await;
    let client = builder(&fake.address).connect().await?;
    client.ensure_queue("q", QueueConfig::durable()).await?;
    let producer = client.producer("").build().await?;
    // 64 bytes of envelope and 1 of key: the largest that travels whole, and the ones around it.
    let whole = FRAGMENT_BYTES_MAX - 65;
    let sizes = [
        whole - 1,
        whole,
        whole + 1,
        2 * FRAGMENT_BYTES_MAX - 65,
        3 << 20,
        100 * 1024,
        0,
    ];
    let payload = |size: usize| (0..size).map(|n| (n % 251) as u8).collect::<Vec<u8>>();
    let messages: Vec<_> = sizes.map(|size| Message::new("q", payload(size))).into();
    let receipt = producer.send_batch(&messages).await?;
    assert_eq!(receipt.messages, sizes.len() as u64);
    assert_eq!(fake.ready("q"), sizes.map(payload));
    client.close().await
}

#[tokio::test]
async fn oversize_messages_fail_here_with_both_sizes() -> ringpost_client::Result<()> {
    let fake = Fake::start().await;
    let client = builder(&fake.address).connect().await?;
    let producer = client.producer("").build().await?;
    let most = client.limits().message_max().bytes();
    let error = producer
        .send(Message::new("", vec![0; most as usize]))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    let text = error.to_string();
    assert!(
        text.contains(&most.to_string()) && text.contains(&(most + 64).to_string()),
        "{text}"
    );
    producer.send(Message::new("", "x")).await?;
    client.close().await
}

#[tokio::test]
async fn a_full_queue_is_an_answer() -> ringpost_client::Result<()> {
    let fake = Fake::with(Settings {
        queue_messages_max: 2,
        ..Settings::default()
    })
    .await;
    let client = builder(&fake.address).connect().await?;
    client.ensure_queue("q", QueueConfig::durable()).await?;
    let producer = client.producer("").build().await?;
    let error = producer
        .send_batch((0..5).map(|_| Message::new("q", "x")))
        .await
        .unwrap_err();
    assert!(error.is_retryable());
    assert_eq!(
        error.to_string().split(':').next(),
        Some("3 of 5 messages failed, the first at 2")
    );
    client.close().await
}

#[tokio::test]
async fn exchanges_route_by_their_bindings() -> ringpost_client::Result<()> {
    let fake = Fake::start().await;
    let client = builder(&fake.address).connect().await?;
    client.ensure_queue("q", QueueConfig::durable()).await?;
    client
        .ensure_exchange("shop", ringpost_client::ExchangeConfig::direct())
        .await?;
    client.bind("q", "shop", "paid").await?;
    let producer = client.producer("shop").near("q").build().await?;
    producer.send(Message::new("paid", "yes")).await?;
    producer.send(Message::new("open", "no")).await?;
    assert_eq!(fake.ready("q"), [b"yes"]);
    assert_eq!(fake.connections(), 2);
    let nowhere = client
        .producer("shop")
        .near("nowhere")
        .build()
        .await
        .unwrap_err();
    assert_eq!(nowhere.kind(), ErrorKind::NotFound);
    client.close().await
}

#[tokio::test]
async fn dropped_pendings_are_counted_and_their_messages_sent() -> ringpost_client::Result<()> {
    let (client, producer, mut peer, channel) = by_hand(100, 1 << 20).await;
    drop(producer.enqueue(Message::new("q", "x")).await?);
    peer.expect(FrameKind::Publish).await;
    assert_eq!(client.stats().pendings_dropped, 1);
    let settled = producer.enqueue(Message::new("q", "x")).await?;
    peer.expect(FrameKind::Publish).await;
    peer.confirm(channel, 2, control::Level::Durable).await;
    producer.flush().await?;
    drop(settled);
    assert_eq!(client.stats().pendings_dropped, 1);
    Ok(())
}

#[tokio::test]
async fn a_dropped_producer_is_closed_once_it_is_settled() {
    let (client, producer, mut peer, channel) = by_hand(100, 1 << 20).await;
    let pending = producer.enqueue(Message::new("q", "x")).await.unwrap();
    drop(producer);
    peer.expect(FrameKind::Publish).await;
    peer.confirm(channel, 1, control::Level::Durable).await;
    assert_eq!(
        peer.expect(FrameKind::ProducerClose).await.0.channel,
        channel
    );
    pending.await.unwrap();
    drop(client);
}

#[tokio::test]
async fn many_tasks_share_a_producer() -> ringpost_client::Result<()> {
    let fake = Fake::start().await;
    let client = builder(&fake.address)
        .in_flight_max(ByteSize::kib(4))
        .connect()
        .await?;
    client.ensure_queue("q", QueueConfig::durable()).await?;
    let producer = client.producer("").build().await?;
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..8 {
        let producer = producer.clone();
        tasks.spawn(async move {
            for n in 0..50 {
                let text = format!("{task} {n}");
                match n % 3 {
                    0 => drop(producer.send(Message::new("q", text)).await?),
                    1 => drop(producer.enqueue(Message::new("q", text)).await?.await?),
                    _ => drop(producer.send_batch([Message::new("q", text)]).await?),
                }
            }
            ringpost_client::Result::Ok(())
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap()?;
    }
    // Each task's messages are in its order.
    let ready = fake.ready("q");
    assert_eq!(ready.len(), 400);
    for task in 0..8 {
        let start = format!("{task} ").into_bytes();
        let own: Vec<_> = ready
            .iter()
            .filter(|payload| payload.starts_with(&start))
            .collect();
        let expected: Vec<_> = (0..50)
            .map(|n| format!("{task} {n}").into_bytes())
            .collect();
        assert!(own.into_iter().eq(expected.iter()));
    }
    client.close().await
}

#[tokio::test]
async fn closing_at_level_none_hears_of_refusals() {
    let door = Door::open().await;
    let (client, mut peer) = tokio::join!(builder(&door.address()).connect(), door.welcome());
    let client = client.unwrap();
    let (producer, channel) = tokio::join!(
        client.producer("x").level(Level::None).build(),
        peer.open_producer(1, 4, 1 << 20)
    );
    let producer = producer.unwrap();
    let clone = producer.clone();
    producer.send(Message::new("q", "m")).await.unwrap();
    let broker = async {
        peer.expect(FrameKind::Publish).await;
        let (first, _) = peer.expect(FrameKind::TenantList).await;
        // The answer overtakes what is said at the end of the turn.
        peer.bare(FrameKind::Done, 0, first.sequence).await;
        peer.refuse(channel, 1, 1, Code::ExchangeUnknown).await;
        let (second, _) = peer.expect(FrameKind::TenantList).await;
        peer.bare(FrameKind::Done, 0, second.sequence).await;
    };
    let (closed, ()) = tokio::join!(producer.close(), broker);
    assert_eq!(closed.unwrap_err().kind(), ErrorKind::NotFound);
    // Without other clones the channel is closed, and hears all before it ends.
    clone.send(Message::new("q", "m")).await.unwrap();
    let broker = async {
        peer.expect(FrameKind::Publish).await;
        let (close, _) = peer.expect(FrameKind::ProducerClose).await;
        peer.refuse(channel, 2, 1, Code::QueueFull).await;
        let header = FrameHeader::bare(FrameKind::ProducerClosed, channel, close.sequence);
        let mut closed = Vec::new();
        control::write_failure(&mut closed, header, Code::Normal, "closed by the client");
        peer.send(&closed).await;
    };
    let (closed, ()) = tokio::join!(clone.close(), broker);
    assert_eq!(closed.unwrap_err().code(), Some("queue_full"));
}
