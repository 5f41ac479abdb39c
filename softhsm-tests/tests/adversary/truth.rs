//! What the service was told and has acknowledged: what each frame must come back as.

use std::collections::BTreeMap;

use dlms::{Envelope, FreshCounter, GeneralCipheringAad, Keys, Protection, SecurityControl};
use kms_client::{Apdu, Opened, Verdict};

use super::common::fleet::{self, GAK, GUEK, PLAIN, apdu, id, title, value};

/// A meter as it was acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct Meter {
    pub(crate) alive: bool,
    /// Versions of its GUEK, from 1.
    pub(crate) versions: u8,
    /// Whether authenticated alone is too little.
    pub(crate) strict: bool,
    /// A change whose outcome nobody was told.
    pub(crate) in_doubt: bool,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Truth {
    pub(crate) meters: BTreeMap<u64, Meter>,
}

/// One frame, and what may become of it.
pub(crate) struct Probe {
    pub(crate) what: String,
    pub(crate) meter: u64,
    pub(crate) apdu: Apdu,
    pub(crate) expected: Verdict,
}

impl Probe {
    /// Whether `opened` is what must come out, or a refusal that says so.
    pub(crate) fn is_right(&self, opened: &Opened) -> bool {
        let verdict = opened.verdict();
        let plain = match verdict.opened() {
            true => opened.plaintext.as_deref() == Some(PLAIN),
            false => opened.plaintext.is_none(),
        };
        plain && (verdict == self.expected || verdict == Verdict::Unavailable)
    }
}

/// The GUEK of a version.
pub(crate) fn guek(n: u64, version: u8) -> [u8; 16] {
    value(n, if version == 1 { GUEK } else { 16 + version })
}

fn frame(n: u64, version: u8, control: u8, named: bool) -> Vec<u8> {
    if named {
        return fleet::push_with(n, control, &guek(n, version), &value(n, GAK), PLAIN);
    }
    let protection = Protection {
        envelope: Envelope::GeneralGlo(None),
        security_control: SecurityControl::from_byte(control).unwrap(),
        originator: title(n),
        keys: Keys { encryption: &guek(n, version), authentication: &value(n, GAK) },
        gc_aad: GeneralCipheringAad::Spec,
    };
    let counter = FreshCounter::promise_never_used_under_this_key_and_title(fleet::counter());
    let mut out = Vec::new();
    dlms::protect(&protection, counter, PLAIN, &mut out).unwrap();
    out
}

impl Truth {
    pub(crate) fn add(&mut self, n: u64) {
        let meter = Meter { alive: true, versions: 1, strict: false, in_doubt: false };
        self.meters.insert(n, meter);
    }

    pub(crate) fn living(&self) -> Vec<u64> {
        let alive = self.meters.iter().filter(|(_, meter)| meter.alive && !meter.in_doubt);
        alive.map(|(n, _)| *n).collect()
    }

    /// Frames of all meters: under each key version, authenticated only, without a title, under a
    /// neighbour's keys; of deleted ones, and of one that never was.
    pub(crate) fn probes(&self) -> Vec<Probe> {
        let mut probes = Vec::new();
        let mut push = |what: String, meter, bytes, expected| {
            probes.push(Probe { what, meter, apdu: apdu(bytes), expected });
        };
        let mut titleless = Vec::new();
        let living = self.living();
        for (n, meter) in self.meters.iter().filter(|(_, meter)| !meter.in_doubt) {
            let n = *n;
            let open = if meter.alive { Verdict::Ok } else { Verdict::UnknownMeter };
            for version in 1..=meter.versions {
                push(format!("meter {n}, key {version}"), n, frame(n, version, 0x30, true), open);
            }
            if !meter.alive {
                continue;
            }
            let weak = if meter.strict { Verdict::PolicyRefused } else { Verdict::Ok };
            let what = format!("meter {n}, authenticated only");
            push(what, n, frame(n, meter.versions, 0x10, true), weak);
            let own = frame(n, meter.versions, 0x30, false);
            titleless.push((format!("meter {n} by its id"), n, own, Verdict::Ok));
            if let Some(other) = living.iter().find(|other| **other > n) {
                let foreign = frame(*other, 1, 0x30, false);
                let what = format!("a frame of meter {other} in the name of meter {n}");
                titleless.push((what, n, foreign, Verdict::MicFailure));
            }
        }
        let nobody = 900_000;
        push(
            "a meter that never was".into(),
            nobody,
            frame(nobody, 1, 0x30, true),
            Verdict::UnknownMeter,
        );
        for (what, meter, bytes, expected) in titleless {
            let apdu = apdu(bytes).of_meter(id(meter).parse().unwrap());
            probes.push(Probe { what, meter, apdu, expected });
        }
        probes
    }
}
