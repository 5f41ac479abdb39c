//! A database that failed over within its site. PostgreSQL gives each promotion a timeline of its own; a standby that was
//! promoted may lack the last commits that were acknowledged. So a server remembers the timeline, and at another one
//! holds what it knows of the audit chains against the database. What is missing makes it a restore: the database is
//! marked, the site reads and changes nothing until it is promoted above every epoch that is known. A server that was away
//! through all of that finds a promotion of its own site in an epoch that it does not know yet: it only begins anew.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;

use super::{
    fault::Fault,
    node::{HeadFile, node_id, replace},
    outside::OperatingSystem,
    rolled_back::{self, begin_anew_on},
};
use crate::{
    audit::{self, Audit, AuditError},
    backup::roll_back,
    hsm::Hsm,
    keyring::{EpochMemory, Roles},
    store::{StoreError, Timeline, whole::WholeStore},
};
use kms_core::{
    DomainRecord, Epoch,
    audit::ChainTip,
    ports::{Clock, HeadWitness as _, Randomness as _},
    site::{
        restored::{RestoreMark, RolledBackBy},
        role::{RoleChange, SignedRoleRecord},
    },
};

/// In `data_dir`: the timeline on which this server knows the database to be whole, and the epoch that it knew then.
const FILE: &str = "database-timeline";

/// A timeline on which the database was whole.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Whole {
    timeline: Timeline,
    /// The highest epoch that signed records said; `None`: a release noted it that kept none.
    epoch: Option<Epoch>,
}

/// What another timeline says.
enum Lost {
    /// The database has all that this server knows of.
    Nothing,
    /// This end of a chain is missing.
    Tail(ChainTip),
    /// The same, and the site was promoted since, in an epoch that this server has not seen: it was dealt with.
    DealtWith(Epoch),
}

/// The interval at which a running server looks at the timeline, and whether the database was marked.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The look at a database's timeline.
pub(super) struct Failovers {
    pub(super) data_dir: PathBuf,
    pub(super) hsm: Hsm,
    pub(super) store: Arc<dyn WholeStore>,
    pub(super) domain: DomainRecord,
    pub(super) clock: Arc<dyn Clock>,
}

impl Failovers {
    /// Before anything of the database is used: the mark, if this start finds that it lost its tail.
    pub(super) async fn at_start(&self) -> Result<Option<RestoreMark>, Fault> {
        let now = match self.store.timeline().await {
            Ok(Some(now)) => now,
            Ok(None) => return Ok(None),
            Err(error) => {
                tracing::warn!(%error, "the database does not say which timeline it is on: a failover is not noticed");
                return Ok(None);
            }
        };
        let noted = self.noted().map_err(|error| self.not_kept(&error))?;
        let mut epoch = noted.as_ref().and_then(|noted| noted.epoch);
        if let Some(noted) = noted.filter(|noted| noted.timeline != now) {
            match self.lost(&noted, &[]).await? {
                Lost::Tail(lost) => return self.mark(&now, &lost).await.map(Some),
                Lost::DealtWith(since) => {
                    begin_anew_on(&self.data_dir, &now, since)?;
                    epoch = Some(since);
                }
                Lost::Nothing => tracing::warn!(
                    timeline = now.number,
                    "the database failed over, and has all that this server knows of"
                ),
            }
        }
        self.note(now, epoch).map_err(|error| self.not_kept(&error))?;
        Ok(None)
    }

    /// Runs until the database was rolled back: then this server is to begin anew, and the answer says why.
    pub(super) async fn until_rolled_back(&self, audit: &Audit, roles: &Roles) -> String {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            match self.look(audit, roles).await {
                Ok(None) => {}
                Ok(Some(reason)) => return reason,
                // The database is away, or the token: the next look may find them.
                Err(fault) => tracing::debug!(%fault, "the database's timeline is not known"),
            }
        }
    }

    async fn look(&self, audit: &Audit, roles: &Roles) -> Result<Option<String>, Fault> {
        if self.store.restore_state().await?.mark().is_some_and(|signed| self.is_news(&signed.mark))
            && let Ok(Some(mark)) = roles.restore_mark().await
        {
            return Ok(Some(begins_anew(&mark)));
        }
        // By the signed records. Before the timeline: what was known while the database was on it is of it.
        let known = roles.standing().epoch;
        let Some(now) = self.store.timeline().await? else { return Ok(None) };
        let noted = self.noted().map_err(|error| self.not_kept(&error))?;
        let before = noted.unwrap_or(Whole { timeline: now.clone(), epoch: None });
        // Never a lower one: what the database says besides excuses nothing.
        let epoch = before.epoch.max(Some(known));
        if before.timeline != now {
            let acknowledged = *audit.follow().borrow();
            match self.lost(&before, &[acknowledged]).await? {
                Lost::Tail(lost) => {
                    let mark = self.mark(&now, &lost).await?;
                    return Ok(Some(begins_anew(&mark)));
                }
                Lost::DealtWith(epoch) => {
                    return Ok(Some(format!(
                        "the database was rolled back, and the site was promoted to epoch {} since: this server begins \
                         anew",
                        epoch.0
                    )));
                }
                Lost::Nothing => tracing::warn!(
                    timeline = now.number,
                    "the database failed over, and has all that was acknowledged"
                ),
            }
        } else if before.epoch == epoch {
            return Ok(None);
        }
        self.note(now, epoch).map_err(|error| self.not_kept(&error))?;
        Ok(None)
    }

    /// Whether this server has not begun anew for this mark yet.
    fn is_news(&self, mark: &RestoreMark) -> bool {
        !rolled_back::is_seen(&self.data_dir, mark)
    }

    /// What the database lost since it was whole, as far as this server knows.
    async fn lost(&self, whole: &Whole, acknowledged: &[ChainTip]) -> Result<Lost, Fault> {
        let missing = self.missing(acknowledged).await;
        let missing = missing.map_err(|error: AuditError| Fault::Away(error.into()))?;
        let Some(lost) = missing else { return Ok(Lost::Nothing) };
        Ok(self.promoted_since(whole).await?.map_or(Lost::Tail(lost), Lost::DealtWith))
    }

    /// The newest epoch that this site took by a record that its token signed, above the one that this server knew while
    /// the database was whole: whatever was lost then, was lost before.
    async fn promoted_since(&self, whole: &Whole) -> Result<Option<Epoch>, Fault> {
        let Some(known) = whole.epoch else { return Ok(None) };
        let keys = self.hsm.site_keys().await.map_err(|error| Fault::Token(error.into()))?;
        let records = self.store.role_records().await?;
        let is_since = |signed: &&SignedRoleRecord| {
            let record = &signed.record;
            record.domain == self.domain.domain
                && record.change == RoleChange::Promotion
                && record.epoch > known
                && self.domain.kind.owns(record.epoch)
                && signed.is_signed_by(&keys)
        };
        Ok(records.iter().filter(is_since).map(|signed| signed.record.epoch).max())
    }

    /// The first end of a chain that this server knows, or that is `acknowledged`, and that the database has not.
    async fn missing(&self, acknowledged: &[ChainTip]) -> Result<Option<ChainTip>, AuditError> {
        let witness = |error: io::Error| AuditError::Witness(error.to_string());
        let node = node_id(&self.data_dir, &OperatingSystem);
        let node = node.map_err(|fault| AuditError::Witness(fault.to_string()))?;
        let known = HeadFile::of(&self.data_dir, node).map_err(witness)?.known().await;
        let known = known.map_err(|error| AuditError::Witness(error.0))?;
        for tip in known.tips.iter().chain(acknowledged).filter(|tip| tip.sequence > 0) {
            if !audit::has_end(self.store.as_ref(), tip).await? {
                return Ok(Some(*tip));
            }
        }
        Ok(None)
    }

    /// Marks the database, unless another server of the site did.
    async fn mark(&self, now: &Timeline, lost: &ChainTip) -> Result<RestoreMark, Fault> {
        let mut id = [0; 16];
        OperatingSystem.fill(&mut id).map_err(|error| Fault::Runtime(error.into()))?;
        let mark = RestoreMark {
            domain: self.domain.domain,
            site: self.domain.site.clone(),
            id,
            by: RolledBackBy::LostTail,
            at_ms: self.clock.unix_ms(),
            epoch: self.store.role().await?.epoch,
            from: format!(
                "failover to timeline {}, without event {} of node {}",
                now.number, lost.sequence, lost.node
            ),
        };
        tracing::error!(
            timeline = now.number,
            event = lost.sequence,
            node = %lost.node,
            "the database failed over and lost what was acknowledged: it is marked as rolled back"
        );
        let rolled_back = roll_back(&self.hsm, &self.domain, mark.clone()).await?;
        self.store.mark_rolled_back(&rolled_back).await?;
        self.note(now.clone(), None).map_err(|error| self.not_kept(&error))?;
        Ok(mark)
    }

    fn noted(&self) -> io::Result<Option<Whole>> {
        noted_in(&self.file())
    }

    fn note(&self, timeline: Timeline, epoch: Option<Epoch>) -> io::Result<()> {
        note_in(&self.file(), Whole { timeline, epoch })
    }

    fn file(&self) -> PathBuf {
        Path::new(&self.data_dir).join(FILE)
    }

    fn not_kept(&self, error: &io::Error) -> Fault {
        let sentence = format!("cannot read or write {}: {error}", self.file().display());
        Fault::Setting(sentence.into())
    }
}

#[async_trait]
impl EpochMemory for Failovers {
    /// On the timeline that was noted: of another one it is not known yet whether this epoch was taken before it began or
    /// since. The next look tells, by what was noted.
    async fn see(&self, epoch: Epoch) -> bool {
        let now = match self.store.timeline().await {
            Ok(Some(now)) => now,
            Ok(None) => return true,
            Err(StoreError::Unreachable { .. }) => return false,
            // No failover is noticed here.
            Err(_) => return true,
        };
        if let Err(error) = raise_in(&self.file(), &now, epoch) {
            tracing::error!(error = %self.not_kept(&error), "this epoch is not noted");
        }
        true
    }
}

/// Whoever reads the note to write it: the look at the timeline, and who sees an epoch. A process has one such file.
static NOTING: Mutex<()> = Mutex::new(());

fn one_at_a_time() -> MutexGuard<'static, ()> {
    NOTING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn noted_in(file: &Path) -> io::Result<Option<Whole>> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(of_line(&text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Notes it; of one timeline never an epoch below the one that stands there, which somebody may have seen meanwhile.
fn note_in(file: &Path, whole: Whole) -> io::Result<()> {
    let _one = one_at_a_time();
    let there = noted_in(file)?.filter(|noted| noted.timeline == whole.timeline);
    let epoch = whole.epoch.max(there.and_then(|noted| noted.epoch));
    replace(file, line_of(&Whole { epoch, ..whole }).as_bytes())
}

/// Notes an epoch that was seen on the timeline that is noted, if it is a higher one.
fn raise_in(file: &Path, now: &Timeline, epoch: Epoch) -> io::Result<()> {
    let _one = one_at_a_time();
    let there = noted_in(file)?;
    match there.filter(|noted| noted.timeline == *now && noted.epoch < Some(epoch)) {
        Some(noted) => replace(file, line_of(&Whole { epoch: Some(epoch), ..noted }).as_bytes()),
        None => Ok(()),
    }
}

fn begins_anew(mark: &RestoreMark) -> String {
    format!(
        "the database was rolled back ({}): this server begins anew, and the site changes nothing until it is promoted \
         above every epoch that is known",
        mark.from
    )
}

fn line_of(Whole { timeline: Timeline { system, number }, epoch }: &Whole) -> String {
    match epoch {
        Some(epoch) => format!("{system} {number} {}\n", epoch.0),
        None => format!("{system} {number}\n"),
    }
}

/// What is no line of ours says nothing.
fn of_line(text: &str) -> Option<Whole> {
    let mut words = text.split_whitespace();
    let (system, number) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
    let epoch = words.next().and_then(|epoch| epoch.parse().ok()).map(Epoch);
    Some(Whole { timeline: Timeline { system, number }, epoch })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_that_is_seen_while_the_timeline_is_looked_at_stays_noted() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE);
        let timeline = |number| Timeline { system: "73".to_owned(), number };
        let whole = |number, epoch| Whole { timeline: timeline(number), epoch };
        note_in(&file, whole(4, None)).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    (0..100).for_each(|_| note_in(&file, whole(4, Some(Epoch(1)))).unwrap())
                });
            }
            for first in 0..4 {
                let file = &file;
                let raise =
                    move |n| raise_in(file, &timeline(4), Epoch(2 + first + 4 * n)).unwrap();
                scope.spawn(move || (0..50u64).for_each(raise));
            }
        });
        assert_eq!(noted_in(&file).unwrap(), Some(whole(4, Some(Epoch(201)))));
        // Of another timeline nothing is known of it.
        raise_in(&file, &timeline(5), Epoch(300)).unwrap();
        assert_eq!(noted_in(&file).unwrap(), Some(whole(4, Some(Epoch(201)))));
        note_in(&file, whole(5, None)).unwrap();
        assert_eq!(noted_in(&file).unwrap(), Some(whole(5, None)));
    }

    #[test]
    fn a_timeline_comes_back_from_its_line_with_its_epoch_or_without_one() {
        let timeline = Timeline { system: "73".to_owned(), number: 4 };
        for epoch in [None, Some(Epoch(6))] {
            let whole = Whole { timeline: timeline.clone(), epoch };
            assert_eq!(of_line(&line_of(&whole)), Some(whole));
        }
        assert_eq!((of_line(""), of_line("73"), of_line("73 x")), (None, None, None));
    }
}
