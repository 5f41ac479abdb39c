//! `kms-server backup` and `kms-server restore`.

use std::{
    fs,
    io::{self, BufReader, BufWriter, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    database::{alone_over, open_as_it_is, open_store},
    fault::Fault,
    founding::PATIENCE,
    last_backup,
    migrate::check_domain,
    no_commits::NoCommits,
    outside::SystemClock,
    report::Report,
    runtime::runtime,
    site_tokens::{believe, named_in},
    token::Asked,
};
use crate::{
    backup::{self, BackupError, Drill, Drilled, Ends, Loaded},
    config::Config,
    hsm::{
        self, BoxError, Hsm,
        pkcs11::{Canaries, Pkcs11Token, own_canaries},
    },
    keyring::{self, Below, Keyring, SiteRole},
    store::{
        WriteStore,
        sqlite::{self, SqliteStore},
        whole::WholeStore,
    },
};
use kms_core::{
    DomainRecord,
    backup::{header::Header, summary::Summary},
    date::date,
    freshness::Freshness,
    ports::Clock as _,
};

/// The options of `backup`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupOptions {
    /// The file to write, of which there must be none; or a directory, in which it gets a name of its own.
    pub out: PathBuf,
    /// In a directory: so many backups of this site are kept, the newest; older ones go.
    pub keep: Option<usize>,
    /// Restore it at once into a database that goes again, and go through that.
    pub drill: bool,
}

/// The options of `restore`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreOptions {
    /// The backup.
    pub from: PathBuf,
    /// Restore it into a database that goes again, and go through that: a drill.
    pub verify_only: bool,
}

/// The arena of a drill: blocks are read and verified, and none is kept.
const DRILL_ARENA: keyring::Config = keyring::Config {
    arena_bytes: 1 << 20,
    block_states_bytes: 0,
    allow_unlocked: true,
    warm_up_parallelism: 1,
};

impl From<BackupError> for Fault {
    fn from(error: BackupError) -> Self {
        match error {
            BackupError::Token(error) => error.into(),
            BackupError::Store(error) => error.into(),
            BackupError::NotOurs(_) => Self::Token(error.into()),
            BackupError::File(_) => Self::Setting(error.into()),
            error => Self::Store(error.into()),
        }
    }
}

/// What is wrong with a backup, and which file that is.
#[derive(Debug, thiserror::Error)]
#[error("{}", path.display())]
struct OfFile {
    path: PathBuf,
    source: BoxError,
}

/// A fault that names the file. What the token or the database says is of no file.
fn of_file(path: &Path) -> impl Fn(BackupError) -> Fault {
    move |error| {
        let is_of_file = !matches!(error, BackupError::Token(_) | BackupError::Store(_));
        let named = |source| OfFile { path: path.to_owned(), source }.into();
        match error.into() {
            Fault::Setting(source) if is_of_file => Fault::Setting(named(source)),
            Fault::Token(source) if is_of_file => Fault::Token(named(source)),
            Fault::Store(source) if is_of_file => Fault::Store(named(source)),
            fault => fault,
        }
    }
}

/// Writes all of the database into a file that only this site's token opens; a server may run meanwhile.
pub fn backup(config: Config, options: &BackupOptions) -> Result<Report, Fault> {
    runtime(2)?.block_on(back_up(config, options))
}

async fn back_up(config: Config, options: &BackupOptions) -> Result<Report, Fault> {
    let at_ms = SystemClock::new().unix_ms();
    let out = &target(&config, options, at_ms)?;
    let store = open_as_it_is(&config).await?;
    let (domain, canaries) = named_in(store.as_ref()).await?;
    let canaries = own_canaries(&config.hsm, canaries)?;
    let hsm = connected(config.hsm.again(), canaries).await?;
    check_domain(&hsm, store.as_ref(), &domain).await?;
    // What a restore finds the token by is this token's, and of the site KEK that the file is sealed under.
    let of_this_token = DomainRecord { canaries: hsm.kek_in_use().proof, ..domain.clone() };
    let part = part_of(out);
    let ends = Ends { hsm: hsm.clone(), store: Arc::clone(&store), at_ms };
    let written = write(&ends, &of_this_token, &part).await;
    let put = |written: backup::Written| {
        fs::rename(&part, out)?;
        sync_directory(out)?;
        Ok::<_, BackupError>(written)
    };
    let written = written.and_then(put).map_err(|error| {
        let _ = fs::remove_file(&part);
        of_file(out)(error)
    })?;
    store.close().await;
    let mut lines = lines_of(&written.header, &written.summary);
    lines.push(("file", out.display().to_string()));
    lines.push(("bytes", written.bytes.to_string()));
    if options.drill {
        let (_, drilled) = drill_file(&config, &hsm, out).await?;
        lines.extend(lines_of_drill(&drilled));
    }
    // Only now: a drill that fails leaves no good backup.
    let noted = last_backup::note(&config.site.data_dir, written.header.at_ms);
    noted.map_err(|error| {
        let dir = config.site.data_dir.display();
        let sentence = format!("the backup is whole, and that can't be noted in {dir}: {error}");
        Fault::Setting(sentence.into())
    })?;
    if let Some(keep) = options.keep {
        lines.extend(thin_out(&config, (&options.out, out), keep)?);
    }
    Ok(report(lines))
}

/// The file to write, of which there is none yet.
fn target(config: &Config, options: &BackupOptions, at_ms: u64) -> Result<PathBuf, Fault> {
    let BackupOptions { out, keep, .. } = options;
    let is_directory = out.is_dir();
    if keep.is_some() && !is_directory {
        let sentence = format!(
            "--keep removes older backups from a directory, and {} is none: name a directory with --out, in which the \
             backup gets a name of its own, or leave --keep away",
            out.display()
        );
        return Err(Fault::Setting(sentence.into()));
    }
    let out = match is_directory {
        true => out.join(format!("{}{at_ms}{ENDING}", beginning(config))),
        false => out.clone(),
    };
    if out.exists() {
        let sentence = format!("{} is there already: a backup replaces no file", out.display());
        return Err(Fault::Setting(sentence.into()));
    }
    Ok(out)
}

/// Removes the older backups beside the one that was written, and says so.
fn thin_out(
    config: &Config,
    (directory, out): (&Path, &Path),
    keep: usize,
) -> Result<Vec<(&'static str, String)>, Fault> {
    let removed = remove_older(directory, (&beginning(config), out), keep);
    let removed = removed.map_err(|error| of_file(directory)(error.into()))?;
    let mut lines = vec![("older ones removed", removed.gone.to_string())];
    if removed.later > 0 {
        let file = if removed.later == 1 {
            "1 file".to_owned()
        } else {
            format!("{} files", removed.later)
        };
        let sentence = format!(
            "{file} in this directory name a time after this backup's: a clock was wrong. They count as newer until \
             they are renamed or removed"
        );
        lines.push(("look at", sentence));
    }
    Ok(lines)
}

/// Names of backups in a directory: the site's, and the time at which they began.
fn beginning(config: &Config) -> String {
    format!("{}-", config.site.name)
}

const ENDING: &str = ".backup";

/// The backups of this name, by the times that they name.
fn backups(directory: &Path, beginning: &str) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let time = name.strip_prefix(beginning).and_then(|rest| rest.strip_suffix(ENDING));
        if let Some(at_ms) = time.and_then(|time| time.parse().ok()) {
            found.push((at_ms, path));
        }
    }
    found.sort();
    Ok(found)
}

/// The older backups, after they were looked through.
struct Removed {
    gone: usize,
    /// Backups that name a later time than the one that was just written.
    later: usize,
}

/// Removes all backups of this name but the newest, and never `written`: a clock that was ahead made others seem newer.
fn remove_older(
    directory: &Path,
    (beginning, written): (&str, &Path),
    keep: usize,
) -> io::Result<Removed> {
    let mut found = backups(directory, beginning)?;
    let ours = found.iter().position(|(_, path)| path.file_name() == written.file_name());
    let ours = ours.map_or(0, |at| found.remove(at).0);
    let gone = found.len().saturating_sub(keep.max(1) - 1);
    for (_, path) in found.iter().take(gone) {
        fs::remove_file(path)?;
    }
    let later = found.iter().skip(gone).filter(|(at_ms, _)| *at_ms > ours).count();
    Ok(Removed { gone, later })
}

async fn write(
    ends: &Ends,
    domain: &DomainRecord,
    part: &Path,
) -> Result<backup::Written, BackupError> {
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(part)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let mut say = every_second();
    let tell = |rows: u64, bytes: u64| {
        if say() {
            tracing::info!(rows, bytes, "the backup is being written");
        }
    };
    let written = backup::write(ends, domain, &mut out, tell).await?;
    out.flush()?;
    out.get_ref().sync_all()?;
    Ok(written)
}

/// Restores a backup into the empty database of `config`, or tries it.
pub fn restore(config: Config, options: &RestoreOptions) -> Result<Report, Fault> {
    runtime(2)?.block_on(bring_back(config, options))
}

async fn bring_back(config: Config, options: &RestoreOptions) -> Result<Report, Fault> {
    let from = &options.from;
    let (header, input) = open(from)?;
    if header.site != config.site.name {
        let sentence = format!(
            "{} is of the site {:?}, this one is {:?}: take the right file, or correct [site] name",
            from.display(),
            header.site,
            config.site.name
        );
        return Err(Fault::Setting(sentence.into()));
    }
    let canaries = Canaries::decode(&header.canaries);
    let canaries = canaries.map_err(|_| of_file(from)(BackupError::Header))?;
    let hsm = connected(config.hsm.again(), canaries).await?;
    if options.verify_only {
        drop(input);
        let (loaded, drilled) = drill_file(&config, &hsm, from).await?;
        let mut lines = lines_of(&header, &loaded.summary);
        lines.extend(lines_of_drill(&drilled));
        return Ok(report(lines));
    }
    // All of it is read once before anything is written.
    backup::verify(&hsm, &header, input).await.map_err(of_file(from))?;
    let store = open_store(&config, true).await?;
    let _alone = alone_over(&config.store)?;
    let loaded = load(&hsm, &store, from).await?;
    let drilled = drill(&hsm, store.clone(), &loaded.domain).await?;
    store.close().await;
    let mut lines = lines_of(&header, &loaded.summary);
    lines.extend(lines_of_drill(&drilled));
    lines.push((
        "next",
        format!(
            "start the servers: the site reads, and changes nothing until `ami-tool site promote --above-epoch N` names \
             the highest epoch that the other site, a coordinator or two people know of; it knows of {} itself",
            loaded.mark.epoch.0
        ),
    ));
    Ok(report(lines))
}

/// Restores a file into a database that goes again, and goes through that.
async fn drill_file(config: &Config, hsm: &Hsm, from: &Path) -> Result<(Loaded, Drilled), Fault> {
    let home = Temporary::make(&config.site.data_dir)?;
    let path = home.0.join("drill.db");
    let store = SqliteStore::open(sqlite::Config { path, create: true }).await;
    let store: Arc<dyn WholeStore> = Arc::new(store.map_err(|error| Fault::Store(error.into()))?);
    let loaded = load(hsm, &store, from).await?;
    let drilled = drill(hsm, store.clone(), &loaded.domain).await;
    store.close().await;
    Ok((loaded, drilled?))
}

async fn load(hsm: &Hsm, store: &Arc<dyn WholeStore>, from: &Path) -> Result<Loaded, Fault> {
    let (header, input) = open(from)?;
    let mut say = every_second();
    let tell = |rows: u64| {
        if say() {
            tracing::info!(rows, "the backup is being restored");
        }
    };
    let at_ms = SystemClock::new().unix_ms();
    let ends = Ends { hsm: hsm.clone(), store: Arc::clone(store), at_ms };
    backup::load(&ends, &header, input, tell).await.map_err(of_file(from))
}

/// Goes through a database with the token, block by block and event by event.
async fn drill(
    hsm: &Hsm,
    store: Arc<dyn WholeStore>,
    domain: &DomainRecord,
) -> Result<Drilled, Fault> {
    believe(hsm, store.as_ref(), domain).await?;
    let store: Arc<dyn WriteStore> = store;
    let freshness = Arc::new(Freshness::default());
    let below = Below {
        hsm: hsm.clone(),
        store: store.clone(),
        clock: Arc::new(SystemClock::new()),
        freshness: Arc::clone(&freshness),
        role: Arc::new(SiteRole::unknown(domain)),
        profiles: Arc::default(),
    };
    let keyring = Keyring::new(DRILL_ARENA, domain.clone(), below, Arc::new(NoCommits));
    let keyring = keyring.map_err(|error| Fault::Setting(error.into()))?;
    let (records, roles) = (&*keyring.records, &*keyring.roles);
    let drill = Drill { hsm, store, domain, records, roles, freshness: &freshness };
    let mut say = every_second();
    let tell = |blocks: u64| {
        if say() {
            tracing::info!(blocks, of = domain.blocks.get(), "blocks are opened");
        }
    };
    Ok(drill.run(tell).await?)
}

fn open(from: &Path) -> Result<(Header, BufReader<fs::File>), Fault> {
    let read = || {
        let mut input = BufReader::with_capacity(1 << 20, fs::File::open(from)?);
        Ok::<_, BackupError>((backup::header_of(&mut input)?, input))
    };
    read().map_err(|error| {
        let (path, source) = (from.to_owned(), error.into());
        Fault::Setting(OfFile { path, source }.into())
    })
}

async fn connected(config: hsm::Config, canaries: Canaries) -> Result<Hsm, Fault> {
    let (width, call_timeout) = (config.sessions_max, config.call_timeout);
    let token = Asked::of(&config).to(move || Pkcs11Token::connect(config, canaries)).await??;
    Ok(Hsm::new(Arc::new(token), width, PATIENCE, call_timeout))
}

/// A directory that goes again.
struct Temporary(PathBuf);

impl Temporary {
    fn make(data_dir: &Path) -> Result<Self, Fault> {
        remove_left(data_dir);
        let dir = data_dir.join(format!("{DRILL}{}", std::process::id()));
        let made = fs::create_dir_all(&dir);
        made.map_err(|error| {
            Fault::Setting(format!("cannot make {}: {error}", dir.display()).into())
        })?;
        Ok(Self(dir))
    }
}

/// The beginning of a drill's directory, before the number of its process.
const DRILL: &str = "restore-drill-";

/// Removes what drills left behind that were killed: each is a whole database.
fn remove_left(data_dir: &Path) {
    let Ok(entries) = fs::read_dir(data_dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(DRILL));
        let Some(process) = process.and_then(|text| text.parse::<u32>().ok()) else { continue };
        let is_gone = !Path::new(&format!("/proc/{process}")).exists();
        if is_gone && let Err(error) = fs::remove_dir_all(entry.path()) {
            tracing::warn!(%error, dir = %entry.path().display(), "the database of a former drill is left");
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, dir = %self.0.display(), "the drill's database is left");
        }
    }
}

fn part_of(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

fn sync_directory(file: &Path) -> io::Result<()> {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    fs::File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

fn every_second() -> impl FnMut() -> bool {
    let mut next = Instant::now() + Duration::from_secs(1);
    move || {
        let is_due = Instant::now() >= next;
        if is_due {
            next = Instant::now() + Duration::from_secs(1);
        }
        is_due
    }
}

fn lines_of(header: &Header, summary: &Summary) -> Vec<(&'static str, String)> {
    let rows: u64 = summary.tables.iter().map(|(_, rows)| rows).sum();
    let does = if summary.writes { "writes" } else { "does not write" };
    vec![
        ("backup", hex::encode(header.id)),
        ("site", header.site.clone()),
        ("key domain", hex::encode(header.domain.0)),
        ("begun at", date(header.at_ms)),
        ("release", header.release.clone()),
        ("schema", header.schema.to_string()),
        ("epoch", format!("{} ({does})", summary.epoch.0)),
        ("heads", hex::encode(summary.heads)),
        ("meters", summary.rows_of("meters").to_string()),
        ("records", summary.rows_of("records").to_string()),
        ("events", summary.rows_of("audit_events").to_string()),
        ("rows", rows.to_string()),
    ]
}

fn lines_of_drill(drilled: &Drilled) -> Vec<(&'static str, String)> {
    let Drilled { blocks, records, events, heads, role_records } = drilled;
    let text = format!(
        "{blocks} blocks opened, {records} records, {events} events, {heads} signed heads and {role_records} role records \
         verified"
    );
    vec![("drill", text)]
}

fn report(lines: Vec<(&'static str, String)>) -> Report {
    Report { lines: lines.into_iter().map(|(what, is)| (what.to_owned(), is)).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_backups_of_a_site_stay_and_nobody_elses_go() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["a-9.backup", "a-10.backup", "a-11.backup", "b-1.backup", "a-x.backup", "a-8"];
        for name in names {
            fs::write(dir.path().join(name), b"").unwrap();
        }
        let remove = |written: &str, keep| {
            let written = dir.path().join(written);
            let removed = remove_older(dir.path(), ("a-", &written), keep).unwrap();
            (removed.gone, removed.later)
        };
        let left = || names.map(|name| dir.path().join(name).exists());
        assert_eq!(remove("a-11.backup", 2), (1, 0));
        assert_eq!(left(), [false, true, true, true, true, true]);
        assert_eq!(remove("a-11.backup", 0), (1, 0));
        assert_eq!(left(), [false, false, true, true, true, true]);
    }

    #[test]
    fn a_backup_that_was_just_written_stays_although_a_clock_was_ahead() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["a-900.backup", "a-901.backup", "a-9.backup"];
        for name in names {
            fs::write(dir.path().join(name), b"").unwrap();
        }
        let written = dir.path().join("a-9.backup");
        let removed = remove_older(dir.path(), ("a-", &written), 2).unwrap();
        assert_eq!((removed.gone, removed.later), (1, 1));
        let left = names.map(|name| dir.path().join(name).exists());
        assert_eq!(left, [false, true, true]);
    }

    #[test]
    fn what_a_killed_drill_left_goes_and_a_living_ones_stays() {
        let dir = tempfile::tempdir().unwrap();
        let living = dir.path().join(format!("{DRILL}1"));
        let gone = dir.path().join(format!("{DRILL}{}", u32::MAX));
        let nobodys = dir.path().join(format!("{DRILL}x"));
        for dir in [&living, &gone, &nobodys] {
            fs::create_dir(dir).unwrap();
            fs::write(dir.join("drill.db"), b"").unwrap();
        }
        drop(Temporary::make(dir.path()).unwrap());
        assert_eq!([&living, &gone, &nobodys].map(|dir| dir.exists()), [true, false, true]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
