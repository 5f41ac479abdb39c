//! Sealed import files: what must hold before the token takes their keys.
//!
//! A file has a header (whose domain, sealed to which key, the wrapped file key, how many lines) and
//! chunks of lines. The operator's own P-256 key signs both; a chunk's signature covers its file, its
//! place in it and all of its bytes. So each chunk can be verified by itself, an interrupted import goes
//! on anywhere, and no blob can be moved to another meter, kind or position.
//!
//! Nor can another signer take a file's wrapped key and blobs for his own: RFC 3394 and RSA-OAEP (whose
//! label not all tokens take) bind nothing to what they wrap, so the header carries a proof: a statement
//! that names signer and header, wrapped under the file's key. Only who knows that key can make it. The
//! token opens it with the file's keys ([`super::taking`]), and no list of files has to be kept.

use p256::{
    ecdsa::{Signature, VerifyingKey, signature::Verifier as _},
    pkcs8::EncodePublicKey as _,
};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::{
    hsm::{ImportKey, OaepHash, TokenError},
    lifecycle::{
        error::LifecycleError,
        refusal::{Refusal, refusal},
        verbs::Lifecycle,
    },
};
use kms_core::{
    ChangeMark, FilePlace, RefusalCode,
    audit::{AuditEntry, Detail},
    fact::AcceptedFile,
    wire::sealed::{CHUNK_LABEL, HEADER_LABEL, PROOF_LABEL},
};

/// The most that a sealer's clock may be ahead of ours. What is sealed "later" than a change overrules it: a
/// file from the far future would overrule all that is done until then.
const AHEAD_MAX_MS: u64 = 10 * 60 * 1_000;

/// A header as it came: what its bytes say, and the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedHeader {
    /// The signed bytes.
    pub body: Vec<u8>,
    /// The body without its proof, in the same encoding.
    pub unproved: Vec<u8>,
    /// r and s.
    pub signature: Vec<u8>,
    /// 16 random bytes.
    pub file_id: [u8; 16],
    /// The key domain that it is for.
    pub domain_id: Vec<u8>,
    /// The fingerprint of the import key that it was sealed to.
    pub import_key_fingerprint: Vec<u8>,
    /// `None`: none that we know.
    pub oaep_hash: Option<OaepHash>,
    /// By RSA-OAEP.
    pub wrapped_file_key: Vec<u8>,
    /// The signer's name.
    pub signer: String,
    /// Lines in the file.
    pub count: u64,
    /// When it was sealed; milliseconds since 1970.
    pub sealed_ms: u64,
    /// That the signer knows the file's key.
    pub proof: Vec<u8>,
}

/// A chunk as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedChunk {
    /// From 0.
    pub number: u32,
    /// Nothing follows.
    pub last: bool,
    /// Lines before it, plus one.
    pub first_line: u64,
    /// Its lines, encoded.
    pub body: Vec<u8>,
    /// r and s.
    pub signature: Vec<u8>,
}

/// A file whose header was verified: there is no other way to one.
#[derive(Clone, Debug)]
pub struct SealedFile {
    signer: VerifyingKey,
    signer_name: String,
    /// As the audit log has it.
    signer_number: u64,
    header_hash: [u8; 32],
    wrapped_file_key: Vec<u8>,
    count: u64,
    file_id: [u8; 16],
    sealed_ms: u64,
    proof: Vec<u8>,
    statement: [u8; 32],
}

impl Lifecycle {
    /// The public key that files are sealed to. Asked of the token once.
    pub async fn import_key(&self) -> Result<&ImportKey, LifecycleError> {
        self.import_key
            .get_or_try_init(|| self.taker.import_key())
            .await
            .map_err(|error: TokenError| LifecycleError::Unavailable { reason: error.to_string() })
    }

    /// The key domain and the site's name, to go with the import key.
    pub fn import_site(&self) -> ([u8; 16], &str) {
        (self.taker.domain().domain.0, &self.taker.domain().site)
    }

    /// Verifies a header: who signed it, and that it is for this site and this key.
    pub async fn open_sealed(&self, header: &SealedHeader) -> Result<SealedFile, LifecycleError> {
        if header.sealed_ms == 0 || header.proof.is_empty() {
            return Err(refusal(
                RefusalCode::FileVersion,
                "the file was sealed by an older release, whose files say neither when they were sealed \
                 nor that their signer knows the keys: seal it again with this one",
            )
            .into());
        }
        let signer = self.signers.get(&header.signer).ok_or_else(|| unknown(&header.signer))?;
        let signer = &signer.key;
        verify(signer, &[HEADER_LABEL, &header.body], &header.signature)
            .map_err(|BadSignature| bad_signature("the file's header"))?;
        if header.domain_id != self.taker.domain().domain.0 {
            return Err(refusal(
                RefusalCode::WrongSite,
                "the file is sealed for another key domain: seal it for this one",
            )
            .into());
        }
        let key = self.import_key().await?;
        let same = key.fingerprint().ct_eq(&header.import_key_fingerprint);
        if !bool::from(same) || header.oaep_hash != Some(key.oaep_hash) {
            return Err(refusal(
                RefusalCode::WrongImportKey,
                "the file is sealed to another import key, or with another OAEP hash, than this \
                 site's: fetch it again (ami-tool site import-key), compare its fingerprint, seal again",
            )
            .into());
        }
        let ahead_ms = header.sealed_ms.saturating_sub(self.clock.unix_ms());
        if ahead_ms > AHEAD_MAX_MS {
            return Err(refusal(
                RefusalCode::SealedInFuture,
                format!(
                    "the file says that it was sealed {} s from now: set the clock that is wrong, the \
                     sealer's or this server's, and seal again",
                    ahead_ms / 1_000
                ),
            )
            .into());
        }
        Ok(SealedFile {
            signer: *signer,
            signer_name: header.signer.clone(),
            signer_number: signer_number(signer),
            header_hash: Sha256::digest(&header.body).into(),
            wrapped_file_key: header.wrapped_file_key.clone(),
            count: header.count,
            file_id: header.file_id,
            sealed_ms: header.sealed_ms,
            proof: header.proof.clone(),
            statement: statement(signer, &header.unproved),
        })
    }
}

impl SealedHeader {
    /// The file's number in the audit log: the beginning of its header's SHA-256. The header binds
    /// everything else: signer, site, the file's key, its id.
    pub fn number(body: &[u8]) -> u64 {
        number_of(&Sha256::digest(body).into())
    }
}

impl SealedFile {
    /// Tells in each event of a message which file it came from, and in the last, which sums up, who
    /// signed it and which chunk it was.
    pub(super) fn tell(&self, chunk: u32, entries: &mut [AuditEntry]) {
        for entry in &mut *entries {
            entry.details.push((Detail::SealedFile, number_of(&self.header_hash)));
        }
        if let Some(sum) = entries.last_mut() {
            sum.details.push((Detail::SealedSigner, self.signer_number));
            sum.details.push((Detail::SealedChunk, chunk.into()));
        }
    }

    /// What the domain remembers of it, if its first lines are taken now.
    pub(super) fn accepted(&self, now_ms: u64) -> AcceptedFile {
        AcceptedFile {
            signer: signer_hash(&self.signer),
            file_id: self.file_id,
            header: self.header_hash,
            sealed_ms: self.sealed_ms,
            taken_ms: now_ms,
        }
    }

    /// Its signer's name, as the settings have it.
    pub(super) fn signer(&self) -> &str {
        &self.signer_name
    }

    /// The file's key, by RSA-OAEP.
    pub(super) fn wrapped_file_key(&self) -> &[u8] {
        &self.wrapped_file_key
    }

    /// The statement that its proof opens to, and the proof: AES key wrap under the file's key.
    pub(super) fn proof(&self) -> (&[u8; 32], &[u8]) {
        (&self.statement, &self.proof)
    }

    /// The place of a line among all changes. `nth`: within its chunk.
    pub(super) fn mark(&self, chunk: u32, nth: usize) -> ChangeMark {
        let line = u64::from(chunk) << 32 | nth as u64;
        ChangeMark { at_ms: self.sealed_ms, file: Some(FilePlace { file: self.file_id, line }) }
    }

    /// Verifies that a chunk is of this file, at this place, unchanged. Its body is to be read only
    /// afterwards.
    pub fn verify(&self, chunk: &SealedChunk) -> Result<(), Refusal> {
        let SealedChunk { number, last, first_line, body, signature } = chunk;
        let message = [
            CHUNK_LABEL,
            &self.header_hash,
            &number.to_be_bytes(),
            &[u8::from(*last)],
            &first_line.to_be_bytes(),
            body,
        ];
        verify(&self.signer, &message, signature)
            .map_err(|BadSignature| bad_signature(&format!("chunk {number}")))
    }

    /// Checks the line numbers of a chunk that was verified.
    pub fn check_lines(&self, chunk: &SealedChunk, lines: &[u64]) -> Result<(), Refusal> {
        let due = chunk.first_line..;
        let in_order = !lines.is_empty() && due.clone().zip(lines).all(|(due, line)| due == *line);
        if !in_order || chunk.first_line == 0 {
            return Err(refusal(
                RefusalCode::LinesOutOfOrder,
                format!("chunk {}: its lines are not numbered as its place demands", chunk.number),
            ));
        }
        let end = chunk.first_line.saturating_add(lines.len() as u64) - 1;
        if end > self.count || (end == self.count) != chunk.last {
            return Err(refusal(
                RefusalCode::WrongCount,
                format!(
                    "chunk {} ends at line {end}, and the header says that there are {}",
                    chunk.number, self.count
                ),
            ));
        }
        Ok(())
    }
}

/// The beginning of a hash: a number of the audit log.
fn number_of(hash: &[u8; 32]) -> u64 {
    let (number, _) = hash.split_at(8);
    number.iter().fold(0, |all, byte| all << 8 | u64::from(*byte))
}

/// A signer's number in the audit log: the beginning of SHA-256 over his public key in DER.
fn signer_number(signer: &VerifyingKey) -> u64 {
    number_of(&signer_hash(signer))
}

/// SHA-256 over a signer's public key in DER.
pub(super) fn signer_hash(signer: &VerifyingKey) -> [u8; 32] {
    // A key that was read can be written.
    signer.to_public_key_der().map_or([0; 32], |der| Sha256::digest(der.as_bytes()).into())
}

/// The statement that only this signer's header can prove.
fn statement(signer: &VerifyingKey, unproved: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new().chain_update(PROOF_LABEL);
    // A key that was read can be written; were it not, no proof would fit.
    if let Ok(key) = signer.to_public_key_der() {
        hash.update(key.as_bytes());
    }
    hash.chain_update(unproved).finalize().into()
}

struct BadSignature;

fn verify(signer: &VerifyingKey, message: &[&[u8]], signature: &[u8]) -> Result<(), BadSignature> {
    let signature = Signature::from_slice(signature).map_err(|_| BadSignature)?;
    signer.verify(&message.concat(), &signature).map_err(|_| BadSignature)
}

fn bad_signature(what: &str) -> Refusal {
    let reason = format!(
        "{what} is not what its signer signed: it was changed, or moved from another place"
    );
    refusal(RefusalCode::BadSignature, reason)
}

fn unknown(signer: &str) -> Refusal {
    let known = !signer.is_empty() && signer.chars().all(|c| c.is_ascii_graphic());
    let name = if known && signer.len() <= 64 { signer } else { "(no name)" };
    let reason = format!("{name} is none of [[import.signers]] in this site's configuration");
    refusal(RefusalCode::UnknownSigner, reason)
}
