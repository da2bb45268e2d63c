//! Requests, their answers, their failures.

use ringpost_client::{
    Binding, DeleteIf, Ensured, ErrorKind, ExchangeConfig, ExchangeKind, Headers, Message,
    QueueConfig, Removed,
};
use ringpost_wire::{Code, FrameKind};

use crate::builder;
use crate::fake::Fake;
use crate::peer::Door;

#[tokio::test]
async fn queues_come_and_go() -> ringpost_client::Result<()> {
    let fake = Fake::start().await;
    let client = builder(&fake.address).connect().await?;
    assert!(!client.queue_exists("orders").await?);
    let config = QueueConfig::durable();
    assert_eq!(
        client.ensure_queue("orders", config.clone()).await?,
        Ensured::Created
    );
    assert_eq!(
        client.ensure_queue("orders", config).await?,
        Ensured::AlreadyExists
    );
    assert!(client.queue_exists("orders").await?);
    let other = client
        .ensure_queue("orders", QueueConfig::volatile())
        .await
        .unwrap_err();
    assert_eq!(
        (other.kind(), other.code()),
        (ErrorKind::Conflict, Some("precondition_failed"))
    );
    assert!(!other.is_retryable());

    let producer = client.producer("").build().await?;
    producer
        .send_batch((0..3).map(|_| Message::new("orders", "x")))
        .await?;
    let info = client.inspect_queue("orders").await?;
    assert_eq!(
        (info.name.as_str(), info.ready, info.published),
        ("orders", 3, 3)
    );
    assert_eq!(client.queues().await?, [info]);
    let full = client
        .delete_queue("orders", DeleteIf::Empty)
        .await
        .unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Conflict);
    assert_eq!(client.purge_queue("orders").await?, 3);
    producer.send(Message::new("orders", "x")).await?;
    let removed = client.delete_queue("orders", DeleteIf::Always).await?;
    assert_eq!(removed, Removed::Removed { messages: 1 });
    assert_eq!(
        client.delete_queue("orders", DeleteIf::Always).await?,
        Removed::Absent
    );
    let gone = client.inspect_queue("orders").await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    client.close().await
}

#[tokio::test]
async fn exchanges_bindings_and_tenants_come_and_go() -> ringpost_client::Result<()> {
    let fake = Fake::start().await;
    let client = builder(&fake.address).connect().await?;
    for (name, config, kind) in [
        ("a", ExchangeConfig::direct(), ExchangeKind::Direct),
        ("b", ExchangeConfig::fanout(), ExchangeKind::Fanout),
        ("c", ExchangeConfig::topic(), ExchangeKind::Topic),
        ("d", ExchangeConfig::headers(), ExchangeKind::Headers),
    ] {
        assert_eq!(
            client.ensure_exchange(name, config.clone()).await?,
            Ensured::Created
        );
        assert_eq!(
            client.ensure_exchange(name, config).await?,
            Ensured::AlreadyExists
        );
        let listed = client.exchanges().await?;
        assert_eq!(
            listed.last().map(|info| (info.name.as_str(), info.kind)),
            Some((name, kind))
        );
    }
    let removed = client.delete_exchange("d", DeleteIf::Unused).await?;
    assert_eq!(removed, Removed::Removed { messages: 0 });
    assert_eq!(
        client.delete_exchange("d", DeleteIf::Always).await?,
        Removed::Absent
    );

    let arguments = Headers::new().with("x-match", "any").with("colour", "red");
    let binding = Binding::new("q", "d").arguments(arguments);
    assert_eq!(client.bind("q", "a", "key").await?, Ensured::Created);
    assert_eq!(client.bind("q", "a", "key").await?, Ensured::AlreadyExists);
    assert_eq!(client.ensure_binding(&binding).await?, Ensured::Created);
    assert_eq!(
        client.bindings().await?,
        [Binding::new("q", "a").key("key"), binding.clone()]
    );
    assert_eq!(
        client.unbind("q", "a", "key").await?,
        Removed::Removed { messages: 0 }
    );
    assert_eq!(client.unbind("q", "a", "key").await?, Removed::Absent);
    assert_eq!(
        client.remove_binding(&binding).await?,
        Removed::Removed { messages: 0 }
    );

    assert_eq!(client.ensure_tenant("shop").await?, Ensured::Created);
    assert_eq!(client.tenants().await?, ["shop"]);
    assert_eq!(
        client.delete_tenant("shop").await?,
        Removed::Removed { messages: 0 }
    );
    assert_eq!(client.delete_tenant("shop").await?, Removed::Absent);
    client.close().await
}

#[tokio::test]
async fn what_could_never_be_asked_fails_here() -> ringpost_client::Result<()> {
    let fake = Fake::start().await;
    let client = builder(&fake.address).connect().await?;
    let long = "n".repeat(256);
    let queue = client
        .ensure_queue(&long, QueueConfig::durable())
        .await
        .unwrap_err();
    assert_eq!(queue.kind(), ErrorKind::Invalid);
    let refused = client
        .ensure_queue("amq.x", QueueConfig::durable())
        .await
        .unwrap_err();
    assert_eq!(
        (refused.kind(), refused.code()),
        (ErrorKind::Invalid, Some("name_invalid"))
    );
    assert_eq!(
        client.bind("q", "e", &long).await.unwrap_err().kind(),
        ErrorKind::Invalid
    );
    let arguments = Headers::new().with(&long, 1);
    let binding = Binding::new("q", "e").arguments(arguments);
    let error = client.ensure_binding(&binding).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let producer = client.producer(long).build().await.unwrap_err();
    assert_eq!(producer.kind(), ErrorKind::Invalid);
    // The connection has not suffered.
    assert!(client.queues().await?.is_empty());
    client.close().await
}

#[tokio::test]
async fn answers_find_their_requests_in_any_order() {
    let door = Door::open().await;
    let (client, mut peer) = tokio::join!(builder(&door.address()).connect(), door.welcome());
    let client = client.unwrap();
    let asking = async { tokio::join!(client.queues(), client.tenants(), client.purge_queue("q")) };
    let answering = async {
        let mut requests = Vec::new();
        for _ in 0..3 {
            requests.push(peer.next().await.unwrap().0);
        }
        // An answer nobody waits for is none of our business.
        peer.bare(FrameKind::Done, 0, 999).await;
        for request in requests.iter().rev() {
            if request.kind == FrameKind::QueuePurge {
                peer.fail(FrameKind::Failed, 0, request.sequence, Code::QueueUnknown)
                    .await;
            } else {
                peer.bare(FrameKind::Done, 0, request.sequence).await;
            }
        }
    };
    let ((queues, tenants, purged), ()) = tokio::join!(asking, answering);
    assert!(queues.unwrap().is_empty() && tenants.unwrap().is_empty());
    assert_eq!(purged.unwrap_err().kind(), ErrorKind::NotFound);
}
