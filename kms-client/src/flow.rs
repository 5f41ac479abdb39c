//! Long streams: items are packed into messages, a bounded number of them is in flight, results come
//! out in the order of the items. When a connection breaks, in whatever way, what was not answered is sent
//! again over another one, within the time that the oldest of it has.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Status, Streaming};

use crate::call::{CallError, ProtocolError};
use crate::link::Link;
use crate::sites::Errand;
use crate::transport::{Transport, Tries, connected, within};
use crate::vigil::{News, Vigil};

/// A kind of stream: its items, and how they are packed. Everything sent must be safe to send twice.
pub(crate) trait Flow: Send + 'static {
    /// Which sites may carry it out.
    const ERRAND: Errand;
    /// The item that the caller hands in.
    type Item: Send + 'static;
    /// One message that is not fully answered yet.
    type Pending: Send;
    /// The message on the wire.
    type Message: Send + 'static;
    /// The answer on the wire.
    type Reply: Send + 'static;
    /// The result that the caller gets for one item.
    type Output: Send + 'static;

    /// The approximate number of bytes that an item takes on the wire.
    fn weight(item: &Self::Item) -> usize;
    /// Packs items into one message.
    fn pack(&mut self, items: Vec<Self::Item>) -> Self::Pending;
    /// The message to send for `pending`, be it for the first time or again.
    fn message(&self, pending: &Self::Pending) -> Self::Message;
    /// Opens the stream.
    fn open(
        link: Link,
        outbound: Request<UnboundedReceiverStream<Self::Message>>,
    ) -> impl Future<Output = Result<Streaming<Self::Reply>, Status>> + Send;
    /// Matches an answer with what is pending, oldest first, and removes what is fully answered.
    fn accept(
        &mut self,
        pending: &mut VecDeque<Self::Pending>,
        reply: Self::Reply,
    ) -> Result<Vec<Self::Output>, ProtocolError>;
}

/// The bounds of a flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Items in one message.
    pub(crate) items_max: usize,
    /// Messages sent and not answered.
    pub(crate) in_flight_max: usize,
    /// The time that an item waits at most for its message to fill up.
    pub(crate) flush_after: Duration,
    /// The time that the oldest message may go without an answer, over however many connections.
    pub(crate) patience: Duration,
}

/// No message is packed beyond this many bytes, one item aside: half of what gRPC servers accept.
const MESSAGE_WEIGHT_MAX: usize = 2 << 20;
/// Answered batches that wait for the caller.
const ANSWERED_MAX: usize = 2;

/// Results in the order of the items. After an error comes nothing more.
///
/// Dropping it ends the stream; what is in flight is then carried out or not.
pub struct Results<T> {
    batches: mpsc::Receiver<Result<Vec<T>, CallError>>,
    current: std::vec::IntoIter<T>,
}

impl<T> Unpin for Results<T> {}

impl<T> Stream for Results<T> {
    type Item = Result<T, CallError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(item) = self.current.next() {
                return Poll::Ready(Some(Ok(item)));
            }
            match ready!(self.batches.poll_recv(context)) {
                Some(Ok(batch)) => self.current = batch.into_iter(),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}

/// Starts a flow. It runs on its own until `items` ends, the results are dropped, or it fails.
pub(crate) fn start<F: Flow>(
    transport: Arc<Transport>,
    flow: F,
    bounds: Bounds,
    items: impl Stream<Item = F::Item> + Send + 'static,
) -> Results<F::Output> {
    let (answered, batches) = mpsc::channel(ANSWERED_MAX);
    let groups = items
        .chunks_timeout(bounds.items_max, bounds.flush_after)
        .flat_map(|chunk| futures_util::stream::iter(split_by_weight(chunk, F::weight)));
    let run = Run {
        flow,
        bounds,
        pending: VecDeque::new(),
        waiting_since: Instant::now(),
        answered,
        input_ended: false,
    };
    tokio::spawn(run.run_until_done(transport, Box::pin(groups)));
    Results { batches, current: Vec::new().into_iter() }
}

/// Cuts items that are all there into groups of the size of a message.
pub(crate) fn groups<T>(
    items: Vec<T>,
    items_max: usize,
    weight: fn(&T) -> usize,
) -> impl Iterator<Item = Vec<T>> {
    let mut items = items.into_iter();
    std::iter::from_fn(move || {
        let chunk: Vec<T> = items.by_ref().take(items_max).collect();
        (!chunk.is_empty()).then(|| split_by_weight(chunk, weight))
    })
    .flatten()
}

/// Cuts a chunk so that no message becomes too long for a server.
fn split_by_weight<T>(chunk: Vec<T>, weight: fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut groups = vec![Vec::with_capacity(chunk.len())];
    let mut total = 0;
    for item in chunk {
        let item_weight = weight(&item);
        if let Some(group) = groups
            .last_mut()
            .filter(|group| group.is_empty() || total + item_weight <= MESSAGE_WEIGHT_MAX)
        {
            group.push(item);
            total += item_weight;
        } else {
            groups.push(vec![item]);
            total = item_weight;
        }
    }
    groups
}

/// One flow under way.
struct Run<F: Flow> {
    flow: F,
    bounds: Bounds,
    /// Sent and not fully answered, oldest first; at most `in_flight_max`.
    pending: VecDeque<F::Pending>,
    /// The time at which the oldest of them became due: it was handed in, or the one before it was
    /// answered. Another connection does not begin it anew.
    waiting_since: Instant,
    answered: mpsc::Sender<Result<Vec<F::Output>, CallError>>,
    input_ended: bool,
}

/// The end of one connection.
enum End {
    /// All is answered, or nobody listens any more.
    Done,
    /// The connection broke: all that is pending may be sent again.
    Broken(Status),
    /// Another site is meant: all that is pending may be sent again, there.
    Moved,
    /// Sending again would not help.
    Wrong(ProtocolError),
}

impl<F: Flow> Run<F> {
    async fn run_until_done(
        mut self,
        transport: Arc<Transport>,
        mut groups: impl Stream<Item = Vec<F::Item>> + Unpin + Send,
    ) {
        let mut tries = transport.tries(F::ERRAND, None);
        loop {
            // No connection before there is something to say.
            if self.pending.is_empty() && !self.take_group(&mut groups).await {
                return;
            }
            let error = match self.one_connection(&mut tries, &mut groups).await {
                End::Done => return,
                End::Moved => {
                    tries.move_on();
                    None
                }
                End::Broken(status) => tries.after_break(&status, self.until()).await.err(),
                End::Wrong(error) => Some(error.into()),
            };
            if let Some(error) = error {
                // Nobody listens: nobody to tell.
                let _ = self.answered.send(Err(error)).await;
                return;
            }
        }
    }

    /// By when the oldest message has its answer, or the flow fails.
    fn until(&self) -> Instant {
        self.waiting_since + self.bounds.patience
    }

    /// Waits for input. False: there is none, or nobody wants the results.
    async fn take_group(
        &mut self,
        groups: &mut (impl Stream<Item = Vec<F::Item>> + Unpin + Send),
    ) -> bool {
        if self.input_ended {
            return false;
        }
        let group = tokio::select! {
            group = futures_util::StreamExt::next(groups) => group,
            () = self.answered.closed() => None,
        };
        match group {
            Some(group) => {
                self.waiting_since = Instant::now();
                self.pending.push_back(self.flow.pack(group));
            }
            None => self.input_ended = true,
        }
        !self.input_ended
    }

    async fn one_connection(
        &mut self,
        tries: &mut Tries<'_>,
        groups: &mut (impl Stream<Item = Vec<F::Item>> + Unpin + Send),
    ) -> End {
        // Unbounded by type only: no more than `in_flight_max` messages are ever unanswered.
        let (outbound, messages) = mpsc::unbounded_channel();
        for pending in &self.pending {
            let _ = outbound.send(self.flow.message(pending));
        }
        // What may have arrived over an earlier connection, and has no answer yet.
        let mut sent_again = self.pending.len();
        let mut vigil = tries.vigil();
        let mut replies = match self.opened(tries, &mut vigil, messages).await {
            Ok(replies) => replies,
            Err(end) => return end,
        };
        // Nothing new is sent any more; what is under way is waited for.
        let mut leaves = false;
        loop {
            if self.pending.is_empty() && self.input_ended {
                return End::Done;
            }
            if self.pending.is_empty() && leaves {
                return End::Moved;
            }
            let has_room =
                !leaves && !self.input_ended && self.pending.len() < self.bounds.in_flight_max;
            let waiting = (!self.pending.is_empty()).then_some(self.waiting_since);
            tokio::select! {
                reply = within(self.until(), replies.message()),
                    if !self.pending.is_empty() =>
                {
                    let reply = match reply {
                        Ok(Some(reply)) => reply,
                        Ok(None) => return End::Broken(Status::unavailable("the stream was ended early")),
                        Err(status) => return End::Broken(status),
                    };
                    let outputs = match self.accept(tries, &mut sent_again, reply) {
                        Ok(outputs) => outputs,
                        Err(error) => return End::Wrong(error),
                    };
                    if self.answered.send(Ok(outputs)).await.is_err() {
                        return End::Done;
                    }
                    self.waiting_since = Instant::now();
                }
                group = futures_util::StreamExt::next(groups), if has_room => match group {
                    Some(group) => {
                        if self.pending.is_empty() {
                            self.waiting_since = Instant::now();
                        }
                        let pending = self.flow.pack(group);
                        // A receiver that is gone shows in the replies.
                        let _ = outbound.send(self.flow.message(&pending));
                        self.pending.push_back(pending);
                    }
                    None => self.input_ended = true,
                },
                news = vigil.news(waiting) => match news {
                    News::Down => return End::Moved,
                    News::Preferred => leaves = true,
                },
                () = self.answered.closed() => return End::Done,
            }
        }
    }

    /// Takes an answer. Once all that was sent again has its own, nothing of this flow may have arrived unanswered.
    fn accept(
        &mut self,
        tries: &mut Tries<'_>,
        sent_again: &mut usize,
        reply: F::Reply,
    ) -> Result<Vec<F::Output>, ProtocolError> {
        let before = self.pending.len();
        let outputs = self.flow.accept(&mut self.pending, reply)?;
        tries.answered();
        *sent_again = sent_again.saturating_sub(before.saturating_sub(self.pending.len()));
        if *sent_again == 0 {
            tries.settled();
        }
        Ok(outputs)
    }

    /// Connects and opens the stream, unless its site is found to be down meanwhile.
    async fn opened(
        &mut self,
        tries: &Tries<'_>,
        vigil: &mut Vigil,
        messages: mpsc::UnboundedReceiver<F::Message>,
    ) -> Result<Streaming<F::Reply>, End> {
        let (until, link) = (self.until(), tries.link());
        let opening = async {
            connected(until, &link).await?;
            let request = tries.request(UnboundedReceiverStream::new(messages));
            within(until, F::open(link.clone(), request)).await
        };
        let mut opening = std::pin::pin!(opening);
        loop {
            tokio::select! {
                opened = &mut opening => return opened.map_err(End::Broken),
                news = vigil.news(Some(self.waiting_since)) => {
                    if news == News::Down {
                        return Err(End::Moved);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_group_outweighs_a_message_and_none_is_lost_or_moved(
            weights in proptest::collection::vec(0_usize..MESSAGE_WEIGHT_MAX, 1..50),
        ) {
            let groups = split_by_weight(weights.clone(), |weight| *weight);
            for group in &groups {
                prop_assert!(!group.is_empty());
                prop_assert!(group.iter().sum::<usize>() <= MESSAGE_WEIGHT_MAX);
            }
            prop_assert_eq!(groups.concat(), weights);
        }
    }
}
