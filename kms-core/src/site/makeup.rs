//! What two sites compare when they connect: where it differs, the one that is promoted would do otherwise than the one
//! that was lost.

use sha2::{Digest as _, Sha256};

use crate::block::Digest;

/// What a site is made of, as it says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Makeup {
    /// The schema of its database.
    pub store_schema: u32,
    /// The security suites that it opens.
    pub suites: Vec<String>,
    /// Of its access policy: [`digest_of`].
    pub policy: Digest,
    /// Of the authorities that it accepts callers' certificates from.
    pub authorities: Digest,
    /// Of the numbers of their revocation lists.
    pub revocation_lists: Digest,
    /// Of its device profiles.
    pub profiles: Digest,
    /// Of the signers whose sealed files it takes.
    pub signers: Digest,
    /// What its token does not do of what was probed at its start.
    pub unmet: Vec<String>,
    /// Records that it keeps and that its release can't read.
    pub unknown_records: u32,
}

crate::numbered! {
    /// A thing in which two sites differ and should not.
    pub enum Difference "difference" {
        /// Who may call what.
        AccessPolicy = 1 "ACCESS_POLICY",
        /// Whose certificates are accepted.
        Authorities = 2 "AUTHORITIES",
        /// Which certificates are not accepted any more.
        RevocationLists = 3 "REVOCATION_LISTS",
        /// How meters' devices are treated.
        Profiles = 4 "PROFILES",
        /// Which messages are opened.
        Suites = 5 "SUITES",
        /// Which records are read.
        RecordSchema = 6 "RECORD_SCHEMA",
        /// The other site keeps records that its release can't read.
        UnknownRecords = 7 "UNKNOWN_RECORDS",
        /// The other site is of a release that says nothing of all this.
        NotSaid = 8 "NOT_SAID",
        /// Whose sealed import files are taken.
        Signers = 9 "SIGNERS",
    }
}

impl Difference {
    /// The thing, for people.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::AccessPolicy => "its access policy differs ([rpc] callers, grants, dual_control)",
            Self::Authorities => "it accepts certificates of other authorities ([rpc] client_ca)",
            Self::RevocationLists => {
                "its revocation lists are of other numbers ([rpc] client_crls)"
            }
            Self::Profiles => "its device profiles differ ([profiles] dir)",
            Self::Signers => "it takes sealed files of other signers ([[import.signers]])",
            Self::Suites => "it opens other security suites",
            Self::RecordSchema => {
                "its release reads records of another schema: upgrade the older site"
            }
            Self::UnknownRecords => {
                "it keeps records that its release can't read, and is not promoted with them: upgrade it"
            }
            Self::NotSaid => "its release does not say how it is set up: upgrade it",
        }
    }
}

impl Makeup {
    /// In what the other site differs. The schemas are those of records.
    pub fn differences(
        &self,
        record_schema: u32,
        theirs: Option<&Self>,
        their_schema: u32,
    ) -> Vec<Difference> {
        let schema = (record_schema != their_schema).then_some(Difference::RecordSchema);
        let Some(theirs) = theirs else {
            return schema.into_iter().chain([Difference::NotSaid]).collect();
        };
        let differs = [
            (self.policy != theirs.policy, Difference::AccessPolicy),
            (self.authorities != theirs.authorities, Difference::Authorities),
            (self.revocation_lists != theirs.revocation_lists, Difference::RevocationLists),
            (self.profiles != theirs.profiles, Difference::Profiles),
            (self.signers != theirs.signers, Difference::Signers),
            (self.suites != theirs.suites, Difference::Suites),
            (theirs.unknown_records > 0, Difference::UnknownRecords),
        ];
        let differs = differs.into_iter().filter(|(differs, _)| *differs).map(|(_, what)| what);
        differs.chain(schema).collect()
    }
}

/// A digest over parts of any length, in this order: the same parts give the same one at both sites, and no others do.
pub fn digest_of<P: AsRef<[u8]>>(label: &str, parts: impl IntoIterator<Item = P>) -> Digest {
    let mut digest = Sha256::new();
    let mut add = |part: &[u8]| {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    };
    add(label.as_bytes());
    parts.into_iter().for_each(|part| add(part.as_ref()));
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_in_which_the_sites_differ_is_named_and_no_other() {
        let ours = Makeup { suites: vec!["0".to_owned()], ..Makeup::default() };
        assert_eq!(ours.differences(2, Some(&ours), 2), []);
        type Change = fn(&mut Makeup);
        let changes: [(Change, Difference); 7] = [
            (|it| it.policy = [1; 32], Difference::AccessPolicy),
            (|it| it.authorities = [1; 32], Difference::Authorities),
            (|it| it.revocation_lists = [1; 32], Difference::RevocationLists),
            (|it| it.profiles = [1; 32], Difference::Profiles),
            (|it| it.signers = [1; 32], Difference::Signers),
            (|it| it.suites.clear(), Difference::Suites),
            (|it| it.unknown_records = 1, Difference::UnknownRecords),
        ];
        for (change, what) in changes {
            let mut theirs = ours.clone();
            change(&mut theirs);
            assert_eq!(ours.differences(2, Some(&theirs), 2), [what]);
        }
        assert_eq!(ours.differences(3, Some(&ours), 2), [Difference::RecordSchema]);
        assert_eq!(ours.differences(2, None, 2), [Difference::NotSaid]);
        // Another schema of the database, and what a token can't do, are the site's own affair.
        let theirs = Makeup { store_schema: 9, unmet: vec!["x".to_owned()], ..ours.clone() };
        assert_eq!(ours.differences(2, Some(&theirs), 2), []);
    }

    #[test]
    fn a_digest_tells_parts_from_their_neighbours() {
        let of = |parts: &[&str]| digest_of("x", parts);
        assert_eq!(of(&["ab", "c"]), of(&["ab", "c"]));
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_ne!(of(&["ab", "c"]), of(&["c", "ab"]));
        assert_ne!(of(&[]), digest_of("y", [] as [&str; 0]));
    }
}
