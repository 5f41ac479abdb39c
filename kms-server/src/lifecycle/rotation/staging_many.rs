//! Staging of many keys: the token makes those of many meters in one call, and they are stored in few commits.
//!
//! What does not go as it was planned is done [alone](super::staging): nothing is decided here that is not decided there.

use std::collections::BTreeMap;

use futures_util::{StreamExt as _, stream};
use tokio::sync::Mutex;

use super::{
    changing::{meter_in, refused},
    staging::{StagedKey, not_made, not_taken, to_make},
    storing::{Fresh, Lines, NotStored},
};
use crate::{
    hsm::MADE_PER_CALL_MAX,
    keyring::KeysOfBlock,
    lifecycle::{
        error::LifecycleError,
        groups::{concerned, membership_of},
        verbs::{Lifecycle, TRIES},
    },
};
use kms_core::{
    BlockNo, MeterId, MeterRecord, RecordKey, SystemTitle,
    audit::AuditedCall,
    life::staging::{Plan, Staging, Wish, plan},
    ports::Proved,
};

/// Keys of one call to the token, and of one commit.
const GROUP: usize = MADE_PER_CALL_MAX;
/// Groups under way at one time: while one is stored, others are in the token, each in a session of its own.
const AT_ONCE: usize = 4;

/// A key that is wanted, and where its meter is.
#[derive(Clone, Copy)]
struct Asked<'a> {
    /// Its place in the call.
    at: usize,
    id: &'a MeterId,
    wish: &'a Wish,
    title: SystemTitle,
    block: BlockNo,
}

/// A key that is to be made.
struct Planned<'a> {
    asked: Asked<'a>,
    plan: Plan,
    lines: Lines,
}

type Outcome = Result<StagedKey, LifecycleError>;
/// What is known of keys by their place in the call. Of which there is nothing is done alone.
type Outcomes = BTreeMap<usize, Outcome>;

impl Lifecycle {
    /// Has keys made for many meters, each as [`Lifecycle::stage_key`] does: an answer a key, in order, and an entry in the
    /// audit log for each that is staged. What fails is for the caller to record; it leaves the others alone.
    ///
    /// Dropped half-way, some are staged and some are not: asked again, those that are stay what they are.
    pub async fn stage_keys(
        &self,
        call: &AuditedCall,
        wanted: &[(MeterId, Wish)],
    ) -> Vec<Result<StagedKey, LifecycleError>> {
        let mut outcomes = Outcomes::new();
        for turn in turns(wanted) {
            let asked = self.places(wanted, &turn).await;
            // One asker of the other site at a time: it sends others away.
            let proving = Mutex::new(());
            let mut groups = Vec::new();
            for group in asked.chunks(GROUP) {
                groups.push(self.stage_group(call, group, &proving));
            }
            let mut groups = stream::iter(groups).buffered(AT_ONCE);
            while let Some(known) = groups.next().await {
                outcomes.extend(known);
            }
            drop(groups);
            self.stage_alone(call, wanted, &turn, &mut outcomes).await;
        }
        (0..wanted.len())
            .map(|at| outcomes.remove(&at).unwrap_or(Err(LifecycleError::Busy)))
            .collect()
    }

    /// Those of which nothing is known yet. What keeps all meters of the site from being changed is met once.
    async fn stage_alone(
        &self,
        call: &AuditedCall,
        wanted: &[(MeterId, Wish)],
        turn: &[usize],
        outcomes: &mut Outcomes,
    ) {
        let mut site = None;
        for at in turn {
            let Some((id, wish)) = wanted.get(*at).filter(|_| !outcomes.contains_key(at)) else {
                continue;
            };
            let outcome = match site.as_ref().and_then(of_site) {
                Some(error) => Err(error),
                None => self.stage_key(call, id, wish).await,
            };
            site = outcome.as_ref().err().and_then(of_site);
            outcomes.insert(*at, outcome);
        }
    }

    /// Where the meters are, as far as memory or the index know, in the order of their blocks.
    async fn places<'a>(&self, wanted: &'a [(MeterId, Wish)], turn: &[usize]) -> Vec<Asked<'a>> {
        let those = || turn.iter().filter_map(|at| Some((*at, wanted.get(*at)?)));
        let resident = |id: &MeterId| self.records.resident_title(id.as_str());
        let unknown = those().map(|(_, (id, _))| id).filter(|id| resident(id).is_none());
        let unknown: Vec<MeterId> = unknown.cloned().collect();
        // What the index does not say now is asked again by who does it alone.
        let indexed = self.records.look_up_all(&unknown).await.unwrap_or_default();
        let asked = |(at, (id, wish)): (usize, &'a (MeterId, Wish))| {
            let title = resident(id).or_else(|| indexed.get(id).copied())?;
            Some(Asked { at, id, wish, title, block: self.records.block_of(&title) })
        };
        let mut asked: Vec<_> = those().filter_map(asked).collect();
        asked.sort_by_key(|it| it.block);
        asked
    }

    /// Plans, makes and stores the keys of some meters, each of another one, and has them proved.
    async fn stage_group(
        &self,
        call: &AuditedCall,
        group: &[Asked<'_>],
        proving: &Mutex<()>,
    ) -> Outcomes {
        let mut outcomes = Outcomes::new();
        match self.store_group(call, group, &mut outcomes).await {
            Ok(staged) => {
                let _one = proving.lock().await;
                self.prove_group(staged, &mut outcomes).await;
            }
            Err(error) => {
                for asked in group {
                    let known = of_group(&error).map(|error| (asked.at, Err(error)));
                    outcomes.extend(known);
                }
            }
        }
        outcomes
    }

    /// What is staged when this returns; in `outcomes` is what can't be. An error is about all of them.
    async fn store_group<'a>(
        &self,
        call: &AuditedCall,
        group: &[Asked<'a>],
        outcomes: &mut Outcomes,
    ) -> Result<Vec<(Asked<'a>, StagedKey)>, LifecycleError> {
        let (planned, keys) = self.plan_group(group, outcomes).await?;
        let fresh = self.make_group(planned, &keys, outcomes).await?;
        drop(keys);
        let (asked, fresh): (Vec<Asked<'a>>, Vec<Fresh<'a>>) = fresh.into_iter().unzip();
        let stored = self.store_fresh_soon(call, &fresh).await?;
        let mut staged = Vec::with_capacity(fresh.len());
        for ((asked, fresh), stored) in asked.into_iter().zip(fresh).zip(stored) {
            match stored {
                Ok(meter) => staged.extend(fresh_key(meter, &fresh).map(|key| (asked, key))),
                Err(NotStored::Changed) => {}
                Err(NotStored::Failed(error)) => drop(outcomes.insert(asked.at, Err(error))),
            }
        }
        Ok(staged)
    }

    /// Another server of this site that was first is no reason to make the keys again.
    async fn store_fresh_soon(
        &self,
        call: &AuditedCall,
        fresh: &[Fresh<'_>],
    ) -> Result<Vec<Result<MeterRecord, NotStored>>, LifecycleError> {
        for tried in 0..TRIES {
            match self.store_fresh(call, fresh).await {
                Err(LifecycleError::Busy) => self.step_back(tried).await,
                done => return done,
            }
        }
        Err(LifecycleError::Busy)
    }

    /// What is to be made, and the keys of the blocks that it goes to.
    async fn plan_group<'a>(
        &self,
        group: &[Asked<'a>],
        outcomes: &mut Outcomes,
    ) -> Result<(Vec<Planned<'a>>, BTreeMap<BlockNo, KeysOfBlock>), LifecycleError> {
        let records = group.iter().flat_map(|it| {
            let member = membership_of(&it.title, it.wish.place.setup);
            [(it.block, RecordKey::meter(&it.title)), (it.block, member)]
        });
        let changes = self.writer.change_records(records).await?;
        let changes: BTreeMap<_, _> = changes.into_iter().map(|it| (it.block(), it)).collect();
        let now_ms = self.clock.unix_ms();
        let mut planned = Vec::with_capacity(group.len());
        for asked in group {
            let Some(change) = changes.get(&asked.block) else { continue };
            // Moved, deleted, damaged, a group's key: found out by who does it alone.
            let Ok(meter) = meter_in(change, asked.id, &asked.title) else { continue };
            if concerned(change, &asked.title, asked.wish.place).is_some() {
                continue;
            }
            match plan(&meter, asked.wish, &self.config.times, now_ms) {
                Ok(Staging::Make(plan)) => {
                    let lines = Lines::of(&meter, asked.wish.place);
                    planned.push(Planned { asked: *asked, plan, lines });
                }
                Ok(Staging::Already(_)) => {}
                Err(why) => drop(outcomes.insert(asked.at, Err(refused(why)))),
            }
        }
        let keys = changes.into_iter().map(|(block, change)| (block, change.into_keys()));
        Ok((planned, keys.collect()))
    }

    /// Has the token make them. Nobody waits for their blocks meanwhile.
    async fn make_group<'a>(
        &self,
        planned: Vec<Planned<'a>>,
        keys: &BTreeMap<BlockNo, KeysOfBlock>,
        outcomes: &mut Outcomes,
    ) -> Result<Vec<(Asked<'a>, Fresh<'a>)>, LifecycleError> {
        let with_keys = |it: Planned<'a>| keys.get(&it.asked.block).map(|keys| (it, keys));
        let planned: Vec<_> = planned.into_iter().filter_map(with_keys).collect();
        let wanted: Vec<_> =
            planned.iter().map(|(it, keys)| to_make(keys, it.asked.wish, &it.plan)).collect();
        let made = self.taker().make_keys(&wanted).await.map_err(not_made)?;
        drop(wanted);
        let mut fresh = Vec::with_capacity(made.len());
        for ((Planned { asked, plan, lines }, keys), made) in planned.into_iter().zip(made) {
            let Asked { at, id, wish, title, .. } = asked;
            match made {
                Ok(made) => {
                    let (made, secret_version) = (self.named(made)?, keys.secret_version());
                    let of = Fresh { id, title, wish, plan, made, secret_version, lines };
                    fresh.push((asked, of));
                }
                Err(why) => drop(outcomes.insert(at, Err(not_taken(&why.to_string())))),
            }
        }
        Ok(fresh)
    }

    async fn prove_group(&self, staged: Vec<(Asked<'_>, StagedKey)>, outcomes: &mut Outcomes) {
        let mut blocks: Vec<BlockNo> = staged.iter().map(|(asked, _)| asked.block).collect();
        blocks.dedup();
        let now = self.clock.now();
        let proved = self.proofs.prove_each(&blocks).await;
        let proved: BTreeMap<BlockNo, Proved> = blocks.into_iter().zip(proved).collect();
        for (asked, key) in staged {
            let proved = proved.get(&asked.block).cloned();
            let proved = proved.unwrap_or(Proved::No("it was not asked".to_owned()));
            if proved == Proved::Yes {
                self.proved.note(key.key.id, now);
            }
            outcomes.insert(asked.at, Ok(StagedKey { proved, ..key }.told(asked.wish)));
        }
    }
}

/// A key as it was just stored; whether it is proved is asked next.
fn fresh_key(meter: MeterRecord, fresh: &Fresh<'_>) -> Option<StagedKey> {
    let key = meter.keys.iter().find(|it| it.id == fresh.made.id).cloned()?;
    Some(StagedKey { meter, key, already: false, proved: Proved::NotApplicable })
}

/// The wishes by their places, one of each meter in a turn: what is planned for a second one stands on the first.
fn turns(wanted: &[(MeterId, Wish)]) -> Vec<Vec<usize>> {
    let mut turns: Vec<Vec<usize>> = Vec::new();
    let mut seen = BTreeMap::<&MeterId, usize>::new();
    for (at, (id, _)) in wanted.iter().enumerate() {
        let turn = seen.entry(id).or_default();
        if *turn == turns.len() {
            turns.push(Vec::new());
        }
        if let Some(of_turn) = turns.get_mut(*turn) {
            of_turn.push(at);
        }
        *turn += 1;
    }
    turns
}

/// The same error for each key of a commit, where it says enough of each.
fn of_group(error: &LifecycleError) -> Option<LifecycleError> {
    let LifecycleError::OutcomeUnknown { reason } = error else { return of_site(error) };
    Some(LifecycleError::OutcomeUnknown { reason: reason.clone() })
}

/// The same error for another meter, where it is about no single one.
fn of_site(error: &LifecycleError) -> Option<LifecycleError> {
    use LifecycleError as Error;
    Some(match error {
        Error::ReadOnly => Error::ReadOnly,
        Error::ReadOnlyPrimary => Error::ReadOnlyPrimary,
        Error::NotNewest { reason } => Error::NotNewest { reason: reason.clone() },
        Error::NotPrimary { reason } => Error::NotPrimary { reason: reason.clone() },
        Error::Unavailable { reason } => Error::Unavailable { reason: reason.clone() },
        Error::AuditNotWritable { reason } => Error::AuditNotWritable { reason: reason.clone() },
        Error::RolledBack { reason } => Error::RolledBack { reason: reason.clone() },
        _ => return None,
    })
}
