//! The steps of a write, within the transaction that `PostgresStore` has begun. Rows go as arrays: a
//! commit of hundreds of records is the same dozen of statements as a commit of one.

use std::collections::BTreeMap;

use sqlx::PgConnection;

use super::{
    approvals, audit,
    columns::{classify, number, position, signed},
    counters,
    failure::WriteError,
    index, role,
    rows::{
        INSERT_HEADS, UPDATE_HEADS, add_seals, check_counts, notify, put_heads, put_records,
        put_site_keks,
    },
    sites, whole,
};
use crate::store::{
    BlockChange, ChainLink, Founding, StoreError, indexing, rules, sites::PeerStep,
    whole::RollBack, work::Work,
};
use kms_core::{BlockNo, DomainRecord, Head, Position, site::peer::PeerKind};

pub(super) async fn create_domain(
    connection: &mut PgConnection,
    founding: &Founding,
) -> Result<(), WriteError> {
    let domain = &founding.domain;
    let statement = "INSERT INTO domain \
                     (domain, blocks, site, epoch, even, canaries, created_ms, signature, read_only) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING";
    let done = sqlx::query(statement)
        .bind(&domain.domain.0[..])
        .bind(i64::from(domain.blocks.get()))
        .bind(&domain.site)
        .bind(signed(domain.epoch.0)?)
        .bind(domain.kind == PeerKind::Even)
        .bind(&domain.canaries)
        .bind(signed(domain.created_ms)?)
        .bind(domain.signature.as_ref().map(|signature| &signature[..]))
        .bind(domain.kind == PeerKind::Replica)
        .execute(&mut *connection)
        .await?;
    if done.rows_affected() == 1 {
        return role::put(connection, founding.role()).await;
    }
    let value = hex::encode(domain.domain.0);
    Err(StoreError::Taken { what: "the place of key domain", value }.into())
}

/// The record gets its signature, if it has none.
pub(super) async fn sign_domain(
    connection: &mut PgConnection,
    domain: &DomainRecord,
) -> Result<(), StoreError> {
    let statement = "UPDATE domain SET signature = $1 WHERE signature IS NULL AND domain = $2";
    let done = sqlx::query(statement)
        .bind(domain.signature.as_ref().map(|signature| &signature[..]))
        .bind(&domain.domain.0[..])
        .execute(connection)
        .await
        .map_err(classify)?;
    if done.rows_affected() == 1 {
        return Ok(());
    }
    let value = hex::encode(domain.domain.0);
    Err(StoreError::Taken { what: "the signature of key domain", value })
}

/// Writes all that a domain has besides its record.
pub(super) async fn found(
    connection: &mut PgConnection,
    founding: &Founding,
) -> Result<(), WriteError> {
    commit(connection, &founding.blocks, Asks::Nobody).await?;
    counters::begin_missing(connection, &founding.marks).await?;
    for record in &founding.role_records {
        role::add_record(connection, record).await?;
    }
    for peer in &founding.peers {
        let first = PeerStep { expected: None, now: peer.clone() };
        sites::put_peer(connection, &first).await?;
    }
    if let Some((mark, domain)) = founding.rebuilt.clone() {
        whole::mark(connection, &RollBack { mark, domain }).await?;
    }
    if audit::put_head_table(connection, None, &founding.table).await? {
        return Ok(());
    }
    let value = hex::encode(founding.domain.domain.0);
    Err(StoreError::Taken { what: "the head table of key domain", value }.into())
}

/// Whether a commit looks at the site's role: what a domain begins with is no commit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Asks {
    Role,
    Nobody,
}

/// Does `work`, which [`Work::check`] has passed.
pub(super) async fn work(
    connection: &mut PgConnection,
    work: Work<'_>,
    audit: &ChainLink<'_>,
) -> Result<(), WriteError> {
    match work {
        Work::Commit(changes) => commit(connection, changes, Asks::Role).await,
        Work::Adopt(adoptions) => sites::adopt(connection, adoptions, rules::said_at(audit)?).await,
        Work::ChangeRole(step) => {
            role::change(connection, step).await?;
            if !step.blocks.is_empty() {
                approvals::forget_all(connection).await?;
            }
            counters::begin(connection, &step.marks).await
        }
        Work::PutPeer(step) => sites::put_peer(connection, step).await,
        Work::PutApproval(step) => approvals::put(connection, step).await,
        Work::PutDivergence(divergent) => sites::put_divergence(connection, divergent).await,
        Work::PutSiteKeks(step) => put_site_keks(connection, step).await,
    }
}

/// Applies `changes`, which [`rules::check`] has passed.
async fn commit(
    connection: &mut PgConnection,
    changes: &[BlockChange],
    asks: Asks,
) -> Result<(), WriteError> {
    if changes.is_empty() {
        return Ok(());
    }
    // In ascending order throughout, so that two commits never wait for each other in a circle.
    let mut changes: Vec<&BlockChange> = changes.iter().collect();
    changes.sort_unstable_by_key(|change| change.head.block);
    let outcome = indexing::outcome(changes.iter().copied());
    let counts = lock_heads(connection, &changes, asks).await?;
    let heads: Vec<&Head> = changes.iter().map(|change| &change.head).collect();
    check_counts(connection, &heads, counts, &outcome, &[]).await?;
    let (new, old): (Vec<&BlockChange>, Vec<&BlockChange>) =
        changes.iter().partition(|change| change.expected.is_none());
    put_heads(connection, INSERT_HEADS, new.iter().map(|change| &change.head)).await?;
    put_heads(connection, UPDATE_HEADS, old.iter().map(|change| &change.head)).await?;
    let seals = changes.iter().map(|change| (change.head.block, &change.seals[..]));
    add_seals(connection, seals).await?;
    put_records(connection, &outcome).await?;
    index::update(connection, &changes, &outcome).await?;
    notify(connection, &heads).await
}

/// Locks the blocks that are there, and returns their record counts; `Conflict` if one is not where
/// `changes` expect it. The role comes with the rows, in no trip of its own: it is locked since the
/// transaction began, so that no row that was waited for is newer than what is read of it.
async fn lock_heads(
    connection: &mut PgConnection,
    changes: &[&BlockChange],
    asks: Asks,
) -> Result<BTreeMap<BlockNo, u64>, WriteError> {
    let query = "SELECT block, epoch, sequence, count, (SELECT epoch FROM role), \
                 (SELECT writes::int::bigint FROM role) \
                 FROM blocks WHERE block = ANY($1::bigint[]) ORDER BY block FOR UPDATE OF blocks";
    let blocks: Vec<i64> = changes.iter().map(|change| i64::from(change.head.block.0)).collect();
    let rows = sqlx::query(query).bind(blocks).fetch_all(&mut *connection).await?;
    if asks == Asks::Role {
        let heads = changes.iter().map(|change| &change.head);
        role::check_writer(connection, rows.first(), heads).await?;
    }
    let mut found = BTreeMap::<BlockNo, (Position, u64)>::new();
    for row in &rows {
        found.insert(BlockNo(number(row, 0)?), (position(row, 1)?, number(row, 3)?));
    }
    changes
        .iter()
        .map(|change| {
            let block = change.head.block;
            let head = found.get(&block);
            if head.map(|(at, _)| *at) == change.expected {
                Ok((block, head.map_or(0, |(_, count)| *count)))
            } else {
                Err(StoreError::Conflict(block).into())
            }
        })
        .collect()
}
