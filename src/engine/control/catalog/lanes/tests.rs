//! Lanes of streams in the catalog: what is created, refused and deleted with them. Does not know messages.

use super::*;
use crate::control::catalog::{Change, End, Plan, QueueUse, Request, TENANT_DEFAULT};
use ringpost_wire::control::{
    Bind, DECLARE_PASSIVE, Delete, Durability, PARTITION_BY_NAME, QueueDeclare,
};
use ringpost_wire::table::{TableWriter, Value};

fn arguments(lanes: Option<i64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = TableWriter::new(&mut bytes);
    writer.put(b"x-queue-type", Value::Text(b"stream"));
    if let Some(lanes) = lanes {
        writer.put(b"x-stream-lanes", Value::I64(lanes));
    }
    writer.finish().expect("a small table");
    bytes
}

fn declare<'a>(name: &'a [u8], arguments: &'a [u8]) -> QueueDeclare<'a> {
    QueueDeclare {
        messages_max: 0,
        bytes_max: 0,
        durability: Durability::Durable as u8,
        flags: 0,
        partition: PARTITION_BY_NAME,
        name,
        arguments,
    }
}

fn plan(catalog: &mut Catalog, request: &Request<'_>) -> Result<Option<Change>, Refusal> {
    match catalog.plan(TENANT_DEFAULT, request)? {
        Plan::AlreadyExists => Ok(None),
        Plan::Apply(change) => {
            catalog.apply(&change).expect("it was just planned");
            catalog.invariants();
            Ok(Some(change))
        }
    }
}

fn names(catalog: &Catalog) -> Vec<String> {
    let all = catalog.list_queues(TENANT_DEFAULT, None);
    let name = |queue: &Queue| String::from_utf8_lossy(&queue.name).into_owned();
    all.map(name).collect()
}

//= P-87
#[test]
fn lanes_come_and_go_with_their_stream_and_a_snapshot_has_them() {
    let mut catalog = Catalog::new(5);
    let (three, none) = (arguments(Some(3)), arguments(None));
    let before = catalog.bytes();
    let planned = catalog.plan(
        TENANT_DEFAULT,
        &Request::QueueDeclare(declare(b"s", &three)),
    );
    let Ok(Plan::Apply(change)) = planned else {
        panic!("it is new");
    };
    plan(&mut catalog, &Request::QueueDeclare(declare(b"s", &three))).expect("it is new");
    assert!(catalog.bytes() - before <= change.bytes());
    assert_eq!(names(&catalog), ["s", "s#0", "s#1", "s#2"]);
    let whole = catalog.list_whole_queues(TENANT_DEFAULT, None);
    assert_eq!(whole.map(|queue| &*queue.name).collect::<Vec<_>>(), [b"s"]);
    let stream = catalog
        .queue_by_name(TENANT_DEFAULT, b"s")
        .expect("it is there");
    let (id, partition) = (stream.id, stream.partition.0);
    for (number, lane) in catalog.list_lanes(id).enumerate() {
        assert_eq!(lane.partition.0, (partition + number as u16) % 5);
        assert_eq!(catalog.common_name(lane), b"s");
    }
    plan(&mut catalog, &Request::QueueDeclare(declare(b"t", &none))).expect("it is new");
    let after = catalog
        .queue_by_name(TENANT_DEFAULT, b"t")
        .expect("it is there");
    assert_eq!(after.id.0, id.0 + 4);
    assert_eq!(catalog.lane(after.id), None);
    let copy = Catalog::decode(&catalog.encode()).expect("just encoded");
    copy.invariants();
    assert_eq!(copy, catalog);
    let delete = |name| Request::QueueDelete(Delete { flags: 0, name }, QueueUse::default());
    plan(&mut catalog, &delete(b"s")).expect("it is there");
    assert_eq!(names(&catalog), ["t"]);
    plan(&mut catalog, &delete(b"t")).expect("it is there");
    assert_eq!(catalog.bytes(), before);
}

//= P-87
#[test]
fn what_would_tear_lanes_and_stream_apart_is_refused() {
    let mut catalog = Catalog::new(64);
    let (three, four, none) = (arguments(Some(3)), arguments(Some(4)), arguments(None));
    plan(&mut catalog, &Request::QueueDeclare(declare(b"s", &three))).expect("it is new");
    let again = plan(&mut catalog, &Request::QueueDeclare(declare(b"s", &three)));
    assert_eq!(again, Ok(None));
    let lane = "'s#1' is a lane of the stream 's', which is declared, bound and deleted as a whole";
    let bind = Bind {
        flags: 0,
        exchange: b"amq.direct",
        target: b"s#1",
        key: b"k",
        arguments: b"",
    };
    let delete = Delete {
        flags: 0,
        name: b"s#1",
    };
    let refusals = [
        (
            Request::QueueDeclare(declare(b"s", &four)),
            Code::PreconditionFailed,
            "queue 's' exists with argument 'x-stream-lanes' 3, asked for 4",
        ),
        (
            Request::QueueDeclare(declare(b"s#1", &three)),
            Code::PermissionDenied,
            lane,
        ),
        (
            Request::QueueDelete(delete, QueueUse::default()),
            Code::PermissionDenied,
            lane,
        ),
        (Request::Bind(bind), Code::PermissionDenied, lane),
    ];
    for (request, code, reason) in refusals {
        assert_eq!(plan(&mut catalog, &request), Err((code, reason.to_owned())));
    }
    let passive = QueueDeclare {
        flags: DECLARE_PASSIVE,
        ..declare(b"s#1", b"")
    };
    assert_eq!(
        plan(&mut catalog, &Request::QueueDeclare(passive)),
        Ok(None)
    );
    // Nor does a change that says so apply, wherever it comes from.
    let queue = catalog
        .queue_by_name(TENANT_DEFAULT, b"s#1")
        .expect("it is there")
        .clone();
    let deleted = Change::QueueDeleted {
        id: queue.id,
        durability: queue.durability,
    };
    assert_eq!(catalog.apply(&deleted), Err(ApplyError::Inconsistent));
    let exchange = catalog
        .exchange_by_name(TENANT_DEFAULT, b"amq.direct")
        .expect("there is one");
    let bound = Change::Bound {
        binding: crate::control::catalog::Binding {
            exchange: exchange.id,
            end: End::Queue(queue.id),
            key: Box::default(),
            arguments: Box::default(),
        },
        durability: Durability::Durable,
    };
    assert_eq!(catalog.apply(&bound), Err(ApplyError::Inconsistent));
    // A name that is taken, and one that is too long.
    plan(&mut catalog, &Request::QueueDeclare(declare(b"u#2", &none))).expect("it is new");
    let taken = plan(&mut catalog, &Request::QueueDeclare(declare(b"u", &three)));
    let reason = "there is a queue 'u#2', and a lane of the stream would have its name";
    assert_eq!(taken, Err((Code::PreconditionFailed, reason.to_owned())));
    assert!(plan(&mut catalog, &Request::QueueDeclare(declare(b"v#3", &none))).is_ok());
    assert!(plan(&mut catalog, &Request::QueueDeclare(declare(b"v", &three))).is_ok());
    let longest = [b'n'; 253];
    assert!(
        plan(
            &mut catalog,
            &Request::QueueDeclare(declare(&longest, &three))
        )
        .is_ok()
    );
    let longer = [b'm'; 254];
    let refused = plan(
        &mut catalog,
        &Request::QueueDeclare(declare(&longer, &three)),
    );
    assert_eq!(refused.map_err(|(code, _)| code), Err(Code::NameInvalid));
    let alone = plan(
        &mut catalog,
        &Request::QueueDeclare(declare(&longer, &arguments(Some(1)))),
    );
    assert!(alone.is_ok());
    assert_eq!(
        catalog
            .queue_by_name(TENANT_DEFAULT, &longer)
            .map(Queue::lanes),
        Some(0)
    );
}
