//! Common ground of `init` and `migrate`: blocks that are made in patience, and a domain that is signed.

use std::time::{Duration, Instant};

use super::{fault::Fault, outside::SystemClock};
use crate::{
    audit::{AuditError, sign_head_table},
    hsm::Hsm,
};
use kms_core::{
    DomainRecord, Position,
    audit::{ChainTip, is_signed},
    block::Digest,
    freshness::{HeadTable, SignedHeadTable},
    ports::Clock,
};

/// The longest wait of one of the calls that make blocks for another one of them.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Says how far the making of `all` blocks is, once a second.
pub(super) fn tell_of(all: u32) -> impl FnMut(usize) {
    let mut next = Instant::now() + Duration::from_secs(1);
    move |made| {
        if Instant::now() >= next {
            next = Instant::now() + Duration::from_secs(1);
            tracing::info!(made, of = all, "block secrets are made and sealed");
        }
    }
}

/// Signs a domain's record and its first head table.
pub(super) async fn sign(
    hsm: &Hsm,
    domain: &mut DomainRecord,
    tips: Vec<ChainTip>,
    heads: Vec<(Position, Digest)>,
) -> Result<SignedHeadTable, Fault> {
    let token = |error| Fault::Token(Box::new(error));
    let key = hsm.public_key().await.map_err(token)?;
    let signature = hsm.sign(domain.message()).await.map_err(token)?;
    if !is_signed(&key, &domain.message(), &signature) {
        return Err(Fault::Token("the token signs with another key than the one it shows".into()));
    }
    domain.signature = Some(signature);
    let table = HeadTable { number: 1, at_ms: SystemClock::new().unix_ms(), tips, heads };
    let signed = sign_head_table(hsm, &key, &domain.domain, &table).await;
    signed.map_err(|error: AuditError| Fault::Token(error.into()))
}
