//! Protocol versions and how two peers agree on one (P-8).
//! Does not know the versions of the data directory.

/// The magic that opens the body of `Hello` and `Welcome`: "RPST".
pub const MAGIC: u32 = u32::from_le_bytes(*b"RPST");
/// Oldest protocol version this crate speaks.
pub const VERSION_MIN: u16 = 1;
/// Newest protocol version this crate speaks.
pub const VERSION_MAX: u16 = 1;

//= P-93
/// The newest version both sides speak, or `None` (P-8).
#[must_use]
pub const fn agree(peer_min: u16, peer_max: u16) -> Option<u16> {
    let newest = if peer_max < VERSION_MAX {
        peer_max
    } else {
        VERSION_MAX
    };
    let oldest = if peer_min > VERSION_MIN {
        peer_min
    } else {
        VERSION_MIN
    };
    if newest >= oldest { Some(newest) } else { None }
}
