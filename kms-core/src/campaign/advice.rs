//! What may be done next about a meter that is stuck, as commands: only what its record allows.

use crate::{
    KeyKind, KeyState, MeterRecord,
    life::choosing::{Pair, Place},
};

use super::stepping::pairs;

/// A step that somebody may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// As it is typed.
    pub command: String,
    /// Why that.
    pub reason: String,
}

/// The steps, the gentlest first.
pub fn advice(meter: &MeterRecord) -> Vec<Advice> {
    let mut all = Vec::new();
    let places: std::collections::BTreeSet<Place> = meter.keys.iter().map(Place::of).collect();
    for place in places {
        let changing =
            matches!(place.kind, KeyKind::Guek | KeyKind::Gak | KeyKind::Gbek | KeyKind::Kek);
        if changing {
            of_place(meter, place, &mut all);
        }
    }
    all
}

fn of_place(meter: &MeterRecord, place: Place, all: &mut Vec<Advice>) {
    let (id, kind, setup) = (&meter.meter_id, place.kind.word(), place.setup.0);
    let at = format!("{id} {kind} --setup {setup}");
    let mut say = |command: String, reason: String| all.push(Advice { command, reason });
    if let Some(staged) = place.staged(meter) {
        let version = staged.version;
        let transfer = staged.life.transfer.as_ref();
        if transfer.is_some_and(|it| it.sent_ms.is_some()) {
            let carrier = transfer.map_or(place.setup, |it| it.carrier.setup);
            let tried = pairs(meter, carrier);
            let word = |pair: &Pair| {
                format!("{}/{}", pair.encryption, pair.authentication.unwrap_or_default())
            };
            let tried: Vec<String> = tried.iter().map(word).collect();
            say(
                format!("ami-tool hls challenge {id}"),
                format!(
                    "version {version} was handed out and is not shown: authenticate, or read anything, under each of the \
                     pairs {} (GUEK/GAK) in turn; the one that answers says what the meter holds",
                    tried.join(", ")
                ),
            );
        }
        say(
            format!("ami-tool key transfer {at}"),
            format!(
                "version {version} is staged: send it, under the pair that the meter answers to"
            ),
        );
        let sent = transfer.is_some_and(|it| it.sent_ms.is_some());
        say(
            format!("ami-tool key destroy {at} --version {version}{}", if sent { " --last-way" } else { "" }),
            match sent {
                true => "gives the staged version up: only if it is sure that the meter does not hold it".to_owned(),
                false => "gives the staged version up: nobody has it but this service".to_owned(),
            },
        );
    }
    let preferred = place.preferred(meter).map(|key| key.version);
    for key in place.versions(meter) {
        let version = key.version;
        match key.state {
            KeyState::Active if preferred != Some(version) => say(
                format!("ami-tool key rollback {at} --version {version}"),
                "the meter fell back to this version: what is sent goes out under it again".to_owned(),
            ),
            KeyState::Deactivated => say(
                format!("ami-tool key revive {at} --version {version}"),
                "the meter was set back to this value: it goes on as a new version; takes two people".to_owned(),
            ),
            _ => {}
        }
    }
}
