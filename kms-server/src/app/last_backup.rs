//! The last backup that was written whole, as it is noted in `data_dir`: by `kms-server backup`, for the servers beside
//! it, which tell its age.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::node::replace;
use crate::telemetry::{
    catalogue,
    metrics::{Page, Source},
};
use kms_core::ports::Clock;

const FILE: &str = "last-backup";

/// Notes that a backup, begun at this time, was written whole.
pub(super) fn note(data_dir: &Path, at_ms: u64) -> io::Result<()> {
    replace(&data_dir.join(FILE), format!("{at_ms}\n").as_bytes())
}

/// Tells the age of the last backup.
pub(super) struct LastBackup {
    file: PathBuf,
    clock: Arc<dyn Clock>,
}

impl LastBackup {
    pub(super) fn of(data_dir: &Path, clock: Arc<dyn Clock>) -> Self {
        Self { file: data_dir.join(FILE), clock }
    }

    /// `None`: there is none that anybody noted here.
    fn age(&self) -> Option<Duration> {
        let text = fs::read_to_string(&self.file).ok()?;
        let at_ms: u64 = text.trim().parse().ok()?;
        Some(Duration::from_millis(self.clock.unix_ms().saturating_sub(at_ms)))
    }
}

impl Source for LastBackup {
    fn tell(&self, page: &mut Page) {
        if let Some(age) = self.age() {
            page.sample(&catalogue::BACKUP_AGE, &[], age.as_secs_f64());
        }
    }
}
