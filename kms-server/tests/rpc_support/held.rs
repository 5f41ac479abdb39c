//! A service that answers when it is let, and requests frame by frame.

use std::{sync::Arc, time::Duration};

use kms_proto::v1::{
    ApduBatch, DecryptBatchResponse, DecryptRequest, DecryptResponse, EncryptBatchResponse,
    EncryptRequest, EncryptResponse, PlainBatch, TriageRequest, TriageResponse,
    VerifyMicBatchResponse, VerifyMicRequest, VerifyMicResponse, ciphering_client::CipheringClient,
    ciphering_server,
};
use kms_server::rpc::Limits;
use tokio::{sync::Semaphore, time::timeout};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{
    Request, Response, Status, Streaming, async_trait, service::Routes, transport::Channel,
};
use tonic_types::StatusExt as _;

use super::rpc_support::{SOON, Site};

/// Answers a `Decrypt` when it is let; a `DecryptStream` batch by batch at once.
#[derive(Clone)]
pub(crate) struct Held {
    pub(crate) begun: Arc<Semaphore>,
    pub(crate) let_go: Arc<Semaphore>,
}

impl Held {
    pub(crate) fn new() -> Self {
        Self { begun: Arc::new(Semaphore::new(0)), let_go: Arc::new(Semaphore::new(0)) }
    }

    pub(crate) fn routes(&self, message_bytes_max: usize) -> Routes {
        Routes::new(
            ciphering_server::CipheringServer::new(self.clone())
                .max_decoding_message_size(message_bytes_max),
        )
    }

    pub(crate) async fn has_begun(&self, calls: u32) {
        timeout(SOON, self.begun.acquire_many(calls)).await.unwrap().unwrap().forget();
    }
}

pub(crate) type Answers<A> = std::pin::Pin<Box<dyn Stream<Item = Result<A, Status>> + Send>>;

#[async_trait]
impl ciphering_server::Ciphering for Held {
    async fn decrypt(
        &self,
        _: Request<DecryptRequest>,
    ) -> Result<Response<DecryptResponse>, Status> {
        self.begun.add_permits(1);
        self.let_go.acquire().await.unwrap().forget();
        Ok(Response::new(DecryptResponse::default()))
    }

    async fn decrypt_batch(
        &self,
        _: Request<ApduBatch>,
    ) -> Result<Response<DecryptBatchResponse>, Status> {
        panic!("a fault in a service")
    }

    type DecryptStreamStream = Answers<DecryptBatchResponse>;

    async fn decrypt_stream(
        &self,
        request: Request<Streaming<ApduBatch>>,
    ) -> Result<Response<Self::DecryptStreamStream>, Status> {
        let answers = request.into_inner().map(|batch| {
            batch.map(|batch| DecryptBatchResponse { tag: batch.tag, ..Default::default() })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn verify_mic(
        &self,
        _: Request<VerifyMicRequest>,
    ) -> Result<Response<VerifyMicResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn verify_mic_batch(
        &self,
        _: Request<ApduBatch>,
    ) -> Result<Response<VerifyMicBatchResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn encrypt(
        &self,
        _: Request<EncryptRequest>,
    ) -> Result<Response<EncryptResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn encrypt_batch(
        &self,
        _: Request<PlainBatch>,
    ) -> Result<Response<EncryptBatchResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn triage(&self, _: Request<TriageRequest>) -> Result<Response<TriageResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn begin_hls(
        &self,
        _: Request<kms_proto::v1::BeginHlsRequest>,
    ) -> Result<Response<kms_proto::v1::BeginHlsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn answer_hls_challenge(
        &self,
        _: Request<kms_proto::v1::AnswerHlsChallengeRequest>,
    ) -> Result<Response<kms_proto::v1::AnswerHlsChallengeResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn verify_hls_answer(
        &self,
        _: Request<kms_proto::v1::VerifyHlsAnswerRequest>,
    ) -> Result<Response<kms_proto::v1::VerifyHlsAnswerResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    type VerifyMicStreamStream = Answers<VerifyMicBatchResponse>;

    async fn verify_mic_stream(
        &self,
        _: Request<Streaming<ApduBatch>>,
    ) -> Result<Response<Self::VerifyMicStreamStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

pub(crate) async fn held_site(limits: Limits) -> (Site, Held) {
    let held = Held::new();
    let routes = held.routes(limits.message_bytes_max);
    (Site::start_with(limits, routes).await, held)
}

pub(crate) type Answered = tokio::task::JoinHandle<Result<Response<DecryptResponse>, Status>>;

pub(crate) fn decrypt(channel: &Channel) -> Answered {
    let mut client = CipheringClient::new(channel.clone());
    tokio::spawn(async move { client.decrypt(DecryptRequest::default()).await })
}

pub(crate) async fn answer(call: Answered) -> Result<(), Status> {
    timeout(SOON, call).await.expect("no answer").unwrap().map(|_| ())
}

pub(crate) fn retry_after<T>(answer: &Result<T, Status>) -> Option<Duration> {
    answer.as_ref().err()?.get_error_details().retry_info()?.retry_delay
}

/// A request body out of frames.
pub(crate) struct Frames(
    pub(crate)  std::pin::Pin<
        Box<dyn Stream<Item = Result<http_body::Frame<bytes::Bytes>, Status>> + Send>,
    >,
);

impl http_body::Body for Frames {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, Status>>> {
        self.0.as_mut().poll_next(cx)
    }
}

/// A stream of raw frames; what the call ends with.
pub(crate) async fn raw(channel: Channel, path: &str, frames: Vec<Vec<u8>>) -> Status {
    let frames = frames.into_iter().map(|data| Ok(http_body::Frame::data(data.into())));
    let frames = futures_util::stream::iter(frames).chain(futures_util::stream::pending());
    let request = http::Request::post(path.to_owned())
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(tonic::body::Body::new(Frames(Box::pin(frames))))
        .unwrap();
    let mut channel = channel;
    let ready = tower::ServiceExt::ready(&mut channel).await.unwrap();
    let answer = timeout(SOON, tower::Service::call(ready, request)).await.unwrap().unwrap();
    if let Some(status) = Status::from_header_map(answer.headers()) {
        return status;
    }
    let mut body = answer.into_body();
    loop {
        let frame = std::future::poll_fn(|cx| {
            http_body::Body::poll_frame(std::pin::Pin::new(&mut body), cx)
        });
        match timeout(SOON, frame).await.expect("the call did not end") {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    return Status::from_header_map(trailers).unwrap();
                }
            }
            Some(Err(status)) => return status,
            None => panic!("no trailers"),
        }
    }
}
