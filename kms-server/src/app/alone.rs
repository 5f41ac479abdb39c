//! One server over a database file, and over a node's own files: a second one would not hear what the first
//! one changes, and would write into its audit chain.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions, TryLockError},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use super::Fault;

/// What a process holds until it ends, however that is.
pub(super) struct Alone(#[expect(dead_code, reason = "held, never read")] File);

impl Alone {
    /// Over the database file at `path`.
    pub(super) fn over_database(path: &Path) -> Result<Self, Fault> {
        let mut lock = OsString::from(path);
        lock.push("-server");
        hold(Path::new(&lock)).map_err(|error| match error {
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

    /// Over the node's own files in `data_dir`.
    pub(super) fn over_node(data_dir: &Path) -> Result<Self, Fault> {
        let lock = data_dir.join("server");
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
