//! Finding out what a meter holds: harmless questions under named keys, and associations that authenticate.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use kms_proto::v1::{
    self, KeyPair, TransportOutcome as Outcome, Verdict, WorkAction,
    ciphering_client::CipheringClient,
};
use simulated_meter::{
    acse::{INITIATE, Opening},
    frame::Frame,
    service::{LABEL, Request},
};
use tonic::transport::Channel;

use super::{
    common::fleet::{id, title},
    field::BY_HLS,
    head_end::{Act, Drill, within},
};

const AT_ONCE: usize = 16;
const GET: Request = Request::Get { id: 0xc1, at: LABEL };
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
    let named = pair.encryption_key_version > 0;
    let purpose = if named { v1::CounterPurpose::Probe } else { v1::CounterPurpose::Traffic };
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

/// An association that is being opened.
struct Opens {
    at: usize,
    n: u64,
    association: Bytes,
    challenge: Bytes,
}

impl Drill {
    /// Opens an association by GMAC with those meters whose transfer goes that way.
    pub(crate) async fn associate(&mut self, acts: &mut [Act]) {
        let due = acts.iter().enumerate();
        let due = due.filter(|(_, act)| act.is(WorkAction::Transfer) && act.by_hls(&self.field));
        let due: Vec<(usize, u64)> = due.map(|(at, act)| (at, act.n)).collect();
        let opens = self.begin_hls(acts, due).await;
        let mut challenged = Vec::new();
        for open in opens {
            let aarq = Opening {
                ciphered: true,
                title: Some(super::field::CLIENT),
                mechanism: Some(5),
                challenge: open.challenge.to_vec(),
                user: INITIATE.to_vec(),
                ..Opening::default()
            };
            let back = self.field.exchange(open.n, (BY_HLS, &aarq.write()), None);
            let accepted = back.iter().filter_map(|it| Opening::read(it)).next_back();
            match accepted {
                None => acts[open.at].outcome = Some(Outcome::NoAnswer),
                Some(opening) if opening.result == Some(0) => {
                    challenged.push((open, opening.challenge));
                }
                Some(_) => {
                    // Locked: that is waited for.
                    self.field.device(open.n).meter.pass(LOCKED_S);
                    acts[open.at].outcome = Some(Outcome::Refused);
                }
            }
        }
        self.answer_hls(acts, challenged).await;
    }

    async fn begin_hls(&mut self, acts: &mut [Act], due: Vec<(usize, u64)>) -> Vec<Opens> {
        let client = self.sites.ciphering();
        let begin = |(at, n): (usize, u64)| {
            let mut client = client.clone();
            let request = v1::BeginHlsRequest {
                meter_id: id(n),
                mechanism: 5,
                ..v1::BeginHlsRequest::default()
            };
            async move { (at, n, within(client.begin_hls(request)).await) }
        };
        let begun: Vec<_> = stream::iter(due).map(begin).buffered(AT_ONCE).collect().await;
        let mut opens = Vec::new();
        for (at, n, reply) in begun {
            match reply {
                Ok(reply) if reply.verdict() == Verdict::Ok => opens.push(Opens {
                    at,
                    n,
                    association: reply.association,
                    challenge: reply.challenge,
                }),
                Ok(reply) => self.note(format!("HLS: {:?} {:?}", reply.verdict(), reply.refusal())),
                Err(status) => self.refused(&status),
            }
            if opens.last().is_none_or(|it| it.at != at) {
                acts[at].outcome = Some(Outcome::GivenBack);
            }
        }
        opens
    }

    async fn answer_hls(&mut self, acts: &mut [Act], challenged: Vec<(Opens, Vec<u8>)>) {
        for (open, challenge) in challenged {
            let request = v1::AnswerHlsChallengeRequest {
                association: open.association.clone(),
                challenge: challenge.into(),
                mechanism: 5,
                action: Some(v1::HlsAction {
                    invoke_id_and_priority: 0xc1,
                    form: v1::CipheringForm::Glo as i32,
                    protection: v1::ApduProtection::AuthenticatedEncrypted as i32,
                }),
                encryption_key_version: 0,
                authentication_key_version: 0,
            };
            let answer = within(self.sites.ciphering().answer_hls_challenge(request)).await;
            let apdu = answer.ok().map(|it| it.apdu).filter(|it| !it.is_empty());
            let Some(apdu) = apdu else {
                acts[open.at].outcome = Some(Outcome::GivenBack);
                continue;
            };
            let back = self.field.exchange(open.n, (BY_HLS, &apdu), None);
            let Some(own) = back.iter().rfind(|it| Frame::read(it).is_some()) else {
                let outcome =
                    if back.is_empty() { Outcome::NoAnswer } else { Outcome::NotAuthenticated };
                let act = &mut acts[open.at];
                act.outcome = Some(outcome);
                act.in_vain.extend(act.work.pairs.first().copied());
                continue;
            };
            let request = v1::VerifyHlsAnswerRequest {
                association: open.association,
                answer: Bytes::new(),
                apdu: own.clone().into(),
                encryption_key_version: 0,
                authentication_key_version: 0,
            };
            match within(self.sites.ciphering().verify_hls_answer(request)).await {
                Ok(reply) if reply.verdict() == Verdict::Ok => self.seen.associations += 1,
                Ok(reply) => {
                    self.note(format!("HLS: {:?}", reply.verdict()));
                    acts[open.at].outcome = Some(Outcome::NotAuthenticated);
                }
                Err(_) => acts[open.at].outcome = Some(Outcome::GivenBack),
            }
        }
    }
}
