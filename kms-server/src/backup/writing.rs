//! A backup is written: the database as it is at one moment, however long that takes.

use std::{io::Write, sync::Arc};

use tokio::sync::mpsc;

use super::{ends::Ends, error::BackupError};
use crate::hsm::TokenError;
use kms_core::{
    BlockSecret, DomainRecord,
    audit::is_signed,
    backup::{
        chunk::Sealer,
        header::{Header, MAGIC},
        part::encode_last,
        summary::{Counter, Summary},
    },
};

/// Parts that wait between the database and the file: with `store::whole`'s pieces some 2 MiB.
const PARTS_WAITING: usize = 8;

/// A backup that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its header.
    pub header: Header,
    /// Its summary.
    pub summary: Summary,
    /// The length of the file.
    pub bytes: u64,
}

/// Writes the database, which is `domain`'s, to `out`; `tell` hears of rows and bytes so far.
pub async fn write(
    ends: &Ends,
    domain: &DomainRecord,
    out: &mut impl Write,
    mut tell: impl FnMut(u64, u64),
) -> Result<Written, BackupError> {
    let (key, header) = begin(ends, domain).await?;
    let Ends { hsm, store, .. } = ends;
    let encoded = header.encode();
    let len = u32::try_from(encoded.len()).map_err(|_| BackupError::Header)?;
    let begin = [&MAGIC[..], &len.to_be_bytes(), &encoded].concat();
    out.write_all(&begin)?;
    let mut bytes = begin.len() as u64;

    let digest = header.digest();
    let (mut sealer, mut counter) = (Sealer::new(&key, digest), Counter::default());
    let (to, mut parts) = mpsc::channel(PARTS_WAITING);
    let store = Arc::clone(store);
    let copying = tokio::spawn(async move { store.copy_out(to).await });
    while let Some(part) = parts.recv().await {
        let content = part.encode();
        counter.see(&part, &content).map_err(|_| BackupError::Content(0))?;
        let chunk = sealer.seal(&content, false)?;
        out.write_all(&chunk)?;
        bytes += chunk.len() as u64;
        tell(counter.rows(), bytes);
    }
    // That nothing more comes is the end only if the database says so.
    copying
        .await
        .map_err(|lost| crate::store::StoreError::Unreachable { reason: lost.to_string() })??;
    let summary = counter.summary();
    let message = summary.message(&digest);
    let signature = hsm.sign(message.clone()).await?;
    if !is_signed(&hsm.public_key().await?, &message, &signature) {
        return Err(BackupError::Summary(
            "was signed with another key than the one that the token shows",
        ));
    }
    let last = sealer.seal(&encode_last(&message, &signature), true)?;
    out.write_all(&last)?;
    out.flush()?;
    bytes += last.len() as u64;
    Ok(Written { header, summary, bytes })
}

/// The file's key, out of the token's generator, and the header that has it sealed.
async fn begin(
    Ends { hsm, store, at_ms }: &Ends,
    domain: &DomainRecord,
) -> Result<(BlockSecret, Header), BackupError> {
    const TOO_FEW: &str = "its generator gave too few bytes";
    let short = || TokenError::Refused { operation: "give random bytes", source: TOO_FEW.into() };
    let random = hsm.random(BlockSecret::LEN + 16).await?;
    let (secret, id) = random.split_at_checked(BlockSecret::LEN).ok_or_else(short)?;
    let key = BlockSecret::fill_with(|bytes| {
        bytes.copy_from_slice(secret);
        Ok::<(), BackupError>(())
    })?;
    let mut header = Header {
        domain: domain.domain,
        site: domain.site.clone(),
        id: id.try_into().map_err(|_| short())?,
        at_ms: *at_ms,
        release: env!("CARGO_PKG_VERSION").to_owned(),
        schema: store.schema(),
        kek_id: hsm.kek_in_use().id,
        canaries: domain.canaries.clone(),
        sealed_key: Vec::new(),
    };
    let (key, sealed) = hsm.seal_under(header.kek_id, header.place(), key).await?;
    header.sealed_key = sealed;
    Ok((key, header))
}
