//! Sealing: meters in, signed chunks out.

use std::time::{SystemTime, UNIX_EPOCH};

use getrandom::{SysRng, rand_core::UnwrapErr};
use kms_core::wire::sealed::{CHUNK_LABEL, HEADER_LABEL, PROOF_LABEL};
use kms_proto::v1;
use p256::{
    ecdsa::{Signature, SigningKey, signature::Signer as _},
    pkcs8::{DecodePrivateKey as _, EncodePublicKey as _},
};
use prost::Message as _;
use rsa::Oaep;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::{
    contents::Contents,
    error::SealError,
    file::SealedPart,
    key::{OaepHash, PinnedImportKey},
};
use crate::meter::{KeyKind, NewKey, NewMeter};
use crate::secret::KeyBytes;

/// Lines in one chunk: what the service accepts at most.
pub const CHUNK_LINES_MAX: usize = kms_core::wire::IMPORT_LINES_MAX;
/// Bytes in one chunk: in hexadecimal it is one line of a file.
const CHUNK_BYTES_MAX: usize = 96 << 10;

/// The signer of a file: a name that the site's configuration knows, and the private key to it.
pub struct ManifestSigner {
    name: String,
    key: SigningKey,
}

impl ManifestSigner {
    /// Reads a P-256 private key (PKCS #8, PEM).
    pub fn from_pem(name: &str, pem: &str) -> Result<Self, SealError> {
        let key = SigningKey::from_pkcs8_pem(pem).map_err(|_| SealError::SigningKey)?;
        Ok(Self { name: name.to_owned(), key })
    }

    fn sign(&self, message: &[&[u8]]) -> Vec<u8> {
        let signature: Signature = self.key.sign(&message.concat());
        signature.to_bytes().to_vec()
    }

    /// The statement that only this signer's header can prove, of a header without its proof.
    fn statement(&self, header: &[u8]) -> Result<[u8; 32], SealError> {
        let key = self.key.verifying_key().to_public_key_der();
        let key = key.map_err(|_| SealError::SigningKey)?;
        let hash = Sha256::new().chain_update(PROOF_LABEL).chain_update(key.as_bytes());
        Ok(hash.chain_update(header).finalize().into())
    }
}

impl std::fmt::Debug for ManifestSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ManifestSigner").field("name", &self.name).finish_non_exhaustive()
    }
}

/// One file under way. Its key is wiped with it.
pub struct Sealer {
    file_key: Box<Zeroizing<[u8; 32]>>,
    header: v1::SealedHeader,
    header_hash: [u8; 32],
    signer: ManifestSigner,
    count: u64,
    /// Lines taken.
    taken: u64,
    /// Chunks made.
    chunks: u32,
    lines: Vec<v1::ImportLine>,
    bytes: usize,
    lines_max: usize,
}

impl Sealer {
    /// Makes the file's key and its header, sealed now. `contents`: what will come, or how many meters.
    #[expect(clippy::disallowed_methods, reason = "sealing is offline: there is no other clock")]
    pub fn new(
        to: &PinnedImportKey,
        signer: ManifestSigner,
        contents: impl Into<Contents>,
    ) -> Result<Self, SealError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|_| SealError::Clock)?;
        Self::new_at(to, signer, contents, now.as_millis() as u64)
    }

    /// The same, sealed at `sealed_ms` (milliseconds since 1970): a site refuses what lies in its future,
    /// and whatever is older than a meter's last change does not change the meter.
    pub fn new_at(
        to: &PinnedImportKey,
        signer: ManifestSigner,
        contents: impl Into<Contents>,
        sealed_ms: u64,
    ) -> Result<Self, SealError> {
        let contents = contents.into();
        let count = contents.lines();
        let mut file_key = Box::new(Zeroizing::new([0; 32]));
        getrandom::fill(&mut file_key[..]).map_err(|_| SealError::Randomness)?;
        let mut file_id = [0; 16];
        getrandom::fill(&mut file_id).map_err(|_| SealError::Randomness)?;
        // It gave bytes a moment ago; were it to fail now, nothing could be sealed by this process.
        let mut random = UnwrapErr(SysRng);
        let wrapped = match to.import_key.oaep_hash {
            OaepHash::Sha1 => to.key.encrypt(&mut random, Oaep::<sha1::Sha1>::new(), &file_key[..]),
            OaepHash::Sha256 => to.key.encrypt(&mut random, Oaep::<Sha256>::new(), &file_key[..]),
        };
        let mut header = v1::SealedHeaderBody {
            file_id: file_id.to_vec().into(),
            domain_id: to.import_key.domain_id.clone().into(),
            import_key_fingerprint: to.fingerprint.0.to_vec().into(),
            oaep_hash: to.import_key.oaep_hash.to_wire() as i32,
            wrapped_file_key: wrapped.map_err(|_| SealError::Wrapping)?.into(),
            signer: signer.name.clone(),
            count,
            sealed_ms,
            proof: Default::default(),
            contents: contents.to_wire(),
        };
        let statement = signer.statement(&header.encode_to_vec())?;
        header.proof = wrap_bytes(&file_key, &statement)?.into();
        let body = header.encode_to_vec();
        let signature = signer.sign(&[HEADER_LABEL, &body]);
        Ok(Self {
            file_key,
            header_hash: Sha256::digest(&body).into(),
            header: v1::SealedHeader { body: body.into(), signature: signature.into() },
            signer,
            count,
            taken: 0,
            chunks: 0,
            lines: Vec::new(),
            bytes: 0,
            lines_max: CHUNK_LINES_MAX,
        })
    }

    /// At most so many lines in one chunk: 1 to 500.
    #[must_use]
    pub fn with_chunk_lines(mut self, lines_max: usize) -> Self {
        self.lines_max = lines_max.clamp(1, CHUNK_LINES_MAX);
        self
    }

    /// The file's header.
    pub fn header(&self) -> &v1::SealedHeader {
        &self.header
    }

    /// The file's name in the site's audit log: the beginning of its header's SHA-256; 16 hex digits.
    pub fn audit_number(&self) -> String {
        self.header_hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Takes the next meter; its keys are wiped. Gives the chunk that is full by now, if one is.
    pub fn push(&mut self, meter: NewMeter) -> Result<Option<SealedPart>, SealError> {
        let line = self.taken + 1;
        if line > self.count {
            return Err(SealError::Count { counted: self.count });
        }
        let meter = Some(self.seal(line, meter)?);
        let line = v1::ImportLine { line, meter };
        let len = line.encoded_len() + 8;
        if len > CHUNK_BYTES_MAX {
            return Err(SealError::TooLong { line: line.line });
        }
        let full = self.lines.len() == self.lines_max || self.bytes + len > CHUNK_BYTES_MAX;
        let part = full.then(|| self.chunk(false));
        self.taken += 1;
        self.bytes += len;
        self.lines.push(line);
        Ok(part)
    }

    /// The last chunk.
    pub fn finish(mut self) -> Result<SealedPart, SealError> {
        if self.taken != self.count || self.lines.is_empty() {
            return Err(SealError::Count { counted: self.count });
        }
        Ok(self.chunk(true))
    }

    fn seal(&self, line: u64, meter: NewMeter) -> Result<v1::NewMeter, SealError> {
        may_be_sealed(&meter).map_err(|error| error.at_line(line))?;
        meter.into_wire_with(|NewKey { kind, value, security_setup, protection }| {
            Ok(v1::NewKey {
                kind: kind as i32,
                security_setup: security_setup.into(),
                protection: protection.map_or(0, |protection| protection as i32),
                clear_value: Default::default(),
                wrapped_value: wrap(&self.file_key, &value)?.into(),
            })
        })
    }

    fn chunk(&mut self, last: bool) -> SealedPart {
        let lines = std::mem::take(&mut self.lines);
        self.bytes = 0;
        let (number, count) = (self.chunks, lines.len());
        self.chunks += 1;
        let first_line = lines.first().map_or(0, |line| line.line);
        let body = v1::SealedBody { lines }.encode_to_vec();
        let signature = self.signer.sign(&[
            CHUNK_LABEL,
            &self.header_hash,
            &number.to_be_bytes(),
            &[u8::from(last)],
            &first_line.to_be_bytes(),
            &body,
        ]);
        let chunk = v1::SealedChunk {
            number,
            last,
            first_line,
            body: body.into(),
            signature: signature.into(),
        };
        SealedPart::of(self.header.clone(), chunk, count)
    }
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer").field("taken", &self.taken).finish_non_exhaustive()
    }
}

/// Whether all keys of a meter are ones that can be sealed. Its number is not in the error.
pub fn may_be_sealed(meter: &NewMeter) -> Result<(), SealError> {
    for key in &meter.keys {
        let len = key.value.expose_key_bytes().len();
        match key.kind {
            kind @ (KeyKind::HlsSecret | KeyKind::LlsPassword) => {
                return Err(SealError::Secret { line: 0, kind });
            }
            _ if !matches!(len, 16 | 32) => return Err(SealError::Length { line: 0, len }),
            _ => {}
        }
    }
    Ok(())
}

/// Wraps one key under the file's.
fn wrap(file_key: &[u8; 32], value: &KeyBytes) -> Result<Vec<u8>, SealError> {
    wrap_bytes(file_key, value.expose_key_bytes())
}

fn wrap_bytes(file_key: &[u8; 32], key: &[u8]) -> Result<Vec<u8>, SealError> {
    let mut wrapped = vec![0; key.len() + dlms::key_wrap::OVERHEAD_LEN];
    dlms::key_wrap::wrap(file_key, key, &mut wrapped).map_err(|_| SealError::Wrapping)?;
    Ok(wrapped)
}
