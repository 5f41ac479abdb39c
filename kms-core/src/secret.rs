//! The few long-lived secrets outside the arena: boxed, wiped, silent, one long-named way out.

use std::fmt;

use zeroize::Zeroizing;

/// The secret of one block, from which its `wrap`, `mac`, `proof`, `local` and `seal` keys derive.
pub struct BlockSecret(Box<Zeroizing<[u8; BlockSecret::LEN]>>);

impl BlockSecret {
    /// In bytes.
    pub const LEN: usize = 32;

    /// Lets `fill` write the secret in its final place, so that no other place ever held it.
    pub fn fill_with<E>(
        fill: impl FnOnce(&mut [u8; Self::LEN]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut bytes = Box::new(Zeroizing::new([0; Self::LEN]));
        fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The only way to the bytes.
    pub fn expose_block_secret_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl fmt::Debug for BlockSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlockSecret(..)")
    }
}

/// A key in clear on its way in: an import where the configuration allows it.
///
/// Not `Clone`, not `PartialEq`, not `Serialize`: each would be a second way out.
pub struct ClearKey(Zeroizing<Vec<u8>>);

impl ClearKey {
    /// Takes the bytes over; they are wiped when this is dropped.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// In bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The only way to the bytes.
    pub fn expose_clear_key_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for ClearKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClearKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invariant_1_debug_shows_no_secret() {
        let secret = BlockSecret::fill_with(|bytes| {
            bytes.fill(0xAB);
            Ok::<(), ()>(())
        })
        .unwrap();
        assert_eq!(format!("{secret:?}"), "BlockSecret(..)");
        assert_eq!(format!("{:?}", ClearKey::new(vec![0xAB; 16])), "ClearKey(..)");
    }
}
