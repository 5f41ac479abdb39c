//! What of a record that was set aside waits for nobody: keys that are compromised or destroyed, counter lines that are
//! higher, and facts of the domain.

use crate::{KeyId, KeyState, MeterRecord, Record, counters::Line, fact::Fact};

/// A key that must not be used on as the peer uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Withdrawn {
    /// The key, of the peer's record.
    pub key: KeyId,
    /// The state to bring it into: `COMPROMISED` or `DESTROYED`.
    pub state: KeyState,
}

/// The keys of the peer's record that a record which was set aside says are compromised or destroyed, and
/// that have not come as far there. Those apply at contact, whatever is decided of the rest.
pub fn withdrawn(set_aside: &Record, theirs: &Record) -> Vec<Withdrawn> {
    let Record::Meter(theirs) = theirs else { return Vec::new() };
    let state = |key: &crate::KeyRecord| match set_aside {
        Record::Meter(ours) => state_in(ours, key),
        Record::Tombstone(ours) => former_state(&ours.keys, key),
        Record::Line(_) | Record::Fact(_) => None,
    };
    let withdrawn = |key: &crate::KeyRecord| {
        let state = state(key).filter(|state| *state >= KeyState::Compromised)?;
        (key.state < state).then_some(Withdrawn { key: key.id, state })
    };
    theirs.keys.iter().filter_map(withdrawn).collect()
}

/// The counter line that the peer has to write before it transmits on it, if the one that was set aside is higher: offsets
/// merge by maximum, whatever is decided of the rest. A peer that was restored would repeat counters else.
pub fn raised(set_aside: &Record, theirs: Option<&Record>) -> Option<Line> {
    let Record::Line(ours) = set_aside else { return None };
    let merged = match theirs {
        Some(Record::Line(theirs)) if theirs.name == ours.name => theirs.merged(ours),
        _ => *ours,
    };
    (theirs != Some(&Record::Line(merged))).then_some(merged)
}

/// The fact that the peer has to write, if the one that was set aside says more: facts merge by rule. That a list was
/// forgotten is not taken over so: it lets older ones be used, and two people do it again at the site that writes.
pub fn learnt(set_aside: &Record, theirs: Option<&Record>) -> Option<Fact> {
    let Record::Fact(ours) = set_aside else { return None };
    let merged = match theirs {
        // The secret that our block came under is no fact of the peer's block.
        _ if matches!(ours, Fact::Secrets(_)) => return None,
        _ if forgets_more(ours, theirs) => return None,
        Some(Record::Fact(theirs)) => theirs.merged(ours),
        _ => ours.clone(),
    };
    let stands = matches!(theirs, Some(Record::Fact(theirs)) if *theirs == merged);
    (!stands).then_some(merged)
}

fn forgets_more(ours: &Fact, theirs: Option<&Record>) -> bool {
    let resets = |fact: &Fact| match fact {
        Fact::List(list) => list.resets,
        Fact::File(_)
        | Fact::Secrets(_)
        | Fact::Wish(_)
        | Fact::Campaign(_)
        | Fact::CampaignPart(_)
        | Fact::Group(_)
        | Fact::Membership(_) => 0,
    };
    let theirs = match theirs {
        Some(Record::Fact(theirs)) => resets(theirs),
        _ => 0,
    };
    resets(ours) > theirs
}

fn state_in(ours: &MeterRecord, key: &crate::KeyRecord) -> Option<KeyState> {
    // A value that goes on as another version is not given up: that version's state is its own.
    let goes_on = ours.keys.iter().filter(|it| {
        (it.setup, it.kind, it.fingerprint) == (key.setup, key.kind, key.fingerprint)
            && it.is_live()
    });
    let goes_on = goes_on.map(|it| it.state).max();
    let by_id = ours.keys.iter().find(|ours| ours.id == key.id).map(|ours| ours.state);
    let by_id = by_id.filter(|state| *state != KeyState::Destroyed || goes_on.is_none());
    let by_id = by_id.max(goes_on);
    by_id.into_iter().chain(former_state(&ours.former, key)).max()
}

/// The state of a key in a meter that was deleted: former keys have no ids, only their values' identities.
fn former_state(former: &[crate::FormerKey], key: &crate::KeyRecord) -> Option<KeyState> {
    let same = |was: &crate::FormerUse| (was.setup, was.kind) == (key.setup, key.kind);
    let of_value = former.iter().filter(|former| former.fingerprint == key.fingerprint);
    of_value.filter_map(|former| former.was).filter(same).map(|was| was.state).max()
}
