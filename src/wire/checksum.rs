//! crc32c (Castagnoli), the only checksum on the wire and on disk.
//! Does not know what is checksummed.

//= P-1
/// crc32c of `bytes`.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    ::crc32c::crc32c(bytes)
}

/// crc32c of the concatenation of what `crc` covers and `bytes`.
#[must_use]
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    ::crc32c::crc32c_append(crc, bytes)
}
