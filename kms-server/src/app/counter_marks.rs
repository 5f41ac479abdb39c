//! In `data_dir`: the highest marks of this site's counters that this server has reserved or seen, so that who writes to
//! the database can't put older ones back. It is never put aside: what was used stays used, whatever becomes of the
//! database.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, ErrorKind},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use sha2::{Digest as _, Sha256};
use tokio::task::{JoinHandle, spawn_blocking};

use super::fault::Fault;
use kms_core::{
    BlockCount, BlockNo, DomainId, Epoch,
    counters::allocator::Witnessed,
    ports::{CounterMemory, WitnessFailed},
};

const NAME: &str = "counter-marks";
const MAGIC: [u8; 8] = *b"AMICM\x01\0\0";
const ANOTHER_FORMAT: &str =
    "it is of another format: a later version wrote it, which is to run here, or it was changed";
/// Said once what was written may be lost although a later sync succeeds: only what is read anew is known to be there.
const NOT_SYNCED: &str =
    "what was written could not be brought to the disk: see to the disk, and start the server anew";
const HEADER_LEN: usize = MAGIC.len() + 16;
/// Epoch, end, and the first bytes of a sum over both and the block's number.
const PLACE_LEN: usize = 8 + 4 + 8;
/// Each block has two places, of which the lower one is written: a write that was torn leaves the other.
const PLACES: usize = 2;

/// The file.
#[derive(Clone)]
pub(super) struct CounterFile(Arc<Inner>);

struct Inner {
    path: PathBuf,
    file: fs::File,
    written: Mutex<Written>,
    synced: Mutex<Synced>,
}

#[derive(Default)]
struct Synced {
    /// The number of the last write that is on disk.
    number: u64,
    failed: bool,
}

struct Written {
    /// By block: what its two places hold.
    places: Vec<[Option<Witnessed>; PLACES]>,
    /// Writes so far.
    number: u64,
}

impl CounterFile {
    /// For this domain; made if there is none. That of another domain is no concern of ours, and is made anew.
    pub(super) fn open(
        data_dir: &Path,
        domain: &DomainId,
        blocks: BlockCount,
    ) -> Result<Self, Fault> {
        let path = data_dir.join(NAME);
        let open = || -> io::Result<_> {
            let bytes = match fs::read(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
                read => read?,
            };
            let header = [&MAGIC[..], &domain.0].concat();
            if !bytes.is_empty() && !bytes.starts_with(&MAGIC) {
                return Err(io::Error::new(ErrorKind::InvalidData, ANOTHER_FORMAT));
            }
            if !bytes.starts_with(&header) {
                super::node::replace(&path, &header)?;
            }
            let file = fs::OpenOptions::new().read(true).write(true).mode(0o600).open(&path)?;
            let places = bytes.strip_prefix(&header[..]).unwrap_or_default();
            Ok((file, (0..blocks.get()).map(|block| places_of(places, block)).collect()))
        };
        let (file, places) = open().map_err(|error| not_usable(&path, &error))?;
        let written = Mutex::new(Written { places, number: 0 });
        Ok(Self(Arc::new(Inner { path, file, written, synced: Mutex::default() })))
    }

    /// Whether it knows of a mark of one of these blocks, of this epoch or a higher one.
    pub(super) fn has_any_of(
        &self,
        mut blocks: impl Iterator<Item = BlockNo>,
        epoch: Epoch,
    ) -> bool {
        let known: BTreeMap<BlockNo, Witnessed> = self.known().into_iter().collect();
        blocks.any(|block| known.get(&block).is_some_and(|mark| mark.epoch >= epoch))
    }
}

fn not_usable(path: &Path, error: &io::Error) -> Fault {
    let sentence = format!(
        "cannot read or write {}, which remembers the counters that were used: give it to the account that this service \
         runs under (chown ami_admin), or correct [site] data_dir: {error}",
        path.display()
    );
    Fault::Setting(sentence.into())
}

#[async_trait]
impl CounterMemory for CounterFile {
    fn known(&self) -> Vec<(BlockNo, Witnessed)> {
        let written = lock(&self.0.written);
        let highest = |places: &[Option<Witnessed>; PLACES]| places.iter().flatten().max().copied();
        let known = (0..).zip(&written.places);
        known.filter_map(|(block, places)| Some((BlockNo(block), highest(places)?))).collect()
    }

    async fn keep(&self, marks: Vec<(BlockNo, Witnessed)>) -> Result<(), WitnessFailed> {
        let inner = Arc::clone(&self.0);
        let failed =
            |error: io::Error| WitnessFailed(format!("{}: {error}", self.0.path.display()));
        let kept = beside(inner, marks).await;
        kept.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(failed)
    }
}

/// A disk may be slow: no task of the runtime waits for it.
#[expect(
    clippy::disallowed_methods,
    reason = "a local file; as many at once as blocks are reserved"
)]
fn beside(inner: Arc<Inner>, marks: Vec<(BlockNo, Witnessed)>) -> JoinHandle<io::Result<()>> {
    spawn_blocking(move || inner.keep(&marks))
}

impl Inner {
    fn keep(&self, marks: &[(BlockNo, Witnessed)]) -> io::Result<()> {
        let number = self.write(marks)?;
        let mut synced = lock(&self.synced);
        // Who waited for another one's turn has been synced with it.
        if synced.failed {
            return Err(io::Error::other(NOT_SYNCED));
        }
        if synced.number < number {
            let until = lock(&self.written).number;
            self.file.sync_data().inspect_err(|_| synced.failed = true)?;
            synced.number = until;
        }
        Ok(())
    }

    /// The number of the last write: what was known already may still be on its way to the disk.
    fn write(&self, marks: &[(BlockNo, Witnessed)]) -> io::Result<u64> {
        let mut written = lock(&self.written);
        let mut is_news = false;
        for (block, mark) in marks {
            let Some(places) = written.places.get_mut(block.0 as usize) else { continue };
            if places.iter().flatten().any(|known| known >= mark) {
                continue;
            }
            let lower = usize::from(places[1] < places[0]);
            let at = HEADER_LEN + (block.0 as usize * PLACES + lower) * PLACE_LEN;
            self.file.write_all_at(&place_bytes(*block, mark), at as u64)?;
            places[lower] = Some(*mark);
            is_news = true;
        }
        written.number += u64::from(is_news);
        Ok(written.number)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn place_bytes(block: BlockNo, mark: &Witnessed) -> [u8; PLACE_LEN] {
    let mut bytes = [0; PLACE_LEN];
    bytes[..8].copy_from_slice(&mark.epoch.0.to_be_bytes());
    bytes[8..12].copy_from_slice(&mark.end.to_be_bytes());
    let sum = Sha256::digest([&block.0.to_be_bytes()[..], &bytes[..12]].concat());
    bytes[12..].copy_from_slice(&sum[..8]);
    bytes
}

/// The two places of a block; one that was torn, or never written, holds nothing.
fn places_of(bytes: &[u8], block: u32) -> [Option<Witnessed>; PLACES] {
    let place = |place: usize| {
        let at = (block as usize * PLACES + place) * PLACE_LEN;
        let bytes = bytes.get(at..at + PLACE_LEN)?;
        let (epoch, rest) = bytes.split_first_chunk::<8>()?;
        let (end, _) = rest.split_first_chunk::<4>()?;
        let mark =
            Witnessed { epoch: Epoch(u64::from_be_bytes(*epoch)), end: u32::from_be_bytes(*end) };
        (bytes == place_bytes(BlockNo(block), &mark)).then_some(mark)
    };
    [place(0), place(1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOMAIN: DomainId = DomainId([7; 16]);

    fn open(dir: &Path) -> CounterFile {
        CounterFile::open(dir, &DOMAIN, BlockCount::new(4).unwrap()).unwrap()
    }

    fn mark(block: u32, epoch: u64, end: u32) -> (BlockNo, Witnessed) {
        (BlockNo(block), Witnessed { epoch: Epoch(epoch), end })
    }

    #[tokio::test]
    async fn invariant_3_what_was_reserved_comes_back_and_nothing_lowers_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = open(dir.path());
        assert!(file.known().is_empty());
        file.keep(vec![mark(1, 2, 1_024), mark(3, 2, 2_048)]).await.unwrap();
        for end in [2_048, 1_024, 3_072] {
            file.keep(vec![mark(1, 2, end)]).await.unwrap();
        }
        // A block that the domain has not is nobody's.
        file.keep(vec![mark(4, 2, 1)]).await.unwrap();
        let known = vec![mark(1, 2, 3_072), mark(3, 2, 2_048)];
        assert_eq!((file.known(), open(dir.path()).known()), (known.clone(), known));
        file.keep(vec![mark(1, 4, 1)]).await.unwrap();
        assert_eq!(open(dir.path()).known()[0], mark(1, 4, 1));
        // Another domain's counters are others.
        let other = CounterFile::open(dir.path(), &DomainId([8; 16]), BlockCount::new(4).unwrap());
        assert!(other.unwrap().known().is_empty());
    }

    #[tokio::test]
    async fn what_was_not_synced_once_is_not_taken_for_kept_when_it_is_told_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = open(dir.path());
        file.keep(vec![mark(1, 2, 1_024)]).await.unwrap();
        lock(&file.0.synced).failed = true;
        for marks in [vec![mark(1, 2, 2_048)], vec![mark(1, 2, 2_048)], Vec::new()] {
            let WitnessFailed(why) = file.keep(marks).await.unwrap_err();
            assert!(why.contains("start the server anew"), "{why}");
        }
    }

    #[tokio::test]
    async fn a_file_of_another_format_is_refused_and_not_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let file = open(dir.path());
        file.keep(vec![mark(1, 2, 1_024)]).await.unwrap();
        let path = dir.path().join(NAME);
        let bytes = fs::read(&path).unwrap();
        let later = [b"AMICM\x02\0\0", &bytes[MAGIC.len()..]].concat();
        fs::write(&path, &later).unwrap();
        let refused = CounterFile::open(dir.path(), &DOMAIN, BlockCount::new(4).unwrap());
        let Err(Fault::Setting(sentence)) = refused.map(drop) else { panic!("it was taken") };
        assert!(sentence.to_string().contains("another format"), "{sentence}");
        assert_eq!(fs::read(&path).unwrap(), later);
    }

    #[tokio::test]
    async fn of_blocks_without_a_mark_those_count_of_which_one_of_this_epoch_was_seen() {
        let dir = tempfile::tempdir().unwrap();
        let file = open(dir.path());
        file.keep(vec![mark(1, 2, 1_024), mark(2, 4, 1)]).await.unwrap();
        let has = |block, epoch| file.has_any_of([BlockNo(block)].into_iter(), Epoch(epoch));
        assert!(has(1, 2) && has(2, 4) && has(2, 2));
        assert!(!has(1, 4) && !has(0, 2) && !has(3, 2));
    }

    #[tokio::test]
    async fn invariant_3_a_torn_write_leaves_the_mark_before() {
        let dir = tempfile::tempdir().unwrap();
        let file = open(dir.path());
        for end in 1..4 {
            file.keep(vec![mark(2, 2, end * 1_024)]).await.unwrap();
        }
        let path = dir.path().join(NAME);
        let bytes = fs::read(&path).unwrap();
        let at = HEADER_LEN + 2 * PLACES * PLACE_LEN;
        for place in 0..PLACES {
            let mut torn = bytes.clone();
            torn[at + place * PLACE_LEN + 9] ^= 1;
            fs::write(&path, &torn).unwrap();
            let known = open(dir.path()).known();
            assert!(known == [mark(2, 2, 3_072)] || known == [mark(2, 2, 2_048)], "{known:?}");
        }
        // Of two that are left, the higher one.
        fs::write(&path, &bytes).unwrap();
        assert_eq!(open(dir.path()).known(), [mark(2, 2, 3_072)]);
    }
}
