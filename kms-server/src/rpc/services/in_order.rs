//! Streams of batches: several in work at once, answered in the order they came.

use std::pin::Pin;

use futures_util::{Stream, StreamExt as _};
use tonic::Status;
use tracing::{Instrument as _, Span};

use crate::rpc::messages::status::Refused;

/// The most batches of one stream in work at once. Enough to keep reading, working and writing
/// busy; each is charged against the in-flight budget, so more would only take from others.
const AT_ONCE: usize = 4;

/// The answers of a streaming call.
pub(crate) type Answers<A> = Pin<Box<dyn Stream<Item = Result<A, Status>> + Send>>;

/// Answers each message by `work`. The first error, in order, ends the stream. Each piece of work is a
/// task of its own: it may use another core, and a caller who goes away leaves at most [`AT_ONCE`].
pub(crate) fn answer_in_order<M, A, W, F>(
    messages: impl Stream<Item = Result<M, Status>> + Send + 'static,
    work: W,
) -> Answers<A>
where
    M: Send + 'static,
    A: Send + 'static,
    W: Fn(M) -> F + Send + 'static,
    F: Future<Output = Result<A, Status>> + Send + 'static,
{
    // Of the call: the stream is polled outside of it.
    let span = Span::current();
    let answers = messages
        .map(move |message| {
            let task = message.map(|message| tokio::spawn(work(message).instrument(span.clone())));
            async move { task?.await.unwrap_or_else(|_| Err(panicked())) }
        })
        .buffered(AT_ONCE)
        .scan(false, |ended, answer| {
            let go_on = !*ended;
            *ended = answer.is_err();
            std::future::ready(go_on.then_some(answer))
        });
    Box::pin(answers)
}

/// Runs `work` to its end even if the caller goes away: it changes something, and half of it must not
/// be left undone.
pub(crate) async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    tokio::spawn(work.in_current_span()).await.unwrap_or_else(|_| Err(panicked()))
}

fn panicked() -> Status {
    Refused::Fault("a task has panicked").into()
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        time::Duration,
    };

    use futures_util::stream;

    use super::*;

    #[tokio::test]
    async fn answers_come_in_order_and_few_are_in_work_at_once() {
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counters = (Arc::clone(&now), Arc::clone(&most));
        let answers = answer_in_order(stream::iter((0..50u64).map(Ok)), move |n| {
            let (now, most) = counters.clone();
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                // The earlier, the slower.
                tokio::time::sleep(Duration::from_micros(5_000 - 100 * n)).await;
                now.fetch_sub(1, Ordering::SeqCst);
                Ok(n)
            }
        });
        let answers: Vec<u64> = answers.map(Result::unwrap).collect().await;
        assert_eq!(answers, (0..50).collect::<Vec<_>>());
        assert_eq!(most.load(Ordering::SeqCst), AT_ONCE);
    }

    #[tokio::test]
    async fn a_bad_batch_ends_the_stream_after_the_good_ones_before_it() {
        let work = |n: u32| async move {
            if n == 2 { Err(Status::invalid_argument("bad")) } else { Ok(n) }
        };
        let answers = answer_in_order(stream::iter((0..9).map(Ok)), work);
        let answers: Vec<_> =
            answers.map(|answer| answer.map_err(|status| status.code())).collect().await;
        assert_eq!(answers, [Ok(0), Ok(1), Err(tonic::Code::InvalidArgument)]);
    }

    #[tokio::test]
    async fn a_message_that_cannot_be_read_ends_the_stream() {
        let messages = stream::iter([Ok(1), Err(Status::out_of_range("long")), Ok(2)]);
        let answers = answer_in_order(messages, |n: u32| async move { Ok(n) });
        let answers: Vec<_> = answers.map(|answer| answer.is_ok()).collect().await;
        assert_eq!(answers, [true, false]);
    }

    #[tokio::test]
    async fn work_goes_on_when_its_caller_goes_away() {
        let done = Arc::new(tokio::sync::Notify::new());
        let tell = Arc::clone(&done);
        let work = to_its_end(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            tell.notify_one();
            Ok(())
        });
        let gone = tokio::time::timeout(Duration::from_millis(1), work).await;
        assert!(gone.is_err());
        tokio::time::timeout(Duration::from_secs(5), done.notified()).await.unwrap();
    }
}
