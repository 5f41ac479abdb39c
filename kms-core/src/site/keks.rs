//! The site KEKs of one token, and how one takes the place of another. A site KEK seals block secrets and files of backups
//! for one token, and stands in no record: its rotation is one site's own affair. What is done of it says one signed row
//! beside the domain's record, so whichever server of the site comes next goes on.

use super::DomainId;
use crate::{
    Numbered as _,
    audit::{PublicKey, Signature, Verifies, is_signed},
    codec::{BadEncoding, Reader, put_bytes},
};

/// The name of a site KEK: its CKA_ID.
pub type KekId = [u8; 16];

/// A site KEK by its name, and what proves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kek {
    /// Its name.
    pub id: KekId,
    /// Proofs of it and of the sealed KEKs beside it, as in the domain's record. Opaque here; empty while it is not made.
    pub proof: Vec<u8>,
}

crate::numbered! {
    /// How far the rotation of a site KEK is. Words of NIST SP 800-57: until it is retired the former one is in use, then it
    /// is deactivated, and at last destroyed.
    pub enum KekStage "stage" {
        /// The new one has a name, and one process that is to make it.
        Asked = 1 "ASKED",
        /// It is made. Block secrets get a second seal, under it; nothing rests on that yet.
        Made = 2 "MADE",
        /// Every secret has opened under it: servers take it for theirs. The former one is kept.
        Moved = 3 "MOVED",
        /// The database takes no further seal under the former one.
        Closed = 4 "CLOSED",
        /// Every secret has opened under it once more, and nothing is sealed under the former one. That opens old backups, and
        /// nothing is sealed under it any more.
        Retired = 5 "RETIRED",
        /// The former one is to be destroyed: people said so.
        Destroying = 6 "DESTROYING",
        /// It is.
        Destroyed = 7 "DESTROYED",
    }
}

/// The site KEKs of one token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteKeks {
    /// The key domain.
    pub domain: DomainId,
    /// The operator's name for the site.
    pub site: String,
    /// The signing key of the token that they are in.
    pub signing: PublicKey,
    /// Rises by one with each step: an older row never takes the place of a newer one.
    pub sequence: u64,
    /// The number of the rotation.
    pub generation: u32,
    /// When it was asked for; milliseconds since 1970.
    pub asked_ms: u64,
    /// When its stage began.
    pub since_ms: u64,
    /// How far it is.
    pub stage: KekStage,
    /// The process that makes the new one: two that did would make two keys of one name.
    pub maker: [u8; 16],
    /// The one that seals are made under.
    pub current: Kek,
    /// The one beside it: the new one until servers take it, then the former one.
    pub other: Kek,
    /// Former ones of earlier rotations, and names of which nobody knows whether a key was made: nothing is under any.
    pub left: Vec<KekId>,
}

/// The row, and its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedSiteKeks {
    /// The row.
    pub keks: SiteKeks,
    /// Of the token's signing key, over [`SiteKeks::message`].
    pub signature: Signature,
}

/// What a rotation begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KekWish {
    /// The key domain.
    pub domain: DomainId,
    /// The site.
    pub site: String,
    /// The token.
    pub signing: PublicKey,
    /// The KEK that is in use.
    pub in_use: Kek,
    /// The name of the new one.
    pub new: KekId,
    /// Who makes it.
    pub maker: [u8; 16],
}

/// What a look at all blocks found: a secret has a *twin* where it has a seal under the new KEK beside that under the
/// former one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// Blocks of the domain.
    pub blocks: u64,
    /// Of them, those whose present secret has a seal under the new KEK.
    pub blocks_sealed: u64,
    /// Seals under the former KEK.
    pub seals: u64,
    /// Of them, those whose twin opened as the same secret.
    pub proved: u64,
}

impl Looked {
    /// Whether nothing needs the former KEK.
    pub const fn is_whole(&self) -> bool {
        self.blocks_sealed == self.blocks && self.proved == self.seals && self.blocks > 0
    }
}

/// Why there is no such step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoStep {
    /// A rotation is under way: that goes on first.
    #[error("a rotation of this site KEK is under way")]
    UnderWay,
    /// Another step is due.
    #[error("the rotation of this site KEK is not at that step")]
    OutOfTurn,
    /// Something is under the former KEK alone.
    #[error("something is sealed under the former site KEK alone")]
    NotProved,
    /// Too many are kept.
    #[error("former site KEKs are kept, and no more are: destroy them first")]
    TooMany,
}

/// What is to be done next, by whoever comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KekWork {
    /// The new one is to be made, by this process.
    Make,
    /// Another process was to make it: it may be gone, or slow. A new name, made by this one.
    TakeOver,
    /// Secrets get their twins, each is proved, and the next stage begins.
    SealAndProve,
    /// Twins are proved once more, and the former seals go.
    ProveAndRetire,
    /// The former ones are destroyed in the token.
    Destroy,
    /// Nothing.
    Nothing,
}

impl SiteKeks {
    /// The most former ones that are kept.
    pub const LEFT_MAX: usize = 16;
    /// A new one that was not made for as long is made by another process. Making one takes a token a second at most.
    pub const MAKER_PATIENCE_MS: u64 = 15_000;

    /// A rotation begins, after `known`.
    pub fn ask(known: Option<&Self>, wish: KekWish, now_ms: u64) -> Result<Self, NoStep> {
        let KekWish { domain, site, signing, in_use, new, maker } = wish;
        let mut left = known.map_or_else(Vec::new, |known| known.left.clone());
        match known.map(|known| (known.stage, known.other.id)) {
            None | Some((KekStage::Destroyed, _)) => {}
            Some((KekStage::Retired, former)) => left.push(former),
            Some(_) => return Err(NoStep::UnderWay),
        }
        if left.len() >= Self::LEFT_MAX {
            return Err(NoStep::TooMany);
        }
        Ok(Self {
            domain,
            site,
            signing,
            sequence: known.map_or(0, |known| known.sequence).saturating_add(1),
            generation: known.map_or(0, |known| known.generation).saturating_add(1),
            asked_ms: now_ms,
            since_ms: now_ms,
            stage: KekStage::Asked,
            maker,
            current: in_use,
            other: Kek { id: new, proof: Vec::new() },
            left,
        })
    }

    /// What is to be done next by the process `me`.
    pub fn work(&self, me: &[u8; 16], now_ms: u64) -> KekWork {
        let is_late = now_ms >= self.since_ms.saturating_add(Self::MAKER_PATIENCE_MS);
        match self.stage {
            KekStage::Asked if self.maker == *me => KekWork::Make,
            KekStage::Asked if is_late => KekWork::TakeOver,
            KekStage::Asked => KekWork::Nothing,
            KekStage::Made | KekStage::Moved => KekWork::SealAndProve,
            KekStage::Closed => KekWork::ProveAndRetire,
            KekStage::Destroying => KekWork::Destroy,
            KekStage::Retired | KekStage::Destroyed => KekWork::Nothing,
        }
    }

    /// Another process makes the new one, under another name: the former maker may yet come to make its own.
    pub fn taken_over(&self, maker: [u8; 16], new: KekId, now_ms: u64) -> Result<Self, NoStep> {
        let mut next = self.next(KekStage::Asked, KekStage::Asked, now_ms)?;
        // The last of as many is such a name, since a rotation begins with fewer: that a key of it stays in the token, if it
        // was made, harms nobody.
        next.left.truncate(Self::LEFT_MAX - 1);
        next.left.push(next.other.id);
        next.other.id = new;
        next.maker = maker;
        Ok(next)
    }

    /// The new one is made, and this proves it.
    pub fn made(&self, proof: Vec<u8>, now_ms: u64) -> Result<Self, NoStep> {
        let mut next = self.next(KekStage::Asked, KekStage::Made, now_ms)?;
        next.other.proof = proof;
        Ok(next)
    }

    /// What comes after all secrets were sealed and proved: servers take the new one, or the former one takes no more.
    pub fn sealed(&self, looked: &Looked, now_ms: u64) -> Result<Self, NoStep> {
        let next = match self.stage {
            KekStage::Made => {
                let mut next = self.next(KekStage::Made, KekStage::Moved, now_ms)?;
                std::mem::swap(&mut next.current, &mut next.other);
                next
            }
            _ => self.next(KekStage::Moved, KekStage::Closed, now_ms)?,
        };
        if looked.is_whole() { Ok(next) } else { Err(NoStep::NotProved) }
    }

    /// The former seals go.
    pub fn retired(&self, looked: &Looked, now_ms: u64) -> Result<Self, NoStep> {
        let next = self.next(KekStage::Closed, KekStage::Retired, now_ms)?;
        if looked.is_whole() { Ok(next) } else { Err(NoStep::NotProved) }
    }

    /// People want the former ones destroyed.
    pub fn destroying(&self, now_ms: u64) -> Result<Self, NoStep> {
        self.next(KekStage::Retired, KekStage::Destroying, now_ms)
    }

    /// They are.
    pub fn destroyed(&self, now_ms: u64) -> Result<Self, NoStep> {
        let mut next = self.next(KekStage::Destroying, KekStage::Destroyed, now_ms)?;
        next.left.clear();
        Ok(next)
    }

    /// All that is destroyed once people say so: never the one in use.
    pub fn to_destroy(&self) -> Vec<KekId> {
        let former = self.left.iter().copied().chain([self.other.id]);
        former.filter(|id| *id != self.current.id).collect()
    }

    /// The KEK that a server seals with, and the one that it opens seals of besides.
    pub fn in_use(&self) -> (&Kek, Option<&Kek>) {
        // Until it is destroyed: who has read a seal under the former one just before it went, opens it.
        let both = matches!(
            self.stage,
            KekStage::Made | KekStage::Moved | KekStage::Closed | KekStage::Retired
        );
        (&self.current, both.then_some(&self.other))
    }

    /// The new one and the former one, while secrets have seals of both.
    pub fn twins(&self) -> Option<(&Kek, &Kek)> {
        match self.stage {
            KekStage::Made => Some((&self.other, &self.current)),
            KekStage::Moved | KekStage::Closed => Some((&self.current, &self.other)),
            _ => None,
        }
    }

    /// Whether nothing is left that goes on by itself.
    pub const fn is_over(&self) -> bool {
        matches!(self.stage, KekStage::Retired | KekStage::Destroyed)
    }

    fn next(&self, from: KekStage, to: KekStage, now_ms: u64) -> Result<Self, NoStep> {
        if self.stage != from {
            return Err(NoStep::OutOfTurn);
        }
        let sequence = self.sequence.checked_add(1).ok_or(NoStep::OutOfTurn)?;
        Ok(Self { stage: to, sequence, since_ms: now_ms, ..self.clone() })
    }

    /// The message that is signed, which is its encoding.
    pub fn message(&self) -> Vec<u8> {
        let mut out = [LABEL, &self.domain.0[..], &self.signing].concat();
        put_bytes(&mut out, self.site.as_bytes());
        for number in [self.sequence, self.asked_ms, self.since_ms] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.extend_from_slice(&self.generation.to_be_bytes());
        out.push(self.stage as u8);
        out.extend_from_slice(&self.maker);
        for kek in [&self.current, &self.other] {
            out.extend_from_slice(&kek.id);
            put_bytes(&mut out, &kek.proof);
        }
        out.push(u8::try_from(self.left.len()).unwrap_or(u8::MAX));
        self.left.iter().for_each(|id| out.extend_from_slice(id));
        out
    }

    /// The row in the bytes of a message.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadEncoding> {
        let mut input = Reader::new(bytes.strip_prefix(LABEL).ok_or(BadEncoding)?);
        let (domain, signing) = (DomainId(input.array()?), input.array()?);
        let site = input.text()?.to_owned();
        let (sequence, asked_ms, since_ms) = (input.u64()?, input.u64()?, input.u64()?);
        let generation = input.u32()?;
        let stage = KekStage::from_number(input.u8()?).ok_or(BadEncoding)?;
        let maker = input.array()?;
        let current = kek(&mut input)?;
        let other = kek(&mut input)?;
        let count = usize::from(input.u8()?);
        if count > Self::LEFT_MAX {
            return Err(BadEncoding);
        }
        let left = (0..count).map(|_| input.array()).collect::<Result<_, _>>()?;
        input.end()?;
        Ok(Self {
            domain,
            site,
            signing,
            sequence,
            generation,
            asked_ms,
            since_ms,
            stage,
            maker,
            current,
            other,
            left,
        })
    }
}

impl SignedSiteKeks {
    /// Whether the token with this key signed it, for this domain and site, about its own KEKs.
    pub fn is_of(&self, key: &PublicKey, domain: &DomainId, site: &str) -> bool {
        let SiteKeks { domain: of, site: at, signing, .. } = &self.keks;
        (of, at.as_str(), signing) == (domain, site, key) && self.is_signed_by(key)
    }

    /// Whether the holder of `key` signed it.
    pub fn is_signed_by(&self, key: &impl Verifies) -> bool {
        is_signed(key, &self.keks.message(), &self.signature)
    }
}

fn kek(input: &mut Reader<'_>) -> Result<Kek, BadEncoding> {
    Ok(Kek { id: input.array()?, proof: input.bytes()?.to_vec() })
}

const LABEL: &[u8] = b"ami.kms/site-keks/1";

#[cfg(test)]
mod tests;
