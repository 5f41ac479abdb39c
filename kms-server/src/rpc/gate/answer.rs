//! An answer on its way out: ended when the server goes or the caller's certificate does.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::{Status, body::Body};

use super::{call::Call, keeper::Gatekeeper};
use crate::rpc::{
    messages::{
        framing::Framing,
        status::Refused,
        trailers::{code_of, name_request},
    },
    shares::writes::{Piece, Settlement},
};

/// Bytes of an answer that are handed on at once: a reader has to take them in `answer_timeout`.
const PIECE: usize = 1 << 20;

/// When streams are told to go elsewhere.
type End = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The body of an answer.
pub(super) struct Answer {
    inner: Body,
    call: Call,
    keeper: Arc<Gatekeeper>,
    end: End,
    /// When its connection is too old for a stream that waits.
    old: Option<End>,
    framing: Framing,
    /// The part of a frame that is not handed on yet.
    rest: Bytes,
    over: bool,
}

impl Answer {
    pub(super) fn new(
        inner: Body,
        call: Call,
        keeper: Arc<Gatekeeper>,
        end: End,
        old: Option<End>,
    ) -> Self {
        let (framing, rest) = (Framing::default(), Bytes::new());
        Self { inner, call, keeper, end, old, framing, rest, over: false }
    }

    /// Hands on the next piece of what is ready. With it goes what its messages have cost, until it is
    /// written.
    fn piece(&mut self) -> Frame<Bytes> {
        let piece = self.rest.split_to(self.rest.len().min(PIECE));
        let answers = self.framing.ends(&piece);
        let ledger = self.call.ledger();
        let taken = ledger.answered(answers);
        let settlement = Settlement { ledger, answers, taken };
        let piece = Piece::new(piece, self.call.peer().writes(), settlement);
        Frame::data(Bytes::from_owner(piece))
    }

    /// Ends the answer early, with the trailers that say why.
    fn end_with(&mut self, refused: Refused) -> Option<Result<Frame<Bytes>, Status>> {
        self.over = true;
        // The service's own stream, and with it its work, ends here too.
        self.inner = Body::empty();
        let status = Status::from(refused);
        self.call.ends_with(status.code());
        let mut trailers = HeaderMap::new();
        Some(status.add_header(&mut trailers).map(|()| {
            name_request(&mut trailers, self.call.id());
            Frame::trailers(trailers)
        }))
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.over {
            return Poll::Ready(None);
        }
        if !this.rest.is_empty() {
            return Poll::Ready(Some(Ok(this.piece())));
        }
        // A frame that is ready goes out; only an answer that is still waiting is ended by a shutdown, or by the
        // age of its connection, if nothing is under way.
        let Poll::Ready(mut frame) = Pin::new(&mut this.inner).poll_frame(cx) else {
            if this.end.as_mut().poll(cx).is_ready() {
                return Poll::Ready(this.end_with(Refused::ShuttingDown));
            }
            if this.call.ledger().is_idle()
                && this.old.as_mut().is_some_and(|old| old.as_mut().poll(cx).is_ready())
            {
                return Poll::Ready(this.end_with(Refused::ConnectionAge));
            }
            return Poll::Pending;
        };
        match &mut frame {
            Some(Ok(frame)) if frame.is_data() => {
                if let Err(refused) = this.keeper.check_standing(this.call.peer()) {
                    return Poll::Ready(this.end_with(refused));
                }
                if let Some(data) = frame.data_mut().filter(|data| !data.is_empty()) {
                    this.rest = std::mem::take(data);
                    return Poll::Ready(Some(Ok(this.piece())));
                }
            }
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_mut()
                    && let Some(code) = code_of(trailers)
                {
                    this.call.ends_with(code);
                    name_request(trailers, this.call.id());
                }
            }
            Some(Err(status)) => this.call.ends_with(status.code()),
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.over || (self.rest.is_empty() && self.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        // An answer may end early.
        SizeHint::new()
    }
}
