//! The blocking client does as the async one.

use std::time::Duration;

use ringpost_client::blocking::Client;
use ringpost_client::{
    ByteSize, DeleteIf, Ensured, ErrorKind, Message, QueueConfig, Removed, Settlement,
};

use crate::builder;
use crate::fake::Fake;

#[test]
fn everything_blocks_until_it_is_done() -> ringpost_client::Result<()> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let fake = runtime.block_on(Fake::start());
    let client = Client::connect(builder(&fake.address))?;
    assert_eq!(
        client.ensure_queue("q", QueueConfig::durable())?,
        Ensured::Created
    );
    let producer = client.producer(|client| client.producer(""))?;
    assert_eq!(producer.send(Message::new("q", "0"))?.messages, 1);
    producer.enqueue(Message::new("q", "1"))?.wait()?;
    producer.send_batch([Message::new("q", "2")])?;
    let batch = producer.enqueue_batch([Message::new("q", "3")])?;
    assert_eq!(batch.wait()?.messages, 1);
    producer.flush()?;
    assert_eq!(producer.in_flight(), 0);
    producer.close()?;
    assert_eq!(client.inspect_queue("q")?.ready, 4);
    let mut consumer = client.consumer(|client| client.consumer("q").credit(2))?;
    let batch = consumer.next_batch()?.unwrap();
    let settler = consumer.settler();
    let nothing = consumer.next_batch_within(Duration::ZERO).unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::TimedOut);
    consumer.set_credit(0, ByteSize::mib(1))?;
    let settled = std::thread::scope(|scope| {
        let acking = scope.spawn(|| settler.ack(&batch));
        acking.join().expect("it does not panic")
    });
    assert_eq!((batch.len(), settled?), (2, Settlement::Sent));
    drop((consumer, settler));
    let mut consumer = client.pull_consumer(|client| client.consumer("q"))?;
    for batch in consumer.get(10, Duration::from_secs(5))? {
        consumer.ack_durable(&batch)?;
    }
    assert!(
        client
            .wait(async |client| client.tenants().await)?
            .is_empty()
    );
    drop(consumer);
    let removed = client.delete_queue("q", DeleteIf::Empty)?;
    assert_eq!(removed, Removed::Removed { messages: 0 });
    client.clone().close()?;
    assert_eq!(client.queues().unwrap_err().kind(), ErrorKind::Closed);
    Ok(())
}
