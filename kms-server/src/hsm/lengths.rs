//! Lengths of keys and of what wraps them.

use dlms::key_wrap::OVERHEAD_LEN;

/// RSA-3072, in bytes: 128 bits of strength, good beyond 2030 (NIST SP 800-57).
pub(super) const RSA_LEN: usize = 384;

/// Whether AES-128 or AES-256 has keys of this length. A token may pad others: `Quirk::PadsKeys`.
pub(super) const fn is_of_key(len: usize) -> bool {
    matches!(len, 16 | 32)
}

/// Whether such a key has this length when it is wrapped (RFC 3394).
pub(super) const fn is_of_wrapped_key(len: usize) -> bool {
    len > OVERHEAD_LEN && is_of_key(len - OVERHEAD_LEN)
}
