//! What may be done next about a meter that is stuck, as commands of `ami-tool`: only what its record allows.

use std::collections::BTreeSet;

use crate::{
    KeyKind, KeyRecord, KeyState, MeterRecord, SecuritySetup,
    life::choosing::{Pair, Place},
};

use super::stepping::pairs;

const GIVEN_UP: &str = "gives the staged version up: nobody has it but this service";
const GIVEN_UP_SENT: &str = "gives the staged version up: only if it is sure that the meter does not hold it; takes two people";
const NO_OTHER: &str = "it is known to others, and no other one follows: have a new one made";
const CONDEMNED: &str = "it is to be destroyed: this takes that back";
const FELL_BACK: &str =
    "if the meter fell back to this version: what is sent goes out under it again";
const SET_BACK: &str =
    "if the meter was set back to this value: it goes on as a new version; takes two people";

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

    fn step(self, (verb, version): (&str, Option<u16>), reason: impl Into<String>) -> Advice {
        Advice { command: self.command(verb, version), reason: reason.into() }
    }

    /// One that waits to be shown.
    fn of_staged(self, staged: &KeyRecord, all: &mut Vec<Advice>) {
        let (version, transfer) = (staged.version, staged.life.transfer.as_ref());
        let sent = transfer.filter(|it| it.sent_ms.is_some());
        all.extend(sent.map(|it| self.find_out(version, it.carrier.setup)));
        let reason = format!(
            "version {version} is staged: send it, under the pair that the meter answers to"
        );
        all.push(self.step(("next-transfer", None), reason));
        let (verb, reason) = match sent {
            Some(_) => ("destroy --last-way", GIVEN_UP_SENT),
            None => ("destroy", GIVEN_UP),
        };
        all.push(self.step((verb, Some(version)), reason));
    }

    /// Which pair the meter holds, of a version that was handed out: begins with the likeliest.
    fn find_out(self, version: u16, carrier: SecuritySetup) -> Advice {
        let pairs = pairs(self.meter, carrier);
        let tried: Vec<String> = pairs.iter().map(word).collect();
        let tried = tried.join(", ");
        let under = pairs.first().map(under).unwrap_or_default();
        let setup = match carrier.0 {
            0 => String::new(),
            setup => format!(" --security-setup {setup}"),
        };
        let meter = quoted(self.meter.meter_id.as_str());
        Advice {
            command: format!("ami-tool hls challenge --meter={meter}{setup}{under}"),
            reason: format!(
                "version {version} was handed out and is not shown: begin an association (HLS) under each of the pairs {tried} \
                 (GUEK/GAK) in turn and have the meter's answer verified (`ami-tool hls verify`), or read its clock under them \
                 (`ami-tool encrypt --probe`): the pair that it answers to is the one that it holds"
            ),
        }
    }

    /// One that others know and that nothing follows.
    fn of_compromised(self, all: &mut Vec<Advice>) {
        let compromised = |key: &KeyRecord| key.state == KeyState::Compromised;
        let is_lone = self.place.preferred(self.meter).is_none();
        if is_lone && self.place.versions(self.meter).any(compromised) {
            all.push(self.step(("stage", None), NO_OTHER));
        }
    }

    /// Versions that may be gone back to.
    fn of_versions(self, all: &mut Vec<Advice>) {
        let preferred = self.place.preferred(self.meter).map(|key| key.version);
        for key in self.place.versions(self.meter) {
            if let Some((verb, reason)) = back_to(key, preferred) {
                all.push(self.step((verb, Some(key.version)), reason));
            }
        }
    }
}

/// How a version is gone back to, if it may be.
fn back_to(key: &KeyRecord, preferred: Option<u16>) -> Option<(&'static str, &'static str)> {
    match key.state {
        KeyState::Destroyed => None,
        _ if key.life.destroy_at_ms.is_some() => Some(("restore", CONDEMNED)),
        KeyState::Active if preferred != Some(key.version) => Some(("rollback", FELL_BACK)),
        KeyState::Deactivated => Some(("revive", SET_BACK)),
        _ => None,
    }
}

/// The flags that name a pair; without a GAK there is none to name.
fn under(pair: &Pair) -> String {
    let Some(authentication) = pair.authentication else { return String::new() };
    format!(" --encryption-version {} --authentication-version {authentication}", pair.encryption)
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
