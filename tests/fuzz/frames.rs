//! The cutter of frames and every view of a body. What decodes must encode to the same bytes, so
//! that nothing is left for damage to hide in. Does not know what a broker answers.

use ringpost_wire::control::{
    Attach, Bind, Body, ConsumerCredit, ConsumerInfo, ConsumerOpen, ConsumerPosition, Delete,
    ExchangeDeclare, Failure, Get, GroupDelete, GroupInfo, GroupReset, Hello, Named, PolicySet,
    ProducerCredit, ProducerOpen, ProducerOpened, QueueBrowse, QueueBrowsed, QueueCancel,
    QueueDeclare, QueueDescription, QueueInfo, QueueMove, QueueOutcome, TransactionOpen,
    TransactionOpened, TransactionSettle, Welcome, is_name,
};
use ringpost_wire::{
    BrowsedMessages, Code, Cut, DeliverHead, FRAME_BYTES_MAX, FRAME_BYTES_MAX_HANDSHAKE,
    FRAME_HEADER_BYTES, FragmentHead, FrameHeader, FrameKind, SettleRange, cut, frame,
};

use crate::envelope;
use crate::input::Input;

/// The first byte says whether a stream or one frame follows.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    if input.byte().is_multiple_of(2) {
        stream(input.all());
    } else {
        one(&mut input);
    }
}

/// Bytes of a socket: cut, checked and read until something is wrong or missing.
fn stream(mut bytes: &[u8]) {
    loop {
        let small = cut(bytes, FRAME_BYTES_MAX_HANDSHAKE);
        match cut(bytes, FRAME_BYTES_MAX) {
            Cut::Complete { header, length } => {
                assert!(length <= bytes.len() && length == header.length());
                assert_eq!(
                    matches!(small, Cut::Complete { .. }),
                    length <= FRAME_BYTES_MAX_HANDSHAKE
                );
                // A cut of less never says that a whole frame is there.
                let less = cut(&bytes[..length - 1], FRAME_BYTES_MAX);
                assert!(matches!(less, Cut::Incomplete { .. }));
                let body = &bytes[FRAME_HEADER_BYTES..][..header.body_bytes as usize];
                // Damage that the checksum sees must be harmless also if it did not.
                let _refused_or_not = frame::check_body(&header, body);
                let _refused_or_not = read(&header, body);
                bytes = &bytes[length..];
            }
            Cut::Incomplete { bytes_needed } => {
                assert!(bytes_needed > bytes.len() && bytes_needed <= FRAME_BYTES_MAX);
                return;
            }
            Cut::Malformed(code) => {
                assert!(matches!(code, Code::FrameMalformed | Code::FrameTooLarge));
                return;
            }
        }
    }
}

/// A frame with right checksums, so that the fuzzer need not guess any.
fn one(input: &mut Input<'_>) {
    let header = FrameHeader {
        flags: input.byte(),
        count: input.number() as u32,
        ..FrameHeader::bare(input.pick(FrameKind::ALL), input.two(), input.number())
    };
    let mut body = input.all().to_vec();
    let messages_at = match header.kind {
        FrameKind::Publish | FrameKind::TransactionPublish => 0,
        FrameKind::Deliver => DeliverHead::BYTES,
        _ => body.len(),
    };
    seal_all(body.get_mut(messages_at..).unwrap_or_default());
    let mut bytes = Vec::new();
    frame::write(&mut bytes, header, &body);
    let Cut::Complete {
        header: read_back,
        length,
    } = cut(&bytes, FRAME_BYTES_MAX)
    else {
        panic!("a frame that was written is whole")
    };
    assert_eq!(length, bytes.len());
    assert_eq!(
        (read_back.kind, read_back.count),
        (header.kind, header.count)
    );
    assert_eq!(frame::check_body(&read_back, &body), Ok(()));
    let _refused_or_not = read(&read_back, &body);
}

/// Makes the checksums of a batch right, as far as its lengths can be followed.
fn seal_all(mut bytes: &mut [u8]) {
    while let Some(length) = ringpost_wire::envelope::length_of(bytes) {
        envelope::seal(bytes);
        let step = ringpost_wire::padded(length.clamp(1, bytes.len()));
        bytes = bytes.get_mut(step..).unwrap_or_default();
    }
}

/// Decodes a body and encodes it again.
fn again<'a, B: Body<'a>>(body: &'a [u8]) -> Result<B, Code> {
    let decoded = B::decode(body);
    match &decoded {
        Ok(decoded) => {
            let mut bytes = Vec::new();
            decoded.encode(&mut bytes);
            assert_eq!(bytes, body, "what was decoded says something else");
        }
        Err(code) => assert_eq!(*code, Code::BodyMalformed),
    }
    decoded
}

/// Reads a body as the receiver of its kind does.
///
/// # Errors
/// Why it cannot be read.
pub fn read(header: &FrameHeader, body: &[u8]) -> Result<(), Code> {
    use FrameKind as K;
    match header.kind {
        K::Hello => again::<Hello<'_>>(body).map(drop),
        K::Welcome => again::<Welcome<'_>>(body).map(drop),
        K::Attach => again::<Attach<'_>>(body).map(drop),
        K::Close
        | K::Failed
        | K::Refused
        | K::ProducerClosed
        | K::ConsumerClosed
        | K::TransactionClosed => {
            let failure = again::<Failure<'_>>(body)?;
            let _any_number_has_a_code = Code::from_number(failure.code);
            Ok(())
        }
        K::ProducerOpen => again::<ProducerOpen>(body).map(drop),
        K::ProducerOpened => again::<ProducerOpened>(body).map(drop),
        K::Confirm | K::ProducerCredit => again::<ProducerCredit>(body).map(drop),
        K::Publish => {
            envelope::batch(body);
            Ok(())
        }
        K::PublishFragment => fragment(body),
        K::ConsumerOpen => {
            let open = again::<ConsumerOpen<'_>>(body)?;
            envelope::headers(open.arguments);
            Ok(())
        }
        K::Deliver => {
            let (head, messages) = DeliverHead::split(body)?;
            assert_eq!(head.encode(), body[..DeliverHead::BYTES]);
            envelope::batch(messages);
            Ok(())
        }
        K::DeliverFragment => fragment(DeliverHead::split(body)?.1),
        K::Settle => SettleRange::parse(body, header.count).map(|ranges| {
            let mut bytes = Vec::new();
            for range in ranges {
                assert!(range.first <= range.last);
                bytes.extend(range.encode());
            }
            assert_eq!(bytes, body);
        }),
        K::ConsumerCredit => again::<ConsumerCredit>(body).map(drop),
        K::Get => again::<Get>(body).map(drop),
        K::ConsumerInfo => again::<ConsumerInfo>(body).map(drop),
        K::QueueDeclare => {
            let declare = again::<QueueDeclare<'_>>(body)?;
            envelope::headers(declare.arguments);
            named(declare.name);
            Ok(())
        }
        K::QueueDelete | K::ExchangeDelete => again::<Delete<'_>>(body).map(drop),
        K::QueuePurge
        | K::QueueInspect
        | K::QueueDescribe
        | K::TenantDeclare
        | K::TenantDelete
        | K::TenantInfo
        | K::PolicyDelete
        | K::GroupList => again::<Named<'_>>(body).map(|body| named(body.name)),
        K::QueueDescription => {
            let described = again::<QueueDescription<'_>>(body)?;
            envelope::headers(described.arguments);
            envelope::headers(described.options);
            Ok(())
        }
        K::PolicySet | K::PolicyInfo => {
            let policy = again::<PolicySet<'_>>(body)?;
            envelope::headers(policy.options);
            Ok(())
        }
        K::ConsumerPosition => again::<ConsumerPosition>(body).map(drop),
        K::GroupInfo => again::<GroupInfo<'_>>(body).map(drop),
        K::GroupReset => {
            let reset = again::<GroupReset<'_>>(body)?;
            envelope::headers(reset.arguments);
            Ok(())
        }
        K::GroupDelete => again::<GroupDelete<'_>>(body).map(drop),
        K::TransactionOpen => again::<TransactionOpen>(body).map(drop),
        K::TransactionOpened => again::<TransactionOpened>(body).map(drop),
        K::TransactionPublish => {
            envelope::batch(body);
            Ok(())
        }
        K::TransactionSettle => {
            let settle = again::<TransactionSettle<'_>>(body)?;
            SettleRange::parse(settle.ranges, header.count).map(drop)
        }
        K::QueueBrowse => again::<QueueBrowse<'_>>(body).map(drop),
        K::QueueBrowsed => {
            let browsed = again::<QueueBrowsed<'_>>(body)?;
            let mut all = BrowsedMessages::new(browsed.messages);
            all.try_for_each(|message| message.map(drop))
        }
        K::QueueCancel => again::<QueueCancel<'_>>(body).map(drop),
        K::QueueMove => again::<QueueMove<'_>>(body).map(drop),
        K::QueueOutcome => again::<QueueOutcome>(body).map(drop),
        K::QueueInfo => again::<QueueInfo<'_>>(body).map(drop),
        K::ExchangeDeclare | K::ExchangeInfo => {
            let declare = again::<ExchangeDeclare<'_>>(body)?;
            envelope::headers(declare.arguments);
            Ok(())
        }
        K::Bind | K::Unbind | K::BindingInfo => {
            let bind = again::<Bind<'_>>(body)?;
            envelope::headers(bind.arguments);
            Ok(())
        }
        K::Attached
        | K::Heartbeat
        | K::Done
        | K::ProducerClose
        | K::ConsumerOpened
        | K::Settled
        | K::ConsumerClose
        | K::GetDone
        | K::ConsumerActive
        | K::ConsumerInspect
        | K::TransactionCommit
        | K::TransactionRollback
        | K::TransactionDone
        | K::TransactionClose
        | K::QueueList
        | K::ExchangeList
        | K::BindingList
        | K::TenantList
        | K::PolicyList => {
            if body.is_empty() {
                Ok(())
            } else {
                Err(Code::BodyMalformed)
            }
        }
    }
}

fn fragment(body: &[u8]) -> Result<(), Code> {
    let (head, piece) = FragmentHead::split(body)?;
    assert_eq!(head.encode(), body[..FragmentHead::BYTES]);
    assert_eq!(piece.len(), head.piece_bytes());
    assert_eq!(
        head.is_last(),
        head.offset as usize + piece.len() == head.message_bytes as usize
    );
    let _refused_or_not = ringpost_wire::envelope::open(piece);
    Ok(())
}

fn named(name: &[u8]) {
    if is_name(name) {
        let text = core::str::from_utf8(name).expect("a name is UTF-8");
        assert!(!text.is_empty() && text.len() <= 255);
    }
}
