//! In `data_dir`: the newest enrolment of each other site that this server has seen, a line each.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use super::node::{PEERS, replace};
use crate::keyring::{PeerMemory, SeenPeer};

/// The file.
pub(crate) struct PeersFile(PathBuf);

impl PeersFile {
    pub(crate) fn of(data_dir: &Path) -> Self {
        Self(data_dir.join(PEERS))
    }
}

impl PeerMemory for PeersFile {
    fn read(&self) -> io::Result<Vec<SeenPeer>> {
        let text = match fs::read_to_string(&self.0) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            read => read?,
        };
        let line = |line| of_line(line).ok_or_else(|| self.damaged(line));
        text.lines().map(line).collect()
    }

    fn keep(&self, seen: &[SeenPeer]) -> io::Result<()> {
        let lines: String = seen.iter().map(line_of).collect();
        replace(&self.0, lines.as_bytes())
    }
}

impl PeersFile {
    fn damaged(&self, line: &str) -> io::Error {
        let file = self.0.display();
        io::Error::other(format!("{file} has a line that is none of ours: {line:?}"))
    }
}

/// A site's name comes last: it may be anything that has no line break.
fn line_of(SeenPeer { site, place: (epoch, ms), digest }: &SeenPeer) -> String {
    format!("{epoch} {ms} {} {site}\n", hex::encode(digest))
}

fn of_line(line: &str) -> Option<SeenPeer> {
    let mut words = line.splitn(4, ' ');
    let place = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let digest = hex::decode(words.next()?).ok()?.try_into().ok()?;
    Some(SeenPeer { site: words.next()?.to_owned(), place, digest })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_comes_back_and_what_is_no_line_of_ours_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = PeersFile::of(dir.path());
        assert_eq!(file.read().unwrap(), Vec::new());
        let peer = |site: &str, epoch| SeenPeer {
            site: site.to_owned(),
            place: (epoch, 9),
            digest: [epoch as u8; 32],
        };
        let seen = [peer("south", 4), peer("the other one", 2)];
        file.keep(&seen).unwrap();
        assert_eq!(file.read().unwrap(), seen);
        fs::write(dir.path().join(PEERS), "4 9 00 south\n").unwrap();
        assert!(file.read().unwrap_err().to_string().contains("none of ours"));
    }
}
