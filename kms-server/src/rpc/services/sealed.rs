//! Sealed import files on the wire: from bytes to what `lifecycle` verifies, in the order in which they
//! may be believed.

use bytes::Bytes;
use kms_proto::v1;
use prost::Message;
use tonic::Status;

use super::contents::Said;
use crate::{
    hsm::OaepHash,
    lifecycle::{Lifecycle, LifecycleError, Refusal, SealedChunk, SealedFile, SealedHeader},
    rpc::{
        gate::recording::outcome_of,
        messages::{lifecycle_status::of_lifecycle, shape::check_signed, status::Refused},
    },
};
use kms_core::{RefusalCode, audit::AuditOutcome, wire::sealed::HEADER_BYTES_MAX};

/// Why a chunk was not taken.
pub(crate) enum NotTaken {
    /// It can't be read, or is not where it may be.
    Misshapen(Refused),
    /// Its signer, its site, its bytes or its place.
    Refused(LifecycleError),
}

impl NotTaken {
    /// The outcome for the audit log, and the status for the caller.
    pub(super) fn told(self) -> (AuditOutcome, Status) {
        match self {
            Self::Misshapen(refused) => {
                (AuditOutcome::refused(RefusalCode::BadField.word()), refused.into())
            }
            Self::Refused(error) => (outcome_of(&error), of_lifecycle(&error)),
        }
    }
}

impl From<Refused> for NotTaken {
    fn from(refused: Refused) -> Self {
        Self::Misshapen(refused)
    }
}

impl From<LifecycleError> for NotTaken {
    fn from(error: LifecycleError) -> Self {
        Self::Refused(error)
    }
}

impl From<Refusal> for NotTaken {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal.into())
    }
}

/// The file that a stream carries, and how far it is.
pub(crate) struct SealedStream {
    header: v1::SealedHeader,
    file: SealedFile,
    /// Number and first line that are due; `None` after the last chunk.
    next: Option<(u32, u64)>,
    /// `None`: an older release sealed it, and does not say.
    said: Option<Said>,
}

impl SealedStream {
    /// Whether the stream may end here without something missing.
    pub(crate) fn ended(&self) -> Result<(), NotTaken> {
        match self.next {
            None => Ok(()),
            Some((number, _)) => Err(Refusal {
                code: RefusalCode::FileCut,
                reason: format!("the file does not end before chunk {number}: send the rest of it"),
            }
            .into()),
        }
    }

    /// The file's number in the audit log.
    pub(crate) fn number(&self) -> u64 {
        SealedHeader::number(&self.header.body)
    }
}

/// Takes one chunk: verifies the header (once a stream), then the chunk, and only then reads it. The
/// first chunk of a stream may be any; the others follow without a gap.
pub(crate) async fn accept(
    lifecycle: &Lifecycle,
    stream: &mut Option<SealedStream>,
    part: v1::SealedPart,
) -> Result<(SealedFile, u32, Vec<v1::ImportLine>), NotTaken> {
    let missing = |problem| Refused::Field { field: "sealed", problem };
    let header = part.header.ok_or(missing("its header is missing"))?;
    let chunk = part.chunk.ok_or(missing("its chunk is missing"))?;
    let mut known = match stream.take() {
        Some(known) if known.header == header => known,
        Some(_) => {
            return Err(Refusal {
                code: RefusalCode::AnotherFile,
                reason: "a stream carries the chunks of one file".to_owned(),
            }
            .into());
        }
        None => {
            let (read, contents) = read_header(&header)?;
            let file = lifecycle.open_sealed(&read).await?;
            let next = Some((chunk.number, chunk.first_line));
            SealedStream { header, file, next, said: contents.map(Said::new) }
        }
    };
    let v1::SealedChunk { number, last, first_line, body, signature } = chunk;
    let chunk = SealedChunk {
        number,
        last,
        first_line,
        body: body.to_vec(),
        signature: signature.to_vec(),
    };
    known.file.verify(&chunk)?;
    if known.next != Some((number, first_line)) {
        return Err(Refusal {
            code: RefusalCode::ChunkOutOfOrder,
            reason: match known.next {
                Some((due, _)) => format!("chunk {number} came where {due} is due"),
                None => format!("chunk {number} came after the last one"),
            },
        }
        .into());
    }
    check_signed(&body)?;
    let v1::SealedBody { lines } = canonical(body, "sealed.chunk.body")?;
    let numbers: Vec<u64> = lines.iter().map(|line| line.line).collect();
    known.file.check_lines(&chunk, &numbers)?;
    known.said.as_mut().map_or(Ok(()), |said| said.bring(&lines))?;
    let after = number.checked_add(1).zip(first_line.checked_add(lines.len() as u64));
    let next = if last { None } else { after };
    let file = known.file.clone();
    *stream = Some(SealedStream { next, ..known });
    Ok((file, number, lines))
}

fn read_header(
    header: &v1::SealedHeader,
) -> Result<(SealedHeader, Option<v1::SealedContents>), Refused> {
    if header.body.len() > HEADER_BYTES_MAX {
        return Err(Refused::Field { field: "sealed.header.body", problem: "it is too long" });
    }
    let read: v1::SealedHeaderBody = canonical(header.body.clone(), "sealed.header.body")?;
    let unproved = v1::SealedHeaderBody { proof: Bytes::new(), ..read.clone() }.encode_to_vec();
    let v1::SealedHeaderBody {
        file_id,
        domain_id,
        import_key_fingerprint,
        oaep_hash,
        wrapped_file_key,
        signer,
        count,
        sealed_ms,
        proof,
        contents,
    } = read;
    let file_id = file_id.as_ref().try_into().map_err(|_| Refused::Field {
        field: "sealed.header.file_id",
        problem: "it has 16 bytes",
    })?;
    let header = SealedHeader {
        body: header.body.to_vec(),
        unproved,
        file_id,
        signature: header.signature.to_vec(),
        domain_id: domain_id.to_vec(),
        import_key_fingerprint: import_key_fingerprint.to_vec(),
        oaep_hash: match v1::OaepHash::try_from(oaep_hash) {
            Ok(v1::OaepHash::OaepSha1) => Some(OaepHash::Sha1),
            Ok(v1::OaepHash::OaepSha256) => Some(OaepHash::Sha256),
            Ok(v1::OaepHash::Unspecified) | Err(_) => None,
        },
        wrapped_file_key: wrapped_file_key.to_vec(),
        signer,
        count,
        sealed_ms,
        proof: proof.to_vec(),
    };
    Ok((header, contents))
}

/// Reads what was signed. Bytes that another encoder would have written otherwise are refused: fields
/// that this version does not know would be signed for and passed over.
fn canonical<M: Message + Default>(body: Bytes, field: &'static str) -> Result<M, Refused> {
    let refused = || Refused::Field { field, problem: "it is not in canonical form" };
    let message = M::decode(body.clone()).map_err(|_| refused())?;
    if message.encode_to_vec() == body { Ok(message) } else { Err(refused()) }
}

/// The hash as the wire has it.
pub(crate) fn oaep_hash(hash: OaepHash) -> v1::OaepHash {
    match hash {
        OaepHash::Sha1 => v1::OaepHash::OaepSha1,
        OaepHash::Sha256 => v1::OaepHash::OaepSha256,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_hide_something_are_not_canonical() {
        let body = v1::SealedBody { lines: vec![v1::ImportLine { line: 1, meter: None }] };
        let bytes = body.encode_to_vec();
        assert!(canonical::<v1::SealedBody>(bytes.clone().into(), "x").is_ok());
        // An unknown field; a number in more bytes than it needs; a cut.
        let hidden = [&bytes[..], &[0x7A, 0x01, 0x00]].concat();
        let long = vec![0x0A, 0x03, 0x08, 0x81, 0x00];
        for bad in [hidden, long, bytes[..bytes.len() - 1].to_vec()] {
            assert!(canonical::<v1::SealedBody>(bad.into(), "x").is_err());
        }
    }
}
