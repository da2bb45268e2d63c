//! Cuts a received slice into frames and builds frames into the caller's buffer.
//! Does not know connections, and does not copy.

use crate::limits::{ALIGN, FRAME_BYTES_MAX, FRAME_HEADER_BYTES};
use crate::{Code, DeliverHead, FrameHeader, FrameKind, checksum};

/// What the start of a slice holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    /// A whole frame of `length` bytes.
    Complete {
        /// Its header.
        header: FrameHeader,
        /// Bytes of the whole frame.
        length: usize,
    },
    /// Not a whole frame yet.
    Incomplete {
        /// Bytes needed in all before cutting can go on.
        bytes_needed: usize,
    },
    /// Not a frame: the connection must end with this code.
    Malformed(Code),
}

//= P-2
/// Looks at the start of `bytes` (P-3, P-4); a frame longer than `frame_bytes_max` is malformed.
#[must_use]
pub fn cut(bytes: &[u8], frame_bytes_max: usize) -> Cut {
    let Some(head) = bytes.first_chunk::<FRAME_HEADER_BYTES>() else {
        return Cut::Incomplete {
            bytes_needed: FRAME_HEADER_BYTES,
        };
    };
    match FrameHeader::decode(head) {
        Err(code) => Cut::Malformed(code),
        Ok(header) => {
            let length = header.length();
            if length > frame_bytes_max.min(FRAME_BYTES_MAX) {
                Cut::Malformed(Code::FrameTooLarge)
            } else if bytes.len() < length {
                Cut::Incomplete {
                    bytes_needed: length,
                }
            } else {
                Cut::Complete { header, length }
            }
        }
    }
}

/// Length of the frame at the start of `bytes`, if its header says that it is all there and as long as
/// frames may be. Proves nothing: for those who only hand frames on to who [cuts](cut) them, which tells
/// what is wrong with those of which this says nothing.
#[must_use]
pub fn whole(bytes: &[u8], frame_bytes_max: usize) -> Option<usize> {
    let length = u32::from_le_bytes(*bytes.first_chunk()?) as usize;
    let is_possible = length >= FRAME_HEADER_BYTES
        && length.is_multiple_of(ALIGN)
        && length <= frame_bytes_max.min(FRAME_BYTES_MAX)
        && length <= bytes.len();
    is_possible.then_some(length)
}

/// What of a body its frame's `body_crc` covers (P-5): nothing of a `Publish` or
/// `TransactionPublish` and the head of a
/// `Deliver`, whose messages carry checksums of their own; everything of any other.
#[must_use]
pub fn covered(kind: FrameKind, body: &[u8]) -> &[u8] {
    match kind {
        FrameKind::Publish | FrameKind::TransactionPublish => &[],
        FrameKind::Deliver => body.get(..DeliverHead::BYTES).unwrap_or(body),
        _ => body,
    }
}

/// Checks that `body_crc` is right for what it covers of `body` (P-5).
///
/// # Errors
/// [`Code::BodyMalformed`].
pub fn check_body(header: &FrameHeader, body: &[u8]) -> Result<(), Code> {
    if checksum::crc32c(covered(header.kind, body)) == header.body_crc {
        Ok(())
    } else {
        Err(Code::BodyMalformed)
    }
}

/// Appends one frame.
///
/// `header.body_bytes` and `header.body_crc` are filled in here, the checksum over what it
/// [covers](covered).
///
/// # Panics
/// If the body is larger than a frame may be.
pub fn write(out: &mut Vec<u8>, mut header: FrameHeader, body: &[u8]) {
    assert!(
        FRAME_HEADER_BYTES + body.len() <= FRAME_BYTES_MAX,
        "body larger than a frame"
    );
    header.body_bytes = body.len() as u32;
    header.body_crc = checksum::crc32c(covered(header.kind, body));
    // Padded by its own length: what is in `out` before it need not end on a boundary, since part
    // of an earlier frame may travel from elsewhere.
    let end = out.len() + header.length();
    out.extend_from_slice(&header.encode());
    out.extend_from_slice(body);
    out.resize(end, 0);
}

/// Appends a frame without a body.
pub fn write_bare(out: &mut Vec<u8>, kind: FrameKind, channel: u16, sequence: u64) {
    write(out, FrameHeader::bare(kind, channel, sequence), &[]);
}

/// Appends zeros until `out` is a multiple of 16 bytes long.
pub fn pad(out: &mut Vec<u8>) {
    let rest = out.len() % ALIGN;
    if rest != 0 {
        out.resize(out.len() + ALIGN - rest, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_padded_by_their_own_length() {
        for before in 0..16 {
            let mut bytes = vec![9; before];
            let header = FrameHeader::bare(FrameKind::Get, 3, 9);
            write(&mut bytes, header, b"hello");
            assert_eq!(bytes.len(), before + 48);
            assert!(matches!(
                cut(&bytes[before..], FRAME_BYTES_MAX),
                Cut::Complete { length: 48, .. }
            ));
        }
    }

    #[test]
    fn whole_frames_are_as_long_as_cut_ones() {
        let mut bytes = Vec::new();
        write(
            &mut bytes,
            FrameHeader::bare(FrameKind::Get, 3, 9),
            b"hello",
        );
        bytes.extend_from_slice(&[7; 20]);
        assert_eq!(bytes.len(), 68);
        for end in 0..bytes.len() {
            let expected = match cut(&bytes[..end], FRAME_BYTES_MAX) {
                Cut::Complete { length, .. } => Some(length),
                Cut::Incomplete { .. } | Cut::Malformed(_) => None,
            };
            assert_eq!(whole(&bytes[..end], FRAME_BYTES_MAX), expected);
        }
        assert_eq!(whole(&bytes, 47), None);
        for length in [0u32, 16, 31, 33, 64, 1 << 20, u32::MAX] {
            let mut wrong = bytes.clone();
            wrong[..4].copy_from_slice(&length.to_le_bytes());
            assert_eq!(
                whole(&wrong, FRAME_BYTES_MAX).map(|whole| whole as u32),
                (length == 64).then_some(64)
            );
        }
    }

    #[test]
    fn cuts_at_every_length() {
        let mut bytes = Vec::new();
        write(
            &mut bytes,
            FrameHeader::bare(FrameKind::Get, 3, 9),
            b"hello",
        );
        assert_eq!(bytes.len(), 48);
        for len in 0..bytes.len() {
            assert!(matches!(
                cut(&bytes[..len], FRAME_BYTES_MAX),
                Cut::Incomplete { .. }
            ));
        }
        let Cut::Complete { header, length } = cut(&bytes, FRAME_BYTES_MAX) else {
            panic!("a whole frame was not seen")
        };
        assert_eq!(length, 48);
        assert_eq!(check_body(&header, &bytes[32..37]), Ok(()));
        assert_eq!(
            check_body(&header, &bytes[32..36]),
            Err(Code::BodyMalformed)
        );
        assert_eq!(cut(&bytes, 47), Cut::Malformed(Code::FrameTooLarge));
    }

    #[test]
    fn checksums_cover_what_the_kind_says() {
        for (kind, covered_bytes) in [
            (FrameKind::Publish, 0),
            (FrameKind::Deliver, 16),
            (FrameKind::DeliverFragment, 40),
            (FrameKind::Close, 40),
        ] {
            let mut bytes = Vec::new();
            write(&mut bytes, FrameHeader::bare(kind, 1, 1), &[7; 40]);
            let Cut::Complete { header, .. } = cut(&bytes, FRAME_BYTES_MAX) else {
                panic!("a whole frame was not seen")
            };
            for changed in 0..40 {
                let mut body = [7; 40];
                body[changed] = 8;
                let seen = check_body(&header, &body).is_err();
                assert_eq!(seen, changed < covered_bytes, "{kind:?} byte {changed}");
            }
        }
        let short = FrameHeader::bare(FrameKind::Deliver, 1, 1);
        assert!(check_body(&short, &[1; 3]).is_err());
    }
}
