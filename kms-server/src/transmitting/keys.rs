//! The keys that a meter's APDUs go out under, and the line that a counter for them is of.

use std::sync::Arc;

use dlms::{
    EncryptionKey, Envelope as Form, FreshCounter, GeneralCipheringAad, GeneralCipheringHeader,
    KeySet, Keys, ProtectError, Protection, SecurityControl, ServiceTag, Side, Suite, SystemTitle,
    hls::{self, HlsError, check_challenge},
};

use super::{
    item::{Envelope, Outcome, Plain},
    refused::NotSent,
};
use crate::keyring::{BlockTable, Candidate, Identities, KeyMaterial, ResidentMeter, Standing};
use kms_core::{
    Epoch, KeyKind, SecuritySetup, Verdict,
    counters::{LineName, allocator::Purpose, refusal::Refusal},
};

/// A counter that an item was given, in this epoch; or why none.
pub(super) type Given = Result<(FreshCounter, Epoch), NotSent>;

/// An APDU of which is known under which keys it goes out.
pub(super) struct Prepared {
    pub(super) table: Arc<BlockTable>,
    pub(super) title: SystemTitle,
    pub(super) line: LineName,
    pub(super) encryption_key_version: u16,
    pub(super) authentication_key_version: u16,
}

/// What an item is sealed with.
struct Chosen<'t> {
    encryption: (&'t [u8], u16),
    /// None: it gets no tag.
    authentication: Option<(&'t [u8], u16)>,
    originator: SystemTitle,
    control: SecurityControl,
    gc_aad: GeneralCipheringAad,
}

/// The kind of key that an APDU goes out under.
pub(super) const fn kind_of(key_set: KeySet) -> KeyKind {
    match key_set {
        KeySet::Unicast => KeyKind::Guek,
        KeySet::Broadcast => KeyKind::Gbek,
    }
}

/// The meter in its table, if it can be served.
pub(super) fn find(table: &BlockTable, title: SystemTitle) -> Result<ResidentMeter<'_>, Outcome> {
    let damaged = |what: String| Outcome::of(Verdict::Unavailable).because(what).about(title);
    match table.find(&title) {
        Some(meter) if meter.is_damaged() => Err(damaged(format!(
            "the record of the meter with system title {title} was changed outside this service"
        ))),
        Some(meter) => Ok(meter),
        None if table.damaged() > 0 => Err(damaged(format!(
            "no meter with system title {title} is found, and {} records of its block were changed outside this \
             service: it may be one of them",
            table.damaged()
        ))),
        None => Err(Outcome::of(Verdict::UnknownMeter)
            .because(format!("no meter has system title {title}"))
            .about(title)),
    }
}

/// Which version of a key protects a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// The security setup.
    pub(super) setup: SecuritySetup,
    /// 0: the preferred one.
    pub(super) version: u16,
    /// What the message is for.
    pub(super) purpose: Purpose,
}

impl Choice {
    /// Whether this version may protect it.
    fn allows(self, candidate: &Candidate<'_>) -> bool {
        let Standing { protects, active, carries, compromised, .. } = candidate.standing;
        match (self.version, self.purpose) {
            (0, Purpose::Traffic | Purpose::Broadcast) => protects,
            // What was compromised carries the transfer of its successor, where nothing is preferred.
            (0, Purpose::KeyTransfer | Purpose::Hls | Purpose::Probe) => protects || compromised,
            (named, Purpose::Traffic) => named == candidate.version && active,
            // Members of a group use it that were brought it already, and have not said so.
            (named, Purpose::Broadcast) => named == candidate.version && carries && !compromised,
            (named, Purpose::KeyTransfer | Purpose::Hls | Purpose::Probe) => {
                named == candidate.version && carries
            }
        }
    }
}

/// The key of this kind that protects a message.
fn chosen<'t>(
    meter: &ResidentMeter<'t>,
    kind: KeyKind,
    choice: Choice,
) -> Result<(&'t [u8], u16), Outcome> {
    let unusable = |verdict, what: String| Outcome::of(verdict).because(what).about(meter.title());
    let Choice { setup, version, .. } = choice;
    let candidates = meter.candidates(kind, Some(setup)).filter(|it| choice.allows(it));
    match candidates.max_by_key(|it| (it.standing.protects, it.version)) {
        Some(Candidate { key: KeyMaterial::Bytes(bytes), version, .. }) => Ok((bytes, version)),
        Some(Candidate { key: KeyMaterial::Token(_), .. }) => Err(unusable(
            Verdict::Unsupported,
            format!(
                "the meter's {kind} is of protection HSM: this release protects under keys of protection MEMORY alone"
            ),
        )),
        None if version > 0 => Err(unusable(
            Verdict::NoUsableKey,
            format!(
                "version {version} of the meter's {kind} in security setup {} protects nothing of this purpose: an \
                 active one does, and one that is staged or compromised carries key transfers and HLS answers",
                setup.0
            ),
        )),
        None => Err(unusable(
            Verdict::NoUsableKey,
            format!("the meter has no active {kind} in security setup {}", setup.0),
        )),
    }
}

/// The client title towards the meter: which utility's name the nonce begins with.
pub(super) fn originator(
    meter: &ResidentMeter<'_>,
    setup: SecuritySetup,
    client: u16,
) -> Result<SystemTitle, Outcome> {
    // What the meter sends begins with its own title: one nonce would be used twice.
    let is_meters = |title: &SystemTitle| *title == meter.title() || *title == meter.own_title();
    let why = match meter.client_title_of(setup, client) {
        Some(title) if !is_meters(&title) => return Ok(title),
        Some(_) => "the meter's policy names the meter's own title for its client's",
        None => "the meter's policy names no client title",
    };
    Err(Outcome {
        refusal: Some(Refusal::NoClientTitle),
        ..Outcome::of(Verdict::NoUsableKey)
            .because(format!("{why}: set one (`ami-tool meter set-policy`)"))
            .about(meter.title())
    })
}

/// The line of the meter's key of this set and choice.
pub(super) fn line_of(
    meter: &ResidentMeter<'_>,
    identities: &Identities,
    (key_set, choice, client): (KeySet, Choice, u16),
) -> Result<LineName, Outcome> {
    let (key, _) = chosen(meter, kind_of(key_set), choice)?;
    let originator = originator(meter, choice.setup, client)?;
    let fingerprint = identities.identify_bytes(key).ok_or_else(|| {
        Outcome::of(Verdict::NoUsableKey)
            .because("the key has no AES key's length")
            .about(meter.title())
    })?;
    Ok(LineName { fingerprint, originator })
}

fn choose<'t>(meter: &ResidentMeter<'t>, item: &Plain<'_>) -> Result<Chosen<'t>, Outcome> {
    let refused =
        |what: &str| Outcome::of(Verdict::PolicyRefused).because(what).about(meter.title());
    let policy = meter.policy();
    let (authenticated, encrypted) = item.protection;
    if !authenticated && !policy.allows_encryption_only() {
        return Err(refused("the meter's policy does not allow encryption alone"));
    }
    let is_answer = item.envelope == Envelope::HlsAnswer;
    if !encrypted && !is_answer && policy.demands_encryption() {
        return Err(refused("the meter's policy demands encryption"));
    }
    let encryption = chosen(meter, kind_of(item.key_set), item.encryption_choice())?;
    let gak = Choice { version: item.versions.1, ..item.encryption_choice() };
    let authentication = authenticated.then(|| chosen(meter, KeyKind::Gak, gak)).transpose()?;
    let originator = originator(meter, item.setup, item.client)?;
    let by_length = if encryption.0.len() == 32 { Suite::Suite2 } else { Suite::Suite0 };
    let suite = item.suite.unwrap_or(by_length);
    // In general-ciphering key-info names the key, and the bit is 0.
    let key_set = match item.envelope {
        Envelope::GeneralCiphering | Envelope::HlsAnswer => KeySet::Unicast,
        Envelope::GeneralGlo | Envelope::Service => item.key_set,
    };
    let control = SecurityControl { suite, key_set, authenticated, encrypted, compressed: false };
    let gc_aad = if policy.omits_general_ciphering_header() {
        GeneralCipheringAad::OmitHeader
    } else {
        GeneralCipheringAad::Spec
    };
    Ok(Chosen { encryption, authentication, originator, control, gc_aad })
}

/// The tag of the service's own form, for what a client sends.
fn service_tag(item: &Plain<'_>) -> Result<ServiceTag, Outcome> {
    let first = item.apdu.first().copied().unwrap_or_default();
    let tag = ServiceTag::for_plain(first, EncryptionKey::Global);
    tag.filter(|tag| tag.side() == Side::Client).ok_or_else(|| {
        Outcome::of(Verdict::Unsupported).because(format!(
            "an APDU that begins with {first:02X} has no glo- form that a client sends: use general-glo-ciphering"
        ))
    })
}

/// Looks up what `item` goes out under. Nothing is allocated for it yet.
pub(super) fn prepare(
    table: Arc<BlockTable>,
    title: SystemTitle,
    identities: &Identities,
    item: &Plain<'_>,
) -> Result<Prepared, Outcome> {
    if item.apdu.is_empty() {
        return Err(Outcome::of(Verdict::Malformed).because("the APDU is empty").about(title));
    }
    item.check_purpose().map_err(|why| why.about(title))?;
    match item.envelope {
        Envelope::Service => drop(service_tag(item)?),
        // Before a key is touched: the answer to a command would be the command's tag.
        Envelope::HlsAnswer => {
            check_challenge(item.apdu).map_err(|why| of_hls(why).about(title))?
        }
        Envelope::GeneralGlo | Envelope::GeneralCiphering => {}
    }
    let prepared = {
        let meter = find(&table, title)?;
        let chosen = choose(&meter, item)?;
        // What would not be protected costs no counter.
        let keys = chosen.keys();
        if let Some((role, len)) = keys.unfit_for(chosen.control.suite) {
            let what = format!(
                "security suite {} wants {role} of {} bytes, and the meter's has {len}",
                chosen.control.suite.number(),
                chosen.control.suite.key_len()
            );
            return Err(Outcome::of(Verdict::NoUsableKey).because(what).about(title));
        }
        let wanted = (item.key_set, item.encryption_choice(), item.client);
        let line = line_of(&meter, identities, wanted)?;
        (line, chosen.encryption.1, chosen.authentication.map_or(0, |(_, version)| version))
    };
    let (line, encryption_key_version, authentication_key_version) = prepared;
    Ok(Prepared { table, title, line, encryption_key_version, authentication_key_version })
}

impl Plain<'_> {
    /// Which version of the encryption key protects it.
    pub(super) fn encryption_choice(&self) -> Choice {
        Choice { setup: self.setup, version: self.versions.0, purpose: self.purpose }
    }
}

impl<'t> Chosen<'t> {
    fn keys(&self) -> Keys<'t> {
        // What gets no tag has no additional data either.
        let authentication = self.authentication.map_or(self.encryption.0, |(key, _)| key);
        Keys { encryption: self.encryption.0, authentication }
    }
}

/// Protects `item` under the keys that it was prepared with, and appends it to `out`. The counter is spent.
pub(super) fn seal(
    prepared: &Prepared,
    item: &Plain<'_>,
    counter: FreshCounter,
    out: &mut Vec<u8>,
) -> Outcome {
    let invocation_counter = counter.value();
    let title = prepared.title;
    let meter = match find(&prepared.table, title) {
        Ok(meter) => meter,
        Err(outcome) => return outcome,
    };
    let chosen = match choose(&meter, item) {
        Ok(chosen) => chosen,
        Err(outcome) => return outcome,
    };
    let sealed = if item.envelope == Envelope::HlsAnswer {
        answer(&chosen, counter, item.apdu, out)
    } else {
        protect(&chosen, (title, item), counter, out)
    };
    match sealed {
        Ok(()) => Outcome {
            invocation_counter,
            encryption_key_version: prepared.encryption_key_version,
            authentication_key_version: prepared.authentication_key_version,
            ..Outcome::of(Verdict::Ok).about(title)
        },
        Err(outcome) => outcome.about(title),
    }
}

/// Appends f(challenge) of mechanism 5.
fn answer(
    chosen: &Chosen<'_>,
    counter: FreshCounter,
    challenge: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Outcome> {
    let (suite, originator) = (chosen.control.suite, &chosen.originator);
    let answer = hls::compute(suite, originator, counter, &chosen.keys(), challenge);
    out.extend_from_slice(&answer.map_err(of_hls)?);
    Ok(())
}

/// The outcome of a challenge that is not answered.
pub(super) fn of_hls(why: HlsError) -> Outcome {
    let verdict = match why {
        HlsError::ChallengeIsApdu | HlsError::SameChallenge => Verdict::PolicyRefused,
        HlsError::ChallengeLength { .. } => Verdict::Malformed,
        HlsError::KeyLength { .. } | HlsError::SecretLength { .. } => Verdict::NoUsableKey,
        HlsError::AnswerLength { .. } | HlsError::NotAuthentic => Verdict::MicFailure,
    };
    Outcome::of(verdict).because(why.to_string())
}

/// Appends the ciphered APDU.
fn protect(
    chosen: &Chosen<'_>,
    (title, item): (SystemTitle, &Plain<'_>),
    counter: FreshCounter,
    out: &mut Vec<u8>,
) -> Result<(), Outcome> {
    let transaction_id = counter.value().to_be_bytes();
    let envelope = match item.envelope {
        Envelope::GeneralGlo | Envelope::HlsAnswer => Form::GeneralGlo(Some(chosen.originator)),
        Envelope::Service => Form::Service(service_tag(item)?),
        Envelope::GeneralCiphering => Form::GeneralCiphering(GeneralCipheringHeader {
            transaction_id: &transaction_id,
            originator: Some(chosen.originator),
            recipient: Some(title),
            date_time: &[],
            other_information: &[],
            identified_key: item.key_set,
        }),
    };
    let protection = Protection {
        envelope,
        security_control: chosen.control,
        originator: chosen.originator,
        keys: chosen.keys(),
        gc_aad: chosen.gc_aad,
    };
    let fault = |error: ProtectError| Outcome::of(Verdict::Unsupported).because(error.to_string());
    dlms::protect(&protection, counter, item.apdu, out).map_err(fault)
}
