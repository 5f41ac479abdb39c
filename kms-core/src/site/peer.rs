//! The other sites of a key domain, as the enrolment ceremony made them known.

use super::DomainId;
use crate::{
    audit::{PublicKey, Signature, is_signed},
    codec::{BadEncoding, Reader, put_bytes},
};

crate::numbered! {
    /// What another site may become.
    pub enum PeerKind "kind of peer" {
        /// The site of even epochs: it may be promoted.
        Even = 1 "EVEN",
        /// The site of odd epochs: it may be promoted.
        Odd = 2 "ODD",
        /// It follows for ever.
        Replica = 3 "REPLICA",
    }
}

/// Another site, whose keys two people compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The key domain.
    pub domain: DomainId,
    /// The operator's name for it.
    pub site: String,
    /// What it may become.
    pub kind: PeerKind,
    /// What it signs with.
    pub signing: PublicKey,
    /// What block secrets are wrapped to for it: SubjectPublicKeyInfo, DER.
    pub transport_block: Vec<u8>,
    /// Milliseconds since 1970.
    pub enrolled_ms: u64,
}

/// A peer, signed by our own token when it was enrolled: a writer of the database can bring in none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedPeer {
    /// The peer.
    pub peer: Peer,
    /// Of our signing key, over [`Peer::message`].
    pub signature: Signature,
}

impl Peer {
    /// The message that is signed, which is its encoding.
    pub fn message(&self) -> Vec<u8> {
        let Self { domain, site, kind, signing, transport_block, enrolled_ms } = self;
        let mut out = [LABEL, &domain.0[..]].concat();
        put_bytes(&mut out, site.as_bytes());
        out.push(*kind as u8);
        out.extend_from_slice(signing);
        put_bytes(&mut out, transport_block);
        out.extend_from_slice(&enrolled_ms.to_be_bytes());
        out
    }

    /// The peer in the bytes of a message.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadEncoding> {
        let mut input = Reader::new(bytes.strip_prefix(LABEL).ok_or(BadEncoding)?);
        let peer = Self {
            domain: DomainId(input.array()?),
            site: input.text()?.to_owned(),
            kind: crate::Numbered::from_number(input.u8()?).ok_or(BadEncoding)?,
            signing: input.array()?,
            transport_block: input.bytes()?.to_vec(),
            enrolled_ms: input.u64()?,
        };
        input.end()?;
        Ok(peer)
    }
}

impl SignedPeer {
    /// Whether the holder of `key` signed it.
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        is_signed(key, &self.peer.message(), &self.signature)
    }
}

const LABEL: &[u8] = b"ami.kms/peer/1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_comes_back_from_its_message_and_from_no_other() {
        let peer = Peer {
            domain: DomainId([7; 16]),
            site: "south".to_owned(),
            kind: PeerKind::Odd,
            signing: [4; 65],
            transport_block: vec![9; 422],
            enrolled_ms: 12,
        };
        let message = peer.message();
        assert_eq!(Peer::decode(&message), Ok(peer));
        for end in 0..message.len() {
            assert_eq!(Peer::decode(&message[..end]), Err(BadEncoding), "cut at {end}");
        }
        assert_eq!(Peer::decode(&[message, vec![0]].concat()), Err(BadEncoding));
    }
}
