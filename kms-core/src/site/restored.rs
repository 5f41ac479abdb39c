//! The mark of a database that was rolled back: by a restore from a backup, by a failover that lost its tail, or since the
//! site lost it and began anew. The token signs it, and signs the domain's record anew, over the mark: without the mark that record is nobody's, so a
//! database can't lose it by leaving it out.

use sha2::{Digest as _, Sha256};

use super::{DomainId, DomainRecord};
use crate::{
    Epoch,
    audit::{Signature, Verifies, is_signed},
    codec::{BadEncoding, Reader, put_bytes},
};

crate::numbered! {
    /// What rolled a database back.
    pub enum RolledBackBy "cause of a restore" {
        /// A backup was restored.
        Backup = 1 "BACKUP",
        /// The database failed over to a standby that had not all that was acknowledged.
        LostTail = 2 "LOST_TAIL",
        /// A copy was put back: the other site has what this one wrote, and the database has not.
        Copy = 3 "COPY",
        /// The site lost it, and was enrolled anew: what it did before is known elsewhere, or to nobody.
        Rebuilt = 4 "REBUILT",
    }
}

impl RolledBackBy {
    /// Of the database, for people.
    pub const fn what(self) -> &'static str {
        match self {
            Self::Backup | Self::LostTail | Self::Copy => "was rolled back",
            Self::Rebuilt => "is a new one",
        }
    }
}

/// The mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreMark {
    /// The key domain.
    pub domain: DomainId,
    /// The operator's name for the site.
    pub site: String,
    /// Random name of the restore.
    pub id: [u8; 16],
    /// What rolled the database back.
    pub by: RolledBackBy,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// The highest epoch that the database knows of.
    pub epoch: Epoch,
    /// What it was restored from, in words.
    pub from: String,
}

/// A mark and its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedRestoreMark {
    /// The mark.
    pub mark: RestoreMark,
    /// Of the site's signing key, over [`RestoreMark::message`].
    pub signature: Signature,
}

const LABEL: &[u8] = b"ami.kms/restored/1";

impl RestoreMark {
    /// The message that is signed, which is its encoding.
    pub fn message(&self) -> Vec<u8> {
        let Self { domain, site, id, by, at_ms, epoch, from } = self;
        let mut out = [LABEL, &domain.0, id, &[*by as u8]].concat();
        out.extend_from_slice(&at_ms.to_be_bytes());
        out.extend_from_slice(&epoch.0.to_be_bytes());
        put_bytes(&mut out, site.as_bytes());
        put_bytes(&mut out, from.as_bytes());
        out
    }

    /// The mark in the bytes of a message.
    pub fn decode(message: &[u8]) -> Result<Self, BadEncoding> {
        let mut input = Reader::new(message.strip_prefix(LABEL).ok_or(BadEncoding)?);
        let (domain, id) = (DomainId(input.array()?), input.array()?);
        let by = crate::Numbered::from_number(input.u8()?).ok_or(BadEncoding)?;
        let (at_ms, epoch) = (input.u64()?, Epoch(input.u64()?));
        let (site, from) = (input.text()?.to_owned(), input.text()?.to_owned());
        input.end()?;
        Ok(Self { domain, site, id, by, at_ms, epoch, from })
    }
}

/// What a domain's record and a mark beside it say together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The token signed the record alone: the database is what this site wrote.
    Whole,
    /// The token signed the record over this mark: the database was rolled back, and the site is not to write yet.
    RolledBack,
    /// The token signed neither.
    Unknown,
}

impl DomainRecord {
    /// The message that is signed while the database bears this mark.
    pub fn message_under(&self, mark: &RestoreMark) -> Vec<u8> {
        let mark = Sha256::digest(mark.message());
        [&b"ami.kms/domain-restored/1"[..], &mark, &self.message()].concat()
    }

    /// The condition of the database that has this record, and this mark beside it.
    pub fn condition(&self, mark: Option<&SignedRestoreMark>, key: &impl Verifies) -> Condition {
        if self.is_signed_by(key) {
            return Condition::Whole;
        }
        let Some(SignedRestoreMark { mark, signature }) = mark else { return Condition::Unknown };
        let over = |own: Signature| is_signed(key, &self.message_under(mark), &own);
        let is_ours = mark.domain == self.domain && mark.site == self.site;
        match is_ours
            && is_signed(key, &mark.message(), signature)
            && self.signature.is_some_and(over)
        {
            true => Condition::RolledBack,
            false => Condition::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockCount, audit::PublicKey, site::peer::PeerKind};
    use ring::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
    };

    fn mark() -> RestoreMark {
        RestoreMark {
            domain: DomainId([7; 16]),
            site: "north".to_owned(),
            id: [3; 16],
            by: RolledBackBy::Backup,
            at_ms: 5,
            epoch: Epoch(4),
            from: "backup of yesterday".to_owned(),
        }
    }

    #[test]
    fn a_mark_comes_back_from_its_message_and_from_no_other() {
        let message = mark().message();
        assert_eq!(RestoreMark::decode(&message), Ok(mark()));
        assert!((0..message.len()).all(|end| RestoreMark::decode(&message[..end]).is_err()));
    }

    #[test]
    fn invariant_3_a_database_that_was_restored_can_not_lose_its_mark_by_leaving_it_out() {
        let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
        let sign = |message: &[u8]| -> Signature {
            pair.sign(&random, message).unwrap().as_ref().try_into().unwrap()
        };
        let mut domain = DomainRecord {
            domain: DomainId([7; 16]),
            blocks: BlockCount::new(3).unwrap(),
            site: "north".to_owned(),
            epoch: Epoch(2),
            kind: PeerKind::Even,
            canaries: Vec::new(),
            created_ms: 0,
            signature: None,
        };
        let key: PublicKey = pair.public_key().as_ref().try_into().unwrap();
        domain.signature = Some(sign(&domain.message()));
        assert_eq!(domain.condition(None, &key), Condition::Whole);
        let mark = mark();
        let signed = SignedRestoreMark { signature: sign(&mark.message()), mark };
        domain.signature = Some(sign(&domain.message_under(&signed.mark)));
        assert_eq!(domain.condition(Some(&signed), &key), Condition::RolledBack);
        assert_eq!(domain.condition(None, &key), Condition::Unknown);
        let mut other = signed.clone();
        other.mark.id = [4; 16];
        other.signature = sign(&other.mark.message());
        assert_eq!(domain.condition(Some(&other), &key), Condition::Unknown);
        let forged = SignedRestoreMark { signature: [1; 64], ..signed };
        assert_eq!(domain.condition(Some(&forged), &key), Condition::Unknown);
    }
}
