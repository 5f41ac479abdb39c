//! `kms-server migrate`, for a site that writes and has no marks of counters: an older version made no block's mark before
//! something was reserved of it. Only when somebody asks for it: a mark that is missing may have been taken away.

use std::sync::Arc;

use super::{
    counter_marks::CounterFile, fault::Fault, no_commits::NoCommits, outside::SystemClock,
    report::Report,
};
use crate::{
    config::Site,
    hsm::Hsm,
    keyring::{self, Below, Keyring, SiteRole},
    store::whole::WholeStore,
};
use kms_core::{
    BlockNo, DomainRecord, Epoch,
    counters::{allocator::Mark, mark::StoredMark},
    freshness::Freshness,
    profile::Profiles,
};

const NOTHING_TO_DO: &str = "this key domain is migrated: there is nothing to do";

/// Said where this server has seen marks.
const TAKEN_AWAY: &str = "this server knows that the counters of blocks without a mark had one: somebody took them away; take \
                          a higher epoch (`ami-tool site promote --above-epoch N`)";

/// The ground of it: a token and a database that belong together.
pub(super) struct Grounds {
    pub(super) site: Site,
    pub(super) hsm: Hsm,
    pub(super) keyring: keyring::Config,
    pub(super) profiles: Arc<Profiles>,
    pub(super) store: Arc<dyn WholeStore>,
}

/// Marks where the counters of each block begin that has no mark of the epoch in which this site writes. No server may run
/// meanwhile.
pub(super) async fn begin_counters(
    grounds: Grounds,
    domain: DomainRecord,
) -> Result<Report, Fault> {
    let Grounds { site, hsm, keyring, profiles, store } = grounds;
    let known = CounterFile::open(&site.data_dir, &domain.domain, domain.blocks)?;
    let below = Below {
        hsm,
        store: store.clone(),
        clock: Arc::new(SystemClock::new()),
        freshness: Arc::new(Freshness::default()),
        role: Arc::new(SiteRole::unknown(&domain)),
        profiles,
    };
    let keyring = Keyring::new(keyring, domain.clone(), below, Arc::new(NoCommits));
    let keyring = keyring.map_err(|error| Fault::Setting(error.into()))?;
    let standing = keyring.roles.look().await.map_err(|error| Fault::Store(error.into()))?;
    let without = match standing.writes() {
        true => without_mark(store.as_ref(), &domain, standing.epoch).await?,
        false => Vec::new(),
    };
    if without.is_empty() {
        return Err(Fault::Store(NOTHING_TO_DO.into()));
    }
    if known.has_any_of(without.iter().map(|(block, _)| *block), standing.epoch) {
        return Err(Fault::Store(TAKEN_AWAY.into()));
    }
    for (block, stored) in &without {
        let term = stored.as_ref().map_or(0, |stored| stored.mark.term + 1);
        let mark = Mark { term, ..Mark::first(*block, standing.epoch) };
        let sealed = keyring.counting.seal(mark).await;
        let sealed = sealed.map_err(|error| Fault::Store(error.into()))?;
        store.put_counter_mark(stored.as_ref(), &sealed).await?;
    }
    store.close().await;
    let lines = [
        ("site", domain.site),
        ("epoch", standing.epoch.0.to_string()),
        ("blocks whose counters begin", without.len().to_string()),
    ];
    Ok(Report { lines: lines.map(|(what, is)| (what.to_owned(), is)).into() })
}

/// Blocks without a mark of this epoch, each with the one that it has.
async fn without_mark(
    store: &dyn WholeStore,
    domain: &DomainRecord,
    epoch: Epoch,
) -> Result<Vec<(BlockNo, Option<StoredMark>)>, Fault> {
    let marks = store.counter_marks().await?;
    let of = |block| marks.iter().find(|stored| stored.mark.block == block).copied();
    let all = (0..domain.blocks.get()).map(BlockNo);
    let with = all.map(|block| (block, of(block)));
    Ok(with.filter(|(_, stored)| stored.is_none_or(|it| it.mark.epoch < epoch)).collect())
}
