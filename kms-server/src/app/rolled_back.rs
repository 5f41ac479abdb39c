//! A server's own files after its database was rolled back: what they know of it is of a future that is no more. Each
//! server puts them aside once for each mark that its token has signed, and begins a new audit chain. A mark that was
//! seen already, put back with an old database, excuses nothing.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::DirBuilderExt as _,
    path::Path,
};

use super::{
    fault::Fault,
    node::{OWN_FILES, replace},
};
use crate::store::Timeline;
use kms_core::{
    Epoch,
    site::restored::{RestoreMark, RolledBackBy},
};
use sha2::{Digest as _, Sha256};

/// The marks that this server has gone by, a line each.
const SEEN: &str = "restores";

/// Begins anew as a node, if that was not done for this mark yet.
pub(super) fn begin_anew_after(data_dir: &Path, mark: &RestoreMark) -> Result<(), Fault> {
    tracing::error!(
        from = mark.from,
        epoch = mark.epoch.0,
        "the database {}: this site reads, and changes nothing, until it is promoted above the highest epoch that the \
         other site, a coordinator or two people name (`ami-tool site promote --above-epoch N`)",
        mark.by.what()
    );
    // What this server knows of a copy is what is in it: it goes on as the node that it is.
    if mark.by == RolledBackBy::Copy {
        return Ok(());
    }
    put_aside(data_dir, &hex::encode(mark.id)).map_err(|error| not_put_aside(data_dir, &error))
}

fn not_put_aside(data_dir: &Path, error: &io::Error) -> Fault {
    let data_dir = data_dir.display();
    let sentence =
        format!("cannot put this server's files in {data_dir} aside after a restore: {error}");
    Fault::Setting(sentence.into())
}

/// Begins anew as a node whose database was rolled back and promoted since, while this server was away: on this timeline,
/// in this epoch.
pub(super) fn begin_anew_on(
    data_dir: &Path,
    timeline: &Timeline,
    since: Epoch,
) -> Result<(), Fault> {
    tracing::warn!(
        epoch = since.0,
        timeline = timeline.number,
        "the database was rolled back while this server was away, and the site was promoted since"
    );
    let name = format!("{} {} {}", timeline.system, timeline.number, since.0);
    let digest: [u8; 32] = Sha256::digest(name).into();
    put_aside(data_dir, &hex::encode(&digest[..16]))
        .map_err(|error| not_put_aside(data_dir, &error))
}

/// Whether this server has begun anew for this mark. What can't be read says that it has: nothing is put aside for it.
pub(super) fn is_seen(data_dir: &Path, mark: &RestoreMark) -> bool {
    mark.by == RolledBackBy::Copy
        || seen(data_dir).map_or(true, |seen| is_among(&seen, &hex::encode(mark.id)))
}

fn seen(data_dir: &Path) -> io::Result<String> {
    match fs::read_to_string(data_dir.join(SEEN)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        read => read,
    }
}

fn is_among(seen: &str, id: &str) -> bool {
    seen.lines().any(|line| line == id)
}

fn put_aside(data_dir: &Path, id: &str) -> io::Result<()> {
    let before = seen(data_dir)?;
    if is_among(&before, id) {
        return Ok(());
    }
    let aside = data_dir.join(format!("before-restore-{id}"));
    for name in OWN_FILES {
        let file = data_dir.join(name);
        if !file.exists() {
            continue;
        }
        fs::DirBuilder::new().recursive(true).mode(0o750).create(&aside)?;
        fs::rename(&file, aside.join(name))?;
    }
    replace(&data_dir.join(SEEN), format!("{before}{id}\n").as_bytes())?;
    tracing::warn!(aside = %aside.display(), "this server begins a new audit chain: its former files are kept");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kms_core::DomainId;

    #[test]
    fn invariant_5_a_mark_excuses_an_older_database_once() {
        let dir = tempfile::tempdir().unwrap();
        let mark = |n| RestoreMark {
            domain: DomainId([1; 16]),
            site: "north".to_owned(),
            id: [n; 16],
            by: RolledBackBy::Backup,
            at_ms: 1,
            epoch: Epoch(2),
            from: "a backup".to_owned(),
        };
        let tip = dir.path().join("audit-tip");
        fs::write(&tip, "former").unwrap();
        fs::write(dir.path().join("node-id"), "former").unwrap();
        begin_anew_after(dir.path(), &mark(1)).unwrap();
        assert!(!tip.exists() && !dir.path().join("node-id").exists());
        let aside = dir.path().join(format!("before-restore-{}", "01".repeat(16)));
        assert_eq!(fs::read_to_string(aside.join("audit-tip")).unwrap(), "former");
        // What this server knows since then counts: the same mark again is an old database.
        fs::write(&tip, "later").unwrap();
        begin_anew_after(dir.path(), &mark(1)).unwrap();
        assert_eq!(fs::read_to_string(&tip).unwrap(), "later");
        begin_anew_after(dir.path(), &mark(2)).unwrap();
        assert!(!tip.exists());
    }
}
