//! One server over a database file, and over a node's own files: a second one would not hear what the first
//! one changes, and would write into its audit chain.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use super::fault::Fault;

/// A lock that a process holds until it ends, however that is.
pub(super) struct Alone(#[expect(dead_code, reason = "held, never read")] File);

impl Alone {
    /// Over the database file at `path`, by whatever name it is called; `None`: there is no such file.
    pub(super) fn over_database(path: &Path) -> Result<Option<Self>, Fault> {
        let Ok(file) = fs::canonicalize(path) else { return Ok(None) };
        let mut lock = OsString::from(file);
        lock.push("-server");
        hold(Path::new(&lock)).map(Some).map_err(|error| match error {
            TryLockError::WouldBlock => {
                let sentence = format!(
                    "another server has the database {} open, and SQLite serves one: stop that one, or \
                     correct [store] path; several servers need PostgreSQL",
                    path.display()
                );
                Fault::Away(sentence.into())
            }
            TryLockError::Error(error) => not_held(&PathBuf::from(lock), &error),
        })
    }

    /// Until the process is gone: what still runs when a server says goodbye may write yet.
    pub(super) fn for_good(self) {
        std::mem::forget(self);
    }

    /// Over the node's own files in `data_dir`, which is made if there is none.
    pub(super) fn over_node(data_dir: &Path) -> Result<Self, Fault> {
        let lock = data_dir.join("server");
        let made = fs::DirBuilder::new().recursive(true).mode(0o750).create(data_dir);
        made.map_err(|error| not_held(&lock, &error))?;
        hold(&lock).map_err(|error| match error {
            TryLockError::WouldBlock => {
                let sentence = format!(
                    "another server uses {} as its data_dir: stop that one, or give each server a [site] \
                     data_dir of its own",
                    data_dir.display()
                );
                Fault::Away(sentence.into())
            }
            TryLockError::Error(error) => not_held(&lock, &error),
        })
    }
}

/// The file itself says nothing and stays; the lock on it ends with the process.
fn hold(path: &Path) -> Result<Alone, TryLockError> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
    let file = file.map_err(TryLockError::Error)?;
    file.try_lock()?;
    Ok(Alone(file))
}

fn not_held(path: &Path, error: &io::Error) -> Fault {
    let sentence = format!(
        "cannot lock {}: give it to the account that this service runs under (chown ami_admin {}), on a \
         local file system: {error}",
        path.display(),
        path.display()
    );
    Fault::Setting(sentence.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_name_of_a_database_is_the_same_database() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("kms.db"), dir.path().join("other.db"));
        assert!(Alone::over_database(&file).unwrap().is_none(), "there is none yet");
        fs::write(&file, b"").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let first = Alone::over_database(&link).unwrap();
        assert!(first.is_some());
        assert!(matches!(Alone::over_database(&file), Err(Fault::Away(_))));
        drop(first);
        assert!(Alone::over_database(&file).unwrap().is_some());
    }

    #[test]
    fn a_second_server_over_one_data_dir_is_refused_until_the_first_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let first = Alone::over_node(dir.path()).unwrap();
        let Err(Fault::Away(refused)) = Alone::over_node(dir.path()) else {
            panic!("a second one was let in");
        };
        let sentence = refused.to_string();
        assert!(sentence.contains("another server uses"), "{sentence}");
        assert!(sentence.contains(&dir.path().display().to_string()), "{sentence}");
        drop(first);
        assert!(Alone::over_node(dir.path()).is_ok());
    }
}
