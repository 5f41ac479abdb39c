//! Opening and checking what meters send.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use kms_proto::v1;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::apdu::{Apdu, Checked, Opened, Verdict};
use crate::call::{CallError, ProtocolError};
use crate::columns::{agreed, duplicate, opened, pack, unpack_checked, unpack_opened, version};
use crate::flow::{Bounds, Flow, Results, start};
use crate::link::Link;
use crate::meter::optional_title;
use crate::sites::Errand;
use crate::stubs;
use crate::transport::Transport;

/// The limits by which a batch or a stream is cut. Values out of range are brought into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// APDUs in one message; 1 to [`StreamOptions::BATCH_SIZE_MAX`].
    pub batch_size: usize,
    /// Messages sent and not yet answered; 1 to [`StreamOptions::BATCHES_IN_FLIGHT_MAX`].
    pub batches_in_flight: usize,
    /// The time that an APDU waits at most for its message to fill up.
    pub flush_after: Duration,
}

impl StreamOptions {
    /// More in a message costs memory and gains nothing.
    pub const BATCH_SIZE_MAX: usize = 8_192;
    /// More in flight than this only hides a slow consumer.
    pub const BATCHES_IN_FLIGHT_MAX: usize = 64;

    fn batch_size(&self) -> usize {
        self.batch_size.clamp(1, Self::BATCH_SIZE_MAX)
    }

    fn in_flight(&self) -> usize {
        self.batches_in_flight.clamp(1, Self::BATCHES_IN_FLIGHT_MAX)
    }
}

impl Default for StreamOptions {
    /// 1,024 in a batch, since the cost of a message is then lost in the noise; four in flight, so
    /// that client, wire and service are busy at once; 5 ms, which nobody who streams will notice.
    fn default() -> Self {
        Self { batch_size: 1_024, batches_in_flight: 4, flush_after: Duration::from_millis(5) }
    }
}

/// One of the two things that can be asked about many APDUs.
pub(crate) trait Question: Send + Sync + 'static {
    type Reply: Send + 'static;
    type Answer: Send + 'static;

    fn ask(
        link: Link,
        request: Request<v1::ApduBatch>,
    ) -> impl Future<Output = Result<Response<Self::Reply>, Status>> + Send;
    fn ask_stream(
        link: Link,
        batches: Request<UnboundedReceiverStream<v1::ApduBatch>>,
    ) -> impl Future<Output = Result<Response<Streaming<Self::Reply>>, Status>> + Send;
    fn tag(reply: &Self::Reply) -> u64;
    fn unpack(apdus: &[Apdu], reply: Self::Reply) -> Result<Vec<Self::Answer>, ProtocolError>;
}

/// The question for the plaintext of an APDU.
pub(crate) struct Decrypt;

impl Question for Decrypt {
    type Reply = v1::DecryptBatchResponse;
    type Answer = Opened;

    async fn ask(
        link: Link,
        request: Request<v1::ApduBatch>,
    ) -> Result<Response<Self::Reply>, Status> {
        stubs::ciphering(link).decrypt_batch(request).await
    }

    async fn ask_stream(
        link: Link,
        batches: Request<UnboundedReceiverStream<v1::ApduBatch>>,
    ) -> Result<Response<Streaming<Self::Reply>>, Status> {
        stubs::ciphering(link).decrypt_stream(batches).await
    }

    fn tag(reply: &Self::Reply) -> u64 {
        reply.tag
    }

    fn unpack(apdus: &[Apdu], reply: Self::Reply) -> Result<Vec<Opened>, ProtocolError> {
        unpack_opened(apdus, reply)
    }
}

/// The question whether the tag of an APDU verifies.
pub(crate) struct VerifyMic;

impl Question for VerifyMic {
    type Reply = v1::VerifyMicBatchResponse;
    type Answer = Checked;

    async fn ask(
        link: Link,
        request: Request<v1::ApduBatch>,
    ) -> Result<Response<Self::Reply>, Status> {
        stubs::ciphering(link).verify_mic_batch(request).await
    }

    async fn ask_stream(
        link: Link,
        batches: Request<UnboundedReceiverStream<v1::ApduBatch>>,
    ) -> Result<Response<Streaming<Self::Reply>>, Status> {
        stubs::ciphering(link).verify_mic_stream(batches).await
    }

    fn tag(reply: &Self::Reply) -> u64 {
        reply.tag
    }

    fn unpack(apdus: &[Apdu], reply: Self::Reply) -> Result<Vec<Checked>, ProtocolError> {
        unpack_checked(apdus, reply)
    }
}

/// Opens one.
pub(crate) async fn decrypt(transport: &Transport, apdu: &Apdu) -> Result<Opened, CallError> {
    let request = v1::DecryptRequest {
        apdu: apdu.bytes.clone(),
        meter_id: id_or_empty(apdu),
        system_title: title_or_empty(apdu),
        security_setup: apdu.security_setup.map(u32::from),
    };
    let send = |link, request| async move { stubs::ciphering(link).decrypt(request).await };
    let reply: v1::DecryptResponse = transport.call(Errand::Read, request, send).await?;
    let verdict = Verdict::from_number(reply.verdict);
    let checked = Checked {
        verdict,
        authenticated: agreed(0, verdict, Some(reply.authenticated))?,
        system_title: optional_title(&reply.system_title)?,
        security_setup: known_setup(verdict, reply.security_setup, apdu),
        encryption_key_version: version(Some(&reply.encryption_key_version)),
        authentication_key_version: version(Some(&reply.authentication_key_version)),
        invocation_counter: known_counter(reply.invocation_counter, apdu),
        duplicate: duplicate(0, verdict, reply.duplicate)?,
        reason: Some(reply.reason).filter(|reason| !reason.is_empty()),
    };
    Ok(opened(0, checked, reply.plaintext)?)
}

/// Checks one.
pub(crate) async fn verify_mic(transport: &Transport, apdu: &Apdu) -> Result<Checked, CallError> {
    let request = v1::VerifyMicRequest {
        apdu: apdu.bytes.clone(),
        meter_id: id_or_empty(apdu),
        system_title: title_or_empty(apdu),
        security_setup: apdu.security_setup.map(u32::from),
    };
    let send = |link, request| async move { stubs::ciphering(link).verify_mic(request).await };
    let reply: v1::VerifyMicResponse = transport.call(Errand::Read, request, send).await?;
    let verdict = Verdict::from_number(reply.verdict);
    Ok(Checked {
        verdict,
        authenticated: verdict == Verdict::Ok,
        system_title: optional_title(&reply.system_title)?,
        security_setup: known_setup(verdict, reply.security_setup, apdu),
        encryption_key_version: version(Some(&reply.encryption_key_version)),
        authentication_key_version: version(Some(&reply.authentication_key_version)),
        invocation_counter: known_counter(reply.invocation_counter, apdu),
        duplicate: duplicate(0, verdict, reply.duplicate)?,
        reason: Some(reply.reason).filter(|reason| !reason.is_empty()),
    })
}

/// Asks about as many as there are, a few messages at a time; answers in the order of the APDUs.
pub(crate) async fn batch<Q: Question>(
    transport: &Transport,
    options: StreamOptions,
    apdus: Vec<Apdu>,
) -> Result<Vec<Q::Answer>, CallError> {
    let chunks = crate::flow::groups(apdus, options.batch_size(), weight);
    let mut answers = Vec::new();
    let mut batches = futures_util::stream::iter(chunks)
        .map(|apdus| one_batch::<Q>(transport, apdus))
        .buffered(options.in_flight());
    while let Some(batch) = batches.try_next().await? {
        answers.extend(batch);
    }
    Ok(answers)
}

async fn one_batch<Q: Question>(
    transport: &Transport,
    apdus: Vec<Apdu>,
) -> Result<Vec<Q::Answer>, CallError> {
    let reply = transport.call(Errand::Read, pack(&apdus, 0), Q::ask).await?;
    Ok(Q::unpack(&apdus, reply)?)
}

/// Asks about all that `apdus` yields, for as long as it does.
pub(crate) fn stream<Q: Question>(
    transport: Arc<Transport>,
    options: StreamOptions,
    apdus: impl Stream<Item = Apdu> + Send + 'static,
) -> Results<Q::Answer> {
    let bounds = Bounds {
        items_max: options.batch_size(),
        in_flight_max: options.in_flight(),
        flush_after: options.flush_after,
        patience: transport.deadline(),
    };
    start(transport, Asking::<Q> { next_tag: 0, question: PhantomData }, bounds, apdus)
}

/// The flow of APDUs. Tags count up, so that an answer out of turn is noticed.
struct Asking<Q> {
    next_tag: u64,
    question: PhantomData<fn() -> Q>,
}

/// One batch under way.
struct Asked {
    tag: u64,
    apdus: Vec<Apdu>,
}

impl<Q: Question> Flow for Asking<Q> {
    const ERRAND: Errand = Errand::OneRead;

    type Item = Apdu;
    type Pending = Asked;
    type Message = v1::ApduBatch;
    type Reply = Q::Reply;
    type Output = Q::Answer;

    fn weight(item: &Apdu) -> usize {
        weight(item)
    }

    fn pack(&mut self, apdus: Vec<Apdu>) -> Asked {
        let tag = self.next_tag;
        self.next_tag += 1;
        Asked { tag, apdus }
    }

    fn message(&self, pending: &Asked) -> v1::ApduBatch {
        pack(&pending.apdus, pending.tag)
    }

    async fn open(
        link: Link,
        outbound: Request<UnboundedReceiverStream<v1::ApduBatch>>,
    ) -> Result<Streaming<Q::Reply>, Status> {
        Q::ask_stream(link, outbound).await.map(Response::into_inner)
    }

    fn accept(
        &mut self,
        pending: &mut VecDeque<Asked>,
        reply: Q::Reply,
    ) -> Result<Vec<Q::Answer>, ProtocolError> {
        let Asked { tag: expected, apdus } = pending.pop_front().ok_or(ProtocolError::Unasked)?;
        let found = Q::tag(&reply);
        if found != expected {
            return Err(ProtocolError::OutOfOrder { expected, found });
        }
        Q::unpack(&apdus, reply)
    }
}

/// Bytes of an APDU and of its entries in the other columns.
fn weight(apdu: &Apdu) -> usize {
    const ENTRIES: usize = 24;
    apdu.bytes.len() + apdu.meter_id.as_ref().map_or(0, |id| id.as_str().len()) + ENTRIES
}

fn id_or_empty(apdu: &Apdu) -> String {
    apdu.meter_id.as_ref().map(ToString::to_string).unwrap_or_default()
}

fn title_or_empty(apdu: &Apdu) -> bytes::Bytes {
    apdu.system_title.map(|title| title.as_bytes().to_vec()).unwrap_or_default().into()
}

/// Setup 0 on the wire may also mean: none took part.
fn known_setup(verdict: Verdict, setup: u32, apdu: &Apdu) -> Option<u32> {
    let took_part = verdict.opened() || setup != 0;
    took_part.then_some(setup).or(apdu.security_setup.map(u32::from))
}

/// Counter 0 on the wire may also mean: none was read.
fn known_counter(counter: u32, apdu: &Apdu) -> Option<u32> {
    Some(counter).filter(|counter| *counter != 0).or_else(|| apdu.header().invocation_counter)
}
