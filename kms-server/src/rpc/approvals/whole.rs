//! The request of a unary call, read whole before its service sees it.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes, BytesMut};
use http::Request;
use http_body::{Body as HttpBody, Frame};
use sha2::{Digest as _, Sha256};
use tonic::{Status, body::Body};

use kms_proto::v1::PromoteRequest;
use prost::Message as _;

use super::{about::About, key_summary::takes_two, summary::about};
use crate::rpc::{
    access::verb::Verb,
    messages::{framing::PREFIX, status::Refused},
};

/// The matter of a call that needs two people.
pub(crate) struct Matter {
    /// A digest of all that counts: the same call has the same.
    pub(crate) digest: [u8; 32],
    /// As the second person is shown it.
    pub(crate) about: About,
    /// A call that broke off may go on under the same approval, as long as that lasts: to carry out a part of it
    /// twice changes nothing.
    pub(crate) may_go_on: bool,
}

/// What a request asks that may need two people.
pub(crate) struct Asking {
    pub(crate) matter: Matter,
    /// It changes nothing whoever asks, and takes one person only.
    pub(crate) is_question: bool,
    /// The promotion that is asked for: how far it goes says whether it takes two.
    pub(crate) promotion: Option<PromoteRequest>,
    /// Only a site that writes can carry it out.
    pub(crate) takes_a_writer: bool,
    /// It takes two people whatever the policy says, for what it asks.
    pub(crate) takes_two: bool,
}

impl Asking {
    /// A call of one message.
    pub(crate) fn of_message(verb: Verb, message: &[u8]) -> Self {
        let is_promotion = verb == Verb::Promote;
        Self {
            matter: Matter {
                digest: Sha256::digest(message).into(),
                about: about(verb, message),
                may_go_on: false,
            },
            is_question: false,
            promotion: is_promotion.then(|| PromoteRequest::decode(message).ok()).flatten(),
            takes_a_writer: verb.takes_a_writer(message),
            takes_two: takes_two(verb, message),
        }
    }
}

/// A call that may need two people, read as far as it takes to know what it asks.
pub(crate) struct Asked {
    pub(crate) asking: Asking,
    /// As it came, byte by byte.
    pub(crate) request: Request<Body>,
}

impl Asked {
    /// A call of one message.
    pub(crate) async fn read(
        verb: Verb,
        request: Request<Body>,
        message_bytes_max: usize,
    ) -> Result<Self, Status> {
        let whole = Whole::read(request, message_bytes_max).await?;
        let asking = Asking::of_message(verb, whole.message());
        Ok(Self { asking, request: whole.into_request() })
    }
}

/// A request whose one message has arrived.
struct Whole {
    head: Request<()>,
    body: Bytes,
}

impl Whole {
    /// Waits for it; the limit is that of the service, plus what stands before the message.
    async fn read(request: Request<Body>, message_bytes_max: usize) -> Result<Self, Status> {
        let (parts, mut body) = request.into_parts();
        let mut read = BytesMut::new();
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            let Ok(data) = frame?.into_data() else { continue };
            if read.len() + data.len() > message_bytes_max + PREFIX {
                return Err(Refused::MessageTooLarge(message_bytes_max).into());
            }
            read.extend_from_slice(&data);
        }
        let whole = Self { head: Request::from_parts(parts, ()), body: read.freeze() };
        // The service must read exactly what is judged here: one message, not compressed.
        if whole.is_one_message() {
            Ok(whole)
        } else {
            let problem = "a call that needs two people is one message, not compressed";
            Err(Refused::Field { field: "request", problem }.into())
        }
    }

    /// The message's encoded bytes.
    fn message(&self) -> &[u8] {
        self.body.get(PREFIX..).unwrap_or_default()
    }

    /// The request as it came.
    fn into_request(self) -> Request<Body> {
        self.head.map(|()| Body::new(Once(Some(self.body))))
    }

    fn is_one_message(&self) -> bool {
        let mut prefix = self.body.as_ref();
        prefix.len() >= PREFIX
            && prefix.get_u8() == 0
            && prefix.get_u32() as usize == prefix.remaining()
    }
}

/// A body of one piece.
struct Once(Option<Bytes>);

impl HttpBody for Once {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    async fn read(body: &'static [u8]) -> Result<Vec<u8>, Code> {
        let body = Body::new(Once(Some(Bytes::from_static(body))));
        let whole = Whole::read(Request::new(body), 4).await.map_err(|status| status.code())?;
        Ok(whole.message().to_vec())
    }

    #[tokio::test]
    async fn one_plain_message_is_read_and_nothing_else() {
        assert_eq!(read(b"\0\0\0\0\x02ab").await, Ok(b"ab".to_vec()));
        assert_eq!(read(b"\0\0\0\0\0").await, Ok(Vec::new()));
        for wrong in
            [&b""[..], b"\0\0\0\0", b"\x01\0\0\0\x02ab", b"\0\0\0\0\x02a", b"\0\0\0\0\x02abc"]
        {
            assert_eq!(read(wrong).await, Err(Code::InvalidArgument), "{wrong:?}");
        }
        assert_eq!(read(b"\0\0\0\0\x05abcde").await, Err(Code::ResourceExhausted));
    }
}
