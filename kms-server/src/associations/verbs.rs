//! The steps: begin, answer, verify.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dlms::{
    KeySet,
    hls::{self, SecretMechanism},
};

use super::{
    handle::Handle,
    item::{Action, Answered, Asked, Begin, Begun, Given, GivenAnswer, Mechanism, Verified},
    refused::NotAssociated,
    table::{CHALLENGE_TTL, End, Facts, Table},
};
use crate::{
    ciphering::{Carrier, Ciphering, GmacClaim, Item, Named},
    keyring::{Identities, Keyring, Reader, Records},
    transmitting::{Envelope, Origin, Outcome, Plain, Transmitting, Whose},
};
use kms_core::{
    ProfileName, Record, SystemTitle, Verdict,
    audit::NodeId,
    counters::allocator::Purpose,
    moment::Moment,
    ports::{Clock, Randomness},
    profile::{HlsMechanism2, Profiles},
};

/// The characters of our challenges: no APDU, and no header, begins with one of them.
const LETTERS: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_~abcdefghijklmnopqrstuvwxyz";

/// What associations stand on.
pub struct Below {
    /// Counters, and what is sent.
    pub transmitting: Arc<Transmitting>,
    /// What meters send.
    pub ciphering: Arc<Ciphering>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Challenges, and names of associations.
    pub randomness: Arc<dyn Randomness>,
    /// How the makes of meters differ.
    pub profiles: Arc<Profiles>,
}

/// The associations of this node.
pub struct Associations {
    pub(super) reader: Reader,
    pub(super) records: Arc<Records>,
    pub(super) identities: Arc<Identities>,
    below: Below,
    table: Mutex<Table>,
}

impl Associations {
    /// None is open yet.
    pub fn new(keyring: &Keyring, below: Below) -> Self {
        Self {
            reader: keyring.reader.clone(),
            records: Arc::clone(&keyring.records),
            identities: Arc::clone(&keyring.identities),
            below,
            table: Mutex::default(),
        }
    }

    /// The number of those that are open.
    pub fn open(&self) -> usize {
        let mut table = self.table();
        table.expire(self.now());
        table.open()
    }

    /// Whether this node may say anything of what is sent to meters.
    pub fn node(&self) -> NodeId {
        self.below.transmitting.node()
    }

    /// Begins an association for `caller`: issues a challenge and keeps it.
    pub async fn begin(
        &self,
        caller: &str,
        begin: Begin<'_>,
    ) -> Result<Result<Begun, Outcome>, NotAssociated> {
        self.table().check_room(caller, self.now())?;
        let handle = Handle { node: self.node(), number: self.random()? };
        let challenge = self.challenge(begin.challenge_len)?;
        let facts = match self.facts(caller, &begin, challenge).await {
            Ok(facts) => facts,
            Err(outcome) => return Ok(Err(outcome)),
        };
        let begun = Begun {
            handle,
            challenge: facts.challenge.clone(),
            system_title: facts.title,
            client_title: facts.client_title,
            expires_in_ms: facts.ends.ms_since(self.now()),
        };
        self.table().begin(handle.number, facts, self.now())?;
        Ok(Ok(begun))
    }

    async fn facts(
        &self,
        caller: &str,
        begin: &Begin<'_>,
        challenge: Box<[u8]>,
    ) -> Result<Facts, Outcome> {
        let Begin { whose, setup, client, mechanism, suite, versions, .. } = *begin;
        let Below { transmitting, ciphering, .. } = &self.below;
        let sides = transmitting.sides(whose, setup, client).await?;
        let of_ciphering = |outcome: crate::ciphering::Outcome| {
            let reason = outcome.reason.unwrap_or_default();
            Outcome::of(outcome.verdict).because(reason).about(sides.title)
        };
        let pair = ((sides.title, setup), versions);
        ciphering.check_pair(pair.0, pair.1).await.map_err(of_ciphering)?;
        let facts = Facts {
            caller: caller.into(),
            title: sides.title,
            server: sides.server,
            client_title: sides.client,
            setup,
            client,
            mechanism,
            dialect: self.dialect(sides.title, mechanism).await?,
            suite,
            versions,
            challenge,
            before: ciphering.floors_before(sides.title, setup).await.map_err(of_ciphering)?,
            ends: self.now() + CHALLENGE_TTL,
        };
        match mechanism {
            Mechanism::Gmac => {
                transmitting.could_protect(&facts.answer(&facts.challenge, versions)).await?
            }
            Mechanism::Manufacturer | Mechanism::Secret(_) => self.check_secret(&facts).await?,
        }
        Ok(facts)
    }

    /// Mechanism 2 as the meter's profile has it.
    async fn dialect(
        &self,
        title: SystemTitle,
        mechanism: Mechanism,
    ) -> Result<SecretMechanism, Outcome> {
        if mechanism != Mechanism::Manufacturer {
            return Ok(SecretMechanism::Aes128Ecb);
        }
        let unavailable = |why: String| Outcome::of(Verdict::Unavailable).because(why).about(title);
        let record = self.records.read(&title).await;
        let record = record.map_err(|error| unavailable(error.to_string()))?;
        let profile: Option<ProfileName> = match record {
            Some(Record::Meter(meter)) => meter.policy.profile,
            _ => None,
        };
        let profile = profile.as_ref().and_then(|name| self.below.profiles.get(name));
        Ok(match profile.map(|profile| profile.hls_mechanism_2).unwrap_or_default() {
            HlsMechanism2::Ecb => SecretMechanism::Aes128Ecb,
            HlsMechanism2::Cbc => SecretMechanism::Aes128Cbc,
        })
    }

    /// Answers a meter's challenge, once. Whose answer goes out, its association waits for the meter's.
    pub async fn answer(
        &self,
        origin: &Origin<'_>,
        handle: Handle,
        asked: Asked<'_>,
    ) -> Result<Answered, NotAssociated> {
        let challenge = asked.challenge;
        let (number, now) = (self.own(handle)?, self.now());
        let (facts, is_ours) = {
            let mut table = self.table();
            (table.claim_answer(number, origin.caller, now)?, table.is_ours(challenge))
        };
        // If this future is dropped half-way the association stays claimed, until it expires: counters may be spent.
        let answered = match is_ours {
            true => Err(reflected()),
            false => self.answer_of(origin, &facts, asked).await,
        };
        let goes_out = answered.is_ok();
        self.table().answered(number, goes_out.then_some(challenge));
        Ok(answered.unwrap_or_else(|outcome| Answered::refused(outcome.about(facts.title))))
    }

    async fn answer_of(
        &self,
        origin: &Origin<'_>,
        facts: &Facts,
        Asked { challenge, said, action, versions }: Asked<'_>,
    ) -> Result<Answered, Outcome> {
        if said.is_some_and(|said| said != facts.mechanism) {
            return Err(Outcome::of(Verdict::PolicyRefused).because(
                "the meter names another mechanism than the one that was begun: abort the association",
            ));
        }
        hls::check_challenge(challenge).map_err(Outcome::of_hls)?;
        let versions = if versions == (0, 0) { facts.versions } else { versions };
        let mut answered = match facts.secret_mechanism() {
            Some(mechanism) => self.answer_with_secret(facts, mechanism, challenge).await?,
            None => {
                let (outcome, bytes) =
                    self.protect(origin, &facts.answer(challenge, versions)).await?;
                let answer_counter = outcome.invocation_counter;
                Answered { outcome, bytes, answer_counter, action_counter: 0, secret_version: 0 }
            }
        };
        if let Some(action) = action {
            let apdu = hls::reply(action.invoke_id_and_priority, &answered.bytes);
            let item = facts.action(&apdu, action, versions);
            let (outcome, bytes) = self.protect(origin, &item).await?;
            // The meter would refuse the second one, or worse: two tags under one nonce give away the key.
            if outcome.invocation_counter <= answered.answer_counter {
                return Err(Outcome::of(Verdict::Unavailable)
                    .because("another node took the meter's counters over meanwhile: try again"));
            }
            answered.action_counter = outcome.invocation_counter;
            (answered.outcome, answered.bytes) = (outcome, bytes);
        }
        Ok(answered)
    }

    async fn protect(
        &self,
        origin: &Origin<'_>,
        item: &Plain<'_>,
    ) -> Result<(Outcome, Vec<u8>), Outcome> {
        let batch = self.below.transmitting.protect_for(origin, std::slice::from_ref(item)).await;
        let outcome = batch.outcomes.into_iter().next();
        let outcome = outcome.unwrap_or_else(|| Outcome::of(Verdict::Unavailable));
        if outcome.verdict == Verdict::Ok { Ok((outcome, batch.apdus)) } else { Err(outcome) }
    }

    /// Verifies a meter's answer to our challenge, once.
    pub async fn verify(
        &self,
        caller: &str,
        handle: Handle,
        given: Given<'_>,
    ) -> Result<Verified, NotAssociated> {
        let number = self.own(handle)?;
        let (facts, challenge) = self.table().claim_verify(number, caller, self.now())?;
        let whose = (facts.title, facts.setup);
        // Of a pair that there is not nothing was tried.
        let (verified, judged) = match self.below.ciphering.check_pair(whose, given.versions).await
        {
            Err(outcome) => (failed(&facts, outcome.verdict, outcome.reason), false),
            Ok(()) => {
                let verified = self.verify_of(&facts, &challenge, given).await;
                let judged = verified.verdict != Verdict::Unavailable;
                (verified, judged)
            }
        };
        let end = if judged { End::Judged } else { End::NotJudged(challenge) };
        self.table().verified(number, end);
        Ok(verified)
    }

    async fn verify_of(
        &self,
        facts: &Facts,
        challenge: &[u8],
        Given { answer, versions }: Given<'_>,
    ) -> Verified {
        let ciphering = &self.below.ciphering;
        let carrier = match answer {
            GivenAnswer::Bare(_) => None,
            GivenAnswer::Carried(apdu) => {
                let (named, setup) = (Named::Title(facts.title), Some(facts.setup));
                Some(ciphering.open_carrier(Item { apdu, named, setup }).await)
            }
        };
        let bytes = match (&carrier, answer) {
            // Under a compromised key it is an answer all the same, and its inner one decides.
            (Some(carrier), _) if !carrier.outcome.verdict.may_have_plaintext() => {
                return unopened(facts, carrier);
            }
            (Some(carrier), _) => hls::answer_in(&carrier.plaintext),
            (None, GivenAnswer::Bare(bytes) | GivenAnswer::Carried(bytes)) => Some(bytes),
        };
        let Some(bytes) = bytes else {
            // Whatever it is, its counter was used.
            let _ = ciphering.judge_answer(None, &facts.before, carrier.as_ref()).await;
            let what = "the APDU is no successful answer to the method of passes 3 and 4: the meter did not accept ours";
            return Verified::of(Verdict::MicFailure, facts.title).because(what);
        };
        let verified = match facts.secret_mechanism() {
            Some(_) if carrier.as_ref().is_some_and(|it| !it.is_under(versions)) => {
                let why = "the APDU around the answer came under other versions than those that were named";
                failed(facts, Verdict::MicFailure, Some(why.into()))
            }
            Some(mechanism) => {
                self.with_secret(facts, mechanism, (challenge, bytes), carrier.as_ref()).await
            }
            None => self.with_gmac(facts, (bytes, versions), carrier.as_ref()).await,
        };
        let carrier_counter = carrier.map_or(0, |carrier| carrier.outcome.invocation_counter);
        Verified { carrier_counter, ..verified }
    }

    async fn with_secret(
        &self,
        facts: &Facts,
        mechanism: SecretMechanism,
        given: (&[u8], &[u8]),
        carrier: Option<&Carrier>,
    ) -> Verified {
        let verified = self.verify_with_secret(facts, mechanism, given).await;
        let judged = self.below.ciphering.judge_answer(None, &facts.before, carrier).await;
        match (verified, judged) {
            (Err(outcome), _) => failed(facts, outcome.verdict, outcome.reason),
            (Ok(_), Err(outcome)) => failed(facts, outcome.verdict, outcome.reason),
            (Ok(verified), Ok(())) => verified,
        }
    }

    async fn with_gmac(
        &self,
        facts: &Facts,
        (answer, versions): (&[u8], (u16, u16)),
        carrier: Option<&Carrier>,
    ) -> Verified {
        let ciphering = &self.below.ciphering;
        let &Facts { title, setup, ref challenge, .. } = facts;
        let claim = GmacClaim { title, setup, versions, challenge, answer };
        let gmac = ciphering.verify_gmac(&claim).await;
        let judged = ciphering.judge_answer(gmac.as_ref().ok(), &facts.before, carrier).await;
        match (gmac, judged) {
            (Err(outcome), _) | (Ok(_), Err(outcome)) => {
                failed(facts, outcome.verdict, outcome.reason)
            }
            (Ok(gmac), Ok(())) => {
                ciphering.heed_answer(&facts.title, &gmac);
                Verified {
                    encryption_key_version: gmac.encryption_key_version,
                    authentication_key_version: gmac.authentication_key_version,
                    answer_counter: gmac.counter,
                    ..Verified::of(Verdict::of_authentic(!gmac.compromised), facts.title)
                }
            }
        }
    }

    /// The number of an association of this node.
    fn own(&self, handle: Handle) -> Result<[u8; 16], NotAssociated> {
        if handle.node == self.node() {
            Ok(handle.number)
        } else {
            Err(NotAssociated::OfAnotherNode(handle.node))
        }
    }

    fn random<const N: usize>(&self) -> Result<[u8; N], NotAssociated> {
        let mut bytes = [0; N];
        self.below.randomness.fill(&mut bytes).map_err(|_| NotAssociated::NoRandomness)?;
        Ok(bytes)
    }

    /// A challenge of ours: six random bits a letter.
    fn challenge(&self, len: usize) -> Result<Box<[u8]>, NotAssociated> {
        let random = self.random::<{ hls::CHALLENGE_LEN_MAX }>()?;
        Ok(random.iter().take(len).map(|byte| LETTERS[usize::from(byte & 63)]).collect())
    }

    fn now(&self) -> Moment {
        self.below.clock.now()
    }

    /// Held for a look, never across an `.await`.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Facts {
    /// f(challenge) of mechanism 5, as an item that is given a counter.
    fn answer<'a>(&self, challenge: &'a [u8], versions: (u16, u16)) -> Plain<'a> {
        Plain {
            apdu: challenge,
            whose: Whose::Title(self.title),
            setup: self.setup,
            client: self.client,
            key_set: KeySet::Unicast,
            envelope: Envelope::HlsAnswer,
            protection: (true, false),
            suite: self.suite,
            purpose: Purpose::Hls,
            versions,
        }
    }

    fn action<'a>(&self, apdu: &'a [u8], action: Action, versions: (u16, u16)) -> Plain<'a> {
        let Action { envelope, protection, .. } = action;
        Plain { apdu, envelope, protection, ..self.answer(&[], versions) }
    }
}

fn reflected() -> Outcome {
    Outcome::of(Verdict::PolicyRefused).because(
        "the meter's challenge is one of ours that is open, or a part of one: whoever sends it wants to be given our answer",
    )
}

fn unopened(facts: &Facts, carrier: &Carrier) -> Verified {
    failed(facts, carrier.outcome.verdict, carrier.outcome.reason.clone())
}

fn failed(facts: &Facts, verdict: Verdict, reason: Option<Box<str>>) -> Verified {
    Verified { reason, ..Verified::of(verdict, facts.title) }
}
