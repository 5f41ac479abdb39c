//! An import that needs two people. It is a stream, and still has something to approve: of a sealed file
//! its header, which binds all of its chunks, and the rules; of lines in clear all of them, read whole
//! within a bound.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::Request;
use http_body::{Body as HttpBody, Frame};
use kms_proto::v1::{ImportMetersRequest, ImportRules, SealedHeader};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;
use tonic::{Status, body::Body};

use super::{
    summary,
    whole::{Asked, Asking, Matter},
};
use crate::rpc::messages::{framing::PREFIX, status::Refused};

/// Lines in clear that one approval covers: as many as a client sends before it waits for results.
const LINES_MAX: usize = 1_000;
/// The longest wait for further lines in clear: a client may keep its stream open until it has its
/// results. Then what came is all that is asked for, and all that passes.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Reads as much of an import as it takes to know what it asks.
pub(crate) async fn read(
    request: Request<Body>,
    message_bytes_max: usize,
) -> Result<Asked, Status> {
    let (parts, body) = request.into_parts();
    let mut reading = Reading { body, read: BytesMut::new(), at: 0, message_bytes_max };
    let first = reading.next().await?.ok_or(EMPTY)?;
    let rules = first.rules.unwrap_or_default();
    let sealed = first.sealed.as_ref().and_then(|part| part.header.clone());
    // A file that broke off goes on with its next chunk; lines in clear are said again.
    let may_go_on = sealed.is_some();
    let mut is_question = false;
    let (digest, about) = match (sealed, first.lines.is_empty()) {
        (Some(header), true) => (of_header(&rules, &header), summary::of_header(&rules, &header)),
        (Some(_), false) => return Err(MIXED.into()),
        (None, _) => {
            let lines = reading.lines(first).await?;
            // Whether lines would be taken at all: nothing else comes behind what was read.
            is_question = lines.is_empty();
            let mut hash = begin(b"ami.kms/asked-import/lines", &rules);
            for line in &lines {
                put(&mut hash, &line.encode_to_vec());
            }
            (hash.finalize().into(), summary::of_lines(&rules, &lines))
        }
    };
    let replayed =
        Replayed { first: Some(reading.read.freeze()), rest: reading.body, is_whole: !may_go_on };
    let request = Request::from_parts(parts, Body::new(replayed));
    let matter = Matter { digest, about, may_go_on };
    let asking =
        Asking { matter, is_question, promotion: None, takes_a_writer: true, takes_two: false };
    Ok(Asked { asking, request })
}

const EMPTY: Refused =
    Refused::Field { field: "request", problem: "an import has a message at least" };
const MIXED: Refused = Refused::Field {
    field: "sealed",
    problem: "a stream has lines, or the chunks of a sealed file, not both",
};
const COMPRESSED: Refused = Refused::Field {
    field: "request",
    problem: "the messages of a call that needs two people are not compressed",
};
const UNREADABLE: Refused = Refused::Field { field: "request", problem: "it can't be read" };

/// The service refuses chunks of another header on the same stream, and takes the rules of the first
/// message only: so these two are all that there is to approve.
fn of_header(rules: &ImportRules, header: &SealedHeader) -> [u8; 32] {
    let mut hash = begin(b"ami.kms/asked-import/sealed", rules);
    put(&mut hash, &header.body);
    put(&mut hash, &header.signature);
    hash.finalize().into()
}

fn begin(label: &[u8], rules: &ImportRules) -> Sha256 {
    let mut hash = Sha256::new_with_prefix(label);
    put(&mut hash, &rules.encode_to_vec());
    hash
}

/// Hashes bytes with their length before them.
fn put(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_be_bytes());
    hash.update(bytes);
}

/// Messages out of a body, which stay.
struct Reading {
    body: Body,
    read: BytesMut,
    /// The beginning of the next message.
    at: usize,
    message_bytes_max: usize,
}

impl Reading {
    /// All lines of the stream. How they are spread over messages does not count: no two runs of a
    /// client spread them alike.
    async fn lines(
        &mut self,
        first: ImportMetersRequest,
    ) -> Result<Vec<kms_proto::v1::ImportLine>, Status> {
        let too_long = Refused::ImportTooLong(LINES_MAX);
        let mut lines = first.lines;
        loop {
            if lines.len() > LINES_MAX || self.read.len() > self.message_bytes_max + PREFIX {
                return Err(too_long.into());
            }
            let Ok(next) = timeout(PAUSE_MAX, self.next()).await else {
                // Half a message is no end.
                let whole = self.at == self.read.len();
                return if whole { Ok(lines) } else { Err(too_long.into()) };
            };
            let Some(message) = next? else { return Ok(lines) };
            if message.sealed.is_some() {
                return Err(MIXED.into());
            }
            lines.extend(message.lines);
        }
    }

    /// The next message; `None` at the end.
    async fn next(&mut self) -> Result<Option<ImportMetersRequest>, Status> {
        loop {
            let rest = self.read.get(self.at..).unwrap_or_default();
            if let Some((prefix, message)) = rest.split_first_chunk::<PREFIX>() {
                let [flag, length @ ..] = *prefix;
                let length = u32::from_be_bytes(length) as usize;
                if flag != 0 {
                    return Err(COMPRESSED.into());
                }
                if length > self.message_bytes_max {
                    return Err(Refused::MessageTooLarge(self.message_bytes_max).into());
                }
                if let Some(message) = message.get(..length) {
                    let message = ImportMetersRequest::decode(message);
                    self.at += PREFIX + length;
                    return Ok(Some(message.map_err(|_| UNREADABLE)?));
                }
            }
            let frame = poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await;
            match frame {
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.read.extend_from_slice(&data);
                    }
                }
                None if self.at == self.read.len() => return Ok(None),
                None => return Err(UNREADABLE.into()),
            }
        }
    }
}

/// A body of the part that was read, then the rest.
struct Replayed {
    first: Option<Bytes>,
    rest: Body,
    /// The part that was read was approved as all there is: nothing may come behind it.
    is_whole: bool,
}

impl HttpBody for Replayed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        match this.first.take() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            None => {
                let frame = std::task::ready!(Pin::new(&mut this.rest).poll_frame(cx));
                let is_more = frame.as_ref().is_some_and(|frame| {
                    frame
                        .as_ref()
                        .is_ok_and(|frame| frame.data_ref().is_some_and(|d| !d.is_empty()))
                });
                if this.is_whole && is_more {
                    return Poll::Ready(Some(Err(Refused::ImportTooLong(LINES_MAX).into())));
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use kms_proto::v1::ImportLine;

    use super::*;

    /// Messages that come one by one; then nothing more, and no end.
    struct Slow(Vec<Bytes>);

    impl HttpBody for Slow {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            match self.0.pop() {
                Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                None => Poll::Pending,
            }
        }
    }

    fn message(line: u64) -> Bytes {
        let lines = vec![ImportLine { line, meter: None }];
        let message = ImportMetersRequest { lines, ..Default::default() }.encode_to_vec();
        [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat().into()
    }

    #[tokio::test]
    async fn nothing_comes_behind_what_was_approved() {
        let open = Request::new(Body::new(Slow(vec![message(2), message(1)])));
        let asked = read(open, 1 << 20).await.unwrap();
        assert!(
            asked.asking.matter.about.line.starts_with("2 lines in clear"),
            "{}",
            asked.asking.matter.about.line
        );
        // The same lines, and one more that comes late.
        let rest = Body::new(Slow(vec![message(3)]));
        let first = Some([message(1), message(2)].concat().into());
        let mut late = Replayed { first, rest, is_whole: true };
        let mut frames = Vec::new();
        for _ in 0..2 {
            frames.push(poll_fn(|cx| Pin::new(&mut late).poll_frame(cx)).await.unwrap().is_ok());
        }
        assert_eq!(frames, [true, false]);
    }
}
