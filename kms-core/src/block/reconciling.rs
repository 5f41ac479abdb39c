//! A record that was set aside, beside the one that stands: what differs, and what the writer writes when people
//! decide. Merged is by key id, and by value where two sites brought in one value: a key's state goes on and never
//! back, counter lines rise. Policy and names stay those that stand, since they are one site's word against the
//! other's: whoever wants the other ones sets them.
//!
//! A value that may be in a meter is never given up: of a record that is discarded its keys stay as `DEACTIVATED`
//! versions, which open what was protected with them and protect nothing.

use crate::{
    FormerKey, FormerUse, KeyId, KeyRecord, KeyState, MeterRecord, Record, StateReason,
    life::LIVE_MAX, record::Tombstone,
};

use super::withdrawing::{learnt, raised, withdrawn};

/// Versions that one key may have in a record, and all keys of a meter: as in an import.
const VERSIONS_MAX: (usize, usize) = (MeterRecord::VERSIONS_A_KEY, MeterRecord::VERSIONS_A_METER);

crate::numbered! {
    /// What a record that was set aside is, beside the one that stands: by this, people decide about many at once.
    pub enum Parting "parting" {
        /// All that it says stands already, or is behind what stands.
        NothingNew = 1 "NOTHING_NEW",
        /// A meter that the other site does not know.
        NewMeter = 2 "NEW_METER",
        /// Keys that the standing record does not have, or states of keys that are further on.
        Keys = 3 "KEYS",
        /// Its keys are known, and its policy or its names are other ones.
        Details = 4 "DETAILS",
        /// The meter was deleted here, and stands there.
        Deleted = 5 "DELETED",
        /// The meter was deleted there, and was changed here.
        DeletedThere = 6 "DELETED_THERE",
        /// A counter line that is higher, or that the other site does not have.
        Line = 7 "LINE",
        /// It can't be read: it was changed outside this service, or a later release wrote it.
        Unreadable = 8 "UNREADABLE",
        /// A fact of the domain that the other site does not have, or has in an earlier state.
        Fact = 9 "FACT",
    }
}

crate::numbered! {
    /// A decision about a record that was set aside.
    pub enum Decision "decision" {
        /// Its keys are brought into the record that stands.
        Accept = 1 "ACCEPT",
        /// Nothing of it is used but what must not be lost.
        Discard = 2 "DISCARD",
    }
}

/// A key of a record that was set aside, beside the standing one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyDifference {
    /// The key, by its id in the record that was set aside.
    pub key: KeyId,
    /// Its state there.
    pub aside: KeyState,
    /// Its state in the standing record; `None`: that one does not have it.
    pub stands: Option<KeyState>,
}

/// What differs between a record that was set aside and the one that stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Differences {
    /// What it is.
    pub parting: Parting,
    /// Keys that only it has, or that are in another state.
    pub keys: Vec<KeyDifference>,
    /// Its policy is another one.
    pub policy: bool,
    /// Its meter id or logical device name is another one.
    pub names: bool,
}

/// The reason why a decision can't be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReconciled {
    /// The standing record has no room for its keys.
    #[error(
        "the meter would have too many key versions: {0} of one key or {1} in all are the most"
    )]
    TooManyVersions(usize, usize),
    /// The one that stands is of another meter id: a title has been given to another device.
    #[error(
        "the title stands for another meter id: this record is of another device, and its keys are not that one's"
    )]
    OtherMeter,
    /// A line and a meter under one key: a fault.
    #[error("the standing record is of another kind")]
    OtherKind,
}

/// What differs. `aside`: `None` where it can't be read.
pub fn differences(aside: Option<&Record>, stands: Option<&Record>) -> Differences {
    let none = |parting| Differences { parting, keys: Vec::new(), policy: false, names: false };
    let Some(aside) = aside else { return none(Parting::Unreadable) };
    match (aside, stands) {
        (Record::Line(_), _) => none(match raised(aside, stands) {
            Some(_) => Parting::Line,
            None => Parting::NothingNew,
        }),
        (Record::Fact(_), _) => none(match learnt(aside, stands) {
            Some(_) => Parting::Fact,
            None => Parting::NothingNew,
        }),
        (Record::Meter(ours), Some(Record::Meter(theirs))) => {
            let keys = key_differences(ours, theirs);
            let policy = ours.policy != theirs.policy;
            let names = (&ours.meter_id, &ours.logical_device_name)
                != (&theirs.meter_id, &theirs.logical_device_name);
            let is_further = |it: &KeyDifference| it.stands.is_none_or(|stands| it.aside > stands);
            let parting = match () {
                () if keys.iter().any(is_further) => Parting::Keys,
                () if policy || names => Parting::Details,
                () => Parting::NothingNew,
            };
            Differences { parting, keys, policy, names }
        }
        (Record::Meter(ours), stands) => {
            let only =
                |key: &KeyRecord| KeyDifference { key: key.id, aside: key.state, stands: None };
            let parting = match stands {
                Some(_) => Parting::DeletedThere,
                None => Parting::NewMeter,
            };
            let keys = ours.keys.iter().map(only).collect();
            Differences { parting, keys, policy: false, names: false }
        }
        (Record::Tombstone(_), Some(Record::Meter(_))) => none(Parting::Deleted),
        (Record::Tombstone(ours), Some(Record::Tombstone(theirs))) => {
            let known = ours.keys.iter().all(|key| knows(&theirs.keys, key));
            none(if known { Parting::NothingNew } else { Parting::Deleted })
        }
        (Record::Tombstone(_), _) => none(Parting::Deleted),
    }
}

/// Whether a record that was set aside says something that the one that came after it does not say.
pub fn says_more(aside: &Record, stands: &Record) -> bool {
    let Differences { parting, .. } = differences(Some(aside), Some(stands));
    // A later record may well have another policy; a deletion knows the keys that it buried.
    match (aside, stands) {
        (Record::Meter(ours), Record::Tombstone(theirs)) => {
            !FormerKey::of(ours).iter().all(|key| knows(&theirs.keys, key))
        }
        // It was readmitted since: its former keys are known.
        (Record::Tombstone(ours), Record::Meter(theirs)) => {
            let now = FormerKey::of(theirs);
            !ours.keys.iter().all(|key| knows(&now, key))
        }
        _ => !matches!(parting, Parting::NothingNew | Parting::Details),
    }
}

/// What has to be written at contact, whatever is decided: keys that are known to others or destroyed, counter lines
/// that are higher, and facts of the domain. `None`: nothing.
pub fn at_contact(aside: &Record, stands: Option<&Record>, now_ms: u64) -> Option<Record> {
    if let Some(line) = raised(aside, stands) {
        return Some(Record::Line(line));
    }
    if let Some(fact) = learnt(aside, stands) {
        return Some(Record::Fact(fact));
    }
    let stands = stands?;
    let withdrawn = withdrawn(aside, stands);
    let Record::Meter(meter) = stands else { return None };
    if withdrawn.is_empty() {
        return None;
    }
    let mut meter = meter.clone();
    for key in &mut meter.keys {
        if let Some(to) = withdrawn.iter().find(|to| to.key == key.id) {
            go_on(key, to.state, now_ms);
        }
    }
    meter.changed_by = meter.changed_by.next(now_ms);
    Some(Record::Meter(meter))
}

/// The record that the writer writes for a decision; `None`: nothing is to be written.
pub fn reconcile(
    aside: &Record,
    stands: Option<&Record>,
    decision: Decision,
    now_ms: u64,
) -> Result<Option<Record>, NotReconciled> {
    let written = match (aside, stands) {
        (Record::Line(_), None | Some(Record::Line(_))) => raised(aside, stands).map(Record::Line),
        (Record::Fact(_), None | Some(Record::Fact(_))) => learnt(aside, stands).map(Record::Fact),
        (Record::Line(_) | Record::Fact(_), Some(_))
        | (_, Some(Record::Line(_) | Record::Fact(_))) => {
            return Err(NotReconciled::OtherKind);
        }
        (Record::Meter(ours), None) => Some(alone(ours, decision, now_ms)),
        (Record::Meter(ours), Some(Record::Meter(theirs))) => {
            merged(ours, theirs, decision, now_ms)?
        }
        (Record::Meter(ours), Some(Record::Tombstone(theirs))) => {
            remembered(&FormerKey::of(ours), theirs)
        }
        (Record::Tombstone(ours), Some(Record::Tombstone(theirs))) => {
            remembered(&ours.keys, theirs)
        }
        (Record::Tombstone(ours), None) => {
            (decision == Decision::Accept).then(|| Record::Tombstone(ours.clone()))
        }
        (Record::Tombstone(ours), Some(stands @ Record::Meter(theirs))) => match decision {
            Decision::Accept => Some(buried(ours, theirs, now_ms)),
            Decision::Discard => at_contact(aside, Some(stands), now_ms),
        },
    };
    Ok(written.filter(|written| Some(written) != stands))
}

/// A meter that the other site does not know.
fn alone(ours: &MeterRecord, decision: Decision, now_ms: u64) -> Record {
    let mut meter = ours.clone();
    if decision == Decision::Discard {
        meter.keys.iter_mut().for_each(|key| go_on(key, KeyState::Deactivated, now_ms));
    }
    meter.changed_by = meter.changed_by.next(now_ms);
    Record::Meter(meter)
}

fn merged(
    ours: &MeterRecord,
    theirs: &MeterRecord,
    decision: Decision,
    now_ms: u64,
) -> Result<Option<Record>, NotReconciled> {
    if ours.meter_id != theirs.meter_id {
        return Err(NotReconciled::OtherMeter);
    }
    let mut meter = theirs.clone();
    meter.legal_hold_ms = meter.legal_hold_ms.or(ours.legal_hold_ms);
    for key in &ours.keys {
        match meter.keys.iter_mut().find(|known| is_same(known, key)) {
            Some(known) => {
                let counts = decision == Decision::Accept || key.state >= KeyState::Compromised;
                if counts && key.state > known.state {
                    let becomes = key.state;
                    go_on(known, becomes, now_ms);
                    retire_others(&mut meter, key, now_ms);
                }
            }
            None => add(&mut meter, key, decision, now_ms)?,
        }
    }
    for old in &ours.former {
        if !knows(&meter.former, old) {
            meter.former.push(old.clone());
        }
    }
    meter.keys.sort_by_key(|key| (key.setup, key.kind, key.version));
    if meter == *theirs {
        return Ok(None);
    }
    meter.changed_by = meter.changed_by.max(ours.changed_by).next(now_ms);
    Ok(Some(Record::Meter(meter)))
}

/// A key that only the record that was set aside has: the newest version of its place.
fn add(
    meter: &mut MeterRecord,
    key: &KeyRecord,
    decision: Decision,
    now_ms: u64,
) -> Result<(), NotReconciled> {
    let of_place = meter.keys.iter().filter(|known| place(known) == place(key));
    let (count, latest) =
        of_place.fold((0, 0), |(count, latest), known| (count + 1, latest.max(known.version)));
    let (of_one, of_all) = VERSIONS_MAX;
    let version = u16::checked_add(latest, 1);
    // What a meter may hold is tried on what it sends: no more than are tried.
    let live = meter.keys.iter().filter(|it| place(it) == place(key) && it.is_live()).count();
    let has_room = !key.is_live() || live < LIVE_MAX;
    let (true, Some(version)) = (count < of_one && meter.keys.len() < of_all && has_room, version)
    else {
        return Err(NotReconciled::TooManyVersions(of_one, of_all));
    };
    let mut added = KeyRecord { version, ..key.clone() };
    if decision == Decision::Discard {
        go_on(&mut added, KeyState::Deactivated, now_ms);
    }
    let added_key = added.clone();
    meter.keys.push(added);
    retire_others(meter, &added_key, now_ms);
    Ok(())
}

/// One key of a place is active: beside one that became it, the former one opens and protects no more.
fn retire_others(meter: &mut MeterRecord, key: &KeyRecord, now_ms: u64) {
    let is_active = |known: &&mut KeyRecord| known.state == KeyState::Active;
    if !meter.keys.iter().any(|known| is_same(known, key) && known.state == KeyState::Active) {
        return;
    }
    let others = meter.keys.iter_mut().filter(|known| place(known) == place(key));
    for other in others.filter(|known| !is_same(known, key)).filter(is_active) {
        go_on(other, KeyState::Deactivated, now_ms);
    }
}

/// A deletion that one site knows of, over the record that the other one has changed since.
fn buried(ours: &Tombstone, theirs: &MeterRecord, now_ms: u64) -> Record {
    let mut keys = FormerKey::of(theirs);
    keys.extend(ours.keys.iter().filter(|key| !knows(&keys, key)).cloned().collect::<Vec<_>>());
    Record::Tombstone(Tombstone {
        meter_id: Some(theirs.meter_id.clone()),
        system_title: theirs.system_title,
        keys,
        deleted_ms: now_ms,
        changed_by: theirs.changed_by.max(ours.changed_by),
        readmitted_ms: None,
    })
}

/// A deleted meter stays deleted; the values that it had at the other site stay known.
fn remembered(ours: &[FormerKey], theirs: &Tombstone) -> Option<Record> {
    let news: Vec<FormerKey> =
        ours.iter().filter(|key| !knows(&theirs.keys, key)).cloned().collect();
    let room = FormerKey::MAX.saturating_sub(theirs.keys.len());
    if news.is_empty() || room == 0 {
        return None;
    }
    let keys = theirs.keys.iter().cloned().chain(news.into_iter().take(room)).collect();
    Some(Record::Tombstone(Tombstone { keys, ..theirs.clone() }))
}

fn key_differences(ours: &MeterRecord, theirs: &MeterRecord) -> Vec<KeyDifference> {
    let difference = |key: &KeyRecord| {
        let stands = theirs.keys.iter().find(|known| is_same(known, key)).map(|known| known.state);
        (stands != Some(key.state)).then_some(KeyDifference {
            key: key.id,
            aside: key.state,
            stands,
        })
    };
    ours.keys.iter().filter_map(difference).collect()
}

fn place(key: &KeyRecord) -> (crate::SecuritySetup, crate::KeyKind) {
    (key.setup, key.kind)
}

/// One key: by its id, or by its value where two sites brought it in.
fn is_same(known: &KeyRecord, key: &KeyRecord) -> bool {
    // Of a value that went on as another version a destroyed row stands.
    let same_value = place(known) == place(key) && known.fingerprint == key.fingerprint;
    known.id == key.id || same_value && known.state != KeyState::Destroyed
}

fn knows(known: &[FormerKey], key: &FormerKey) -> bool {
    let used = |was: Option<FormerUse>| was.map(|was| (was.setup, was.kind));
    let same = |it: &&FormerKey| it.fingerprint == key.fingerprint && used(it.was) == used(key.was);
    let state = |it: &FormerKey| it.was.map(|was| was.state);
    // A state further on counts: a value that was compromised is one for ever.
    let compromised = state(key).filter(|state| *state >= KeyState::Compromised);
    known.iter().filter(same).any(|it| compromised.is_none() || state(it) >= compromised)
}

/// Brings a key into a state that is further on; it never goes back. Of a destroyed one nothing is kept to open with.
fn go_on(key: &mut KeyRecord, state: KeyState, now_ms: u64) {
    key.go_on(state, StateReason::Reconciled, now_ms);
}

#[cfg(test)]
mod tests;
