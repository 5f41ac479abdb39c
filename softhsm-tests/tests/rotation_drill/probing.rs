//! Finding out what a meter holds: harmless questions under named keys, and associations that authenticate under them.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use kms_proto::v1::{
    self, KeyPair, TransportOutcome as Outcome, Verdict, WorkAction,
    ciphering_client::CipheringClient,
};
use simulated_meter::{
    acse::{INITIATE, Opening},
    cuts::Cut,
    frame::Frame,
    service::{CLOCK, Request},
};
use tonic::{Status, transport::Channel};

use super::{
    common::fleet::{id, title},
    field::BY_HLS,
    head_end::{Act, Drill, within},
};

const AT_ONCE: usize = 16;
const GET: Request = Request::Get { id: 0xc1, at: CLOCK };
const LOCKED_S: u64 = 600;

/// A question to each of these meters, under a pair of versions. What could not be protected is left out.
pub(crate) async fn protect(
    mut client: CipheringClient<Channel>,
    wanted: Vec<(usize, u64, KeyPair)>,
) -> Vec<(usize, KeyPair, Bytes)> {
    let mut by_pair: BTreeMap<(u32, u32), Vec<(usize, u64)>> = BTreeMap::new();
    for (at, n, pair) in wanted {
        let pair = (pair.encryption_key_version, pair.authentication_key_version);
        by_pair.entry(pair).or_default().push((at, n));
    }
    let mut sent = Vec::new();
    for ((encryption_key_version, authentication_key_version), some) in by_pair {
        let pair = KeyPair { encryption_key_version, authentication_key_version };
        let meters: Vec<u64> = some.iter().map(|(_, n)| *n).collect();
        let asked = asked(&mut client, &meters, pair).await;
        let both = some.into_iter().zip(asked);
        sent.extend(both.filter_map(|((at, _), apdu)| Some((at, pair, apdu?))));
    }
    sent
}

/// The question to each, or none where the service protects none. 0 and 0 are the preferred versions.
pub(crate) async fn asked(
    client: &mut CipheringClient<Channel>,
    meters: &[u64],
    pair: KeyPair,
) -> Vec<Option<Bytes>> {
    let plain = GET.write();
    let is_named = pair.encryption_key_version > 0;
    let purpose = if is_named { v1::CounterPurpose::Probe } else { v1::CounterPurpose::Traffic };
    let batch = v1::PlainBatch {
        apdus: plain.repeat(meters.len()).into(),
        lengths: vec![plain.len() as u32; meters.len()],
        system_titles: meters.iter().flat_map(|n| *title(*n).as_bytes()).collect(),
        meter_ids: Vec::new(),
        protecting: Some(v1::Protecting {
            purpose: purpose as i32,
            encryption_key_version: pair.encryption_key_version,
            authentication_key_version: pair.authentication_key_version,
            ..v1::Protecting::default()
        }),
        tag: 0,
    };
    let Ok(mut reply) = within(client.encrypt_batch(batch)).await else {
        return vec![None; meters.len()];
    };
    let mut all = Vec::new();
    for length in &reply.lengths {
        let apdu = reply.apdus.split_to(*length as usize);
        all.push(Some(apdu).filter(|it| !it.is_empty()));
    }
    all
}

/// A meter that is to authenticate under a pair, and what befalls its answer.
pub(crate) struct Wanted {
    pub(crate) at: usize,
    pub(crate) n: u64,
    pub(crate) pair: KeyPair,
    pub(crate) cut: Option<Cut>,
}

/// What came of that.
pub(crate) enum Tried {
    /// The service began nothing, or a kill cut it off.
    NotBegun,
    /// Nothing came back.
    Silent,
    /// No association is opened now.
    Locked,
    /// It does not hold this pair.
    Wrong(Vec<Vec<u8>>),
    /// It does.
    Right(Vec<Vec<u8>>),
}

/// An association that is being opened.
struct Open {
    wanted: Wanted,
    association: Bytes,
    challenge: Bytes,
}

type AllTried = Vec<(usize, Tried)>;
/// The name of an association, and the meter's answer.
type Heard = (Bytes, Bytes);
type Calls<T> = Vec<(Open, Result<T, Status>)>;

impl Drill {
    /// Opens associations by GMAC under these pairs. `is_struck`: the server is killed while it answers challenges.
    pub(crate) async fn authenticate(&mut self, wanted: Vec<Wanted>, is_struck: bool) -> AllTried {
        let mut tried = Vec::new();
        if wanted.is_empty() {
            return tried;
        }
        let mut opens = Vec::new();
        for (mut open, reply) in begin(self.sites.ciphering(), wanted).await {
            match reply {
                Ok(reply) if reply.verdict() == Verdict::Ok => {
                    (open.association, open.challenge) = (reply.association, reply.challenge);
                    self.ask_for(open, (&mut opens, &mut tried));
                }
                Ok(reply) => {
                    self.note(format!("HLS: {:?} {:?}", reply.verdict(), reply.refusal()));
                    tried.push((open.wanted.at, Tried::NotBegun));
                }
                Err(status) => {
                    self.refused(&status);
                    tried.push((open.wanted.at, Tried::NotBegun));
                }
            }
        }
        let calls = answer(self.sites.ciphering(), opens);
        let answers = if is_struck { self.killed_among(calls).await } else { calls.await };
        let mut heard = Vec::new();
        for (open, reply) in answers {
            match reply {
                Ok(reply) if !reply.apdu.is_empty() => {
                    self.answer_to(open, &reply.apdu, (&mut heard, &mut tried));
                    continue;
                }
                Ok(reply) => {
                    self.note(format!("HLS answer: {:?} {}", reply.verdict(), reply.reason));
                }
                Err(status) => {
                    self.seen.cut_off += u64::from(is_struck);
                    self.refused(&status);
                }
            }
            tried.push((open.wanted.at, Tried::NotBegun));
        }
        let right = verify(self.sites.ciphering(), heard).await;
        self.seen.associations += right;
        tried
    }

    /// Passes 1 and 2.
    fn ask_for(&mut self, open: Open, (opens, tried): (&mut Vec<(Open, Bytes)>, &mut AllTried)) {
        let (at, n) = (open.wanted.at, open.wanted.n);
        let aarq = Opening {
            ciphered: true,
            title: Some(super::field::CLIENT),
            mechanism: Some(5),
            challenge: open.challenge.to_vec(),
            user: INITIATE.to_vec(),
            ..Opening::default()
        };
        let back = self.field.exchange(n, (BY_HLS, &aarq.write()), None);
        match back.iter().filter_map(|it| Opening::read(it)).next_back() {
            None => tried.push((at, Tried::Silent)),
            Some(opening) if opening.result == Some(0) => {
                opens.push((open, opening.challenge.into()));
            }
            Some(_) => {
                // Locked: that is waited for.
                self.field.device(n).meter.pass(LOCKED_S);
                tried.push((at, Tried::Locked));
            }
        }
    }

    /// Passes 3 and 4.
    fn answer_to(
        &mut self,
        open: Open,
        apdu: &[u8],
        (heard, tried): (&mut Vec<Heard>, &mut AllTried),
    ) {
        let Wanted { at, n, cut, .. } = open.wanted;
        let back = self.field.exchange(n, (BY_HLS, apdu), cut);
        let own = back.iter().rfind(|it| Frame::read(it).is_some());
        heard.extend(own.map(|own| (open.association, own.clone().into())));
        tried.push((
            at,
            match own {
                _ if back.is_empty() => Tried::Silent,
                None => Tried::Wrong(back),
                Some(_) => Tried::Right(back),
            },
        ));
    }

    /// Opens an association with those meters whose transfer goes that way.
    pub(crate) async fn associate(&mut self, acts: &mut [Act]) {
        let due = acts.iter().enumerate();
        let due = due.filter(|(_, act)| act.is(WorkAction::Transfer) && act.by_hls(&self.field));
        let wanted = due.map(|(at, act)| {
            let pair = act.work.pairs.first().copied().unwrap_or_default();
            Wanted { at, n: act.n, pair, cut: None }
        });
        let wanted = wanted.collect();
        for (at, tried) in self.authenticate(wanted, false).await {
            let act = &mut acts[at];
            act.outcome = match tried {
                Tried::NotBegun => Some(Outcome::GivenBack),
                Tried::Silent => Some(Outcome::NoAnswer),
                Tried::Locked => Some(Outcome::Refused),
                Tried::Wrong(back) => {
                    act.in_vain.extend(act.work.pairs.first().copied());
                    act.apdus.extend(back);
                    Some(Outcome::NotAuthenticated)
                }
                Tried::Right(_) => None,
            };
        }
    }
}

async fn begin(
    client: CipheringClient<Channel>,
    wanted: Vec<Wanted>,
) -> Calls<v1::BeginHlsResponse> {
    let one = |wanted: Wanted| {
        let mut client = client.clone();
        let request = v1::BeginHlsRequest {
            meter_id: id(wanted.n),
            mechanism: 5,
            ..v1::BeginHlsRequest::default()
        };
        let open = Open { wanted, association: Bytes::new(), challenge: Bytes::new() };
        async move { (open, within(client.begin_hls(request)).await) }
    };
    stream::iter(wanted).map(one).buffered(AT_ONCE).collect().await
}

async fn answer(
    client: CipheringClient<Channel>,
    opens: Vec<(Open, Bytes)>,
) -> Calls<v1::AnswerHlsChallengeResponse> {
    let one = |(open, challenge): (Open, Bytes)| {
        let mut client = client.clone();
        let request = v1::AnswerHlsChallengeRequest {
            association: open.association.clone(),
            challenge,
            mechanism: 5,
            action: Some(v1::HlsAction {
                invoke_id_and_priority: 0xc1,
                form: v1::CipheringForm::Glo as i32,
                protection: v1::ApduProtection::AuthenticatedEncrypted as i32,
            }),
            encryption_key_version: open.wanted.pair.encryption_key_version,
            authentication_key_version: open.wanted.pair.authentication_key_version,
        };
        async move { (open, within(client.answer_hls_challenge(request)).await) }
    };
    stream::iter(opens).map(one).buffered(AT_ONCE).collect().await
}

/// How many meters have shown that they have the key.
async fn verify(client: CipheringClient<Channel>, heard: Vec<(Bytes, Bytes)>) -> u64 {
    let one = |(association, apdu)| {
        let mut client = client.clone();
        let request = v1::VerifyHlsAnswerRequest {
            association,
            apdu,
            ..v1::VerifyHlsAnswerRequest::default()
        };
        async move { within(client.verify_hls_answer(request)).await }
    };
    let all: Vec<_> = stream::iter(heard).map(one).buffered(AT_ONCE).collect().await;
    let is_right = |it: &Result<v1::VerifyHlsAnswerResponse, Status>| {
        it.as_ref().is_ok_and(|it| it.verdict() == Verdict::Ok)
    };
    all.iter().filter(|it| is_right(it)).count() as u64
}
