//! AES-GCM with DLMS's tag of 12 bytes, over `ring`, which makes 16 and opens no other length.

use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

pub(crate) const TAG: usize = 12;

pub(crate) struct Gcm(LessSafeKey);

impl Gcm {
    pub(crate) fn new(key: &[u8]) -> Option<Self> {
        let algorithm = match key.len() {
            16 => &AES_128_GCM,
            32 => &AES_256_GCM,
            _ => return None,
        };
        Some(Self(LessSafeKey::new(UnboundKey::new(algorithm, key).ok()?)))
    }

    /// What GCM makes of `text`: as long as it, and the first 12 bytes of the tag.
    pub(crate) fn seal(
        &self,
        nonce: [u8; 12],
        aad: &[u8],
        text: &[u8],
    ) -> Option<(Vec<u8>, [u8; TAG])> {
        let mut body = text.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.0.seal_in_place_separate_tag(nonce, Aad::from(aad), &mut body).ok()?;
        Some((body, *tag.as_ref().first_chunk()?))
    }

    /// The key stream over `text`: encrypts and decrypts, and says nothing of who sent it.
    pub(crate) fn stream(&self, nonce: [u8; 12], text: &[u8]) -> Option<Vec<u8>> {
        self.seal(nonce, &[], text).map(|(body, _)| body)
    }

    /// The plaintext, if `tag` is of it. A stream cipher turned round: what comes out is sealed once more to compare.
    pub(crate) fn open(
        &self,
        nonce: [u8; 12],
        aad: &[u8],
        body: &[u8],
        tag: &[u8],
    ) -> Option<Vec<u8>> {
        let text = self.stream(nonce, body)?;
        let (_, expected) = self.seal(nonce, aad, &text)?;
        // A meter of tests: the time of the comparison tells nobody anything.
        (expected == tag).then_some(text)
    }
}
