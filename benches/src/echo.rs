//! The bound below the wire: a tonic server over the same mutual TLS that sends back as many bytes as
//! the service would, without looking at them. And an empty call: the standard health service.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    pin::Pin,
    process::{Child, Stdio},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use kms_proto::v1::{
    ApduBatch, DecryptBatchResponse, DecryptRequest, DecryptResponse, EncryptBatchResponse,
    EncryptRequest, EncryptResponse, PlainBatch, TriageRequest, TriageResponse,
    VerifyMicBatchResponse, VerifyMicRequest, VerifyMicResponse,
    ciphering_server::{Ciphering, CipheringServer},
};
use softhsm_tests::{Programs, Site};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status, Streaming, async_trait,
    transport::{Certificate, Identity, Server, ServerTlsConfig},
};

use crate::{
    Error,
    again::{ECHO, ROLE, again},
    fleet::PLAINTEXT_LEN,
};

/// As the service's.
const WINDOWS: (u32, u32) = (1 << 20, 4 << 20);
/// As the service's default.
const MESSAGE_BYTES_MAX: usize = kms_core::wire::MESSAGE_BYTES_MAX;

/// The echo server as a process of its own. Killed when dropped.
pub struct Echo {
    child: Child,
    /// Where it listens.
    pub port: u16,
}

impl Echo {
    /// Starts it with the site's certificates.
    pub fn start(site: &Site) -> Result<Self, Error> {
        let mut child = again(site)?.env(ROLE, ECHO).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        if let Some(said) = child.stdout.take() {
            BufReader::new(said).read_line(&mut line)?;
        }
        let port = line.trim().parse().map_err(|_| "the echo server did not start")?;
        Ok(Self { child, port })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Serves until the process is killed; says on which port.
pub(crate) fn serve(site_dir: &Path) -> Result<(), Error> {
    crate::in_process::all_threads()?.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        println!("{}", listener.local_addr()?.port());
        let site = Site::open(site_dir, Programs::find()?)?;
        let places = site.places();
        let read = |path| fs::read(path);
        let identity = Identity::from_pem(
            read(places.certificate("server"))?,
            read(places.private_key("server"))?,
        );
        let tls = ServerTlsConfig::new()
            .identity(identity)
            .client_ca_root(Certificate::from_pem(read(places.certificate("ca"))?));
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<CipheringServer<SameBytes>>().await;
        Server::builder()
            .tls_config(tls)?
            .initial_stream_window_size(WINDOWS.0)
            .initial_connection_window_size(WINDOWS.1)
            .add_service(
                CipheringServer::new(SameBytes)
                    .max_decoding_message_size(MESSAGE_BYTES_MAX)
                    .max_encoding_message_size(MESSAGE_BYTES_MAX),
            )
            .add_service(health_service)
            // Small answers go out at once, as the service's do.
            .serve_with_incoming(TcpListenerStream::new(listener).inspect(|stream| {
                if let Ok(stream) = stream {
                    _ = stream.set_nodelay(true);
                }
            }))
            .await?;
        Ok(())
    })
}

/// Sends columns of the same sizes back.
struct SameBytes;

fn same_bytes(batch: ApduBatch) -> DecryptBatchResponse {
    let count = batch.lengths.len();
    let len = (count * PLAINTEXT_LEN).min(batch.apdus.len());
    // One byte of any value: the client does not look at them either.
    let marks = batch.apdus.slice(..count.min(batch.apdus.len()));
    DecryptBatchResponse {
        plaintexts: batch.apdus.slice(..len),
        lengths: vec![PLAINTEXT_LEN as u32; count],
        verdicts: marks.clone(),
        encryption_key_versions: vec![1; count],
        authentication_key_versions: vec![1; count],
        flags: marks,
        reasons: Vec::new(),
        tag: batch.tag,
    }
}

type Answers<A> = Pin<Box<dyn Stream<Item = Result<A, Status>> + Send>>;

#[async_trait]
impl Ciphering for SameBytes {
    async fn decrypt(
        &self,
        request: Request<DecryptRequest>,
    ) -> Result<Response<DecryptResponse>, Status> {
        let apdu: Bytes = request.into_inner().apdu;
        Ok(Response::new(DecryptResponse { plaintext: apdu, ..DecryptResponse::default() }))
    }

    async fn decrypt_batch(
        &self,
        request: Request<ApduBatch>,
    ) -> Result<Response<DecryptBatchResponse>, Status> {
        Ok(Response::new(same_bytes(request.into_inner())))
    }

    type DecryptStreamStream = Answers<DecryptBatchResponse>;

    async fn decrypt_stream(
        &self,
        request: Request<Streaming<ApduBatch>>,
    ) -> Result<Response<Self::DecryptStreamStream>, Status> {
        let answers = request.into_inner().map(|batch| batch.map(same_bytes));
        Ok(Response::new(Box::pin(answers)))
    }

    async fn verify_mic(
        &self,
        _: Request<VerifyMicRequest>,
    ) -> Result<Response<VerifyMicResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn verify_mic_batch(
        &self,
        _: Request<ApduBatch>,
    ) -> Result<Response<VerifyMicBatchResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn encrypt(
        &self,
        _: Request<EncryptRequest>,
    ) -> Result<Response<EncryptResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn encrypt_batch(
        &self,
        _: Request<PlainBatch>,
    ) -> Result<Response<EncryptBatchResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn triage(&self, _: Request<TriageRequest>) -> Result<Response<TriageResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn begin_hls(
        &self,
        _: Request<kms_proto::v1::BeginHlsRequest>,
    ) -> Result<Response<kms_proto::v1::BeginHlsResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn answer_hls_challenge(
        &self,
        _: Request<kms_proto::v1::AnswerHlsChallengeRequest>,
    ) -> Result<Response<kms_proto::v1::AnswerHlsChallengeResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn verify_hls_answer(
        &self,
        _: Request<kms_proto::v1::VerifyHlsAnswerRequest>,
    ) -> Result<Response<kms_proto::v1::VerifyHlsAnswerResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    type VerifyMicStreamStream = Answers<VerifyMicBatchResponse>;

    async fn verify_mic_stream(
        &self,
        _: Request<Streaming<ApduBatch>>,
    ) -> Result<Response<Self::VerifyMicStreamStream>, Status> {
        Err(Status::unimplemented("not measured"))
    }
}
