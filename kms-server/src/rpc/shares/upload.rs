//! A request on its way in. Each message is looked at as it comes: how long it says that it is, whether
//! there is room for what it may cost, what repeats in it and how often, and whether it comes at all. What
//! is too much is refused here, before anything of it is decoded; what came before it is passed on first.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{Status, body::Body};

use super::{
    accounts::{Patience, Share, Short, Taken, UNIT},
    ledger::Ledger,
};
use crate::rpc::messages::{
    framing::{Framing, Step},
    shape::{Rules, Walk},
    status::Refused,
};

/// The longest wait of a stream's message for room. Flow control tells its client to slow down meanwhile.
const PATIENCE: Patience =
    Patience { own: Duration::from_secs(10), of_others: Duration::from_secs(1) };
/// Own work ends by itself; that of others is no reason to hold a message for long.
const _: () = assert!(PATIENCE.own.as_millis() > PATIENCE.of_others.as_millis());
/// So much of a message has to come within `message_timeout`, or all of it if it is shorter.
const PROGRESS: usize = 256 << 10;

/// The conditions that a request is held to.
pub(crate) struct Conditions {
    pub(crate) rules: Rules,
    /// Room for its messages.
    pub(crate) memory: Share,
    pub(crate) ledger: Ledger,
    /// Messages follow each other.
    pub(crate) is_stream: bool,
    pub(crate) message_timeout: Duration,
    /// When its connection is too old for further messages.
    pub(crate) age: Option<Instant>,
}

type Waiting = Pin<Box<dyn Future<Output = Result<Taken, Short>> + Send>>;

/// The body of a request.
pub(crate) struct Upload {
    inner: Body,
    conditions: Conditions,
    framing: Framing,
    walk: Option<Walk>,
    /// The bytes that have come and are not passed on yet.
    rest: Bytes,
    /// The message's room, being waited for.
    waiting: Option<Waiting>,
    /// The refusal that ends the request, once all before it was passed on.
    refused: Option<Refused>,
    /// When the message that is arriving is given up.
    slow: Option<Pin<Box<Sleep>>>,
    slow_is_set: bool,
    /// Bytes that have come since it was set.
    progress: usize,
    /// When the connection is too old.
    old: Option<Pin<Box<Sleep>>>,
    over: bool,
}

type Polled = Poll<Option<Result<Frame<Bytes>, Status>>>;

impl Upload {
    pub(crate) fn new(inner: Body, conditions: Conditions) -> Self {
        let age = conditions.age.filter(|_| conditions.is_stream);
        Self {
            inner,
            conditions,
            framing: Framing::default(),
            walk: None,
            rest: Bytes::new(),
            waiting: None,
            refused: None,
            slow: None,
            slow_is_set: false,
            progress: 0,
            old: age.map(|age| Box::pin(sleep_until(age))),
            over: false,
        }
    }

    fn end(&mut self, refused: Refused) -> Polled {
        self.over = true;
        // Nothing more is read; what was buffered goes.
        self.inner = Body::empty();
        self.rest = Bytes::new();
        Poll::Ready(Some(Err(refused.into())))
    }

    fn is_old(&self) -> bool {
        self.conditions.is_stream && self.conditions.age.is_some_and(|age| Instant::now() >= age)
    }

    /// Goes through what has come. `Some`: what can be passed on; the rest waits.
    fn advance(&mut self) -> Option<Bytes> {
        let mut at = 0;
        while at < self.rest.len() && self.waiting.is_none() {
            if self.framing.is_between() {
                if self.is_old() {
                    self.refused = Some(Refused::ConnectionAge);
                    break;
                }
                self.slow_is_set = false;
            }
            let (took, step) = self.framing.step(&self.rest[at..]);
            let part = at..at + took;
            self.progress += took;
            if self.progress >= PROGRESS {
                self.slow_is_set = false;
            }
            let judged = match step {
                Step::Prefix => Ok(()),
                Step::Begun(bytes) => self.begin(bytes),
                Step::Part | Step::Ended => match &mut self.walk {
                    Some(walk) => walk.read(&self.conditions.rules, &self.rest[part]),
                    None => Ok(()),
                },
            };
            if let Err(refused) = judged {
                self.refused = Some(refused);
                break;
            }
            at += took;
        }
        if self.refused.is_some() {
            // Of the message that is refused, what lies here is of no use to anyone.
            let passed = self.rest.split_to(at);
            self.rest = Bytes::new();
            return (!passed.is_empty()).then_some(passed);
        }
        (at > 0).then(|| self.rest.split_to(at))
    }

    /// A message of so many bytes begins: takes the room for it, or begins to wait.
    fn begin(&mut self, bytes: usize) -> Result<(), Refused> {
        let Conditions { rules, memory, ledger, is_stream, .. } = &self.conditions;
        if bytes > rules.bytes_max {
            return Err(Refused::MessageTooLarge(rules.bytes_max));
        }
        self.walk = (bytes > 0).then(|| Walk::new(rules, bytes));
        let units = rules.cost(bytes).div_ceil(UNIT);
        match memory.try_take(units) {
            Ok(taken) => ledger.begin(taken),
            Err(_) if *is_stream => {
                self.waiting = Some(Box::pin(memory.clone().take(units, PATIENCE)));
            }
            Err(short) => return Err(busy(short)),
        }
        Ok(())
    }

    /// Nothing has come. Ends a request whose message does not go on, or whose connection is too old.
    fn idle(&mut self, cx: &mut Context<'_>) -> Polled {
        if self.framing.is_between() {
            self.slow_is_set = false;
            if self.old.as_mut().is_some_and(|old| old.as_mut().poll(cx).is_ready()) {
                return self.end(Refused::ConnectionAge);
            }
            return Poll::Pending;
        }
        let patience = self.conditions.message_timeout;
        let due = Instant::now() + patience;
        let slow = self.slow.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if !self.slow_is_set {
            slow.as_mut().reset(due);
            (self.slow_is_set, self.progress) = (true, 0);
        }
        match slow.as_mut().poll(cx) {
            Poll::Ready(()) => self.end(Refused::MessageTooSlow(patience)),
            Poll::Pending => Poll::Pending,
        }
    }
}

fn busy(short: Short) -> Refused {
    Refused::BytesBusy(short.limit().saturating_mul(UNIT))
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let this = self.get_mut();
        if this.over {
            return Poll::Ready(None);
        }
        loop {
            if let Some(waiting) = &mut this.waiting {
                let taken = ready!(waiting.as_mut().poll(cx));
                this.waiting = None;
                match taken {
                    Ok(taken) => this.conditions.ledger.begin(taken),
                    Err(short) => return this.end(busy(short)),
                }
                // The time in which the client could not be read is not his.
                this.slow_is_set = false;
            }
            if let Some(passed) = this.advance() {
                return Poll::Ready(Some(Ok(Frame::data(passed))));
            }
            if let Some(refused) = this.refused.take() {
                return this.end(refused);
            }
            if this.waiting.is_some() {
                continue;
            }
            match Pin::new(&mut this.inner).poll_frame(cx) {
                Poll::Pending => return this.idle(cx),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                Poll::Ready(other) => return Poll::Ready(other),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.over || (self.rest.is_empty() && self.refused.is_none() && self.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        // It may end early.
        SizeHint::new()
    }
}
