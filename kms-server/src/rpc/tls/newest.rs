//! The newest revocation list of each authority that this node has used, kept in a file. A list is signed
//! and says when it was made, so an old one is as good as a new one to whoever looks at it alone: who puts
//! it back has un-revoked a certificate. Lists therefore never go backwards, across restarts too.
//!
//! The file has each list's number and date, not the list. Where an older one lies at the start,
//! the server does not start: to go on with part of the revocations is what the one who put it there wants.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use super::error::TlsError;
use kms_core::{
    date::date,
    fact::{NUMBER_MAX, NewestList},
};

/// The first line of the file.
const HEAD: &str = "ami-kms newest revocation lists 1";

/// The name of those who may speak for an authority: a hash over its issuer's name, key and the list's scope.
pub(crate) type Authority = [u8; 32];

/// The edition of a list among those of its authority, as it says itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Edition {
    /// Its number, big-endian, without zeros in front; `None`: it has none.
    pub(crate) number: Option<Vec<u8>>,
    /// Its date; milliseconds since 1970.
    pub(crate) this_update_ms: u64,
    /// Of what is remembered: how often two people had the domain forget what was remembered before.
    pub(crate) resets: u32,
}

impl Edition {
    /// The reason why a list of this edition would be a step back from `newest`.
    fn is_behind(&self, newest: &Self) -> Option<String> {
        let order = |number: &[u8]| (number.len(), number.to_vec());
        match (&self.number, &newest.number) {
            (Some(is), Some(was)) if order(is) < order(was) => {
                return Some(format!(
                    "its number is {}, and {} was used already",
                    hex::encode(is),
                    hex::encode(was)
                ));
            }
            _ => {}
        }
        (self.this_update_ms < newest.this_update_ms).then(|| {
            let (is, was) = (date(self.this_update_ms), date(newest.this_update_ms));
            format!("it is of {is}, and one of {was} was used already")
        })
    }

    /// The later of both, in number and in date.
    fn later(&self, other: &Self) -> Self {
        let longer = |number: &Option<Vec<u8>>| number.as_ref().map(|bytes| bytes.len());
        let (a, b) = (&self.number, &other.number);
        let number = if (longer(a), a) > (longer(b), b) { a } else { b };
        Self {
            number: number.clone(),
            this_update_ms: self.this_update_ms.max(other.this_update_ms),
            resets: self.resets,
        }
    }
}

/// All that is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Newest(BTreeMap<Authority, Edition>);

impl Newest {
    /// Reads the file; one that is not there says that nothing was used yet.
    pub(crate) fn read(path: Option<&PathBuf>) -> Result<Self, TlsError> {
        let Some(path) = path else { return Ok(Self::default()) };
        match fs::read_to_string(path) {
            Ok(text) => {
                Self::parse(&text).ok_or_else(|| TlsError::CrlMemory { path: path.clone() })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(TlsError::Read { path: path.clone(), source }),
        }
    }

    /// Refuses a list that is older than what is remembered of its authority.
    pub(crate) fn check(
        &self,
        authority: &Authority,
        edition: &Edition,
        path: &Path,
        issuer: &str,
    ) -> Result<(), TlsError> {
        match self.0.get(authority).and_then(|newest| edition.is_behind(newest)) {
            None => Ok(()),
            Some(why) => {
                let why = format!("{why} (authority {})", hex::encode(authority));
                Err(TlsError::CrlOlder { path: path.to_owned(), issuer: issuer.to_owned(), why })
            }
        }
    }

    /// The memory once these lists are in use.
    pub(crate) fn with(&self, used: &[(Authority, Edition)]) -> Self {
        let mut newest = self.clone();
        for (authority, edition) in used {
            let known = newest.0.entry(*authority).or_insert_with(|| edition.clone());
            *known = known.later(edition);
        }
        newest
    }

    /// What is remembered of these authorities, for the domain to remember it, too.
    pub(super) fn of(&self, authorities: impl Iterator<Item = Authority>) -> Vec<NewestList> {
        let of_one = |authority| {
            let Edition { number, this_update_ms, resets } = self.0.get(&authority)?.clone();
            // A number that no authority gives is the node's own affair.
            let fits = number.as_ref().is_none_or(|number| number.len() <= NUMBER_MAX);
            fits.then_some(NewestList { authority, number, this_update_ms, resets })
        };
        authorities.filter_map(of_one).collect()
    }

    /// The memory with what the domain remembers, and without what two people had it forget.
    pub(super) fn with_domains(&self, lists: &[NewestList]) -> Self {
        let mut newest = self.clone();
        for list in lists {
            let NewestList { authority, number, this_update_ms, resets } = list.clone();
            let domains = Edition { number, this_update_ms, resets };
            let known = newest.0.entry(authority).or_insert_with(|| domains.clone());
            match known.resets.cmp(&resets) {
                Ordering::Less => *known = domains,
                Ordering::Equal => *known = known.later(&domains),
                // Another node was first.
                Ordering::Greater => {}
            }
        }
        newest
    }

    /// Why a list of these that are in use would not be taken into use any more.
    pub(super) fn is_ahead_of(&self, used: &[(Authority, Edition)]) -> Option<String> {
        used.iter().find_map(|(authority, edition)| edition.is_behind(self.0.get(authority)?))
    }

    /// Writes the file: all of it or nothing, and on disk when this returns.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(self.text().as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    }

    fn text(&self) -> String {
        let mut text = format!("{HEAD}\n");
        for (authority, Edition { number, this_update_ms, resets }) in &self.0 {
            let number = number.as_ref().map_or_else(|| "-".to_owned(), hex::encode);
            text += &format!("{} {number} {this_update_ms}", hex::encode(authority));
            if *resets > 0 {
                text += &format!(" {resets}");
            }
            text.push('\n');
        }
        // A file that was cut is told from one that was not.
        text + "end\n"
    }

    fn parse(text: &str) -> Option<Self> {
        let body = text.strip_prefix(HEAD)?.strip_prefix('\n')?.strip_suffix("end\n")?;
        let mut newest = BTreeMap::new();
        for line in body.lines() {
            let mut parts = line.split(' ');
            let authority = hex::decode(parts.next()?).ok()?.try_into().ok()?;
            let number = match parts.next()? {
                "-" => None,
                number => Some(hex::decode(number).ok()?),
            };
            let this_update_ms = parts.next()?.parse().ok()?;
            let resets = parts.next().map_or(Some(0), |resets| resets.parse().ok())?;
            newest.insert(authority, Edition { number, this_update_ms, resets });
            if parts.next().is_some() {
                return None;
            }
        }
        Some(Self(newest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edition(number: Option<&[u8]>, this_update_ms: u64) -> Edition {
        Edition { number: number.map(<[u8]>::to_vec), this_update_ms, resets: 0 }
    }

    fn goes(newest: &Newest, edition: &Edition) -> bool {
        newest.check(&[1; 32], edition, "a.crl".as_ref(), "CA").is_ok()
    }

    #[test]
    fn neither_number_nor_date_goes_back() {
        let newest = Newest::default().with(&[([1; 32], edition(Some(&[1, 0]), 5_000))]);
        for (number, date, good) in [
            (Some(&[1, 0][..]), 5_000, true),
            (Some(&[1, 1]), 5_000, true),
            (Some(&[1, 0]), 4_999, false),
            (Some(&[0xFF]), 6_000, false),
            (Some(&[1, 1]), 4_999, false),
            (None, 5_000, true),
            (None, 4_999, false),
        ] {
            assert_eq!(goes(&newest, &edition(number, date)), good, "{number:?} {date}");
        }
        let other = newest.check(&[2; 32], &edition(Some(&[1]), 1), "b.crl".as_ref(), "CA 2");
        assert!(other.is_ok(), "another authority counts by itself");
        // Each is remembered at its highest.
        let both = newest.with(&[([1; 32], edition(Some(&[2, 0]), 5_000))]);
        assert!(!goes(&both, &edition(Some(&[1, 0]), 9_000)));
        let without = newest.with(&[([1; 32], edition(None, 9_000))]);
        assert!(!goes(&without, &edition(Some(&[0xFF]), 9_000)));
    }

    #[test]
    fn what_the_domain_was_made_to_forget_is_forgotten_here_and_nothing_else_is() {
        let huge = Newest::default().with(&[([1; 32], edition(Some(&[0xFF; 20]), 5_000))]);
        let small = edition(Some(&[7]), 3_000);
        assert!(!goes(&huge, &small));
        let list = |number: u8, resets| NewestList {
            authority: [1; 32],
            number: Some(vec![number]),
            this_update_ms: 0,
            resets,
        };
        assert_eq!(huge.with_domains(&[list(6, 0)]), huge, "a lower number alone says nothing");
        let newest = huge.with_domains(&[list(6, 1)]);
        assert!(goes(&newest, &small) && !goes(&newest, &edition(Some(&[5]), 9_000)));
        // What is used then counts, also against what the domain said before and what it still says.
        let used = newest.with(&[([1; 32], small.clone())]);
        for known in [used.with_domains(&[list(6, 1)]), used.with_domains(&[list(0xFF, 0)])] {
            assert_eq!(known, used);
        }
        assert!(!goes(&used, &edition(Some(&[6]), 3_000)));
        // And after a restart.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("newest");
        used.write(&path).unwrap();
        assert_eq!(Newest::read(Some(&path)).unwrap(), used);
        assert_eq!(used.of([[1; 32]].into_iter())[0].resets, 1);
    }

    #[test]
    fn what_was_written_is_read_and_what_was_cut_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("newest");
        assert_eq!(Newest::read(Some(&path)).unwrap(), Newest::default());
        let newest = Newest::default()
            .with(&[([1; 32], edition(Some(&[7]), 1)), ([2; 32], edition(None, u64::MAX))]);
        newest.write(&path).unwrap();
        assert_eq!(Newest::read(Some(&path)).unwrap(), newest);
        let text = fs::read_to_string(&path).unwrap();
        for cut in 0..text.len() {
            fs::write(&path, &text[..cut]).unwrap();
            let refused = Newest::read(Some(&path)).unwrap_err();
            assert!(matches!(refused, TlsError::CrlMemory { .. }), "{cut}");
        }
    }
}
