//! `kms-server migrate`, for a site that writes and has no marks of counters: an older version made no block's mark before
//! something was reserved of it. Only when somebody asks for it: a mark that is missing may have been taken away.

use std::sync::Arc;

use super::{
    asking_peer::Asking, counter_marks::CounterFile, fault::Fault, no_commits::NoCommits,
    outside::SystemClock, own_chain::OwnChain, report::Report,
};
use crate::{
    audit,
    config::Site,
    hsm::Hsm,
    keyring::{self, Below, Keyring, SiteRole},
    store::whole::WholeStore,
};
use kms_core::{
    BlockNo, DomainRecord, Epoch,
    audit::{AuditEntry, AuditOutcome, AuditedCall, Detail, Subject},
    counters::{allocator::Mark, mark::StoredMark},
    freshness::Freshness,
    profile::Profiles,
};

const NOTHING_TO_DO: &str = "this key domain is migrated: there is nothing to do";

/// Said where somebody else writes to the database.
const MARKED_MEANWHILE: &str = "a block has got a mark of its counters meanwhile: stop all servers of this database, and migrate again";

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
    pub(super) audit: audit::Config,
    pub(super) asking: Asking,
}

/// Marks where the counters of each block begin that has no mark of the epoch in which this site writes. No server may run
/// meanwhile.
pub(super) async fn begin_counters(
    grounds: Grounds,
    domain: DomainRecord,
) -> Result<Report, Fault> {
    let Grounds { site, hsm, keyring, profiles, store, audit, asking } = grounds;
    let known = CounterFile::open(&site.data_dir, &domain.domain, domain.blocks)?;
    let below = Below {
        hsm: hsm.clone(),
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
    // Who lost `data_dir` has forgotten what this server saw: the other site has not.
    let memory = asking.ask(store.clone(), &domain).await?;
    let blocks: Vec<BlockNo> = without.iter().map(|(block, _)| *block).collect();
    memory.check(&blocks, standing.epoch)?;
    let begun = Begun { blocks: without.len(), epoch: standing.epoch };
    let log = begun.log(&site, &domain, (store.clone(), hsm), audit).await?;
    for (block, stored) in &without {
        let term = stored.as_ref().map_or(0, |stored| stored.mark.term + 1);
        let mark = Mark { term, ..Mark::first(*block, standing.epoch) };
        let sealed = keyring.counting.seal(mark).await;
        let sealed = sealed.map_err(|error| Fault::Store(error.into()))?;
        if !store.put_counter_mark(stored.as_ref(), &sealed).await? {
            return Err(Fault::Store(MARKED_MEANWHILE.into()));
        }
    }
    log.close().await;
    store.close().await;
    let lines = [
        ("site", domain.site),
        ("epoch", standing.epoch.0.to_string()),
        ("blocks whose counters begin", without.len().to_string()),
        ("the other site", memory.said()),
    ];
    Ok(Report { lines: lines.map(|(what, is)| (what.to_owned(), is)).into() })
}

/// Counters that begin because somebody asked for it.
pub(super) struct Begun {
    pub(super) blocks: usize,
    pub(super) epoch: Epoch,
}

impl Begun {
    /// Says so in the audit log, in a chain of this node, which is to be closed. It is on disk when this returns.
    pub(super) async fn log(
        &self,
        site: &Site,
        domain: &DomainRecord,
        (store, hsm): (Arc<dyn WholeStore>, Hsm),
        config: audit::Config,
    ) -> Result<Arc<audit::Audit>, Fault> {
        let chain = OwnChain {
            data_dir: &site.data_dir,
            domain,
            freshness: Arc::default(),
            store,
            hsm,
            clock: Arc::new(SystemClock::new()),
        };
        let log = chain.open(config).await?;
        let recorded = log.record(self.entry(log.now_ms())).await;
        recorded.map_err(|error| Fault::Store(error.into()))?;
        Ok(log)
    }

    fn entry(&self, at_ms: u64) -> AuditEntry {
        let call = AuditedCall::new("kms-server", "Counters/Begin");
        let entry = call.entry(at_ms, Subject::NONE, AuditOutcome::Done);
        let blocks = u64::try_from(self.blocks).unwrap_or(u64::MAX);
        entry.with(Detail::Items, blocks).with(Detail::Epoch, self.epoch.0)
    }
}

/// Blocks without a mark of this epoch, each with the one that it has.
pub(super) async fn without_mark(
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
