//! The steps of a write, within the transaction that `SqliteStore` has begun.

use std::collections::BTreeMap;

use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::{
    approvals, audit,
    columns::{number, signed},
    counters,
    failure::WriteError,
    index,
    pieces::pieces,
    role,
    rows::{add_seals, check_counts, put_heads, put_records, put_site_keks},
    sites, whole,
};
use crate::store::{
    BlockChange, ChainLink, Founding, StoreError, indexing, rules, sites::PeerStep,
    whole::RollBack, work::Work,
};
use kms_core::{BlockNo, DomainRecord, Head, Position, site::peer::PeerKind};

pub(super) async fn create_domain(
    connection: &mut SqliteConnection,
    founding: &Founding,
) -> Result<(), WriteError> {
    let domain = &founding.domain;
    let statement = "INSERT INTO domain \
                     (one, domain, blocks, site, epoch, even, canaries, created_ms, signature, read_only) \
                     VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING";
    let done = sqlx::query(statement)
        .bind(&domain.domain.0[..])
        .bind(domain.blocks.get())
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
    connection: &mut SqliteConnection,
    domain: &DomainRecord,
) -> Result<(), WriteError> {
    let statement = "UPDATE domain SET signature = ? WHERE signature IS NULL AND domain = ?";
    let done = sqlx::query(statement)
        .bind(domain.signature.as_ref().map(|signature| &signature[..]))
        .bind(&domain.domain.0[..])
        .execute(connection)
        .await?;
    if done.rows_affected() == 1 {
        return Ok(());
    }
    let value = hex::encode(domain.domain.0);
    Err(StoreError::Taken { what: "the signature of key domain", value }.into())
}

/// Writes all that a domain has besides its record.
pub(super) async fn found(
    connection: &mut SqliteConnection,
    founding: &Founding,
) -> Result<(), WriteError> {
    commit(connection, &founding.blocks).await?;
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

/// Does `work`, which [`Work::check`] has passed.
pub(super) async fn work(
    connection: &mut SqliteConnection,
    work: Work<'_>,
    audit: &ChainLink<'_>,
) -> Result<(), WriteError> {
    match work {
        Work::Commit([]) => Ok(()),
        Work::Commit(changes) => {
            role::check_writer(connection, changes.iter().map(|change| &change.head)).await?;
            commit(connection, changes).await
        }
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
pub(super) async fn commit(
    connection: &mut SqliteConnection,
    changes: &[BlockChange],
) -> Result<(), WriteError> {
    let outcome = indexing::outcome(changes);
    let counts = old_counts(connection, changes).await?;
    let heads: Vec<&Head> = changes.iter().map(|change| &change.head).collect();
    check_counts(connection, &heads, counts, &outcome, &[]).await?;
    put_heads(connection, &heads).await?;
    let seals = changes.iter().map(|change| (change.head.block, &change.seals[..]));
    add_seals(connection, seals).await?;
    put_records(connection, &outcome).await?;
    index::update(connection, changes, &outcome).await
}

/// The record counts of the blocks as they stand; `Conflict` if one is not where `changes` expect it.
async fn old_counts(
    connection: &mut SqliteConnection,
    changes: &[BlockChange],
) -> Result<BTreeMap<BlockNo, u64>, WriteError> {
    let mut found = BTreeMap::new();
    for piece in pieces(changes) {
        let mut query = QueryBuilder::<Sqlite>::new(
            "SELECT block, epoch, sequence, count FROM blocks WHERE block IN (",
        );
        let mut list = query.separated(", ");
        for change in piece {
            list.push_bind(change.head.block.0);
        }
        query.push(")");
        for row in query.build().fetch_all(&mut *connection).await? {
            let at: (u64, u64) = (number(&row, 1)?, number(&row, 2)?);
            found.insert(BlockNo(number(&row, 0)?), (at, number(&row, 3)?));
        }
    }
    let as_numbers = |at: Position| (at.epoch.0, at.sequence.0);
    changes
        .iter()
        .map(|change| {
            let block = change.head.block;
            let head = found.get(&block);
            if head.map(|(at, _)| *at) == change.expected.map(as_numbers) {
                Ok((block, head.map_or(0, |(_, count)| *count)))
            } else {
                Err(StoreError::Conflict(block).into())
            }
        })
        .collect()
}
