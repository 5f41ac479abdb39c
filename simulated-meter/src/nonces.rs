//! Reads the wire and says whether a key sealed twice with one nonce.
//!
//! It has the keys, so it finds by trying which one a message is under, and what else is inside: an answer of mechanism
//! 5 has a nonce of its own within the APDU that carries it. Put it where messages are *sent*: what gets lost was sealed,
//! too. It trusts neither side's word.

use std::collections::{BTreeMap, HashMap};

use ring::digest::{SHA256, digest};

use crate::{
    acse::Opening,
    frame::{Frame, Under, control},
    hls,
    keys::Title,
    octets::Octets,
    service::{REPLY_TO_HLS, Request, Response},
    value::Value,
};

/// What a use of (key, nonce) turned out to be; the last is the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// The first with this key and nonce.
    Fresh,
    /// Sealed once, sent again: the very same bytes.
    SentAgain,
    /// Under no key that the ledger knows: nothing is said of it.
    Unread,
    /// The same key and nonce sealed something else before.
    Twice,
}

/// One use of a key and a nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    /// The first bytes of the SHA-256 of the key; none where no key fits.
    pub key: Option<[u8; 8]>,
    /// Title and counter.
    pub nonce: [u8; 12],
    /// What it is.
    pub finding: Finding,
}

#[derive(Clone, Debug, Default)]
struct KeysOf {
    encryption: Vec<Vec<u8>>,
    authentication: Vec<Vec<u8>>,
    /// Those of the newest association, either side's: an answer without an APDU around it is recognized by them.
    challenges: Vec<Vec<u8>>,
    /// What the newest message was under: the next one mostly is, too.
    newest: Option<(Vec<u8>, Vec<u8>)>,
}

/// All uses that were seen.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    keys: BTreeMap<Title, KeysOf>,
    seen: HashMap<(Vec<u8>, [u8; 12]), [u8; 32]>,
    reused: u64,
    unread: u64,
}

impl Ledger {
    /// A key that messages of or to this meter may be encrypted with.
    pub fn learn_encryption(&mut self, meter: Title, key: &[u8]) {
        learn(&mut self.keys.entry(meter).or_default().encryption, key);
    }

    /// A key that they may be authenticated with.
    pub fn learn_authentication(&mut self, meter: Title, key: &[u8]) {
        learn(&mut self.keys.entry(meter).or_default().authentication, key);
    }

    /// How many different pairs were used.
    pub fn pairs(&self) -> usize {
        self.seen.len()
    }

    /// How often a pair was used for something else than before.
    pub fn reused(&self) -> u64 {
        self.reused
    }

    /// How many uses were under no key that it knows. A check that does not look at this may have seen nothing.
    pub fn unread(&self) -> u64 {
        self.unread
    }

    /// Reads one APDU of or to a meter, sent by `from`. Plain ones have no use in them.
    pub fn read(&mut self, meter: Title, from: Title, apdu: &[u8]) -> Vec<Use> {
        let mut uses = Vec::new();
        if let Some(opening) = Opening::read(apdu) {
            self.challenged(meter, &opening);
            if let Some(frame) = Frame::read(&opening.user) {
                self.frame(meter, from, &frame, &mut uses);
            }
        } else if let Some(frame) = Frame::read(apdu) {
            self.frame(meter, from, &frame, &mut uses);
        } else {
            self.answers_within(meter, (from, None), apdu, &mut uses);
        }
        let count = |finding| uses.iter().filter(|it| it.finding == finding).count() as u64;
        self.reused += count(Finding::Twice);
        self.unread += count(Finding::Unread);
        uses
    }

    fn challenged(&mut self, meter: Title, opening: &Opening) {
        let challenges = &mut self.keys.entry(meter).or_default().challenges;
        if opening.result.is_none() {
            challenges.clear();
        }
        challenges.push(opening.challenge.clone());
    }

    fn frame(&mut self, meter: Title, from: Title, frame: &Frame, uses: &mut Vec<Use>) {
        let from = frame.originator.unwrap_or(from);
        let nonce = nonce(from, frame.counter);
        let Some((key, plain)) = self.opened(meter, from, frame) else {
            uses.push(Use { key: None, nonce, finding: Finding::Unread });
            return;
        };
        let sealed = [&[frame.control][..], &frame.body].concat();
        uses.push(self.used(&key, nonce, &sealed));
        self.answers_within(meter, (from, Some(&key)), &plain, uses);
    }

    /// The encryption key under which a message opens, and what is in it.
    fn opened(&mut self, meter: Title, from: Title, frame: &Frame) -> Option<(Vec<u8>, Vec<u8>)> {
        let known = self.keys.get_mut(&meter)?;
        let newest =
            known.newest.iter().map(|(encryption, authentication)| (encryption, authentication));
        let pairs = known.encryption.iter().rev().flat_map(|encryption| {
            known
                .authentication
                .iter()
                .rev()
                .map(move |authentication| (encryption, authentication))
        });
        let (encryption, authentication, plain) =
            newest.chain(pairs).find_map(|(encryption, authentication)| {
                let plain = frame.open(Under { encryption, authentication, originator: from })?;
                let right = frame.is_authenticated() || makes_sense(&plain);
                right.then(|| (encryption.clone(), authentication.clone(), plain))
            })?;
        known.newest = Some((encryption.clone(), authentication));
        Some((encryption, plain))
    }

    /// An answer of mechanism 5 in a plain APDU, which came under `outer` or under no key.
    fn answers_within(
        &mut self,
        meter: Title,
        (from, outer): (Title, Option<&Vec<u8>>),
        plain: &[u8],
        uses: &mut Vec<Use>,
    ) {
        let Some(answer) = answer_in(plain) else { return };
        let Some(counter) = hls::counter_in(&answer) else { return };
        let nonce = nonce(from, counter);
        match self.answered(meter, from, &answer).or_else(|| outer.cloned()) {
            Some(key) => uses.push(self.used(&key, nonce, &answer)),
            None => uses.push(Use { key: None, nonce, finding: Finding::Unread }),
        }
    }

    fn answered(&self, meter: Title, from: Title, answer: &[u8]) -> Option<Vec<u8>> {
        let known = self.keys.get(&meter)?;
        let suite = answer.first()? & control::SUITE;
        let fits = |encryption: &&Vec<u8>| {
            known.authentication.iter().any(|authentication| {
                let under = Under { encryption, authentication, originator: from };
                known.challenges.iter().any(|it| hls::answers(under, suite, it, answer))
            })
        };
        known.encryption.iter().find(fits).cloned()
    }

    fn used(&mut self, key: &[u8], nonce: [u8; 12], sealed: &[u8]) -> Use {
        let what = sha256(sealed);
        let finding = match self.seen.insert((key.to_vec(), nonce), what) {
            None => Finding::Fresh,
            Some(before) if before == what => Finding::SentAgain,
            Some(_) => Finding::Twice,
        };
        Use { key: sha256(key).first_chunk().copied(), nonce, finding }
    }
}

fn learn(keys: &mut Vec<Vec<u8>>, key: &[u8]) {
    if !keys.iter().any(|it| it == key) {
        keys.push(key.to_vec());
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = digest(&SHA256, bytes);
    std::array::from_fn(|at| digest.as_ref()[at])
}

fn nonce(title: Title, counter: u32) -> [u8; 12] {
    let counter = counter.to_be_bytes();
    std::array::from_fn(|at| if at < 8 { title[at] } else { counter[at - 8] })
}

/// Whether what a wrong key would make of it could hardly look like this.
fn makes_sense(plain: &[u8]) -> bool {
    Request::read(plain).is_some()
        || Response::read(plain).is_some()
        || notification(plain).is_some()
        || matches!(plain, [0x01, 0 | 1, ..] | [0x08, 0, 6, 0x5f, ..])
}

fn notification(plain: &[u8]) -> Option<()> {
    let mut octets = Octets(plain);
    if octets.byte()? != 0x0f {
        return None;
    }
    octets.number()?;
    octets.counted()?;
    Value::read(octets.0).map(|_| ())
}

fn answer_in(plain: &[u8]) -> Option<Vec<u8>> {
    let argument = match (Request::read(plain), Response::read(plain)) {
        (Some(Request::Act { at, argument, .. }), _) if at == REPLY_TO_HLS => argument,
        (_, Some(Response::Acted { returned, .. })) => returned,
        _ => None,
    };
    match argument {
        Some(Value::Octets(answer)) if answer.len() == hls::ANSWER => Some(answer),
        _ => None,
    }
}
