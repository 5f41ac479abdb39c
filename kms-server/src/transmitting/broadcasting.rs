//! Broadcasts to a group. While one of its keys is rotated, members use one value or the other: then one message goes out
//! under each, and the caller is told whom it reaches. Which key a member uses is told by its record, as for all that is
//! sent; a value that somebody said is compromised protects nothing.

use std::collections::{BTreeMap, BTreeSet};

use dlms::KeySet;

use super::{
    batch::Transmitting,
    forwarding::Origin,
    item::{Envelope, Outcome, Plain, Whose},
    keys::find,
};
use crate::keyring::{ResidentMeter, Standing, scrub_stack};
use kms_core::{
    Fingerprint, KeyKind, SystemTitle, Verdict,
    counters::allocator::Purpose,
    fact::{Group, GroupValue},
};

/// One message of a broadcast.
#[derive(Clone, Debug)]
pub struct BroadcastMessage {
    /// The ciphered APDU; empty unless the verdict is `OK`.
    pub apdu: Vec<u8>,
    /// How it went. The meter in it is the member whose record named the keys.
    pub outcome: Outcome,
    /// The GBEK.
    pub gbek: GroupValue,
    /// The GAK; none: it has no tag.
    pub gak: Option<GroupValue>,
    /// Members that use these values.
    pub reaches: usize,
    /// Members that may use them: they were handed out, and nothing confirms that.
    pub may_reach: usize,
}

/// A member that no message is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotReached {
    /// The member.
    pub title: SystemTitle,
    /// Why not.
    pub reason: String,
}

/// A broadcast.
#[derive(Clone, Debug, Default)]
pub struct Broadcast {
    /// One for each value that members may use now. All of them are to be sent.
    pub messages: Vec<BroadcastMessage>,
    /// Members that none of them is for.
    pub not_reached: Vec<NotReached>,
}

/// A value that a member has, in this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    value: Fingerprint,
    version: u16,
    /// It is the one that the meter is presumed to use.
    sure: bool,
}

/// A member whose record names the keys, its versions, and whether it is sure that it uses them.
type By = (SystemTitle, (u16, u16), bool);

/// Members that are sent to under one pair of values.
struct Of {
    /// Of them, the one whose record names the keys, its versions, and whether that is sure.
    by: By,
    reaches: usize,
    may_reach: usize,
}

/// GBEKs, and GAKs where broadcasts have a tag.
type Values = (Vec<Held>, Option<Vec<Held>>);
type Pair = (Fingerprint, Option<Fingerprint>);

impl Transmitting {
    /// Protects `apdu` for a group, in this envelope: one message for each value in flight that members may use.
    pub async fn broadcast(
        &self,
        origin: &Origin<'_>,
        group: &Group,
        (apdu, envelope): (&[u8], Envelope),
    ) -> Broadcast {
        let mut broadcast = Broadcast::default();
        let mut members = Vec::with_capacity(group.members.len());
        let mut compromised = BTreeSet::new();
        for title in &group.members {
            match self.held(group, *title, &mut compromised).await {
                Ok(held) => members.push((*title, held)),
                Err(reason) => broadcast.not_reached.push(NotReached { title: *title, reason }),
            }
        }
        scrub_stack();
        let mut pairs: BTreeMap<Pair, Of> = BTreeMap::new();
        for (title, values) in &members {
            if !count(&mut pairs, *title, values, &compromised) {
                let reason = "it has none of the group's values that may be used".to_owned();
                broadcast.not_reached.push(NotReached { title: *title, reason });
            }
        }
        let items: Vec<Plain<'_>> =
            pairs.values().map(|of| plain(group, of.by, (apdu, envelope))).collect();
        let protected = self.protect_for(origin, &items).await;
        let mut rest = &protected.apdus[..];
        let outcomes = protected.outcomes.into_iter().zip(protected.lengths);
        for (((gbek, gak), of), (outcome, len)) in pairs.into_iter().zip(outcomes) {
            let (bytes, behind) = rest.split_at_checked(len as usize).unwrap_or_default();
            rest = behind;
            let value = |kind, fingerprint| {
                group.in_flight(kind).find(|it| it.fingerprint == fingerprint).copied()
            };
            let Some(gbek) = value(KeyKind::Gbek, gbek) else { continue };
            broadcast.messages.push(BroadcastMessage {
                apdu: if outcome.verdict == Verdict::Ok { bytes.to_vec() } else { Vec::new() },
                outcome,
                gbek,
                gak: gak.and_then(|gak| value(KeyKind::Gak, gak)),
                reaches: of.reaches,
                may_reach: of.may_reach,
            });
        }
        broadcast
    }

    /// The values of the group that a member may use, and what is compromised of them.
    async fn held(
        &self,
        group: &Group,
        title: SystemTitle,
        compromised: &mut BTreeSet<Fingerprint>,
    ) -> Result<Values, String> {
        let table = self.reader.open(self.reader.block_of(&title)).await;
        let table = table.map_err(|error| error.to_string())?;
        let why = |outcome: Outcome| {
            outcome.reason.map_or_else(|| outcome.verdict.word().to_owned(), String::from)
        };
        let meter = find(&table, title).map_err(why)?;
        if meter.client_title_of(group.setup, group.client) != Some(group.originator) {
            return Err("its title of the broadcasting client is not the group's".to_owned());
        }
        let gbeks = self.of_kind(&meter, (group, KeyKind::Gbek), compromised);
        let gaks =
            group.authenticated.then(|| self.of_kind(&meter, (group, KeyKind::Gak), compromised));
        Ok((gbeks, gaks))
    }

    fn of_kind(
        &self,
        meter: &ResidentMeter<'_>,
        (group, kind): (&Group, KeyKind),
        compromised: &mut BTreeSet<Fingerprint>,
    ) -> Vec<Held> {
        let mut held: Vec<Held> = Vec::new();
        for candidate in meter.candidates(kind, Some(group.setup)) {
            let bytes = candidate.key.bytes();
            let value = bytes.and_then(|bytes| self.identities.identify_bytes(bytes));
            let Some(value) = value.filter(|it| is_in_flight(group, kind, *it)) else { continue };
            let standing = candidate.standing;
            if standing.compromised {
                compromised.insert(value);
            } else if may_use(standing) {
                held.push(Held { value, version: candidate.version, sure: standing.protects });
            }
        }
        confirmed_alone(held, group.wanted(kind))
    }
}

/// Who has confirmed what all are brought to is not sent to under anything else.
fn confirmed_alone(held: Vec<Held>, wanted: Option<&GroupValue>) -> Vec<Held> {
    let is_wanted = |it: &&Held| wanted.is_some_and(|wanted| wanted.fingerprint == it.value);
    match held.iter().filter(is_wanted).find(|it| it.sure).copied() {
        Some(confirmed) => vec![confirmed],
        None => held,
    }
}

/// Whether the meter may use it: it is active, or was handed out.
const fn may_use(standing: Standing) -> bool {
    standing.protects || standing.active || standing.carries && standing.sent
}

fn is_in_flight(group: &Group, kind: KeyKind, value: Fingerprint) -> bool {
    group.in_flight(kind).any(|known| known.fingerprint == value)
}

impl Of {
    fn count(&mut self, by: By) {
        if by.2 && !self.by.2 {
            self.by = by;
        }
        self.reaches += usize::from(by.2);
        self.may_reach += usize::from(!by.2);
    }
}

/// Counts a member among those of each pair that it may use. False: it may use none.
fn count(
    pairs: &mut BTreeMap<Pair, Of>,
    title: SystemTitle,
    (gbeks, gaks): &Values,
    compromised: &BTreeSet<Fingerprint>,
) -> bool {
    let mut counted = false;
    for gbek in gbeks.iter().filter(|it| !compromised.contains(&it.value)) {
        let with: Vec<Option<&Held>> = match gaks {
            None => vec![None],
            Some(gaks) => {
                gaks.iter().filter(|it| !compromised.contains(&it.value)).map(Some).collect()
            }
        };
        for gak in with {
            let sure = gbek.sure && gak.is_none_or(|gak| gak.sure);
            let versions = (gbek.version, gak.map_or(0, |gak| gak.version));
            let by = (title, versions, sure);
            let pair = (gbek.value, gak.map(|gak| gak.value));
            pairs.entry(pair).or_insert(Of { by, reaches: 0, may_reach: 0 }).count(by);
            counted = true;
        }
    }
    counted
}

fn plain<'a>(group: &Group, by: By, what: (&'a [u8], Envelope)) -> Plain<'a> {
    let ((title, versions, _), (apdu, envelope)) = (by, what);
    Plain {
        apdu,
        whose: Whose::Title(title),
        setup: group.setup,
        client: group.client,
        key_set: KeySet::Broadcast,
        envelope,
        protection: (group.authenticated, true),
        suite: None,
        purpose: Purpose::Broadcast,
        versions,
    }
}
