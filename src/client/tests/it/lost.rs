//! Connections that are cut, reconnecting, resending, closing, dropping.

use std::time::Duration;

use ringpost_client::{
    Client, ErrorKind, LinkEvent, Message, Producer, QueueConfig, Reconnect, Resend, Settlement,
};
use ringpost_wire::control::{self, Body, ProducerOpen};
use ringpost_wire::{Code, FrameKind, SettleRange};

use crate::builder;
use crate::fake::{Fake, Settings};
use crate::peer::{Door, Peer};

async fn by_hand(door: &Door, resend: Resend) -> (Client, Producer, Peer, u16) {
    let connect = builder(&door.address()).resend(resend).connect();
    let (client, mut peer) = tokio::join!(connect, door.welcome());
    let client = client.unwrap();
    let (producer, channel) = tokio::join!(
        client.producer("").build(),
        peer.open_producer(1, 4, 1 << 20)
    );
    (client, producer.unwrap(), peer, channel)
}

/// What the client publishes next: sequences and messages.
async fn published(peer: &mut Peer, count: u32) -> Vec<u64> {
    let mut sequences = Vec::new();
    while sequences.len() < count as usize {
        let (header, _) = peer.expect(FrameKind::Publish).await;
        sequences.extend(header.sequence..header.sequence + u64::from(header.count));
    }
    sequences
}

/// Four messages published of six, the first confirmed; then the connection is cut.
struct Cut {
    door: Door,
    /// Producer id.
    id: u64,
    client: Client,
    producer: Producer,
    pendings: Vec<ringpost_client::Pending>,
}

async fn cut(resend: Resend) -> Cut {
    let door = Door::open().await;
    let connect = builder(&door.address()).resend(resend).connect();
    let (client, mut peer) = tokio::join!(connect, door.welcome());
    let client = client.unwrap();
    let opening = async {
        let (channel, id, _) = reopening(&mut peer).await;
        peer.producer_opened(channel, 1, 4, 1 << 20).await;
        (channel, id)
    };
    let (producer, (channel, id)) = tokio::join!(client.producer("").build(), opening);
    let producer = producer.unwrap();
    let mut pendings = Vec::new();
    for n in 0..6 {
        pendings.push(
            producer
                .enqueue(Message::new("q", n.to_string()))
                .await
                .unwrap(),
        );
    }
    assert_eq!(published(&mut peer, 4).await, [1, 2, 3, 4]);
    let credit = control::ProducerCredit {
        messages: 4,
        bytes: 1 << 20,
    };
    let header = ringpost_wire::FrameHeader {
        flags: control::Level::Durable as u8,
        ..ringpost_wire::FrameHeader::bare(FrameKind::Confirm, channel, 1)
    };
    peer.send_body(header, &credit).await;
    pendings.remove(0).await.unwrap();
    Cut {
        door,
        id,
        client,
        producer,
        pendings,
    }
}

/// How each pending ends: `None` is well.
async fn outcomes(pendings: Vec<ringpost_client::Pending>) -> Vec<Option<ErrorKind>> {
    let mut outcomes = Vec::new();
    for pending in pendings {
        outcomes.push(pending.await.err().map(|error| error.kind()));
    }
    outcomes
}

const UNKNOWN: Option<ErrorKind> = Some(ErrorKind::Indeterminate);

/// The producer that is opened next: its channel, id and epoch.
async fn reopening(peer: &mut Peer) -> (u16, u64, u32) {
    let (header, body) = peer.expect(FrameKind::ProducerOpen).await;
    let open = ProducerOpen::decode(&body).unwrap();
    (header.channel, open.producer, open.epoch)
}

#[tokio::test]
async fn unconfirmed_messages_are_sent_again_under_their_sequences() {
    // Whatever the broker knows of them (P-32): nothing, all that was confirmed, more, all.
    for next in [1, 2, 4, 5] {
        let cut = cut(Resend::Unconfirmed).await;
        let mut peer = cut.door.welcome().await;
        let (channel, id, epoch) = reopening(&mut peer).await;
        assert_eq!((id == cut.id, epoch), (true, 2));
        peer.producer_opened(channel, next, 100, 1 << 20).await;
        assert_eq!(published(&mut peer, 5).await, [2, 3, 4, 5, 6]);
        peer.refuse(channel, 2, 1, Code::SequenceTooOld).await;
        peer.confirm(channel, 6, control::Level::Durable).await;
        assert_eq!(
            outcomes(cut.pendings).await,
            [UNKNOWN, None, None, None, None]
        );
        let stats = cut.client.stats();
        assert_eq!((stats.reconnects, stats.resent, stats.in_flight), (1, 3, 0));
    }
}

#[tokio::test]
async fn a_connection_lost_before_everything_was_sent_again_changes_nothing() {
    let cut = cut(Resend::Unconfirmed).await;
    for (epoch, messages) in [(2, 0), (3, 2)] {
        let mut peer = cut.door.welcome().await;
        let (channel, _, its_epoch) = reopening(&mut peer).await;
        assert_eq!(its_epoch, epoch);
        // The broker has stored all four that were sent at first.
        peer.producer_opened(channel, 5, messages, 1 << 20).await;
        let sent: Vec<u64> = (2..2 + messages).collect();
        assert_eq!(
            published(&mut peer, u32::try_from(messages).unwrap()).await,
            sent
        );
    }
    let mut peer = cut.door.welcome().await;
    let (channel, ..) = reopening(&mut peer).await;
    peer.producer_opened(channel, 5, 100, 1 << 20).await;
    assert_eq!(published(&mut peer, 5).await, [2, 3, 4, 5, 6]);
    peer.confirm(channel, 6, control::Level::Durable).await;
    assert_eq!(outcomes(cut.pendings).await, [None; 5]);
    cut.client.close().await.unwrap();
}

#[tokio::test]
async fn what_was_sent_once_is_unknown_if_nobody_comes_back() {
    let cut = cut(Resend::Unconfirmed).await;
    let mut peer = cut.door.welcome().await;
    let (channel, ..) = reopening(&mut peer).await;
    // No credit: nothing of it is sent again before the producer is over.
    peer.producer_opened(channel, 5, 0, 0).await;
    peer.fail(FrameKind::ProducerClosed, channel, 0, Code::Internal)
        .await;
    let never = Some(ErrorKind::Broker);
    assert_eq!(
        outcomes(cut.pendings).await,
        [UNKNOWN, UNKNOWN, UNKNOWN, never, never]
    );
}

#[tokio::test]
async fn without_leave_to_resend_the_sent_ones_are_unknown() {
    let cut = cut(Resend::Never).await;
    let mut peer = cut.door.welcome().await;
    let (channel, ..) = reopening(&mut peer).await;
    peer.producer_opened(channel, 3, 100, 1 << 20).await;
    // Two were never sent, and no number is used twice.
    assert_eq!(published(&mut peer, 2).await, [5, 6]);
    peer.confirm(channel, 6, control::Level::Durable).await;
    assert_eq!(
        outcomes(cut.pendings).await,
        [UNKNOWN, UNKNOWN, UNKNOWN, None, None]
    );
    assert_eq!(
        cut.producer.flush().await.unwrap_err().kind(),
        ErrorKind::Indeterminate
    );
    assert_eq!(cut.client.stats().indeterminate, 3);
}

#[tokio::test]
async fn a_producer_whose_numbers_somebody_else_uses_is_over() {
    let cut = cut(Resend::Unconfirmed).await;
    let mut peer = cut.door.welcome().await;
    let (channel, ..) = reopening(&mut peer).await;
    peer.producer_opened(channel, 6, 100, 1 << 20).await;
    peer.expect(FrameKind::ProducerClose).await;
    let error = cut.producer.send(Message::new("q", "x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced);
}

#[tokio::test]
async fn a_fenced_producer_is_over() {
    let cut = cut(Resend::Unconfirmed).await;
    let mut peer = cut.door.welcome().await;
    let (channel, ..) = reopening(&mut peer).await;
    peer.fail(FrameKind::ProducerClosed, channel, 0, Code::ProducerFenced)
        .await;
    let fenced = Some(ErrorKind::Fenced);
    assert_eq!(
        outcomes(cut.pendings).await,
        [UNKNOWN, UNKNOWN, UNKNOWN, fenced, fenced]
    );
    let error = cut.producer.send(Message::new("q", "x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced);
}

#[tokio::test]
async fn without_reconnecting_a_lost_connection_is_the_end() {
    let door = Door::open().await;
    let connect = Client::builder(door.address())
        .reconnect(Reconnect::off())
        .connect();
    let (client, mut peer) = tokio::join!(connect, door.welcome());
    let client = client.unwrap();
    let (producer, _) = tokio::join!(
        client.producer("").build(),
        peer.open_producer(1, 1, 1 << 20)
    );
    let producer = producer.unwrap();
    let sent = producer.enqueue(Message::new("q", "x")).await.unwrap();
    let unsent = producer.enqueue(Message::new("q", "x")).await.unwrap();
    published(&mut peer, 1).await;
    drop(peer);
    assert_eq!(sent.await.unwrap_err().kind(), ErrorKind::Indeterminate);
    assert_eq!(unsent.await.unwrap_err().kind(), ErrorKind::Disconnected);
    let error = producer.send(Message::new("q", "x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disconnected);
    assert_eq!(
        client.queues().await.unwrap_err().kind(),
        ErrorKind::Disconnected
    );
    client.close().await.unwrap();
}

#[tokio::test]
async fn attempts_come_to_an_end() {
    let door = Door::open().await;
    let policy = Reconnect::backoff(Duration::from_millis(1), Duration::from_millis(2));
    let connect = Client::builder(door.address())
        .reconnect(policy.attempts_max(3))
        .connect();
    let (client, peer) = tokio::join!(connect, door.welcome());
    let client = client.unwrap();
    // Nobody listens any more.
    drop((door, peer));
    let error = client.queues().await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    let error = client.queues().await.unwrap_err();
    assert!(
        error.to_string().contains("gave up after 3 attempts"),
        "{error}"
    );
    assert_eq!(client.stats().connect_failures, 3);
}

#[tokio::test]
async fn requests_fail_with_their_connection_and_work_on_the_next() {
    let door = Door::open().await;
    let (client, mut peer) = tokio::join!(builder(&door.address()).connect(), door.welcome());
    let client = client.unwrap();
    let cutting = async {
        peer.expect(FrameKind::QueueList).await;
        drop(peer);
    };
    let (result, ()) = tokio::join!(client.queues(), cutting);
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disconnected);
    assert!(error.is_retryable());
    let answering = async {
        let mut peer = door.welcome().await;
        let (header, _) = peer.expect(FrameKind::QueueList).await;
        peer.bare(FrameKind::Done, 0, header.sequence).await;
        peer
    };
    let (result, _peer) = tokio::join!(client.queues(), answering);
    assert!(result.unwrap().is_empty());
}

#[tokio::test]
async fn consumers_subscribe_again_and_old_deliveries_are_void() -> ringpost_client::Result<()> {
    let fake = Fake::start().await;
    let client = builder(&fake.address).connect().await?;
    client.ensure_queue("q", QueueConfig::durable()).await?;
    let producer = client.producer("").build().await?;
    producer
        .send_batch((0..4).map(|n| Message::new("q", n.to_string())))
        .await?;
    let mut consumer = client.consumer("q").credit(2).subscribe().await?;
    let old = consumer.next_batch().await?.unwrap();
    assert_eq!(old.len(), 2);
    consumer.ack_durable(old.iter().next().unwrap()).await?;
    let before = client.stats().reconnects;
    fake.cut();
    let again = loop {
        // What was on its way when the connection was cut is not shown.
        let batch = consumer.next_batch().await?.unwrap();
        if batch.is_redelivered() {
            break batch;
        }
    };
    assert_eq!(again.iter().next().unwrap().payload(), b"1");
    assert_eq!(
        old.iter().nth(1).unwrap().payload(),
        b"1",
        "an old batch can still be read"
    );
    assert!(client.stats().reconnects > before);
    assert_eq!(consumer.ack(&old).await?, Settlement::Stale);
    assert_eq!(consumer.ack_durable(&old).await?, Settlement::Stale);
    let mixed = [*old.tags().end(), again.iter().next().unwrap().tag()];
    assert_eq!(consumer.ack(&mixed[..]).await?, Settlement::Stale);
    assert_eq!(client.stats().settles_stale, 3);
    client.close().await
}

#[tokio::test]
async fn a_durable_ack_fails_with_its_connection() {
    let door = Door::open().await;
    let (client, _main) = tokio::join!(builder(&door.address()).connect(), door.welcome());
    let client = client.unwrap();
    let opening = async {
        let mut peer = door.welcome().await;
        let channel = peer.open_consumer().await;
        (peer, channel)
    };
    let (consumer, (mut peer, channel)) = tokio::join!(client.consumer("q").subscribe(), opening);
    let mut consumer = consumer.unwrap();
    peer.deliver(channel, 1, &[b"x"]).await;
    let batch = consumer.next_batch().await.unwrap().unwrap();
    let cutting = async {
        let (header, body) = peer.expect(FrameKind::Settle).await;
        assert_eq!(SettleRange::parse(&body, header.count).unwrap().count(), 1);
        drop(peer);
    };
    let (result, ()) = tokio::join!(consumer.ack_durable(&batch), cutting);
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Disconnected);
}

/// Publishes and consumes across a cut after every so many bytes that the broker received.
#[tokio::test]
async fn nothing_confirmed_is_lost_wherever_the_connection_is_cut() -> ringpost_client::Result<()> {
    for at in (100..6_000).step_by(331) {
        let fake = Fake::with(Settings {
            knows_producers: at % 2 == 0,
            ..Settings::default()
        })
        .await;
        let client = builder(&fake.address).connect().await?;
        client.ensure_queue("q", QueueConfig::durable()).await?;
        fake.set(|settings| settings.cut_after_bytes = Some(at));
        let producer = client.producer("").build().await?;
        let mut confirmed = Vec::new();
        for chunk in 0..10 {
            let messages: Vec<_> = (0..7)
                .map(|n| Message::new("q", format!("{chunk} {n}")))
                .collect();
            match producer.send_batch(&messages).await {
                Ok(_) => confirmed.extend(messages),
                Err(error) => {
                    for (place, message) in messages.into_iter().enumerate() {
                        if !error
                            .failed()
                            .iter()
                            .any(|(places, _)| places.contains(&place))
                        {
                            confirmed.push(message);
                        }
                    }
                }
            }
        }
        let ready = fake.ready("q");
        for message in &confirmed {
            assert!(
                ready.iter().any(|payload| payload == message.payload()),
                "cut at {at}"
            );
        }
        assert!(
            confirmed.len() >= 63,
            "cut at {at}: {} confirmed",
            confirmed.len()
        );
        client.close().await?;
    }
    Ok(())
}

#[tokio::test]
async fn closing_waits_for_what_is_in_flight() {
    let fake = Fake::with(Settings {
        holds_confirms: true,
        ..Settings::default()
    })
    .await;
    let client = builder(&fake.address).connect().await.unwrap();
    client
        .ensure_queue("q", QueueConfig::durable())
        .await
        .unwrap();
    let producer = client.producer("").build().await.unwrap();
    let pending = producer.enqueue(Message::new("q", "x")).await.unwrap();
    let mut closing = std::pin::pin!(client.close());
    assert!(crate::publish::is_pending(closing.as_mut()));
    fake.set(|settings| settings.holds_confirms = false);
    closing.await.unwrap();
    assert!(pending.await.is_ok());
    assert_eq!(fake.ready("q"), [b"x"]);
    let error = producer.send(Message::new("q", "x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn closing_says_what_was_not_confirmed_in_time() {
    let fake = Fake::with(Settings {
        holds_confirms: true,
        ..Settings::default()
    })
    .await;
    let connect = builder(&fake.address)
        .close_timeout(Duration::from_millis(20))
        .connect();
    let client = connect.await.unwrap();
    let producer = client.producer("").build().await.unwrap();
    let pending = producer
        .enqueue_batch([Message::new("q", "x"), Message::new("q", "y")])
        .await;
    let error = client.close().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.to_string().starts_with("2 messages"), "{error}");
    let error = pending.unwrap().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Indeterminate);
}

//= P-11
#[tokio::test]
async fn closing_says_goodbye_after_everything_else() {
    let door = Door::open().await;
    let (client, mut peer) = tokio::join!(builder(&door.address()).connect(), door.welcome());
    let client = client.unwrap();
    let hanging_up = async move {
        let headers = peer.rest().await;
        assert_eq!(
            headers.iter().map(|h| h.kind).collect::<Vec<_>>(),
            [FrameKind::Close]
        );
    };
    let (result, ()) = tokio::join!(client.clone().close(), hanging_up);
    result.unwrap();
    assert_eq!(client.queues().await.unwrap_err().kind(), ErrorKind::Closed);
    let error = client.consumer("q").subscribe().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn dropping_everything_counts_and_still_writes() {
    let door = Door::open().await;
    let (client, producer, mut peer, _) = by_hand(&door, Resend::Unconfirmed).await;
    let pending = producer.enqueue(Message::new("q", "x")).await.unwrap();
    drop((client, producer));
    let kinds: Vec<_> = peer.rest().await.iter().map(|header| header.kind).collect();
    assert_eq!(kinds, [FrameKind::Publish, FrameKind::Close]);
    drop(peer);
    assert_eq!(pending.await.unwrap_err().kind(), ErrorKind::Indeterminate);
}

#[tokio::test]
async fn an_attached_connection_goes_with_its_last_user() -> ringpost_client::Result<()> {
    let door = Door::open().await;
    let (client, _main) = tokio::join!(builder(&door.address()).connect(), door.welcome());
    let client = client?;
    for _ in 0..2 {
        let opening = async {
            let mut peer = door.welcome().await;
            peer.open_consumer().await;
            peer
        };
        let (consumer, mut peer) = tokio::join!(client.consumer("q").subscribe(), opening);
        drop(consumer?);
        let kinds: Vec<_> = peer.rest().await.iter().map(|header| header.kind).collect();
        assert_eq!(kinds, [FrameKind::ConsumerClose, FrameKind::Close]);
    }
    Ok(())
}

#[tokio::test]
async fn who_asked_hears_of_a_connection_that_is_lost_and_back() {
    let door = Door::open().await;
    let (tell, mut told) = tokio::sync::mpsc::channel(4);
    let heed = move |event| tell.try_send(event).expect("there is room");
    let connect = builder(&door.address()).on_link(heed).connect();
    let (client, peer) = tokio::join!(connect, door.welcome());
    let _client = client.unwrap();
    drop(peer);
    let _peer = door.welcome().await;
    assert!(matches!(told.recv().await, Some(LinkEvent::Lost(_))));
    assert!(matches!(told.recv().await, Some(LinkEvent::Restored)));
}
