//! One APDU against one meter's keys: what is accepted, which keys are tried, and in which order.

use dlms::{
    CipheredApdu, EncryptionKey, GeneralCipheringAad, KeySet, Keys, OpenError, ParseError, Side,
    SystemTitle, frame::FrameKind,
};
use zeroize::{Zeroize as _, Zeroizing};

use super::{
    arrival::{Arrival, key_kind},
    item::{Item, Outcome},
};
use crate::{
    hsm::{GcmOpen, WrappedKey},
    keyring::{Candidate, KeyMaterial, PolicyBits, ResidentMeter},
};
use kms_core::{KeyKind, SecuritySetup, Verdict, life::evidence::Shown};

/// Pairs of encryption and authentication key versions tried on one APDU: four versions of each. A
/// meter in the middle of a rotation needs two of each (Blue Book, class 64, key_transfer: an answer may be lost).
const PAIRS_MAX: usize = 16;

/// Pairs that are tried in each other's place: imports make this mistake before any rotation.
const EXCHANGED_MAX: usize = 2;

/// The end of an attempt.
pub(super) enum Attempt {
    /// With this outcome; if opened, the plaintext was appended.
    Done(Outcome),
    /// No key in memory opened it; the token has keys that may.
    Token(Vec<TokenTry>),
}

/// One key of protection `HSM` to try on one APDU.
pub(super) struct TokenTry {
    pub(super) key: WrappedKey,
    pub(super) request: GcmOpen,
    /// The outcome if it opens.
    pub(super) opened: Outcome,
    /// Authentication only: the plaintext is not enciphered and stands in the APDU.
    pub(super) plain_payload: bool,
    /// What its receive floor is asked then.
    pub(super) arrival: Option<Arrival>,
    /// The meter's policy gives plaintext also of what opens under a compromised key.
    pub(super) gives_compromised: bool,
}

/// Parses an APDU, or says what is wrong with it.
pub(super) fn parse(apdu: &[u8]) -> Result<CipheredApdu<'_>, Outcome> {
    CipheredApdu::parse(apdu).map_err(|error| {
        let verdict = match error {
            ParseError::Malformed { .. } => Verdict::Malformed,
            ParseError::Unsupported { .. } => Verdict::Unsupported,
        };
        let framed = FrameKind::of_start(apdu).filter(|_| verdict == Verdict::Malformed);
        Outcome::of(verdict).because(match framed {
            Some(kind) => format!("{error}; it begins as {kind}: take the frame off"),
            None => error.to_string(),
        })
    })
}

/// Tries to open `apdu` with the keys of `meter`, appending the plaintext to `out`.
#[inline]
pub(super) fn attempt(
    apdu: &CipheredApdu<'_>,
    meter: &ResidentMeter<'_>,
    item: &Item<'_>,
    out: &mut Vec<u8>,
) -> Attempt {
    let tried = match open_first(apdu, meter, item, out) {
        First::Done(outcome) => return Attempt::Done(outcome),
        First::NotAuthentic => 1,
        First::NotTried => 0,
    };
    Attempting { apdu, meter, setup: item.setup, tried }.run(out)
}

/// What came of the first pair.
enum First {
    Done(Outcome),
    /// It is not the pair.
    NotAuthentic,
    /// Look closer.
    NotTried,
}

/// The way of nearly all APDUs: a push that carries its meter's title, authenticated and encrypted, under the GUEK
/// and the GAK that the meter has or, in the grace of a rotation, that are tried first.
#[inline]
fn open_first(
    apdu: &CipheredApdu<'_>,
    meter: &ResidentMeter<'_>,
    item: &Item<'_>,
    out: &mut Vec<u8>,
) -> First {
    let control = apdu.security_control();
    let ordinary = control.authenticated
        && control.encrypted
        && apdu.key_set() == KeySet::Unicast
        && apdu.encryption_key() == EncryptionKey::Global
        && item.setup.is_none_or(|setup| setup == SecuritySetup(0))
        && !meter.is_damaged();
    let title = apdu.system_title().filter(|title| ordinary && *title == meter.title());
    let (Some(title), Some([guek, gak])) = (title, meter.first_pair()) else {
        return First::NotTried;
    };
    let ((encryption, encryption_key_version), (authentication, authentication_key_version)) =
        (guek, gak);
    let keys = Keys { encryption, authentication };
    let opened = Outcome {
        verdict: Verdict::Ok,
        system_title: Some(title),
        invocation_counter: apdu.invocation_counter(),
        encryption_key_version,
        authentication_key_version,
        setup: SecuritySetup(0),
        duplicate: false,
        reason: None,
        shown: None,
    };
    match apdu.open(&keys, &title, header_rule(meter.policy()), out) {
        Ok(()) => First::Done(opened),
        // There is no other pair to try.
        Err(OpenError::NotAuthentic) if meter.is_plain() => {
            First::Done(Outcome::of(Verdict::MicFailure).about(apdu, title))
        }
        Err(OpenError::NotAuthentic) => First::NotAuthentic,
        Err(_) => First::NotTried,
    }
}

/// Whether the tag of an APDU that no pair of keys opened verifies with GUEK and GAK, or GBEK and GAK, in
/// each other's place. Says that and nothing else: what came out is wiped.
pub(super) fn verifies_exchanged(
    apdu: &CipheredApdu<'_>,
    meter: &ResidentMeter<'_>,
    item: &Item<'_>,
) -> bool {
    let attempting = Attempting { apdu, meter, setup: item.setup, tried: 0 };
    let Ok(originator) = attempting.checked() else { return false };
    let rule = header_rule(meter.policy());
    let mut scratch = Zeroizing::new(Vec::with_capacity(apdu.open_capacity(rule)));
    let (encryption, authentication) =
        (attempting.fitting(attempting.key_kind()), attempting.fitting(KeyKind::Gak));
    encryption
        .iter()
        .flat_map(|ek| authentication.iter().map(move |ak| (ek, ak)))
        .filter(|(ek, ak)| ek.setup == ak.setup)
        .take(EXCHANGED_MAX)
        .any(|(ek, ak)| match (&ek.key, &ak.key) {
            (KeyMaterial::Bytes(encryption), KeyMaterial::Bytes(authentication)) => {
                let keys = Keys { encryption: authentication, authentication: encryption };
                apdu.open(&keys, &originator, rule, &mut scratch).is_ok()
            }
            // A key in the token can't be additional data.
            _ => false,
        })
}

/// First byte of an action-response: what a meter answers to the transfer of the key that follows.
const ACTION_RESPONSE: u8 = 0xC7;

/// Takes back what opened under a compromised key, unless it is the answer to an action or the policy gives it.
fn withhold_compromised(opened: &Outcome, policy: PolicyBits, before: usize, out: &mut Vec<u8>) {
    if opened.verdict != Verdict::CompromisedKey || policy.allows_compromised() {
        return;
    }
    if let Some(plain) = out.get_mut(before..)
        && plain.first() != Some(&ACTION_RESPONSE)
    {
        plain.zeroize();
        out.truncate(before);
    }
}

/// The same, of what the token opened.
pub(super) fn withheld_if_compromised(tried: &Outcome, gives: bool, mut plain: Vec<u8>) -> Vec<u8> {
    let is_answer = plain.first() == Some(&ACTION_RESPONSE);
    if tried.verdict == Verdict::CompromisedKey && !gives && !is_answer {
        plain.zeroize();
        plain.clear();
    }
    plain
}

pub(super) fn header_rule(policy: PolicyBits) -> GeneralCipheringAad {
    if policy.omits_general_ciphering_header() {
        GeneralCipheringAad::OmitHeader
    } else {
        GeneralCipheringAad::Spec
    }
}

pub(super) struct Attempting<'a, 'm> {
    pub(super) apdu: &'a CipheredApdu<'a>,
    pub(super) meter: &'m ResidentMeter<'m>,
    pub(super) setup: Option<SecuritySetup>,
    /// So many pairs were tried.
    pub(super) tried: usize,
}

impl Attempting<'_, '_> {
    fn run(&self, out: &mut Vec<u8>) -> Attempt {
        match self.checked() {
            Err(refused) => Attempt::Done(refused.about(self.apdu, self.meter.title())),
            Ok(originator) if self.apdu.authentication_tag().is_none() => {
                self.without_authentication(&originator, out)
            }
            Ok(originator) => self.authenticated(&originator, out),
        }
    }

    /// The checks that need no key: damage, originator, policy. They give the title that starts the nonce.
    pub(super) fn checked(&self) -> Result<SystemTitle, Outcome> {
        if self.meter.is_damaged() {
            return Err(Outcome::of(Verdict::Unavailable)
                .because("the meter's stored record was changed outside this service"));
        }
        let originator = self.originator()?;
        let (control, policy) = (self.apdu.security_control(), self.meter.policy());
        if !control.authenticated && !policy.allows_encryption_only() {
            return Err(Outcome::of(Verdict::PolicyRefused).because(
                "encryption only (SC 2x): nothing can be authenticated, and the meter's policy \
                 does not allow that",
            ));
        }
        if control.authenticated && !control.encrypted && policy.demands_encryption() {
            return Err(Outcome::of(Verdict::PolicyRefused)
                .because("authentication only (SC 1x): the meter's policy demands encryption"));
        }
        Ok(originator)
    }

    fn originator(&self) -> Result<SystemTitle, Outcome> {
        let (own, client) = (self.meter.own_title(), self.meter.client_title());
        match (self.apdu.system_title(), self.apdu.originating_side()) {
            (Some(title), _)
                if title == self.meter.title() || title == own || self.meter.is_clients(title) =>
            {
                Ok(title)
            }
            (Some(title), _) => Err(Outcome::of(Verdict::UnknownMeter).because(format!(
                "the APDU carries system title {title}, which is neither the meter's nor its \
                 client's"
            ))),
            (None, Some(Side::Client)) => Ok(client.unwrap_or(own)),
            (None, Some(Side::Server) | None) => Ok(own),
        }
    }

    pub(super) fn key_kind(&self) -> KeyKind {
        key_kind(self.apdu)
    }

    /// The versions that fit the suite, in the order to try them. A key in the token has a length
    /// too: its wrapping is eight bytes longer.
    pub(super) fn fitting(&self, kind: KeyKind) -> Vec<Candidate<'_>> {
        let suite_len = self.apdu.security_control().suite.key_len();
        self.meter
            .candidates(kind, self.setup)
            .filter(|candidate| match &candidate.key {
                KeyMaterial::Bytes(bytes) => bytes.len() == suite_len,
                KeyMaterial::Token(key) => key.wrapped.len() == suite_len + 8,
            })
            .collect()
    }

    fn no_key(&self, kind: KeyKind) -> Attempt {
        let len = self.apdu.security_control().suite.key_len();
        let of_setup = self.setup.map_or(String::new(), |e| format!(" in security setup {}", e.0));
        let why = format!("the meter has no live {kind} of {len} bytes{of_setup}");
        self.done(Outcome::of(Verdict::NoUsableKey).because(why))
    }

    fn done(&self, outcome: Outcome) -> Attempt {
        Attempt::Done(outcome.about(self.apdu, self.meter.title()))
    }

    fn authenticated(&self, originator: &SystemTitle, out: &mut Vec<u8>) -> Attempt {
        let kind = self.key_kind();
        let (encryption, authentication) = (self.fitting(kind), self.fitting(KeyKind::Gak));
        if encryption.is_empty() {
            return self.no_key(kind);
        }
        if authentication.is_empty() {
            if self.meter.policy().allows_withheld_authentication_key() {
                return self.without_authentication(originator, out);
            }
            return self.no_key(KeyKind::Gak);
        }
        let pairs = encryption
            .iter()
            .flat_map(|ek| authentication.iter().map(move |ak| (ek, ak)))
            .filter(|(ek, ak)| ek.setup == ak.setup)
            .take(PAIRS_MAX)
            .skip(self.tried);
        let mut tries = Vec::new();
        for (ek, ak) in pairs {
            let KeyMaterial::Bytes(authentication) = ak.key else { continue };
            match ek.key {
                KeyMaterial::Bytes(encryption) => {
                    let keys = Keys { encryption, authentication };
                    let rule = header_rule(self.meter.policy());
                    let before = out.len();
                    match self.apdu.open(&keys, originator, rule, out) {
                        Ok(()) => {
                            let mut opened = self.opened(Verdict::Ok, ek, Some(ak));
                            opened.shown = self.shown(originator, ek, ak);
                            withhold_compromised(&opened, self.meter.policy(), before, out);
                            return Attempt::Done(opened);
                        }
                        Err(OpenError::NotAuthentic | OpenError::KeyLength { .. }) => {}
                        Err(error @ (OpenError::NotAuthenticated | OpenError::OtherOriginator)) => {
                            let refused = Outcome::of(Verdict::MicFailure);
                            return self.done(refused.because(error.to_string()));
                        }
                    }
                }
                KeyMaterial::Token(key) => {
                    tries.push(self.token_try(key, originator, ek, Some((ak, authentication))));
                }
            }
        }
        if tries.is_empty() { self.done(self.mic_failure()) } else { Attempt::Token(tries) }
    }

    fn mic_failure(&self) -> Outcome {
        let outcome = Outcome::of(Verdict::MicFailure);
        let from_client = self.apdu.originating_side() == Some(Side::Client);
        if from_client && self.meter.client_title().is_none() {
            return outcome.because(
                "the utility's side originates this kind of APDU and the meter's policy has no \
                 client_title; its own title was tried",
            );
        }
        outcome
    }

    /// Nothing vouches for what comes out: only the first key is tried, for no key can be told wrong.
    fn without_authentication(&self, originator: &SystemTitle, out: &mut Vec<u8>) -> Attempt {
        let kind = self.key_kind();
        let fitting = self.fitting(kind);
        let Some(ek) = fitting.first() else { return self.no_key(kind) };
        match ek.key {
            KeyMaterial::Bytes(key) => {
                let before = out.len();
                match self.apdu.decrypt_without_authentication(key, originator, out) {
                    Ok(()) => {
                        let opened = self.opened(Verdict::OkUnauthenticated, ek, None);
                        withhold_compromised(&opened, self.meter.policy(), before, out);
                        Attempt::Done(opened)
                    }
                    Err(error) => {
                        self.done(Outcome::of(Verdict::NoUsableKey).because(error.to_string()))
                    }
                }
            }
            KeyMaterial::Token(key) => {
                Attempt::Token(vec![self.token_try(key, originator, ek, None)])
            }
        }
    }

    /// What its tag vouches for: of an APDU that the meter itself has sent, under its own keys.
    fn shown(
        &self,
        originator: &SystemTitle,
        ek: &Candidate<'_>,
        ak: &Candidate<'_>,
    ) -> Option<Shown> {
        let (encryption, authentication) = (ek.standing.awaits, ak.standing.awaits);
        let waits = encryption.is_some() || authentication.is_some();
        let is_own = || {
            let title = *originator;
            let own = title == self.meter.title() || title == self.meter.own_title();
            // What we sent and was thrown back to us is nobody's evidence.
            own && !self.meter.is_clients(title)
        };
        let vouches = !ek.standing.compromised && !ak.standing.compromised;
        (waits && vouches && self.key_kind() == KeyKind::Guek && is_own()).then_some(Shown {
            setup: ek.setup,
            encryption,
            authentication,
        })
    }

    fn opened(&self, verdict: Verdict, ek: &Candidate<'_>, ak: Option<&Candidate<'_>>) -> Outcome {
        let compromised = ek.standing.compromised || ak.is_some_and(|ak| ak.standing.compromised);
        Outcome {
            verdict: if compromised { Verdict::CompromisedKey } else { verdict },
            system_title: Some(self.meter.title()),
            invocation_counter: self.apdu.invocation_counter(),
            encryption_key_version: ek.version,
            authentication_key_version: ak.map_or(0, |ak| ak.version),
            setup: ek.setup,
            duplicate: false,
            reason: None,
            shown: None,
        }
    }

    fn token_try(
        &self,
        key: &WrappedKey,
        originator: &SystemTitle,
        ek: &Candidate<'_>,
        authentication: Option<(&Candidate<'_>, &[u8])>,
    ) -> TokenTry {
        let plain_payload = !self.apdu.security_control().encrypted;
        let mut additional_data = Zeroizing::new(Vec::new());
        if let Some((_, key)) = authentication {
            let rule = header_rule(self.meter.policy());
            self.apdu.additional_data(key, rule, &mut additional_data);
        }
        let ciphertext = if plain_payload { Vec::new() } else { self.apdu.payload().to_vec() };
        let verdict =
            if authentication.is_some() { Verdict::Ok } else { Verdict::OkUnauthenticated };
        let mut opened = self.opened(verdict, ek, authentication.map(|(ak, _)| ak));
        opened.shown = authentication.and_then(|(ak, _)| self.shown(originator, ek, ak));
        TokenTry {
            gives_compromised: self.meter.policy().allows_compromised(),
            arrival: Arrival::of(self.apdu, self.meter, &opened),
            key: key.clone(),
            request: GcmOpen {
                nonce: self.apdu.nonce(originator),
                additional_data,
                ciphertext,
                tag: authentication.and(self.apdu.authentication_tag().copied()),
            },
            opened,
            plain_payload,
        }
    }
}
