//! A database that failed over within its site. PostgreSQL gives each promotion a timeline of its own; a standby that was
//! promoted may lack the last commits that were acknowledged. So a server remembers the timeline, and at another one
//! holds what it knows of the audit chains against the database. What is missing makes it a restore: the database is
//! marked, the site reads and changes nothing until it is promoted above every epoch that is known.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    fault::Fault,
    node::{HeadFile, node_id, replace},
    outside::OperatingSystem,
    rolled_back,
};
use crate::{
    audit::{self, Audit, AuditError},
    backup::roll_back,
    hsm::Hsm,
    keyring::Roles,
    store::{Timeline, whole::WholeStore},
};
use kms_core::{
    DomainRecord,
    audit::ChainTip,
    ports::{Clock, HeadWitness as _, Randomness as _},
    site::restored::{RestoreMark, RolledBackBy},
};

/// In `data_dir`: the timeline on which this server knows the database to be whole.
const FILE: &str = "database-timeline";

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
        if noted.as_ref().is_some_and(|noted| *noted != now) {
            let lost = self.lost(&[]).await;
            let lost = lost.map_err(|error: AuditError| Fault::Away(error.into()))?;
            if let Some(lost) = lost {
                return self.mark(&now, &lost).await.map(Some);
            }
            tracing::warn!(
                timeline = now.number,
                "the database failed over, and has all that this server knows of"
            );
        }
        self.note(&now).map_err(|error| self.not_kept(&error))?;
        Ok(None)
    }

    /// Runs until the database was rolled back: then this server is to begin anew, and the answer says why.
    pub(super) async fn until_rolled_back(&self, audit: &Audit, roles: &Roles) -> String {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            match self.look(audit, roles).await {
                Ok(None) => {}
                Ok(Some(mark)) => {
                    return format!(
                        "the database was rolled back ({}): this server begins anew, and the site changes nothing until \
                         it is promoted above every epoch that is known",
                        mark.from
                    );
                }
                // The database is away, or the token: the next look may find them.
                Err(fault) => tracing::debug!(%fault, "the database's timeline is not known"),
            }
        }
    }

    async fn look(&self, audit: &Audit, roles: &Roles) -> Result<Option<RestoreMark>, Fault> {
        if self.store.restore_state().await?.mark().is_some_and(|signed| self.is_news(&signed.mark))
            && let Ok(Some(mark)) = roles.restore_mark().await
        {
            return Ok(Some(mark));
        }
        let Some(now) = self.store.timeline().await? else { return Ok(None) };
        let noted = self.noted().map_err(|error| self.not_kept(&error))?;
        if noted.as_ref() == Some(&now) {
            return Ok(None);
        }
        let acknowledged = *audit.follow().borrow();
        let lost = self.lost(&[acknowledged]).await;
        match lost.map_err(|error: AuditError| Fault::Away(error.into()))? {
            Some(lost) => self.mark(&now, &lost).await.map(Some),
            None => {
                tracing::warn!(
                    timeline = now.number,
                    "the database failed over, and has all that was acknowledged"
                );
                self.note(&now).map_err(|error| self.not_kept(&error))?;
                Ok(None)
            }
        }
    }

    /// Whether this server has not begun anew for this mark yet.
    fn is_news(&self, mark: &RestoreMark) -> bool {
        !rolled_back::is_seen(&self.data_dir, mark)
    }

    /// The first end of a chain that this server knows, or that is `acknowledged`, and that the database has not.
    async fn lost(&self, acknowledged: &[ChainTip]) -> Result<Option<ChainTip>, AuditError> {
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
        self.note(now).map_err(|error| self.not_kept(&error))?;
        Ok(mark)
    }

    fn noted(&self) -> io::Result<Option<Timeline>> {
        match fs::read_to_string(self.file()) {
            Ok(text) => Ok(of_line(&text)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn note(&self, now: &Timeline) -> io::Result<()> {
        let Timeline { system, number } = now;
        replace(&self.file(), format!("{system} {number}\n").as_bytes())
    }

    fn file(&self) -> PathBuf {
        Path::new(&self.data_dir).join(FILE)
    }

    fn not_kept(&self, error: &io::Error) -> Fault {
        let sentence = format!("cannot read or write {}: {error}", self.file().display());
        Fault::Setting(sentence.into())
    }
}

/// What is no line of ours says nothing.
fn of_line(text: &str) -> Option<Timeline> {
    let (system, number) = text.trim().split_once(' ')?;
    Some(Timeline { system: system.to_owned(), number: number.parse().ok()? })
}
