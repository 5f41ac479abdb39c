//! The header of a backup: in clear, and bound to all that follows.

use sha2::{Digest as _, Sha256};

use crate::{
    DomainId,
    codec::{BadEncoding, Reader, put_bytes},
};

/// The file's first bytes; the last of them is the version of the format.
pub const MAGIC: [u8; 8] = *b"AMIBACK\x01";

/// The longest header, in bytes, without [`MAGIC`] and its length.
pub const LEN_MAX: u32 = 1 << 16;

/// The header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The key domain.
    pub domain: DomainId,
    /// The operator's name for the site.
    pub site: String,
    /// Random name of the backup.
    pub id: [u8; 16],
    /// When it began, milliseconds since 1970.
    pub at_ms: u64,
    /// The release that made it.
    pub release: String,
    /// The version of the database's schema.
    pub schema: u32,
    /// The site KEK that the file's key is sealed under.
    pub kek_id: [u8; 16],
    /// The domain's proofs of the token's KEKs: a token is held against them before anything else is read.
    pub canaries: Vec<u8>,
    /// The file's key, as the token sealed it for [`Header::place`].
    pub sealed_key: Vec<u8>,
}

impl Header {
    /// The additional data of the seal: purpose, domain, site, backup and KEK.
    pub fn place(&self) -> Vec<u8> {
        let mut place = [&b"ami.kms/backup/1"[..], &self.domain.0, &self.id, &self.kek_id].concat();
        put_bytes(&mut place, self.site.as_bytes());
        place
    }

    /// As it stands in the file, behind [`MAGIC`] and its length in four bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = [&self.domain.0[..], &self.id, &self.at_ms.to_be_bytes()].concat();
        out.extend_from_slice(&self.schema.to_be_bytes());
        out.extend_from_slice(&self.kek_id);
        put_bytes(&mut out, self.site.as_bytes());
        put_bytes(&mut out, self.release.as_bytes());
        put_bytes(&mut out, &self.canaries);
        put_bytes(&mut out, &self.sealed_key);
        out
    }

    /// The header in these bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadEncoding> {
        let mut input = Reader::new(bytes);
        let (domain, id) = (DomainId(input.array()?), input.array()?);
        let (at_ms, schema) = (input.u64()?, input.u32()?);
        let kek_id = input.array()?;
        let (site, release) = (input.text()?.to_owned(), input.text()?.to_owned());
        let (canaries, sealed_key) = (input.bytes()?.to_vec(), input.bytes()?.to_vec());
        input.end()?;
        Ok(Self { domain, site, id, at_ms, release, schema, kek_id, canaries, sealed_key })
    }

    /// What each chunk is bound to.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::new().chain_update(MAGIC).chain_update(self.encode()).finalize().into()
    }
}
