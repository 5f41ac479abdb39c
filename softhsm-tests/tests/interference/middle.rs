//! Somebody between two sites who has the certificates of both, and so sees and changes what they say to each other
//! within TLS.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    fs,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use bytes::{Buf as _, BufMut as _, Bytes};
use futures_util::{
    Stream, StreamExt as _,
    future::{BoxFuture, ready},
    stream,
};
use kms_proto::v1::{BlockUpdate, FollowChangesRequest, FollowChangesResponse};
use prost::Message as _;
use softhsm_tests::Site;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    server::NamedService,
    transport::{
        Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig,
    },
};

use super::common::wire::ca_pem;

/// An update on its way to the site that follows.
pub(crate) struct Passing {
    /// The number of the stream.
    pub(crate) stream: u64,
    /// It is the answer to a call for whole blocks.
    pub(crate) whole: bool,
    /// As it was sent.
    pub(crate) update: BlockUpdate,
}

/// What goes on in the place of an update: bytes that should be one.
pub(crate) type Sent = Vec<Vec<u8>>;

/// Asked about each update.
type Mischief = Box<dyn FnMut(Passing) -> Sent + Send>;

/// Between the follower and the site that writes.
pub(crate) struct Middle {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    onward: Channel,
    mischief: Mutex<Mischief>,
    streams: AtomicU64,
    ended: Mutex<BTreeSet<u64>>,
    /// What the follower is made to say: of the newest stream of changes.
    says: Mutex<Option<mpsc::UnboundedSender<Bytes>>>,
}

impl Middle {
    /// In front of `of`, for `other`: it shows the certificate of the one to the other.
    pub(crate) async fn start(of: &Site, other: &Site) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(ca_pem(of)))
            .domain_name("localhost")
            .identity(identity(other));
        let onward = Endpoint::from_shared(format!("https://127.0.0.1:{}", of.port())).unwrap();
        let shared = Arc::new(Shared {
            onward: onward.tls_config(tls).unwrap().connect_lazy(),
            mischief: Mutex::new(Box::new(honest)),
            streams: AtomicU64::new(0),
            ended: Mutex::default(),
            says: Mutex::default(),
        });
        let tls = ServerTlsConfig::new()
            .identity(identity(of))
            .client_ca_root(Certificate::from_pem(ca_pem(of)));
        let service = Between(Arc::clone(&shared));
        let server = Server::builder().tls_config(tls).unwrap().add_service(service);
        let serving = server.serve_with_incoming(TcpListenerStream::new(listener));
        let task = tokio::spawn(async move { serving.await.unwrap() });
        Self { address, shared, task }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Does this from now on to each update.
    pub(crate) fn does(&self, mischief: impl FnMut(Passing) -> Sent + Send + 'static) {
        *self.shared.mischief.lock().unwrap() = Box::new(mischief);
    }

    /// Whether the follower has given up this stream.
    pub(crate) fn has_ended(&self, stream: u64) -> bool {
        self.shared.ended.lock().unwrap().contains(&stream)
    }

    /// Says this to the site that writes, as if the follower did.
    pub(crate) fn say(&self, message: &FollowChangesRequest) {
        let says = self.shared.says.lock().unwrap();
        says.as_ref().unwrap().send(message.encode_to_vec().into()).unwrap();
    }
}

impl Drop for Middle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The update as it was sent.
pub(crate) fn honest(passing: Passing) -> Sent {
    vec![passing.update.encode_to_vec()]
}

fn identity(site: &Site) -> Identity {
    let read = |path| fs::read_to_string(path).unwrap();
    let places = site.places();
    Identity::from_pem(read(places.certificate("server")), read(places.private_key("server")))
}

/// Messages as they are, unread.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// The service `Replication`, passed on.
#[derive(Clone)]
struct Between(Arc<Shared>);

impl NamedService for Between {
    const NAME: &'static str = "ami.kms.v1.Replication";
}

impl tower::Service<http::Request<Body>> for Between {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let call = Call { shared: Arc::clone(&self.0), path: request.uri().path().to_owned() };
        Box::pin(async move { Ok(tonic::server::Grpc::new(Raw).streaming(call, request).await) })
    }
}

/// One call. On the wire a single message is a stream of one.
struct Call {
    shared: Arc<Shared>,
    path: String,
}

type Answers = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

impl tonic::server::StreamingService<Bytes> for Call {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = BoxFuture<'static, Result<Response<Answers>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let (shared, path) = (Arc::clone(&self.shared), self.path.clone());
        Box::pin(async move { shared.pass(path, request.into_inner()).await })
    }
}

impl Shared {
    async fn pass(
        self: Arc<Self>,
        path: String,
        asked: Streaming<Bytes>,
    ) -> Result<Response<Answers>, Status> {
        let asked = asked.filter_map(|message| ready(message.ok()));
        let follows = path.ends_with("/FollowChanges");
        let asked: Pin<Box<dyn Stream<Item = Bytes> + Send>> = match follows {
            false => Box::pin(asked),
            true => {
                let (says, said) = mpsc::unbounded_channel();
                *self.says.lock().unwrap() = Some(says);
                // The end of the follower's words is the end of both.
                let asked = asked.map(Some).chain(stream::iter([None]));
                let said = UnboundedReceiverStream::new(said).map(Some);
                let both = stream::select(asked, said);
                Box::pin(both.take_while(|it| ready(it.is_some())).filter_map(ready))
            }
        };
        let mut client = tonic::client::Grpc::new(self.onward.clone());
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let whole = path.ends_with("/FetchBlocks");
        let path = path.parse().unwrap();
        let answers = client.streaming(Request::new(asked), path, Raw).await?.into_inner();
        if !follows && !whole {
            return Ok(Response::new(Box::pin(answers)));
        }
        let number = self.streams.fetch_add(1, Ordering::SeqCst);
        let ending = Ending { shared: self, number };
        let changed = answers.flat_map(move |answer| {
            let sent = match answer {
                Ok(message) => ending.shared.change(number, whole, message),
                Err(status) => vec![Err(status)],
            };
            stream::iter(sent)
        });
        Ok(Response::new(Box::pin(changed)))
    }

    /// What goes on in the place of a message.
    fn change(&self, stream: u64, whole: bool, message: Bytes) -> Vec<Result<Bytes, Status>> {
        // Both answers have a card and an update, under the same numbers.
        let FollowChangesResponse { card, update } =
            FollowChangesResponse::decode(message.clone()).unwrap();
        let Some(update) = update else { return vec![Ok(message)] };
        let card = FollowChangesResponse { card, update: None }.encode_to_vec();
        let sent = (self.mischief.lock().unwrap())(Passing { stream, whole, update });
        let message = |update: Vec<u8>| {
            let mut bytes = card.clone();
            prost::encoding::bytes::encode(2, &update, &mut bytes);
            Ok(Bytes::from(bytes))
        };
        match sent.is_empty() {
            // It is held back; that the site is there is told.
            true => vec![Ok(Bytes::from(card.clone()))],
            false => sent.into_iter().map(message).collect(),
        }
    }
}

/// Notes that a stream has ended, by whomever.
struct Ending {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.shared.ended.lock().unwrap().insert(self.number);
    }
}
