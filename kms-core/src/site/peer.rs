//! The other sites of a key domain, as the enrolment ceremony made them known.

use super::DomainId;
pub use super::kind::PeerKind;
use crate::{
    Epoch,
    audit::{PublicKey, Signature, SiteKeys, Verifies, is_signed},
    codec::{BadEncoding, Reader, put_bytes},
};

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
    /// Keys that it signed with before it was enrolled anew, the newest last. What is known with their signatures
    /// stays known; nothing new counts with them.
    pub former: Vec<FormerSigner>,
    /// `None`: a release enrolled it that did not note it, before anything could be restored.
    pub enrolled_in: Option<EnrolledIn>,
    /// `None`: it has one token, as far as is known.
    pub tokens: Option<FurtherTokens>,
}

/// The epochs in which a site was enrolled, as the site that wrote then knew them: what was before is nothing that it
/// can remember.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnrolledIn {
    /// The first time: since then the two have known each other.
    pub first: Epoch,
    /// The last time: its database began then.
    pub last: Epoch,
}

impl EnrolledIn {
    /// As a site that joins has the other one, until it has met it: a bundle may be older than what the other one did and
    /// forgot since. There is no epoch 0.
    #[must_use]
    pub const fn not_met(self) -> Self {
        Self { last: Epoch(0), ..self }
    }

    /// Whether the two have met.
    pub const fn is_met(self) -> bool {
        self.last.0 != 0
    }
}

/// A key that a site signed with before its token was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormerSigner {
    /// The key.
    pub key: PublicKey,
    /// The highest epoch that was known when it was replaced: of what is above, it says nothing.
    pub until: Epoch,
}

/// The further tokens of another site, as it has shown them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FurtherTokens {
    /// The number of its list.
    pub number: u64,
    /// The signing keys of the tokens beside the one that it was enrolled with.
    pub signing: Vec<PublicKey>,
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
    /// The most former keys that are kept: a site does not lose its token every year.
    pub const FORMER_MAX: usize = 32;
    /// The most tokens of a site.
    pub const TOKENS_MAX: usize = 2;

    /// Whose signatures count for this site: those of all of its tokens that are known here.
    pub fn keys(&self) -> SiteKeys {
        let further = self.tokens.iter().flat_map(|tokens| &tokens.signing).copied();
        SiteKeys::new(self.signing, further)
    }

    /// Whose signatures count in what the token with this key began: those of all present tokens, if it is one of them; else
    /// also its own, and those of the tokens that were lost with it.
    pub fn keys_beside(&self, signer: &PublicKey) -> SiteKeys {
        let present = self.keys();
        if present.iter().any(|key| key == signer) {
            return present;
        }
        let until = self.former.iter().find(|former| former.key == *signer).map(|it| it.until);
        let beside = self.former.iter().filter(|former| Some(former.until) == until);
        SiteKeys::new(*signer, beside.map(|former| former.key).chain(present.iter().copied()))
    }

    /// The former keys of this peer once its tokens are those with the keys `present`, at a time at which `until` is the
    /// highest epoch that is known.
    pub fn former_with(&self, present: &[PublicKey], until: Epoch) -> Vec<FormerSigner> {
        let known = self.keys();
        let lost = || known.iter().filter(|key| !present.contains(key));
        let mut former = self.former.clone();
        former
            .retain(|former| !present.contains(&former.key) && lost().all(|it| *it != former.key));
        former.extend(lost().map(|key| FormerSigner { key: *key, until }));
        let too_many = former.len().saturating_sub(Self::FORMER_MAX);
        former.drain(..too_many);
        former
    }

    /// The same once it is met, in this epoch; `None`: it was met already.
    #[must_use]
    pub fn met_in(&self, epoch: Epoch) -> Option<Self> {
        self.enrolled_in.filter(|it| !it.is_met())?;
        let enrolled_in = Some(EnrolledIn { first: epoch, last: epoch });
        Some(Self { enrolled_in, enrolled_ms: self.enrolled_ms + 1, ..self.clone() })
    }

    /// The message that is signed, which is its encoding.
    pub fn message(&self) -> Vec<u8> {
        let Self { domain, site, kind, signing, transport_block, enrolled_ms, .. } = self;
        let former = &self.former;
        let label = match (&self.tokens, self.enrolled_in, former.is_empty()) {
            (Some(_), _, _) => LABEL_WITH_TOKENS,
            (None, Some(_), _) => LABEL_WITH_EPOCHS,
            (None, None, true) => LABEL,
            (None, None, false) => LABEL_WITH_FORMER,
        };
        let mut out = [label, &domain.0[..]].concat();
        put_bytes(&mut out, site.as_bytes());
        out.push(*kind as u8);
        out.extend_from_slice(signing);
        put_bytes(&mut out, transport_block);
        out.extend_from_slice(&enrolled_ms.to_be_bytes());
        out.push(former.len() as u8); // at most FORMER_MAX
        for FormerSigner { key, until } in former {
            out.extend_from_slice(key);
            out.extend_from_slice(&until.0.to_be_bytes());
        }
        if let Some(FurtherTokens { number, signing }) = &self.tokens {
            out.extend_from_slice(&number.to_be_bytes());
            put_keys(&mut out, signing);
            out.push(self.enrolled_in.is_some().into());
        }
        if let Some(EnrolledIn { first, last }) = self.enrolled_in {
            out.extend_from_slice(&first.0.to_be_bytes());
            out.extend_from_slice(&last.0.to_be_bytes());
        }
        out
    }

    /// The peer in the bytes of a message.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadEncoding> {
        let with_epochs = bytes.strip_prefix(LABEL_WITH_EPOCHS);
        let with_former = bytes.strip_prefix(LABEL_WITH_FORMER);
        let with_tokens = bytes.strip_prefix(LABEL_WITH_TOKENS);
        let rest =
            with_epochs.or(with_former).or(with_tokens).or_else(|| bytes.strip_prefix(LABEL));
        let mut input = Reader::new(rest.ok_or(BadEncoding)?);
        let mut peer = Self {
            domain: DomainId(input.array()?),
            site: input.text()?.to_owned(),
            kind: crate::Numbered::from_number(input.u8()?).ok_or(BadEncoding)?,
            signing: input.array()?,
            transport_block: input.bytes()?.to_vec(),
            enrolled_ms: input.u64()?,
            former: former(&mut input)?,
            enrolled_in: None,
            tokens: None,
        };
        let mut has_epochs = with_epochs.is_some();
        if with_tokens.is_some() {
            let (number, signing) = (input.u64()?, key_list(&mut input)?);
            peer.tokens = Some(FurtherTokens { number, signing });
            has_epochs = flag(&mut input)?;
        }
        if has_epochs {
            let (first, last) = (Epoch(input.u64()?), Epoch(input.u64()?));
            peer.enrolled_in = Some(EnrolledIn { first, last });
        }
        input.end()?;
        // One encoding for each peer.
        let is_said = with_epochs.or(with_tokens).is_some()
            || with_former.is_some() != peer.former.is_empty();
        if is_said { Ok(peer) } else { Err(BadEncoding) }
    }
}

impl SignedPeer {
    /// Whether the holder of `key` signed it.
    pub fn is_signed_by(&self, key: &impl Verifies) -> bool {
        is_signed(key, &self.peer.message(), &self.signature)
    }
}

fn former(input: &mut Reader<'_>) -> Result<Vec<FormerSigner>, BadEncoding> {
    let count = usize::from(input.u8()?);
    if count > Peer::FORMER_MAX {
        return Err(BadEncoding);
    }
    let one = |_| Ok(FormerSigner { key: input.array()?, until: Epoch(input.u64()?) });
    (0..count).map(one).collect()
}

pub(super) fn put_keys(out: &mut Vec<u8>, keys: &[PublicKey]) {
    out.push(keys.len() as u8); // at most Peer::TOKENS_MAX
    keys.iter().for_each(|key| out.extend_from_slice(key));
}

pub(super) fn key_list(input: &mut Reader<'_>) -> Result<Vec<PublicKey>, BadEncoding> {
    let count = usize::from(input.u8()?);
    if count > Peer::TOKENS_MAX {
        return Err(BadEncoding);
    }
    (0..count).map(|_| input.array()).collect()
}

fn flag(input: &mut Reader<'_>) -> Result<bool, BadEncoding> {
    match input.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(BadEncoding),
    }
}

const LABEL: &[u8] = b"ami.kms/peer/1";
const LABEL_WITH_FORMER: &[u8] = b"ami.kms/peer/2";
const LABEL_WITH_EPOCHS: &[u8] = b"ami.kms/peer/3";
const LABEL_WITH_TOKENS: &[u8] = b"ami.kms/peer/4";

#[cfg(test)]
mod tests {
    use super::*;

    fn former(n: u8, until: u64) -> FormerSigner {
        FormerSigner { key: [n; 65], until: Epoch(until) }
    }

    #[test]
    fn a_peer_comes_back_from_its_message_and_from_no_other() {
        let peer = Peer {
            domain: DomainId([7; 16]),
            site: "south".to_owned(),
            kind: PeerKind::Odd,
            signing: [4; 65],
            transport_block: vec![9; 422],
            enrolled_ms: 12,
            former: vec![former(5, 2), former(6, 7)],
            enrolled_in: None,
            tokens: None,
        };
        let enrolled_in = Some(EnrolledIn { first: Epoch(2), last: Epoch(7) });
        let noted = Peer { enrolled_in, ..peer.clone() };
        let fresh = Peer { former: Vec::new(), ..noted.clone() };
        let without = Peer { former: Vec::new(), ..peer.clone() };
        let tokens = Some(FurtherTokens { number: 2, signing: vec![[3; 65]] });
        let two = Peer { tokens: tokens.clone(), ..noted.clone() };
        let old_two = Peer { tokens, ..without.clone() };
        for peer in [peer, noted, fresh, without, two, old_two] {
            let message = peer.message();
            assert_eq!(Peer::decode(&message), Ok(peer));
            for end in 0..message.len() {
                assert_eq!(Peer::decode(&message[..end]), Err(BadEncoding), "cut at {end}");
            }
            assert_eq!(Peer::decode(&[message, vec![0]].concat()), Err(BadEncoding));
        }
    }

    #[test]
    fn a_peer_that_is_enrolled_anew_keeps_its_former_keys_once_each() {
        let key = |n: u8| [n; 65];
        let mut peer = Peer {
            domain: DomainId([7; 16]),
            site: "south".to_owned(),
            kind: PeerKind::Odd,
            signing: key(1),
            transport_block: Vec::new(),
            enrolled_ms: 0,
            former: Vec::new(),
            enrolled_in: None,
            tokens: None,
        };
        assert_eq!(peer.former_with(&[key(1)], Epoch(2)), []);
        peer.former = peer.former_with(&[key(2)], Epoch(2));
        peer.signing = key(2);
        assert_eq!(peer.former, [former(1, 2)]);
        assert_eq!(peer.former_with(&[key(3)], Epoch(5)), [former(1, 2), former(2, 5)]);
        assert_eq!(peer.former_with(&[key(1)], Epoch(5)), [former(2, 5)]);
        // Of two tokens both are lost, or the one that does not stay.
        peer.tokens = Some(FurtherTokens { number: 2, signing: vec![key(4)] });
        let lost = [former(1, 2), former(2, 5), former(4, 5)];
        assert_eq!(peer.former_with(&[key(3)], Epoch(5)), lost);
        assert_eq!(peer.former_with(&[key(4)], Epoch(5)), lost[..2]);
        assert_eq!(peer.former_with(&[key(2), key(4)], Epoch(5)), lost[..1]);
    }

    #[test]
    fn what_a_lost_token_began_counts_with_the_keys_that_were_beside_it_and_are_there_now() {
        let key = |n: u8| [n; 65];
        let peer = Peer {
            domain: DomainId([7; 16]),
            site: "south".to_owned(),
            kind: PeerKind::Odd,
            signing: key(5),
            transport_block: Vec::new(),
            enrolled_ms: 0,
            former: vec![former(1, 2), former(2, 4), former(3, 4)],
            enrolled_in: None,
            tokens: Some(FurtherTokens { number: 2, signing: vec![key(6)] }),
        };
        let beside = |n| peer.keys_beside(&key(n));
        assert_eq!((beside(5), beside(6)), (peer.keys(), peer.keys()));
        assert_eq!(beside(1), SiteKeys::new(key(1), [key(5), key(6)]));
        assert_eq!(beside(3), SiteKeys::new(key(3), [key(2), key(5), key(6)]));
    }
}
