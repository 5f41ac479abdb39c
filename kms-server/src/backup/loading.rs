//! A backup is loaded into an empty database, which bears the mark of a restore from then on.

use std::io::Read;

use super::{
    ends::Ends,
    error::BackupError,
    reading::{Next, Reading},
};
use crate::{
    hsm::{Hsm, TokenError},
    store::whole::{RollBack, WholeStore},
};
use kms_core::{
    BlockCount, DomainId, DomainRecord, Epoch,
    audit::{Signature, is_signed},
    backup::{
        header::Header,
        part::{Cell, Part, Rows, Table},
        summary::Summary,
    },
    date::date,
    site::{
        peer::PeerKind,
        restored::{RestoreMark, RolledBackBy, SignedRestoreMark},
    },
};

/// Rows are written in transactions of about as many bytes.
const TRANSACTION_LEN: usize = 4 << 20;

/// Tables that come with the mark: before, the database is nobody's.
const LAST: [&str; 2] = ["domain", "role"];

/// A backup that was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Its summary.
    pub summary: Summary,
    /// The domain's record.
    pub domain: DomainRecord,
    /// The mark that the database bears.
    pub mark: RestoreMark,
}

/// Loads the backup whose header was read out of `input`; `tell` hears of rows so far.
pub async fn load(
    ends: &Ends,
    header: &Header,
    input: impl Read,
    mut tell: impl FnMut(u64),
) -> Result<Loaded, BackupError> {
    let (hsm, store) = (&ends.hsm, ends.store.as_ref());
    if header.schema != store.schema() {
        let (found, release) = (header.schema, header.release.clone());
        return Err(BackupError::Schema { found, release, known: store.schema() });
    }
    let mut reading = Reading::begin(hsm, header, input).await?;
    let from = format!("backup {} of {}", hex::encode(header.id), date(header.at_ms));
    store.begin_copy_in(&from).await?;
    let mut kept: Vec<(Table, Rows)> = Vec::new();
    let mut table: Option<Table> = None;
    let mut waiting: Vec<Rows> = Vec::new();
    let summary = loop {
        let part = match reading.next()? {
            Next::Part(part) => part,
            Next::End(summary) => break summary,
        };
        let rows = match part {
            Part::Rows(rows) => rows,
            Part::Table(next) => {
                put(store, table.as_ref(), &mut waiting).await?;
                table = Some(next);
                continue;
            }
        };
        match &table {
            Some(table) if LAST.contains(&table.name.as_str()) => kept.push((table.clone(), rows)),
            _ => waiting.push(rows),
        }
        if waiting.iter().map(|rows| rows.bytes.len()).sum::<usize>() >= TRANSACTION_LEN {
            put(store, table.as_ref(), &mut waiting).await?;
        }
        tell(reading.rows());
    };
    put(store, table.as_ref(), &mut waiting).await?;
    let domain = kept.iter().find_map(|(table, rows)| domain_in(table, rows));
    let domain = domain.ok_or(BackupError::NoDomain)?;
    if domain.domain != header.domain || domain.site != header.site {
        return Err(BackupError::Header);
    }
    let random = hsm.random(16).await?;
    let mark = RestoreMark {
        domain: domain.domain,
        site: domain.site.clone(),
        id: random.as_slice().try_into().map_err(|_| BackupError::NoDomain)?,
        by: RolledBackBy::Backup,
        at_ms: ends.at_ms,
        epoch: summary.epoch,
        from,
    };
    let rolled_back = roll_back(hsm, &domain, mark.clone()).await?;
    store.end_copy_in(&kept, &rolled_back).await?;
    Ok(Loaded { summary, domain, mark })
}

async fn put(
    store: &dyn WholeStore,
    table: Option<&Table>,
    waiting: &mut Vec<Rows>,
) -> Result<(), BackupError> {
    let rows = std::mem::take(waiting);
    match table {
        Some(table) if !rows.is_empty() => Ok(store.copy_in(table, &rows).await?),
        _ => Ok(()),
    }
}

/// Has the token sign a mark, and the domain's record over it.
pub async fn roll_back(
    hsm: &Hsm,
    domain: &DomainRecord,
    mark: RestoreMark,
) -> Result<RollBack, TokenError> {
    let over = sign(hsm, domain.message_under(&mark)).await?;
    let signature = sign(hsm, mark.message()).await?;
    Ok(RollBack { mark: SignedRestoreMark { mark, signature }, domain: over })
}

async fn sign(hsm: &Hsm, message: Vec<u8>) -> Result<Signature, TokenError> {
    let key = hsm.public_key().await?;
    let signature = hsm.sign(message.clone()).await?;
    if is_signed(&key, &message, &signature) {
        return Ok(signature);
    }
    let source = "the token signs with another key than the one it shows".into();
    Err(TokenError::Refused { operation: "sign a mark", source })
}

/// The domain's record in the table that has it.
fn domain_in(table: &Table, rows: &Rows) -> Option<DomainRecord> {
    if table.name != "domain" {
        return None;
    }
    let rows = rows.rows(table.columns.len()).ok()?;
    let row = rows.first()?;
    let cell = |name: &str| row.get(table.columns.iter().position(|column| column == name)?);
    let number = |name: &str| match cell(name)? {
        Cell::Integer(number) => u64::try_from(*number).ok(),
        _ => None,
    };
    let bytes = |name: &str| match cell(name)? {
        Cell::Bytes(bytes) => Some(bytes.as_slice()),
        _ => None,
    };
    let Cell::Text(site) = cell("site")? else { return None };
    Some(DomainRecord {
        domain: DomainId(bytes("domain")?.try_into().ok()?),
        blocks: BlockCount::new(number("blocks")?.try_into().ok()?).ok()?,
        site: site.clone(),
        epoch: Epoch(number("epoch")?),
        kind: PeerKind::of_site(number("even")? == 1, number("read_only")? == 1),
        canaries: bytes("canaries")?.to_vec(),
        created_ms: number("created_ms")?,
        signature: bytes("signature").and_then(|signature| signature.try_into().ok()),
    })
}
