//! The connection that writes: when its log is cut, and how large its page cache is.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use sqlx::SqliteConnection;

/// Size of the log at which it is copied into the file and cut. Measured in bytes and not in changes:
/// one record touches from one to some thirty pages of 4 KiB. It is looked at after each commit, so the
/// log is never longer than this and the pages of one commit, or [`LOG_GROWTH_BYTES`], as long as nobody
/// reads all the time. Another program that does (a backup) holds the log back for as long.
const LOG_BYTES: u64 = 8 << 20;

/// The log's growth between two tries while a reader keeps it from being cut.
const LOG_GROWTH_BYTES: u64 = 2 << 20;

/// The time after which a writer that fills no log gives its cache back.
const BUSY: Duration = Duration::from_secs(60);

/// Page cache while much is written, in KiB (hence the minus): keeps the upper levels of the indexes of a
/// million meters, which an import touches at random places.
const LARGE_CACHE: &str = "PRAGMA cache_size = -65536";

/// The same, else: as readers have it.
const SMALL_CACHE: &str = "PRAGMA cache_size = -2000";

pub(super) struct Writer {
    pub(super) connection: SqliteConnection,
    /// The log's size at which it is to be cut next.
    cut_at: u64,
    cache: Cache,
}

impl Writer {
    pub(super) fn new(connection: SqliteConnection) -> Self {
        Self { connection, cut_at: LOG_BYTES, cache: Cache::default() }
    }

    /// To be called after each commit: cuts the `log` when it is due, and fits the cache.
    pub(super) async fn tidy_up(&mut self, log: &Path, now: Instant) -> Result<(), sqlx::Error> {
        let size = std::fs::metadata(log).map_or(0, |log| log.len());
        let is_due = size >= self.cut_at;
        if let Some(fit) = self.cache.fitted(is_due, now) {
            sqlx::raw_sql(fit).execute(&mut self.connection).await?;
        }
        if is_due {
            let is_cut = cut_log(&mut self.connection).await?;
            self.cut_at = if is_cut { LOG_BYTES } else { size + LOG_GROWTH_BYTES };
        }
        Ok(())
    }
}

/// SQLite as it is built here has one budget for the caches of all connections of a process: readers fill what the
/// writer may have. So it has much only while logs fill, and a service that is read from and hardly written to
/// has its memory for keys.
#[derive(Default)]
struct Cache {
    /// When a log was last full, while the cache is large.
    large_since: Option<Instant>,
}

impl Cache {
    /// The statement that fits the cache to a log that is full now, or not; `None`: it fits.
    fn fitted(&mut self, log_is_full: bool, now: Instant) -> Option<&'static str> {
        if log_is_full {
            return self.large_since.replace(now).is_none().then_some(LARGE_CACHE);
        }
        let since = self.large_since?;
        if now.saturating_duration_since(since) < BUSY {
            return None;
        }
        self.large_since = None;
        Some(SMALL_CACHE)
    }
}

/// Copies the log into the file and cuts it. `false`: somebody reads what is in it, so it stays; it is
/// not waited for, since nothing else is written meanwhile.
///
/// SQLite would copy by itself at the end of a commit, and ignore that the fsync failed.
pub(super) async fn cut_log(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    const DO_NOT_WAIT: &str = "PRAGMA busy_timeout = 0";
    sqlx::query(DO_NOT_WAIT).execute(&mut *connection).await?;
    let cut = sqlx::query_scalar::<_, i64>("PRAGMA wal_checkpoint(TRUNCATE)")
        .fetch_one(&mut *connection)
        .await;
    sqlx::raw_sql(super::open::WAIT).execute(connection).await?;
    match cut {
        Ok(busy) => Ok(busy == 0),
        // Somebody else copies it right now.
        Err(error) if super::columns::is_busy(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::open;

    #[test]
    fn a_writer_that_is_busy_no_more_gives_its_cache_back() {
        let (mut cache, start) = (Cache::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(cache.fitted(false, start), None, "small from the first");
        assert_eq!(cache.fitted(true, after(1)), Some(LARGE_CACHE));
        assert_eq!(cache.fitted(true, after(50)), None);
        assert_eq!(cache.fitted(false, after(109)), None, "busy until a minute ago");
        assert_eq!(cache.fitted(false, after(110)), Some(SMALL_CACHE));
        assert_eq!(cache.fitted(false, after(300)), None);
    }

    #[tokio::test]
    async fn the_cache_is_large_from_a_full_log_on_and_until_a_minute_after() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kms.db");
        let options = open::writer_options(&path).create_if_missing(true);
        let mut writer = Writer::new(open::connect(&options).await.unwrap());
        let log = directory.path().join("kms.db-wal");
        let size = async |writer: &mut Writer| {
            let asked = sqlx::query_scalar::<_, i64>("PRAGMA cache_size");
            asked.fetch_one(&mut writer.connection).await.unwrap()
        };
        let now = Instant::now();
        assert_eq!(size(&mut writer).await, -2_000);

        let much = "CREATE TABLE much (bytes BLOB); INSERT INTO much VALUES (zeroblob(9000000))";
        sqlx::raw_sql(much).execute(&mut writer.connection).await.unwrap();
        writer.tidy_up(&log, now).await.unwrap();
        assert_eq!(size(&mut writer).await, -65_536);
        assert_eq!(std::fs::metadata(&log).unwrap().len(), 0, "the log is cut");

        writer.tidy_up(&log, now + BUSY).await.unwrap();
        assert_eq!(size(&mut writer).await, -2_000);
    }
}
