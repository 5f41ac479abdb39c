//! Answers of meters to challenges of ours: f(CtoS) of HLS mechanism 5, and the APDU that carries an answer.
//!
//! Such an answer has a counter of its own, usually below that of the APDU around it. A floor that this APDU has raised
//! refuses it: so the answer is judged first, by the floor as it stood before.

use dlms::{Keys, SecurityControl, Suite, hls};

use super::{
    arrival::{Arrival, key_kind},
    attempt,
    batch::missing,
    item::{Item, Outcome, Want},
    verbs::Ciphering,
};
use crate::keyring::{BlockTable, Candidate, ResidentMeter, scrub_stack};
use kms_core::{
    KeyKind, SecuritySetup, SystemTitle, Verdict,
    counters::LineName,
    floors::{Judged, Message},
    life::evidence::Shown,
};

/// Pairs of GUEK and GAK versions that an answer is tried under, as of APDUs.
const PAIRS_MAX: usize = 16;

/// A meter's receive floors as they stood when its challenge was issued.
#[derive(Clone, Debug, Default)]
pub struct FloorsBefore(Vec<(LineName, u32)>);

/// An APDU that carries an answer, opened, its floor not asked yet.
#[derive(Debug)]
pub struct Carrier {
    /// What became of it.
    pub outcome: Outcome,
    /// Its plaintext; empty if it did not open.
    pub plaintext: Vec<u8>,
    /// It came under a GUEK, whose counters the answer has, too.
    under_guek: bool,
    arrival: Option<Arrival>,
}

/// An answer of mechanism 5, as it was given.
#[derive(Clone, Copy, Debug)]
pub struct GmacClaim<'a> {
    /// The meter.
    pub title: SystemTitle,
    /// Under which security setup.
    pub setup: SecuritySetup,
    /// The one pair of GUEK and GAK that it is to verify under; 0: each live one is tried.
    pub versions: (u16, u16),
    /// CtoS.
    pub challenge: &'a [u8],
    /// f(CtoS).
    pub answer: &'a [u8],
}

/// An answer of mechanism 5 that verified.
#[derive(Debug)]
pub struct Gmac {
    /// The counter in it.
    pub counter: u32,
    /// Version of the GUEK.
    pub encryption_key_version: u16,
    /// Version of the GAK.
    pub authentication_key_version: u16,
    /// One of the two is known to be compromised: whoever has it could have answered, and it moves no floor.
    pub compromised: bool,
    arrival: Option<Arrival>,
    /// The keys that wait for evidence, of those that made it.
    shown: Option<Shown>,
}

impl Ciphering {
    /// The meter's floors now.
    pub async fn floors_before(
        &self,
        title: SystemTitle,
        setup: SecuritySetup,
    ) -> Result<FloorsBefore, Outcome> {
        let mut before = FloorsBefore::default();
        for line in self.floored_lines(title, setup).await? {
            let highest = self.floors.highest(title, &line).await.map_err(unavailable)?;
            before.0.extend(highest.map(|highest| (line, highest)));
        }
        Ok(before)
    }

    async fn floored_lines(
        &self,
        title: SystemTitle,
        setup: SecuritySetup,
    ) -> Result<Vec<LineName>, Outcome> {
        let table = self.keyring.open(self.keyring.block_of(&title)).await;
        let table = table.map_err(|error| unavailable(error.to_string()))?;
        let meter = served(&table, title)?;
        let candidates = meter.candidates(KeyKind::Guek, Some(setup));
        let line = |version| {
            let (_, fingerprint) = meter.floored_key(KeyKind::Guek, setup, version)?;
            Some(LineName { fingerprint, originator: meter.own_title() })
        };
        Ok(candidates.filter_map(|candidate| line(candidate.version)).collect())
    }

    /// Opens the APDU that carries an answer; its floor is asked by [`Ciphering::judge_answer`].
    pub async fn open_carrier(&self, item: Item<'_>) -> Carrier {
        let items = [item];
        let mut pass = self.tried(&items, Want::Plaintext).await;
        let arrival = pass.take_arrivals().pop().map(|(_, arrival)| arrival);
        let (mut opened, verdicts) = pass.into_columns(&*self.evidence);
        self.figures.count(Want::Plaintext, &verdicts);
        let outcome = opened.outcomes.pop().unwrap_or_else(Outcome::lost);
        let under_guek =
            attempt::parse(items[0].apdu).is_ok_and(|apdu| key_kind(&apdu) == KeyKind::Guek);
        Carrier { outcome, plaintext: opened.plaintexts, under_guek, arrival }
    }

    /// Verifies f(CtoS) of mechanism 5 under the pair that is named, or else under all pairs of the meter's live versions
    /// of the setup.
    pub async fn verify_gmac(&self, claim: &GmacClaim<'_>) -> Result<Gmac, Outcome> {
        self.tried_anew(claim.title, |table| try_gmac(table, claim)).await
    }

    /// Whether the meter has these versions of GUEK and GAK, and they may carry an association; 0: none is named.
    pub async fn check_pair(
        &self,
        whose: (SystemTitle, SecuritySetup),
        versions: (u16, u16),
    ) -> Result<(), Outcome> {
        if versions == (0, 0) {
            return Ok(());
        }
        self.tried_anew(whose.0, |table| has_pair(table, whose, versions)).await
    }

    /// What comes of a meter's keys as they are here; failing that, as another server may have left them meanwhile.
    async fn tried_anew<T>(
        &self,
        title: SystemTitle,
        of: impl Fn(&BlockTable) -> Result<T, Outcome>,
    ) -> Result<T, Outcome> {
        let block = self.keyring.block_of(&title);
        let table = self.keyring.open(block).await;
        let table = table.map_err(|error| unavailable(error.to_string()))?;
        let tried = of(&table);
        scrub_stack();
        if tried.is_ok() || !self.keyring.has_other_writers() {
            return tried;
        }
        let Some(newer) = self.keyring.doubt(block, table.position()).await else { return tried };
        let tried = of(&newer);
        scrub_stack();
        tried
    }

    /// Asks the receive floors of an answer and of the APDU that carried it, in this order: the answer's counter is the
    /// lower one. Without that APDU, whose opening elsewhere may have raised the floor, the answer is held against the floor
    /// as it stood when its challenge was issued.
    pub async fn judge_answer(
        &self,
        answer: Option<&Gmac>,
        before: &FloorsBefore,
        carrier: Option<&Carrier>,
    ) -> Result<(), Outcome> {
        let (Some(answer), Some(carrier)) = (answer, carrier) else {
            let arrival = answer.and_then(|answer| answer.arrival.as_ref());
            arrival.map_or(Ok(()), |arrival| before.judge(arrival))?;
            return self.judge(carrier.and_then(|carrier| carrier.arrival.as_ref())).await;
        };
        let outer = &carrier.outcome;
        let of_one_line =
            carrier.under_guek && outer.encryption_key_version == answer.encryption_key_version;
        if of_one_line && answer.counter > outer.invocation_counter {
            return Err(Outcome::of(Verdict::Replayed).because(format!(
                "the answer has invocation counter {}, which is above that of the APDU around it, {}",
                answer.counter, outer.invocation_counter
            )));
        }
        // Some meters use one counter for both: then the APDU alone is judged.
        if !(of_one_line && answer.counter == outer.invocation_counter) {
            self.judge(answer.arrival.as_ref()).await?;
        }
        self.judge(carrier.arrival.as_ref()).await
    }

    /// Hears what an answer to our own challenge shows, once it was judged: that challenge was never asked before, so
    /// whoever answered it has the keys now.
    pub fn heed_answer(&self, title: &SystemTitle, answer: &Gmac) {
        if let Some(shown) = &answer.shown {
            // The other site, which has not issued the challenge, could make nothing of it.
            self.evidence.shown(title, shown, &[]);
        }
    }

    async fn judge(&self, arrival: Option<&Arrival>) -> Result<(), Outcome> {
        let Some(arrival) = arrival else { return Ok(()) };
        match self.floors.judged(arrival).await.map_err(unavailable)? {
            Judged::New { .. } | Judged::Duplicate => Ok(()),
            Judged::Below { floor } => Err(below(arrival.message.counter, floor)),
            Judged::OtherMessage => Err(Outcome::of(Verdict::Replayed).because(format!(
                "invocation counter {} was used for another message under the same key",
                arrival.message.counter
            ))),
        }
    }
}

impl Carrier {
    /// Whether it came under this pair; 0: none is named.
    pub fn is_under(&self, versions: (u16, u16)) -> bool {
        let Outcome { encryption_key_version, authentication_key_version, .. } = self.outcome;
        versions == (0, 0) || versions == (encryption_key_version, authentication_key_version)
    }
}

impl FloorsBefore {
    fn judge(&self, arrival: &Arrival) -> Result<(), Outcome> {
        let Arrival { line, message, window, .. } = arrival;
        let known = self.0.iter().find(|(known, _)| known == line);
        match known {
            Some((_, highest)) if message.counter <= highest.saturating_sub((*window).into()) => {
                Err(below(message.counter, highest.saturating_add(1)))
            }
            _ => Ok(()),
        }
    }
}

fn below(counter: u32, floor: u32) -> Outcome {
    Outcome::of(Verdict::Replayed).because(format!(
        "invocation counter {counter} of the answer is below the receive floor, {floor}"
    ))
}

fn unavailable(why: String) -> Outcome {
    Outcome::of(Verdict::Unavailable).because(why)
}

fn served(table: &BlockTable, title: SystemTitle) -> Result<ResidentMeter<'_>, Outcome> {
    let meter = table.find(&title).ok_or_else(|| missing(table, title))?;
    let damaged = "the meter's stored record was changed outside this service";
    if meter.is_damaged() { Err(unavailable(damaged.into())) } else { Ok(meter) }
}

/// Staged, active and compromised ones may: the successor of the last ones is brought through an association.
fn has_pair(
    table: &BlockTable,
    (title, setup): (SystemTitle, SecuritySetup),
    (encryption, authentication): (u16, u16),
) -> Result<(), Outcome> {
    let meter = served(table, title)?;
    for (kind, version) in [(KeyKind::Guek, encryption), (KeyKind::Gak, authentication)] {
        let mut all = meter.candidates(kind, Some(setup));
        let found = all.find(|it| it.version == version && it.standing.carries);
        let (verdict, what) = match found.map(|it| it.key.bytes().is_some()) {
            Some(true) => continue,
            Some(false) => (Verdict::Unsupported, "is of protection HSM: it makes no HLS answer"),
            None => (
                Verdict::NoUsableKey,
                "is not there, or carries no association: one that is staged, active or compromised does",
            ),
        };
        let why = format!("version {version} of the meter's {kind} in security setup {}", setup.0);
        let outcome = Outcome { system_title: Some(title), ..Outcome::of(verdict) };
        return Err(outcome.because(format!("{why} {what}")));
    }
    Ok(())
}

fn try_gmac(table: &BlockTable, claim: &GmacClaim<'_>) -> Result<Gmac, Outcome> {
    let GmacClaim { title, setup, versions, challenge, answer } = *claim;
    let meter = served(table, title)?;
    let failed = |why: &str| {
        Err(Outcome { system_title: Some(title), ..Outcome::of(Verdict::MicFailure) }.because(why))
    };
    let Some(suite) = answer.first().and_then(|control| suite_of(*control)) else {
        return failed("the answer does not begin with a security control byte of mechanism 5");
    };
    let own = meter.own_title();
    let candidates = |kind, named: u16| {
        let all = meter.candidates(kind, Some(setup));
        let wanted = all.filter(|it| named == 0 || it.version == named && it.standing.carries);
        wanted.collect::<Vec<_>>()
    };
    let (eks, aks) = (candidates(KeyKind::Guek, versions.0), candidates(KeyKind::Gak, versions.1));
    let pairs = eks.iter().flat_map(|ek| aks.iter().map(move |ak| (ek, ak)));
    for (ek, ak) in pairs.take(PAIRS_MAX) {
        let (Some(encryption), Some(authentication)) = (ek.key.bytes(), ak.key.bytes()) else {
            continue;
        };
        let keys = Keys { encryption, authentication };
        let Ok(counter) = hls::verify(suite, &own, &keys, challenge, answer) else { continue };
        let compromised = ek.standing.compromised || ak.standing.compromised;
        let arrival = || arrival(&meter, (setup, ek.version), counter, answer);
        return Ok(Gmac {
            counter,
            encryption_key_version: ek.version,
            authentication_key_version: ak.version,
            compromised,
            arrival: if compromised { None } else { arrival() },
            shown: if compromised { None } else { shown(&meter, ek, ak) },
        });
    }
    failed(match versions {
        (0, 0) => "the answer does not verify under any pair of the meter's keys",
        _ => "the answer does not verify under the pair of keys that was named",
    })
}

/// The keys that such an answer proves. Its nonce begins with the meter's own title, and so does nothing that we have sent.
fn shown(meter: &ResidentMeter<'_>, ek: &Candidate<'_>, ak: &Candidate<'_>) -> Option<Shown> {
    let (encryption, authentication) = (ek.standing.awaits, ak.standing.awaits);
    let waits = encryption.is_some() || authentication.is_some();
    let is_own = !meter.is_clients(meter.own_title());
    (waits && is_own).then_some(Shown { setup: ek.setup, encryption, authentication })
}

/// SC = 10 | suite.
fn suite_of(control: u8) -> Option<Suite> {
    let suite = Suite::try_from(control & 0x0F).ok()?;
    (SecurityControl::authentication_only(suite).to_byte() == control).then_some(suite)
}

/// What the floor of the meter's line is asked.
fn arrival(
    meter: &ResidentMeter<'_>,
    (setup, version): (SecuritySetup, u16),
    counter: u32,
    answer: &[u8],
) -> Option<Arrival> {
    let (rule, fingerprint) = meter.floored_key(KeyKind::Guek, setup, version)?;
    let check = answer.get(5..)?.first_chunk()?;
    Some(Arrival {
        title: meter.title(),
        line: LineName { fingerprint, originator: meter.own_title() },
        message: Message { counter, check: u32::from_be_bytes(*check) },
        window: rule.window,
    })
}
