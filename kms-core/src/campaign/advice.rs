//! What may be done next about a meter that is stuck, as commands of `ami-tool`: only what its record allows.

use std::collections::BTreeSet;

use crate::{
    KeyKind, KeyRecord, KeyState, MeterRecord,
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
    let places: BTreeSet<Place> = meter.keys.iter().map(Place::of).collect();
    let changing = |place: &Place| {
        matches!(place.kind, KeyKind::Guek | KeyKind::Gak | KeyKind::Gbek | KeyKind::Kek)
    };
    let mut all = Vec::new();
    for place in places.into_iter().filter(changing) {
        let at = At { meter, place };
        match place.staged(meter) {
            Some(staged) => at.of_staged(staged, &mut all),
            None => at.of_compromised(&mut all),
        }
        at.of_versions(&mut all);
    }
    all
}

/// A key of the meter.
#[derive(Clone, Copy)]
struct At<'m> {
    meter: &'m MeterRecord,
    place: Place,
}

impl At<'_> {
    /// `ami-tool key …` of it, or of one of its versions.
    fn command(self, verb: &str, version: Option<u16>) -> String {
        let id = self.meter.meter_id.as_str();
        let (dashed, id, kind) = (id.starts_with('-'), quoted(id), self.place.kind.word());
        let version = version.map(|version| format!(" {version}")).unwrap_or_default();
        let setup = match self.place.setup.0 {
            0 => String::new(),
            setup => format!(" --security-setup {setup}"),
        };
        // An id may begin with a dash: flags come first then, and an end of them.
        match dashed {
            true => format!("ami-tool key {verb}{setup} -- {id} {kind}{version}"),
            false => format!("ami-tool key {verb} {id} {kind}{version}{setup}"),
        }
    }

    /// One that waits to be shown.
    fn of_staged(self, staged: &KeyRecord, all: &mut Vec<Advice>) {
        let (version, transfer) = (staged.version, staged.life.transfer.as_ref());
        let sent = transfer.is_some_and(|it| it.sent_ms.is_some());
        if sent {
            let carrier = transfer.map_or(self.place.setup, |it| it.carrier.setup);
            let tried: Vec<String> = pairs(self.meter, carrier).iter().map(word).collect();
            all.push(Advice {
                command: format!("ami-tool decrypt --meter={} -", quoted(self.meter.meter_id.as_str())),
                reason: format!(
                    "version {version} was handed out and is not shown: authenticate to the meter (HLS), or read anything of \
                     it, under each of the pairs {} (GUEK/GAK) in turn, and have what it sends opened: the pair that it \
                     answers to is the one that it holds",
                    tried.join(", ")
                ),
            });
        }
        all.push(Advice {
            command: self.command("next-transfer", None),
            reason: format!(
                "version {version} is staged: send it, under the pair that the meter answers to"
            ),
        });
        let (verb, reason) = match sent {
            true => (
                "destroy --last-way",
                "gives the staged version up: only if it is sure that the meter does not hold it; takes two people",
            ),
            false => ("destroy", "gives the staged version up: nobody has it but this service"),
        };
        let command = self.command(verb, Some(version));
        all.push(Advice { command, reason: reason.to_owned() });
    }

    /// One that others know and that nothing follows.
    fn of_compromised(self, all: &mut Vec<Advice>) {
        let compromised = |key: &KeyRecord| key.state == KeyState::Compromised;
        if self.place.preferred(self.meter).is_none()
            && self.place.versions(self.meter).any(compromised)
        {
            all.push(Advice {
                command: self.command("stage", None),
                reason: "it is known to others, and no other one follows: have a new one made"
                    .to_owned(),
            });
        }
    }

    /// Versions that may be gone back to.
    fn of_versions(self, all: &mut Vec<Advice>) {
        let preferred = self.place.preferred(self.meter).map(|key| key.version);
        for key in self.place.versions(self.meter) {
            let (verb, reason) = match key.state {
                KeyState::Destroyed => continue,
                _ if key.life.destroy_at_ms.is_some() => {
                    ("restore", "it is to be destroyed: this takes that back")
                }
                KeyState::Active if preferred != Some(key.version) => (
                    "rollback",
                    "if the meter fell back to this version: what is sent goes out under it again",
                ),
                KeyState::Deactivated => (
                    "revive",
                    "if the meter was set back to this value: it goes on as a new version; takes two people",
                ),
                _ => continue,
            };
            let command = self.command(verb, Some(key.version));
            all.push(Advice { command, reason: reason.to_owned() });
        }
    }
}

fn word(pair: &Pair) -> String {
    format!("{}/{}", pair.encryption, pair.authentication.unwrap_or_default())
}

/// An id as a shell takes it for one word.
fn quoted(id: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:/@+,=%".contains(&byte);
    match id.bytes().all(plain) {
        true => id.to_owned(),
        false => format!("'{}'", id.replace('\'', r"'\''")),
    }
}
