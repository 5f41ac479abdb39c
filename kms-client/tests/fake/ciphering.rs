//! "Decrypts" by giving the APDU back.
#![allow(clippy::unwrap_used, reason = "helpers of tests may")]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::StreamExt as _;
use kms_proto::v1;
use kms_proto::v1::ciphering_server::Ciphering;
use tonic::{Request, Response, Status, Streaming};

use super::{Fake, Replies};

/// APDUs that start with FF are forged.
fn verdict(apdu: &[u8]) -> u8 {
    if apdu.first() == Some(&0xFF) { 3 } else { 1 }
}

fn open(batch: v1::ApduBatch) -> v1::DecryptBatchResponse {
    let mut reply = v1::DecryptBatchResponse { tag: batch.tag, ..Default::default() };
    let (mut start, mut plaintexts, mut verdicts, mut flags) = (0, vec![], vec![], vec![]);
    for len in batch.lengths {
        let apdu = &batch.apdus[start..start + len as usize];
        start += len as usize;
        let verdict = verdict(apdu);
        let opened = if verdict == 1 { apdu } else { &[] };
        plaintexts.extend_from_slice(opened);
        reply.lengths.push(opened.len() as u32);
        verdicts.push(verdict);
        flags.push(u8::from(verdict == 1));
        reply.encryption_key_versions.push(1);
        reply.authentication_key_versions.push(1);
    }
    (reply.plaintexts, reply.verdicts, reply.flags) =
        (plaintexts.into(), verdicts.into(), flags.into());
    reply
}

#[tonic::async_trait]
impl Ciphering for Fake {
    async fn decrypt(
        &self,
        request: Request<v1::DecryptRequest>,
    ) -> Result<Response<v1::DecryptResponse>, Status> {
        self.0.begin(&request).await?;
        let apdu = request.into_inner().apdu;
        let verdict = verdict(&apdu);
        Ok(Response::new(v1::DecryptResponse {
            verdict: verdict.into(),
            plaintext: if verdict == 1 { apdu } else { Default::default() },
            authenticated: verdict == 1,
            system_title: vec![0x4D; 8].into(),
            encryption_key_version: 1,
            authentication_key_version: 1,
            invocation_counter: 7,
            ..Default::default()
        }))
    }

    async fn decrypt_batch(
        &self,
        request: Request<v1::ApduBatch>,
    ) -> Result<Response<v1::DecryptBatchResponse>, Status> {
        self.0.begin(&request).await?;
        let batch = request.into_inner();
        self.0.batches.lock().unwrap().push(batch.lengths.len());
        Ok(Response::new(open(batch)))
    }

    type DecryptStreamStream = Replies<v1::DecryptBatchResponse>;

    async fn decrypt_stream(
        &self,
        request: Request<Streaming<v1::ApduBatch>>,
    ) -> Result<Response<Self::DecryptStreamStream>, Status> {
        self.0.begin(&request).await?;
        let script = Arc::clone(&self.0);
        let break_after = script.break_after.load(Ordering::SeqCst);
        let breaks = break_after > 0 && script.fails();
        let mut count = 0;
        let replies = request.into_inner().map(move |batch| {
            let batch = batch?;
            count += 1;
            if breaks && count > break_after {
                return Err(Status::unavailable("going down"));
            }
            script.batches.lock().unwrap().push(batch.lengths.len());
            Ok(open(batch))
        });
        Ok(Response::new(Box::pin(replies)))
    }

    async fn verify_mic(
        &self,
        request: Request<v1::VerifyMicRequest>,
    ) -> Result<Response<v1::VerifyMicResponse>, Status> {
        self.0.begin(&request).await?;
        let verdict = verdict(&request.into_inner().apdu).into();
        Ok(Response::new(v1::VerifyMicResponse { verdict, ..Default::default() }))
    }

    async fn verify_mic_batch(
        &self,
        _: Request<v1::ApduBatch>,
    ) -> Result<Response<v1::VerifyMicBatchResponse>, Status> {
        // One verdict short, whatever was asked: a broken server.
        Ok(Response::new(v1::VerifyMicBatchResponse::default()))
    }

    async fn encrypt(
        &self,
        request: Request<v1::EncryptRequest>,
    ) -> Result<Response<v1::EncryptResponse>, Status> {
        self.0.begin_change(&request).await?;
        let v1::EncryptRequest { apdu, .. } = request.into_inner();
        // As a server that gives out counters: each call gets one.
        let invocation_counter = self.0.counter.fetch_add(1, Ordering::SeqCst);
        let verdict = kms_core::Verdict::Ok as i32;
        let reply = v1::EncryptResponse { verdict, apdu, invocation_counter, ..Default::default() };
        Ok(Response::new(reply))
    }

    async fn encrypt_batch(
        &self,
        _: Request<v1::PlainBatch>,
    ) -> Result<Response<v1::EncryptBatchResponse>, Status> {
        // No verdict, whatever was asked: a broken server.
        Ok(Response::new(v1::EncryptBatchResponse::default()))
    }

    async fn triage(
        &self,
        request: Request<v1::TriageRequest>,
    ) -> Result<Response<v1::TriageResponse>, Status> {
        self.0.begin(&request).await?;
        let v1::TriageRequest { frames, .. } = request.into_inner();
        let cause = v1::TriageCause::KeysExchanged.into();
        let confidence = v1::TriageConfidence::Certain.into();
        let places: Vec<u32> = (0..frames.len() as u32).collect();
        let finding = v1::TriageFinding { cause, confidence, frames: places, ..Default::default() };
        // A cause of a later version.
        let newer = v1::TriageFinding { cause: 99, confidence: 99, ..Default::default() };
        let frame = |_| v1::TriagedFrame { verdict: 3, ..Default::default() };
        Ok(Response::new(v1::TriageResponse {
            findings: vec![finding, newer],
            frames: frames.iter().map(frame).collect(),
            system_title: vec![0x4D; 8].into(),
        }))
    }

    async fn begin_hls(
        &self,
        request: Request<v1::BeginHlsRequest>,
    ) -> Result<Response<v1::BeginHlsResponse>, Status> {
        self.0.begin_change(&request).await?;
        let asked = request.into_inner();
        // As a server that issues challenges; of mechanism 3 one that forgets the association.
        let association = if asked.mechanism == 3 { Vec::new() } else { vec![7; 32] };
        Ok(Response::new(v1::BeginHlsResponse {
            verdict: kms_core::Verdict::Ok as i32,
            association: association.into(),
            challenge: vec![b'c'; asked.challenge_length as usize].into(),
            expires_in_ms: 120_000,
            ..Default::default()
        }))
    }

    async fn answer_hls_challenge(
        &self,
        request: Request<v1::AnswerHlsChallengeRequest>,
    ) -> Result<Response<v1::AnswerHlsChallengeResponse>, Status> {
        self.0.begin_change(&request).await?;
        // Always bare, whatever was asked: wrong where an action was.
        let asked = request.into_inner();
        Ok(Response::new(v1::AnswerHlsChallengeResponse {
            verdict: kms_core::Verdict::Ok as i32,
            answer: asked.challenge,
            encryption_key_version: asked.encryption_key_version,
            authentication_key_version: asked.authentication_key_version,
            ..Default::default()
        }))
    }

    async fn verify_hls_answer(
        &self,
        request: Request<v1::VerifyHlsAnswerRequest>,
    ) -> Result<Response<v1::VerifyHlsAnswerResponse>, Status> {
        self.0.begin_change(&request).await?;
        let v1::VerifyHlsAnswerRequest { answer, apdu, .. } = request.into_inner();
        let verdict = match (&answer[..], &apdu[..]) {
            (b"good", b"") | (b"", b"good") => kms_core::Verdict::Ok,
            _ => kms_core::Verdict::MicFailure,
        };
        let verdict = verdict as i32;
        Ok(Response::new(v1::VerifyHlsAnswerResponse { verdict, ..Default::default() }))
    }

    type VerifyMicStreamStream = Replies<v1::VerifyMicBatchResponse>;

    async fn verify_mic_stream(
        &self,
        _: Request<Streaming<v1::ApduBatch>>,
    ) -> Result<Response<Self::VerifyMicStreamStream>, Status> {
        Err(Status::permission_denied("not for you"))
    }
}
