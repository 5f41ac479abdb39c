//! One frame that failed: which keys would have fitted it, or in which way it does not belong here.

use dlms::{CipheredApdu, Form, GeneralCipheringAad, Keys, Side, SystemTitle};

use crate::{
    ciphering::{
        attempt::{Attempting, header_rule},
        item::Outcome,
    },
    keyring::{BlockTable, Candidate, KeyMaterial, Reader, ResidentMeter, UnusedKeys, Whence},
};
use kms_core::{
    KeyKind, SecuritySetup, Verdict,
    triage::{Fit, Found, Plausible, Standing, trial::Trial},
};

/// Pairs that are tried on one frame in each of the ways below.
const PAIRS_MAX: usize = 16;
/// Titles of the record under which an APDU without one is tried.
const TITLES_MAX: usize = 16;
/// Pairs with keys that open nothing: each of them beside each that does.
const UNUSED_PAIRS_MAX: usize = 64;

/// The frames of one meter are examined against its keys, those that open nothing, and the open blocks.
pub(super) struct Examining<'a> {
    keyring: &'a Reader,
    table: &'a BlockTable,
    title: SystemTitle,
    unused: &'a UnusedKeys,
    /// The encryption keys that decipherments are judged under, and the kind of each.
    judged: Vec<KeyKind>,
    keys: Vec<Fit>,
}

/// A key in memory that is tried.
#[derive(Clone, Copy)]
struct Tried<'k> {
    setup: SecuritySetup,
    version: u16,
    protects: bool,
    whence: Option<Whence>,
    bytes: &'k [u8],
}

impl<'a> Examining<'a> {
    pub(super) fn new(
        keyring: &'a Reader,
        table: &'a BlockTable,
        title: SystemTitle,
        unused: &'a UnusedKeys,
    ) -> Self {
        let (mut judged, mut keys) = (Vec::new(), Vec::new());
        if let Some(meter) = table.find(&title) {
            for kind in [KeyKind::Guek, KeyKind::Gbek, KeyKind::Dedicated] {
                for key in live(meter.candidates(kind, None)) {
                    judged.push(kind);
                    keys.push(fit(&key, None));
                }
            }
        }
        judged.truncate(Plausible::KEYS_MAX);
        keys.truncate(Plausible::KEYS_MAX);
        Self { keyring, table, title, unused, judged, keys }
    }

    /// The keys that decipherments are judged under.
    pub(super) fn keys(&self) -> &[Fit] {
        &self.keys
    }

    /// What is found of a frame whose outcome this is.
    pub(super) fn found(
        &self,
        apdu: &CipheredApdu<'_>,
        setup: Option<SecuritySetup>,
        outcome: &Outcome,
        standing: Standing,
    ) -> Found {
        let Some(meter) = self.table.find(&self.title) else {
            return Found::Unavailable("the meter has just been deleted".into());
        };
        let of = Of { examining: self, apdu, meter: &meter, setup };
        match outcome.verdict {
            Verdict::Ok | Verdict::CompromisedKey => Found::Opens(of.fit_of(outcome), standing),
            Verdict::OkUnauthenticated => {
                Found::Unauthenticated(of.plausible().unwrap_or_default())
            }
            Verdict::MicFailure => of.failed(),
            Verdict::UnknownMeter => of.strange(),
            Verdict::NoUsableKey => of.no_key(),
            Verdict::PolicyRefused => Found::Policy,
            // `framing` has read it.
            Verdict::Malformed
            | Verdict::Unsupported
            | Verdict::Replayed
            | Verdict::Unavailable => {
                Found::Unavailable(outcome.reason.clone().unwrap_or_default())
            }
        }
    }
}

/// One frame of one meter.
struct Of<'e, 'f> {
    examining: &'e Examining<'e>,
    apdu: &'f CipheredApdu<'f>,
    meter: &'f ResidentMeter<'f>,
    setup: Option<SecuritySetup>,
}

impl Of<'_, '_> {
    fn attempting(&self, setup: Option<SecuritySetup>) -> Attempting<'_, '_> {
        Attempting { apdu: self.apdu, meter: self.meter, setup, tried: 0 }
    }

    /// The versions that opened it, and whether both are the newest that protect.
    fn fit_of(&self, outcome: &Outcome) -> Fit {
        let Outcome { setup, encryption_key_version, authentication_key_version, .. } = *outcome;
        let is_newest = |kind, version| {
            let protecting =
                self.meter.candidates(kind, Some(setup)).filter(|key| key.standing.protects);
            protecting.map(|key| key.version).max() == Some(version)
        };
        let kind = self.attempting(None).key_kind();
        Fit {
            setup: setup.0,
            encryption_key_version,
            authentication_key_version,
            is_current: is_newest(kind, encryption_key_version)
                && is_newest(KeyKind::Gak, authentication_key_version),
        }
    }

    /// No live pair of the named setup verifies it.
    fn failed(&self) -> Found {
        // It would not have been tried without.
        let Ok(originator) = self.attempting(self.setup).checked() else {
            return Found::Fails(None);
        };
        let rule = header_rule(self.meter.policy());
        let elsewhere = || {
            self.in_another_setup(&originator, rule)
                .or_else(|| self.exchanged(&originator, rule))
                .or_else(|| self.by_the_other_rule(&originator, rule))
                .or_else(|| self.under_another_title(&originator, rule))
                .or_else(|| self.under_unused_keys(&originator, rule))
        };
        elsewhere().unwrap_or_else(|| {
            let from_client = self.apdu.originating_side() == Some(Side::Client);
            if from_client && self.meter.client_title().is_none() {
                Found::FailsWithoutClientTitle
            } else {
                Found::Fails(self.plausible())
            }
        })
    }

    fn in_another_setup(
        &self,
        originator: &SystemTitle,
        rule: GeneralCipheringAad,
    ) -> Option<Found> {
        self.setup?;
        let (encryption, authentication) = self.live(None);
        self.verifying(&encryption, &authentication, originator, rule).map(Found::OtherSetup)
    }

    fn exchanged(&self, originator: &SystemTitle, rule: GeneralCipheringAad) -> Option<Found> {
        let (encryption, authentication) = self.live(None);
        // The versions are named as they stand in the record.
        let fit = self.verifying(&authentication, &encryption, originator, rule)?;
        Some(Found::Exchanged(Fit {
            encryption_key_version: fit.authentication_key_version,
            authentication_key_version: fit.encryption_key_version,
            ..fit
        }))
    }

    fn by_the_other_rule(
        &self,
        originator: &SystemTitle,
        rule: GeneralCipheringAad,
    ) -> Option<Found> {
        if self.apdu.form() != Form::GeneralCiphering {
            return None;
        }
        let other = match rule {
            GeneralCipheringAad::Spec => GeneralCipheringAad::OmitHeader,
            GeneralCipheringAad::OmitHeader => GeneralCipheringAad::Spec,
        };
        let (encryption, authentication) = self.live(self.setup);
        self.verifying(&encryption, &authentication, originator, other).map(Found::OtherHeaderRule)
    }

    /// Of an APDU that carries no title: another one of the record's may begin its nonce.
    fn under_another_title(
        &self,
        originator: &SystemTitle,
        rule: GeneralCipheringAad,
    ) -> Option<Found> {
        if self.apdu.system_title().is_some() {
            return None;
        }
        let (encryption, authentication) = self.live(self.setup);
        let own = [self.meter.title(), self.meter.own_title()];
        let mut titles = own.into_iter().chain(self.meter.client_titles()).take(TITLES_MAX);
        titles.find_map(|title| {
            let verifies = title != *originator
                && self.verifying(&encryption, &authentication, &title, rule).is_some();
            verifies.then_some(Found::OtherTitle(title))
        })
    }

    fn under_unused_keys(
        &self,
        originator: &SystemTitle,
        rule: GeneralCipheringAad,
    ) -> Option<Found> {
        if self.examining.unused.is_empty() {
            return None;
        }
        let (mut encryption, mut authentication) = self.live(None);
        encryption.extend(self.unused(self.attempting(None).key_kind()));
        authentication.extend(self.unused(KeyKind::Gak));
        let mut trial = Trial::of(self.apdu);
        let mut pairs = pairs(&encryption, &authentication)
            .filter(|(ek, ak)| ek.whence.is_some() || ak.whence.is_some())
            .take(UNUSED_PAIRS_MAX);
        let (ek, ak) = pairs.find(|(ek, ak)| {
            let keys = Keys { encryption: ek.bytes, authentication: ak.bytes };
            trial.verifies(&keys, originator, rule)
        })?;
        let fit = fit(ek, Some(ak));
        let is_aside = [ek.whence, ak.whence].contains(&Some(Whence::SetAside));
        Some(if is_aside { Found::OtherSite(fit) } else { Found::Compromised(fit) })
    }

    /// It carries a title that is not this meter's.
    fn strange(&self) -> Found {
        let Some(title) = self.apdu.system_title() else { return Found::Fails(None) };
        let keyring = self.examining.keyring;
        let snapshot = keyring.snapshot();
        // No block is opened for a frame that does not belong here.
        if let Some(other) =
            snapshot.table(keyring.block_of(&title)).and_then(|table| table.find(&title))
            && !other.is_damaged()
        {
            let of = Of { meter: &other, setup: None, ..*self };
            if of.opens_under(&title) {
                return Found::OtherMeter { title, opens: true };
            }
            if self.opens_under(&title) {
                return Found::OtherTitle(title);
            }
            return Found::OtherMeter { title, opens: false };
        }
        if self.opens_under(&title) { Found::OtherTitle(title) } else { Found::StrangeTitle(title) }
    }

    fn opens_under(&self, title: &SystemTitle) -> bool {
        let (encryption, authentication) = self.live(self.setup);
        let rule = header_rule(self.meter.policy());
        self.verifying(&encryption, &authentication, title, rule).is_some()
    }

    /// The meter lacks a key that the frame asks for.
    fn no_key(&self) -> Found {
        let attempting = self.attempting(self.setup);
        let kind = attempting.key_kind();
        let of_any_length = |kind| self.meter.candidates(kind, self.setup).next().is_some();
        let lacking = if attempting.fitting(kind).is_empty() { kind } else { KeyKind::Gak };
        if let Ok(originator) = attempting.checked()
            && self.apdu.authentication_tag().is_some()
            && let Some(found) =
                self.under_unused_keys(&originator, header_rule(self.meter.policy()))
        {
            return found;
        }
        if of_any_length(lacking) {
            Found::OtherSuite(lacking)
        } else if lacking == KeyKind::Gak {
            Found::NoGak(self.plausible().unwrap_or_default())
        } else {
            Found::NoKey(lacking)
        }
    }

    /// The encryption keys under which it begins as an APDU does. `None`: it can't be judged.
    fn plausible(&self) -> Option<Plausible> {
        let attempting = self.attempting(self.setup);
        let (originator, kind) = (attempting.checked().ok()?, attempting.key_kind());
        let mut trial = Trial::of(self.apdu);
        let live = |kind: &KeyKind| live(self.meter.candidates(*kind, None)).into_iter();
        let mut kinds = self.examining.judged.clone();
        kinds.dedup();
        let (mut under, mut tried) = (0_u32, false);
        let keys = kinds.iter().flat_map(live).take(Plausible::KEYS_MAX);
        for ((bit, of), key) in (0..).zip(&self.examining.judged).zip(keys) {
            let fits = key.bytes.len() == self.apdu.security_control().suite.key_len()
                && self.setup.is_none_or(|setup| setup == key.setup);
            if *of != kind || !fits {
                continue;
            }
            if let Some(right) = trial.looks_right(key.bytes, &originator) {
                tried = true;
                under |= u32::from(right) << bit;
            }
        }
        tried.then_some(Plausible(under))
    }

    /// The live keys in memory of the frame's kind, and GAKs.
    fn live(&self, setup: Option<SecuritySetup>) -> (Vec<Tried<'_>>, Vec<Tried<'_>>) {
        let kind = self.attempting(None).key_kind();
        let of = |kind| live(self.meter.candidates(kind, setup));
        (of(kind), of(KeyKind::Gak))
    }

    fn unused(&self, kind: KeyKind) -> impl Iterator<Item = Tried<'_>> {
        self.examining.unused.of(kind).map(|key| Tried {
            setup: key.setup,
            version: key.version,
            protects: false,
            whence: Some(key.whence),
            bytes: key.bytes,
        })
    }

    /// The first pair under which its tag verifies.
    fn verifying(
        &self,
        encryption: &[Tried<'_>],
        authentication: &[Tried<'_>],
        originator: &SystemTitle,
        rule: GeneralCipheringAad,
    ) -> Option<Fit> {
        let mut trial = Trial::of(self.apdu);
        let mut pairs = pairs(encryption, authentication).take(PAIRS_MAX);
        let (ek, ak) = pairs.find(|(ek, ak)| {
            let keys = Keys { encryption: ek.bytes, authentication: ak.bytes };
            trial.verifies(&keys, originator, rule)
        })?;
        Some(fit(ek, Some(ak)))
    }
}

fn pairs<'t, 'k>(
    encryption: &'t [Tried<'k>],
    authentication: &'t [Tried<'k>],
) -> impl Iterator<Item = (&'t Tried<'k>, &'t Tried<'k>)> {
    encryption
        .iter()
        .flat_map(move |ek| authentication.iter().map(move |ak| (ek, ak)))
        .filter(|(ek, ak)| ek.setup == ak.setup && ek.bytes.len() == ak.bytes.len())
}

/// Those whose bytes are in memory: what only the token has is not looked at.
fn live<'k>(candidates: impl Iterator<Item = Candidate<'k>>) -> Vec<Tried<'k>> {
    let in_memory = candidates.filter_map(|candidate| match candidate.key {
        KeyMaterial::Bytes(bytes) => Some(Tried {
            setup: candidate.setup,
            version: candidate.version,
            protects: candidate.standing.protects,
            whence: None,
            bytes,
        }),
        KeyMaterial::Token(_) => None,
    });
    in_memory.collect()
}

fn fit(ek: &Tried<'_>, ak: Option<&Tried<'_>>) -> Fit {
    Fit {
        setup: ek.setup.0,
        encryption_key_version: ek.version,
        authentication_key_version: ak.map_or(0, |ak| ak.version),
        is_current: ek.protects && ak.is_none_or(|ak| ak.protects),
    }
}
