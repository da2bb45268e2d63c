//! Peers that break the protocol, and handshakes that fail.

use std::time::Duration;

use ringpost_client::{Client, ErrorKind, Message, Reconnect, Result};
use ringpost_wire::{Code, FrameHeader, FrameKind, control, frame};

use crate::builder;
use crate::peer::{Door, Greeting, Peer, delivery};

/// How connecting to a peer that does as `play` says ends.
async fn connecting(play: impl AsyncFnOnce(Peer)) -> Result<Client> {
    let door = Door::open().await;
    let connect = builder(&door.address())
        .connect_timeout(Duration::from_secs(5))
        .connect();
    let (result, ()) = tokio::join!(connect, async { play(door.accept().await).await });
    result
}

#[tokio::test]
async fn handshakes_fail_for_a_reason() {
    let foreign = connecting(async |mut peer: Peer| peer.send(&[b'x'; 64]).await).await;
    assert_eq!(foreign.unwrap_err().kind(), ErrorKind::Protocol);

    let newer = connecting(async |mut peer: Peer| {
        let greeting = Greeting {
            version: 99,
            ..Greeting::default()
        };
        peer.greet(greeting).await;
    });
    let error = newer.await.unwrap_err();
    assert_eq!(
        (error.kind(), error.code()),
        (ErrorKind::Protocol, Some("version_unsupported"))
    );

    let refused = connecting(async |mut peer: Peer| {
        peer.expect(FrameKind::Hello).await;
        peer.fail(FrameKind::Close, 0, 0, Code::TenantUnknown).await;
    });
    assert_eq!(refused.await.unwrap_err().kind(), ErrorKind::NotFound);

    let silent = connecting(async |mut peer: Peer| drop(peer.expect(FrameKind::Hello).await));
    let error = silent.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);
    assert!(error.is_retryable());

    let early = connecting(async |mut peer: Peer| peer.bare(FrameKind::Done, 0, 0).await);
    assert_eq!(early.await.unwrap_err().code(), Some("unexpected_frame"));

    let long = connecting(async |mut peer: Peer| {
        let mut out = Vec::new();
        frame::write(
            &mut out,
            FrameHeader::bare(FrameKind::Welcome, 0, 0),
            &[0; 4096],
        );
        peer.send(&out).await;
    });
    assert_eq!(long.await.unwrap_err().code(), Some("frame_too_large"));

    let tiny = connecting(async |mut peer: Peer| {
        let greeting = Greeting {
            message_bytes_max: 10,
            ..Greeting::default()
        };
        peer.greet(greeting).await;
    });
    assert_eq!(tiny.await.unwrap_err().kind(), ErrorKind::Protocol);
}

#[tokio::test]
async fn nobody_there_is_an_error_with_a_source() {
    use std::error::Error as _;
    let address = Door::open().await.address();
    let error = Client::builder(&address).connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);
    assert!(error.to_string().contains(&address) && error.source().is_some());
    let options = Client::builder("")
        .tenant("a\nb")
        .connect()
        .await
        .unwrap_err();
    assert_eq!(options.kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn a_slow_handshake_times_out() {
    let door = Door::open().await;
    let connect = builder(&door.address())
        .connect_timeout(Duration::from_millis(20))
        .connect();
    let (result, _peer) = tokio::join!(connect, door.accept());
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Connect);
}

#[tokio::test]
async fn limits_are_what_the_broker_said() {
    let door = Door::open().await;
    let (client, _peer) = tokio::join!(builder(&door.address()).connect(), door.welcome());
    let limits = client.unwrap().limits();
    assert_eq!(limits.message_max().bytes(), 16 << 20);
    assert_eq!(
        (limits.channels_max(), limits.cores(), limits.server()),
        (16, 2, "fake 1")
    );
    assert_eq!(limits.heartbeat(), Duration::from_secs(10));
}

/// What a broken frame does to a client that does not reconnect, seen by a request and a publish.
async fn broken(send: impl AsyncFnOnce(&mut Peer, u16)) -> ringpost_client::Error {
    let door = Door::open().await;
    let connect = Client::builder(door.address())
        .reconnect(Reconnect::off())
        .connect();
    let (client, mut peer) = tokio::join!(connect, door.welcome());
    let client = client.unwrap();
    let (producer, channel) = tokio::join!(
        client.producer("").build(),
        peer.open_producer(1, 10, 1 << 20)
    );
    let producer = producer.unwrap();
    let pending = producer.enqueue(Message::new("q", "x")).await.unwrap();
    peer.expect(FrameKind::Publish).await;
    send(&mut peer, channel).await;
    assert_eq!(pending.await.unwrap_err().kind(), ErrorKind::Indeterminate);
    producer.send(Message::new("q", "x")).await.unwrap_err()
}

#[tokio::test]
async fn broken_frames_end_the_connection() {
    let garbage = broken(async |peer, _| peer.send(&[0xab; 64]).await).await;
    assert_eq!(
        (garbage.kind(), garbage.code()),
        (ErrorKind::Protocol, Some("frame_malformed"))
    );

    let body = broken(async |peer, channel| {
        let mut out = Vec::new();
        frame::write(
            &mut out,
            FrameHeader::bare(FrameKind::Refused, channel, 1),
            b"body",
        );
        out[33] ^= 1;
        peer.send(&out).await;
    });
    assert_eq!(body.await.code(), Some("body_malformed"));

    let direction = broken(async |peer, _| peer.bare(FrameKind::QueueList, 0, 1).await).await;
    assert_eq!(direction.code(), Some("unexpected_frame"));

    let channel = broken(async |peer, _| peer.confirm(9, 1, control::Level::Durable).await).await;
    assert_eq!(channel.code(), Some("channel_invalid"));

    let future = broken(async |peer, channel| {
        peer.confirm(channel, 2, control::Level::Durable).await;
    });
    assert_eq!(future.await.code(), Some("unexpected_frame"));

    let refusal =
        broken(async |peer, channel| peer.refuse(channel, 1, 2, Code::QueueFull).await).await;
    assert_eq!(refusal.code(), Some("unexpected_frame"));

    let told = broken(async |peer, _| {
        peer.fail(FrameKind::Close, 0, 0, Code::CreditExceeded)
            .await;
    });
    assert_eq!(told.await.code(), Some("credit_exceeded"));
}

#[tokio::test]
async fn broken_deliveries_end_the_connection() {
    let head = |mut frame: Vec<u8>| {
        frame[32] ^= 1;
        frame
    };
    for frame in [
        // A damaged head, a channel nobody has, tags that go backwards.
        head(delivery(1, 1, &[b"x"])),
        delivery(7, 1, &[b"x"]),
        [delivery(1, 5, &[b"x"]), delivery(1, 5, &[b"x"])].concat(),
        delivery(1, 1, &[]),
    ] {
        let door = Door::open().await;
        let connect = Client::builder(door.address())
            .reconnect(Reconnect::off())
            .connect();
        let (client, _main) = tokio::join!(connect, door.welcome());
        let client = client.unwrap();
        let opening = async {
            let mut peer = door.welcome().await;
            assert_eq!(peer.open_consumer().await, 1);
            peer
        };
        let (consumer, mut peer) = tokio::join!(client.consumer("q").subscribe(), opening);
        let mut consumer = consumer.unwrap();
        peer.send(&frame).await;
        let error = loop {
            match consumer.next_batch().await {
                Ok(batch) => assert!(batch.is_some()),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::Protocol);
    }
}

#[tokio::test]
async fn a_broker_that_shuts_down_is_dialled_again() {
    let door = Door::open().await;
    let (client, mut peer) = tokio::join!(builder(&door.address()).connect(), door.welcome());
    let client = client.unwrap();
    peer.fail(FrameKind::Close, 0, 0, Code::ShuttingDown).await;
    let answering = async {
        let mut peer = door.welcome().await;
        let (header, _) = peer.next().await.unwrap();
        peer.bare(FrameKind::Done, 0, header.sequence).await;
        peer
    };
    let (result, _peer) = tokio::join!(
        async {
            match client.queues().await {
                // It may have been asked on the connection that was closed.
                Err(_) => client.queues().await,
                result => result,
            }
        },
        answering
    );
    assert!(result.unwrap().is_empty());
}

#[tokio::test]
async fn a_silent_broker_is_gone() {
    let door = Door::open().await;
    let connect = Client::builder(door.address())
        .reconnect(Reconnect::off())
        .connect();
    let greeting = Greeting {
        heartbeat_ms: 20,
        ..Greeting::default()
    };
    let accept = async {
        let mut peer = door.accept().await;
        peer.greet(greeting).await;
        peer
    };
    let (client, mut peer) = tokio::join!(connect, accept);
    let client = client.unwrap();
    // The client says that it is there; nobody answers.
    peer.expect_heartbeat().await;
    peer.expect_heartbeat().await;
    let error = client.queues().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disconnected);
    let error = client.queues().await.unwrap_err();
    assert!(error.to_string().contains("silent"), "{error}");
}

#[tokio::test]
async fn a_request_without_an_answer_times_out() {
    let door = Door::open().await;
    let connect = builder(&door.address())
        .request_timeout(Duration::from_millis(20))
        .connect();
    let (client, mut peer) = tokio::join!(connect, door.welcome());
    let client = client.unwrap();
    let error = client.queues().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    // The late answer disturbs nobody.
    let (header, _) = peer.expect(FrameKind::QueueList).await;
    peer.bare(FrameKind::Done, 0, header.sequence).await;
    let error = client.producer("").build().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
}

#[tokio::test]
async fn channels_are_bounded() {
    let door = Door::open().await;
    let (client, mut peer) = tokio::join!(builder(&door.address()).connect(), async {
        let mut peer = door.accept().await;
        let greeting = Greeting {
            channels_max: 2,
            ..Greeting::default()
        };
        peer.greet(greeting).await;
        peer
    });
    let client = client.unwrap();
    let mut producers = Vec::new();
    for _ in 0..2 {
        let open = peer.open_producer(1, 1, 1);
        producers.push(tokio::join!(client.producer("").build(), open).0.unwrap());
    }
    let error = client.producer("").build().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full);
    // A closed one makes room once the broker has said so.
    producers.pop();
    let (header, _) = peer.expect(FrameKind::ProducerClose).await;
    assert!(client.producer("").build().await.is_err());
    peer.fail(FrameKind::ProducerClosed, header.channel, 0, Code::Normal)
        .await;
    let asking = async {
        let (header, _) = peer.expect(FrameKind::QueueList).await;
        peer.bare(FrameKind::Done, 0, header.sequence).await;
    };
    tokio::join!(client.queues(), asking).0.unwrap();
    let open = peer.open_producer(1, 1, 1);
    tokio::join!(client.producer("").build(), open).0.unwrap();
}
