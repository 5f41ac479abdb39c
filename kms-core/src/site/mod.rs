//! The key domain and this site's place in it: below, who writes ([`role`]), whose word counts for that
//! ([`admission`]), how a site begins and ends to write ([`changing`]), and the other sites ([`peer`]): in what they differ
//! ([`makeup`]), what they have proved ([`readiness`]) and which proofs count ([`proving`]), and what they have seen of
//! each other ([`witness`]); the mark of a database that was rolled back ([`restored`]); the tokens of one site
//! ([`tokens`]), and how the site KEK of one is rotated ([`keks`]).

pub mod admission;
pub mod changing;
pub mod keks;
pub mod kind;
pub mod makeup;
pub mod peer;
pub mod proving;
pub mod readiness;
pub mod restored;
pub mod role;
pub mod tokens;
pub mod witness;

use std::fmt;

use self::kind::PeerKind;
use super::{
    BlockCount, Epoch, KeyKind,
    audit::{Signature, Verifies, is_signed},
};

/// Random name of a key domain: two sites that replicate each other share it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct DomainId(pub [u8; 16]);

impl fmt::Debug for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DomainId({})", hex::encode(self.0))
    }
}

/// The two KEKs that wrap keys of protection `HSM`. Two, because their unwrap templates differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SealedKek {
    /// Wraps meters' KEKs; what it unwraps may only wrap.
    MeterKek,
    /// Wraps GUEK and GBEK of protection `HSM`; what it unwraps may only encrypt and decrypt.
    Use,
}

impl SealedKek {
    /// The one of them under which a key of this kind and of protection `HSM` is.
    pub fn of_kind(kind: KeyKind) -> Self {
        match kind {
            KeyKind::Kek => Self::MeterKek,
            _ => Self::Use,
        }
    }
}

/// Written once by `kms-server init`; read at each start. Which tokens may open this site's blocks
/// stands with the token: `canaries` prove that its KEKs are those the database was made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainRecord {
    /// The key domain.
    pub domain: DomainId,
    /// The number of its blocks; never changes.
    pub blocks: BlockCount,
    /// The operator's name for this site.
    pub site: String,
    /// The epoch that this site writes in.
    pub epoch: Epoch,
    /// Whose epochs this site writes in, or that it follows for ever.
    pub kind: PeerKind,
    /// Proofs of the token's KEKs, made at `init`: see `hsm`. Opaque here.
    pub canaries: Vec<u8>,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// Of the token's signing key, over [`DomainRecord::message`]. `None`: made by a version that did
    /// not sign yet, and to be migrated.
    pub signature: Option<Signature>,
}

impl DomainRecord {
    /// The message that is signed: all fields, each of a fixed length or with its length before it.
    pub fn message(&self) -> Vec<u8> {
        let Self { domain, blocks, site, epoch, kind, canaries, created_ms, signature: _ } = self;
        let kind = match kind {
            PeerKind::Odd => 0,
            PeerKind::Even => 1,
            PeerKind::Replica => 2,
        };
        [
            b"ami.kms/domain/1".as_slice(),
            &domain.0,
            &blocks.get().to_be_bytes(),
            &epoch.0.to_be_bytes(),
            &[kind],
            &created_ms.to_be_bytes(),
            &(site.len() as u32).to_be_bytes(),
            site.as_bytes(),
            &(canaries.len() as u32).to_be_bytes(),
            canaries,
        ]
        .concat()
    }

    /// Whether the holder of `key` signed it.
    pub fn is_signed_by(&self, key: &impl Verifies) -> bool {
        self.signature.is_some_and(|signature| is_signed(key, &self.message(), &signature))
    }
}
