//! Frames and the protocol header. Does not know what payloads mean.

use crate::code::Error;

/// The first eight bytes of a client, and what a broker answers to any others.
pub const PROTOCOL_HEADER: [u8; 8] = *b"AMQP\0\0\x09\x01";
/// The last byte of every frame.
pub const FRAME_END: u8 = 0xCE;
/// Bytes of a frame before its payload.
pub const FRAME_HEAD_BYTES: usize = 7;
/// Bytes of a frame beside its payload.
pub const FRAME_OVERHEAD: usize = FRAME_HEAD_BYTES + 1;
/// Every peer takes frames of so many bytes (`frame-min-size`).
pub const FRAME_BYTES_MIN: usize = 4096;
/// Largest frame in bytes that this broker agrees on: what RabbitMQ's is unless it is told otherwise.
pub const FRAME_BYTES_MAX: usize = 128 * 1024;

/// What a frame carries.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum FrameType {
    /// A method.
    Method = 1,
    /// The header of a content.
    Header = 2,
    /// A piece of a content's body.
    Body = 3,
    /// Nothing: the peer lives.
    Heartbeat = 8,
}

impl FrameType {
    /// The type of a number that travelled.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Method),
            2 => Some(Self::Header),
            3 => Some(Self::Body),
            8 => Some(Self::Heartbeat),
            _ => None,
        }
    }
}

/// A whole frame, read in place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame<'a> {
    /// What it carries.
    pub kind: FrameType,
    /// The channel, 0 = the connection.
    pub channel: u16,
    /// The bytes between its head and its end.
    pub payload: &'a [u8],
}

/// What a look at received bytes says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut<'a> {
    /// A whole frame of `length` bytes.
    Complete {
        /// It.
        frame: Frame<'a>,
        /// Its bytes, head and end included.
        length: usize,
    },
    /// Not a whole frame yet.
    Incomplete {
        /// Bytes needed in all before cutting can go on.
        bytes_needed: usize,
    },
    /// Not a frame: the connection must end with this.
    Malformed(Error),
}

/// Looks at the start of `bytes`; a frame longer than `frame_bytes_max` in all is malformed.
#[must_use]
pub fn cut(bytes: &[u8], frame_bytes_max: usize) -> Cut<'_> {
    let Some(head) = bytes.first_chunk::<FRAME_HEAD_BYTES>() else {
        // What can be seen to be wrong is not waited for.
        if let Some(number) = bytes.first()
            && FrameType::from_number(*number).is_none()
        {
            return Cut::Malformed(Error::frame("the type of a frame is none"));
        }
        return Cut::Incomplete {
            bytes_needed: FRAME_HEAD_BYTES,
        };
    };
    let Some(kind) = FrameType::from_number(head[0]) else {
        return Cut::Malformed(Error::frame("the type of a frame is none"));
    };
    let channel = u16::from_be_bytes([head[1], head[2]]);
    let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
    let length = FRAME_OVERHEAD.saturating_add(size);
    if length > frame_bytes_max {
        return Cut::Malformed(Error::frame("a frame is larger than agreed"));
    }
    let Some(whole) = bytes.get(..length) else {
        return Cut::Incomplete {
            bytes_needed: length,
        };
    };
    if whole[length - 1] != FRAME_END {
        return Cut::Malformed(Error::frame("a frame does not end as frames do"));
    }
    let payload = &whole[FRAME_HEAD_BYTES..length - 1];
    let frame = Frame {
        kind,
        channel,
        payload,
    };
    Cut::Complete { frame, length }
}

/// Length of the frame at the start of `bytes`, if it is all there and as long as frames may be. Proves
/// nothing: for those who only hand frames on to who [cuts](cut) them.
#[must_use]
pub fn whole(bytes: &[u8], frame_bytes_max: usize) -> Option<usize> {
    let head = bytes.first_chunk::<FRAME_HEAD_BYTES>()?;
    let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
    let length = FRAME_OVERHEAD.saturating_add(size);
    (length <= frame_bytes_max && length <= bytes.len()).then_some(length)
}

/// The head of a frame.
#[must_use]
pub fn head(kind: FrameType, channel: u16, payload_bytes: usize) -> [u8; FRAME_HEAD_BYTES] {
    let size = u32::try_from(payload_bytes).expect("frames are bounded");
    let (channel, size) = (channel.to_be_bytes(), size.to_be_bytes());
    [
        kind as u8, channel[0], channel[1], size[0], size[1], size[2], size[3],
    ]
}

/// Appends a frame whose payload `write` appends.
pub fn write(out: &mut Vec<u8>, kind: FrameType, channel: u16, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&head(kind, channel, 0));
    write(out);
    let size = u32::try_from(out.len() - start - FRAME_HEAD_BYTES).expect("frames are bounded");
    out[start + 3..start + FRAME_HEAD_BYTES].copy_from_slice(&size.to_be_bytes());
    out.push(FRAME_END);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ReplyCode;

    #[test]
    fn frames_are_cut_at_every_byte() {
        let mut bytes = Vec::new();
        write(&mut bytes, FrameType::Body, 7, |out| {
            out.extend_from_slice(b"hello")
        });
        // Type 3, channel 7, five bytes.
        assert_eq!(bytes, b"\x03\0\x07\0\0\0\x05hello\xce");
        for len in 0..bytes.len() {
            let Cut::Incomplete { bytes_needed } = cut(&bytes[..len], FRAME_BYTES_MAX) else {
                panic!("{len} bytes are no frame")
            };
            assert!(bytes_needed > len && bytes_needed <= bytes.len());
            assert_eq!(whole(&bytes[..len], FRAME_BYTES_MAX), None);
        }
        let frame = Frame {
            kind: FrameType::Body,
            channel: 7,
            payload: b"hello",
        };
        bytes.push(9);
        assert_eq!(
            cut(&bytes, FRAME_BYTES_MAX),
            Cut::Complete { frame, length: 13 }
        );
        assert_eq!(whole(&bytes, FRAME_BYTES_MAX), Some(13));
        assert_eq!(whole(&bytes, 12), None);
        assert!(matches!(cut(&bytes, 12), Cut::Malformed(_)));
    }

    #[test]
    fn what_is_no_frame_is_a_frame_error() {
        let is_frame_error = |bytes: &[u8]| match cut(bytes, FRAME_BYTES_MAX) {
            Cut::Malformed(error) => error.code == ReplyCode::FrameError,
            Cut::Complete { .. } | Cut::Incomplete { .. } => false,
        };
        assert!(is_frame_error(b"\x08\0\0\0\0\0\0\xcd"), "its end");
        assert!(is_frame_error(b"\x01\0\0\xff\xff\xff\xff"), "its length");
        for number in (0..=255u8).filter(|number| ![1, 2, 3, 8].contains(number)) {
            assert!(is_frame_error(&[number]), "its type");
            assert!(is_frame_error(&[number, 0, 0, 0, 0, 0, 0, FRAME_END]));
        }
        assert!(!is_frame_error(b"\x08\0\0\0\0\0\0\xce"));
    }
}
