//! The tokens of one site. Each has keys of its own, a site KEK and a signing key among them, and opens the same
//! database. Each of them signs the list of all: whoever believes one of them believes those that it names.

use std::fmt;

use sha2::{Digest as _, Sha256};

use super::{
    DomainId,
    peer::{FurtherTokens, Peer, key_list, put_keys},
};
use crate::{
    audit::{PublicKey, Signature, SiteKeys, Verifies, is_signed},
    codec::{BadEncoding, Reader, put_bytes},
};

/// The name of a token: the beginning of the fingerprint of its signing key, as `init` and the audit log tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenId(pub [u8; 8]);

impl TokenId {
    /// Of the token that signs with this key.
    pub fn of(key: &PublicKey) -> Self {
        let [a, b, c, d, e, f, g, h, ..]: [u8; 32] = Sha256::digest(key).into();
        Self([a, b, c, d, e, f, g, h])
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The tokens of a site, as one of them says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteTokens {
    /// The key domain.
    pub domain: DomainId,
    /// The operator's name for the site.
    pub site: String,
    /// The number of the list: the time of the ceremony that it is of, in milliseconds since 1970. So one that is made after a
    /// restore is another one than the list that was there before.
    pub number: u64,
    /// The signing keys of all of its tokens, the one that was first at the head.
    pub signing: Vec<PublicKey>,
    /// Proofs of the KEKs of the token that signs this, as in the domain's record. Opaque here.
    pub canaries: Vec<u8>,
}

/// A list and its signature: of one of the keys that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedSiteTokens {
    /// The list.
    pub tokens: SiteTokens,
    /// Over [`SiteTokens::message`].
    pub signature: Signature,
}

impl SiteTokens {
    /// Whether a list of two tokens may have this number.
    pub fn is_of_two(number: u64) -> bool {
        (Self::OF_TWO..=Self::NUMBER_MAX).contains(&number)
    }

    /// The most tokens of a site: each block's secret is sealed for each of them.
    pub const COUNT_MAX: usize = Peer::TOKENS_MAX;
    /// The least number of the list of a site with two tokens, whatever the clock says.
    pub const OF_TWO: u64 = 2;
    /// The highest number: some thousand years ahead, so that no list is the last one for good.
    pub const NUMBER_MAX: u64 = 1 << 48;

    /// The message that is signed, which is its encoding.
    pub fn message(&self) -> Vec<u8> {
        let Self { domain, site, number, signing, canaries } = self;
        let mut out = [LABEL, &domain.0[..]].concat();
        put_bytes(&mut out, site.as_bytes());
        out.extend_from_slice(&number.to_be_bytes());
        put_keys(&mut out, signing);
        put_bytes(&mut out, canaries);
        out
    }

    /// The list in the bytes of a message.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadEncoding> {
        let mut input = Reader::new(bytes.strip_prefix(LABEL).ok_or(BadEncoding)?);
        let tokens = Self {
            domain: DomainId(input.array()?),
            site: input.text()?.to_owned(),
            number: input.u64()?,
            signing: key_list(&mut input)?,
            canaries: input.bytes()?.to_vec(),
        };
        input.end()?;
        if tokens.signing.is_empty() { Err(BadEncoding) } else { Ok(tokens) }
    }
}

impl SignedSiteTokens {
    /// Whether the holder of `key` signed it.
    pub fn is_signed_by(&self, key: &impl Verifies) -> bool {
        is_signed(key, &self.tokens.message(), &self.signature)
    }

    /// The keys that count for the site at the token with this key, which has to have signed the list and to stand in
    /// it: that key first. `None`: this is no list of that token and that site.
    pub fn believed_by(&self, key: &PublicKey, domain: &DomainId, site: &str) -> Option<SiteKeys> {
        let SiteTokens { signing, .. } = &self.tokens;
        let is_ours = self.tokens.domain == *domain && self.tokens.site == site;
        let is_one = signing.contains(key) && self.is_signed_by(key);
        (is_ours && is_one).then(|| SiteKeys::new(*key, signing.iter().copied()))
    }
}

impl Peer {
    /// The peer as it is known once it has shown this list of its tokens. `None`: the list says nothing new, or the token that
    /// is known here has not signed it.
    ///
    /// A list adds the second token, once an enrolment, and takes no key away: who has a moment at the one token can neither
    /// make a key of his own the only one nor have lists come one after the other.
    pub fn showing(&self, shown: &SignedSiteTokens) -> Option<Self> {
        let SiteTokens { domain, site, number, signing, .. } = &shown.tokens;
        let is_theirs = *domain == self.domain && *site == self.site;
        let adds_one = self.tokens.is_none() && SiteTokens::is_of_two(*number);
        let stays = signing.len() == SiteTokens::COUNT_MAX && signing.contains(&self.signing);
        if !is_theirs || !adds_one || !stays || !shown.is_signed_by(&self.signing) {
            return None;
        }
        let further = signing.iter().copied().filter(|key| *key != self.signing).collect();
        Some(Self {
            // Later than the row before, and by no clock: two servers that take it up write one row.
            enrolled_ms: self.enrolled_ms + 1,
            tokens: Some(FurtherTokens { number: *number, signing: further }),
            ..self.clone()
        })
    }

    /// The tokens that a list of this site names and that are not known of it, whoever signed that.
    pub fn strangers(&self, shown: &SignedSiteTokens) -> Vec<TokenId> {
        let SiteTokens { domain, site, signing, .. } = &shown.tokens;
        let (known, is_theirs) = (self.keys(), *domain == self.domain && *site == self.site);
        let strange = |key: &&PublicKey| is_theirs && known.iter().all(|known| known != *key);
        signing.iter().filter(strange).map(TokenId::of).collect()
    }
}

const LABEL: &[u8] = b"ami.kms/site-tokens/1";

#[cfg(test)]
mod tests;
