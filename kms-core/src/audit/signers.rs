//! Whose signature counts: that of one key, or of any of the tokens of a site.

/// ECDSA P-256: r ‖ s.
pub type Signature = [u8; 64];

/// P-256, uncompressed: 04 ‖ x ‖ y.
pub type PublicKey = [u8; 65];

/// The signing keys of all tokens of one site. Any of them signs for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteKeys {
    first: PublicKey,
    further: Vec<PublicKey>,
}

/// Tells whether a signature counts.
pub trait Verifies {
    /// Whether one who counts signed `message`.
    fn verifies(&self, message: &[u8], signature: &Signature) -> bool;
}

impl SiteKeys {
    /// Of a site with this token, and these beside it.
    pub fn new(first: PublicKey, further: impl IntoIterator<Item = PublicKey>) -> Self {
        let further = further.into_iter().filter(|key| *key != first).collect();
        Self { first, further }
    }

    /// The first of them: for our own site the key of the token in use, for another one the key that it was enrolled with.
    pub fn first(&self) -> &PublicKey {
        &self.first
    }

    /// All of them, the first one first.
    pub fn iter(&self) -> impl Iterator<Item = &PublicKey> {
        [&self.first].into_iter().chain(&self.further)
    }

    /// The one of them that signed `message`.
    pub fn signer_of(&self, message: &[u8], signature: &Signature) -> Option<&PublicKey> {
        self.iter().find(|key| key.verifies(message, signature))
    }
}

impl From<PublicKey> for SiteKeys {
    fn from(first: PublicKey) -> Self {
        Self { first, further: Vec::new() }
    }
}

impl Verifies for PublicKey {
    fn verifies(&self, message: &[u8], signature: &Signature) -> bool {
        let algorithm = &ring::signature::ECDSA_P256_SHA256_FIXED;
        ring::signature::UnparsedPublicKey::new(algorithm, self).verify(message, signature).is_ok()
    }
}

impl Verifies for SiteKeys {
    fn verifies(&self, message: &[u8], signature: &Signature) -> bool {
        self.signer_of(message, signature).is_some()
    }
}

/// Whether the holder of `key`, or of one of these keys, signed `message`.
pub fn is_signed(key: &impl Verifies, message: &[u8], signature: &Signature) -> bool {
    key.verifies(message, signature)
}
