//! The keys of one line of an import file, tried on the frames of its meter.

use dlms::{
    CipheredApdu, EncryptionKey, Form, GeneralCipheringAad, KeySet, Keys, Side, SystemTitle,
};
use kms_client::{KeyKind, MeterPolicy, NewMeter};
use kms_core::triage::{
    Finding, Fit, Found, Frame, Plausible, Standing, conclude, framing, trial::Trial,
};

use crate::recorded::Recorded;

/// One line: a meter with the keys that are to be imported.
pub(crate) struct Line {
    meter: NewMeter,
    policy: MeterPolicy,
}

/// How its frames fared.
#[derive(Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) frames: usize,
    /// The tag verifies under a pair of the line's keys.
    pub(crate) fit: usize,
    /// It does with the two in each other's place.
    pub(crate) exchanged: usize,
    /// It does not, or there is nothing in the frame that could be verified.
    pub(crate) wrong: usize,
    /// There is no tag: no key can be told wrong by a single one.
    pub(crate) undecidable: usize,
}

/// What was found.
pub(crate) struct Checked {
    pub(crate) tally: Tally,
    pub(crate) findings: Vec<Finding>,
}

#[derive(Clone, Copy)]
struct Key<'k> {
    setup: u8,
    /// Its place among those of its kind and setup, from 1.
    version: u16,
    bytes: &'k [u8],
}

impl Tally {
    fn count(&mut self, found: &Found) {
        self.frames += 1;
        *match found {
            Found::Opens(..) => &mut self.fit,
            Found::Exchanged(_) => &mut self.exchanged,
            Found::Unauthenticated(_) => &mut self.undecidable,
            _ => &mut self.wrong,
        } += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        let Self { frames, fit, exchanged, wrong, undecidable } = other;
        self.frames += frames;
        self.fit += fit;
        self.exchanged += exchanged;
        self.wrong += wrong;
        self.undecidable += undecidable;
    }

    pub(crate) fn sentence(&self) -> String {
        let Self { frames, fit, exchanged, wrong, undecidable } = self;
        format!(
            "{fit} of {frames} frames fit, {exchanged} with GUEK and GAK exchanged, {wrong} do not, \
             {undecidable} can't be decided (encryption only)"
        )
    }
}

impl Line {
    pub(crate) fn of(mut meter: NewMeter) -> Self {
        let policy = meter.policy.take().unwrap_or_default();
        Self { meter, policy }
    }

    pub(crate) fn id(&self) -> &str {
        self.meter.meter_id.as_str()
    }

    /// The titles that its own frames carry.
    pub(crate) fn titles(&self) -> impl Iterator<Item = SystemTitle> {
        [Some(self.meter.system_title), self.policy.default_system_title].into_iter().flatten()
    }

    /// The title that a frame carries.
    pub(crate) fn title_in(recorded: &[u8]) -> Option<SystemTitle> {
        let taken = framing::take_off(recorded).ok()?;
        framing::read(&taken.apdu).ok()?.system_title()
    }

    pub(crate) fn check(&self, frames: &[&Recorded]) -> Checked {
        let mut tally = Tally::default();
        let look = |frame: &&Recorded| {
            let frame = self.look(&frame.bytes);
            tally.count(&frame.found);
            frame
        };
        let frames: Vec<Frame> = frames.iter().map(look).collect();
        let judged: Vec<Fit> = self.judged().map(|(_, key)| key.fit(None)).collect();
        let findings = conclude(&frames, &judged);
        Checked { tally, findings }
    }

    fn look(&self, recorded: &[u8]) -> Frame {
        let taken = match framing::take_off(recorded) {
            Ok(taken) => taken,
            Err(bad) => return Frame { layers: Vec::new(), counter: 0, found: Found::Bad(bad) },
        };
        let (counter, found) = match framing::read(&taken.apdu) {
            Ok(apdu) => (apdu.invocation_counter(), self.found(&apdu)),
            Err(bad) => (0, Found::Bad(bad)),
        };
        Frame { layers: taken.layers, counter, found }
    }

    fn found(&self, apdu: &CipheredApdu<'_>) -> Found {
        let kind = kind_of(apdu);
        let title = self.originator(apdu);
        if apdu.authentication_tag().is_none() {
            return Found::Unauthenticated(self.plausible(apdu, &title).unwrap_or_default());
        }
        let rule = if self.policy.general_ciphering_omit_header {
            GeneralCipheringAad::OmitHeader
        } else {
            GeneralCipheringAad::Spec
        };
        let (encryption, authentication): (Vec<_>, Vec<_>) =
            (self.keys_of(kind).collect(), self.keys_of(KeyKind::Gak).collect());
        let suite_len = apdu.security_control().suite.key_len();
        let fits = |keys: &[Key<'_>]| keys.iter().any(|key| key.bytes.len() == suite_len);
        match (encryption.is_empty(), authentication.is_empty()) {
            (true, _) => return Found::NoKey(kind),
            (_, true) => return Found::NoGak(self.plausible(apdu, &title).unwrap_or_default()),
            _ if !fits(&encryption) => return Found::OtherSuite(kind),
            _ if !fits(&authentication) => return Found::OtherSuite(KeyKind::Gak),
            _ => {}
        }
        let verifying =
            |ek: &[Key<'_>], ak: &[Key<'_>], rule| verifying(apdu, ek, ak, &title, rule);
        if let Some(fit) = verifying(&encryption, &authentication, rule) {
            return Found::Opens(fit, Standing::NoFloor);
        }
        if let Some(fit) = verifying(&authentication, &encryption, rule) {
            return Found::Exchanged(fit);
        }
        if apdu.form() == Form::GeneralCiphering {
            let other = match rule {
                GeneralCipheringAad::Spec => GeneralCipheringAad::OmitHeader,
                GeneralCipheringAad::OmitHeader => GeneralCipheringAad::Spec,
            };
            if let Some(fit) = verifying(&encryption, &authentication, other) {
                return Found::OtherHeaderRule(fit);
            }
        }
        let from_client = apdu.originating_side() == Some(Side::Client);
        if from_client && self.policy.client_title.is_none() {
            return Found::FailsWithoutClientTitle;
        }
        Found::Fails(self.plausible(apdu, &title))
    }

    /// Whose title begins the nonce.
    fn originator(&self, apdu: &CipheredApdu<'_>) -> SystemTitle {
        let own = self.policy.default_system_title.unwrap_or(self.meter.system_title);
        match (apdu.system_title(), apdu.originating_side()) {
            (Some(title), _) => title,
            (None, Some(Side::Client)) => self.policy.client_title.unwrap_or(own),
            (None, _) => own,
        }
    }

    fn keys_of(&self, kind: KeyKind) -> impl Iterator<Item = Key<'_>> {
        let mut count: [u16; 256] = [0; 256];
        self.meter.keys.iter().filter(move |key| key.kind == kind).map(move |key| {
            let version = &mut count[usize::from(key.security_setup)];
            *version = version.saturating_add(1);
            let (setup, version) = (key.security_setup, *version);
            Key { setup, version, bytes: key.value.expose_key_bytes() }
        })
    }

    /// The keys that decipherments are judged under.
    fn judged(&self) -> impl Iterator<Item = (KeyKind, Key<'_>)> {
        let kinds = [KeyKind::Guek, KeyKind::Gbek, KeyKind::Dedicated];
        let keys =
            kinds.into_iter().flat_map(|kind| self.keys_of(kind).map(move |key| (kind, key)));
        keys.take(Plausible::KEYS_MAX)
    }

    fn plausible(&self, apdu: &CipheredApdu<'_>, title: &SystemTitle) -> Option<Plausible> {
        let kind = kind_of(apdu);
        let mut trial = Trial::of(apdu);
        let (mut under, mut tried) = (0_u32, false);
        for (bit, (_, key)) in self.judged().enumerate().filter(|(_, (of, _))| *of == kind) {
            if let Some(right) = trial.looks_right(key.bytes, title) {
                tried = true;
                under |= u32::from(right) << bit;
            }
        }
        tried.then_some(Plausible(under))
    }
}

impl Key<'_> {
    fn fit(&self, authentication: Option<&Key<'_>>) -> Fit {
        Fit {
            setup: self.setup,
            encryption_key_version: self.version,
            authentication_key_version: authentication.map_or(0, |key| key.version),
            is_current: true,
        }
    }
}

fn kind_of(apdu: &CipheredApdu<'_>) -> KeyKind {
    match (apdu.key_set(), apdu.encryption_key()) {
        (KeySet::Broadcast, _) => KeyKind::Gbek,
        (KeySet::Unicast, EncryptionKey::Dedicated) => KeyKind::Dedicated,
        (KeySet::Unicast, EncryptionKey::Global) => KeyKind::Guek,
    }
}

fn verifying(
    apdu: &CipheredApdu<'_>,
    encryption: &[Key<'_>],
    authentication: &[Key<'_>],
    title: &SystemTitle,
    rule: GeneralCipheringAad,
) -> Option<Fit> {
    let mut trial = Trial::of(apdu);
    let pairs = encryption.iter().flat_map(|ek| authentication.iter().map(move |ak| (ek, ak)));
    let mut pairs = pairs.filter(|(ek, ak)| ek.setup == ak.setup);
    let (ek, ak) = pairs.find(|(ek, ak)| {
        let keys = Keys { encryption: ek.bytes, authentication: ak.bytes };
        trial.verifies(&keys, title, rule)
    })?;
    Some(ek.fit(Some(ak)))
}
