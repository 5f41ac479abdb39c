//! A request on its way in: what has arrived of a message that is not whole yet takes room, so that no
//! number of half-sent messages fills the memory. Whole ones are charged by the service that reads them.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tonic::{Status, body::Body};

use super::budget::Room;

/// The body of a request.
pub(super) struct Upload {
    inner: Body,
    room: Room,
    held: Option<OwnedSemaphorePermit>,
    message: Arriving,
}

impl Upload {
    pub(super) fn new(inner: Body, room: Room) -> Self {
        Self { inner, room, held: None, message: Arriving::default() }
    }
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let frame = std::task::ready!(Pin::new(&mut this.inner).poll_frame(cx));
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            let arrived = this.message.read(data);
            if let Err(refused) = this.room.hold(&mut this.held, arrived) {
                return Poll::Ready(Some(Err(refused.into())));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// How far the message is that arrives now: a flag, its length in four bytes, then itself.
#[derive(Debug, Default, PartialEq, Eq)]
struct Arriving {
    prefix: u8,
    length: u32,
    left: usize,
    arrived: usize,
}

impl Arriving {
    const PREFIX: u8 = 5;

    /// Reads on; returns how many bytes there are of a message that is not whole yet.
    fn read(&mut self, mut data: &[u8]) -> usize {
        while let [first, rest @ ..] = data {
            if self.prefix < Self::PREFIX {
                // The flag goes out at the top while the length comes in.
                self.length = self.length << 8 | u32::from(*first);
                self.prefix += 1;
                self.arrived += 1;
                self.left = self.length as usize;
                data = rest;
            } else {
                let part = self.left.min(data.len());
                self.left -= part;
                self.arrived += part;
                data = &data[part..];
            }
            if self.prefix == Self::PREFIX && self.left == 0 {
                *self = Self::default();
            }
        }
        self.arrived
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(len: usize) -> Vec<u8> {
        let prefix = [&[1u8][..], &(len as u32).to_be_bytes()].concat();
        [prefix, vec![0xFF; len]].concat()
    }

    proptest! {
        #[test]
        fn whole_messages_take_no_room_and_halves_take_theirs(
            lengths in prop::collection::vec(0usize..300, 0..6),
            half in 1usize..200,
            chunk in 1usize..64,
        ) {
            let whole: Vec<u8> = lengths.iter().flat_map(|len| message(*len)).collect();
            let mut arriving = Arriving::default();
            let mut arrived = 0;
            for part in whole.chunks(chunk) {
                arrived = arriving.read(part);
            }
            prop_assert_eq!(arrived, 0);
            prop_assert_eq!(&arriving, &Arriving::default());
            for part in message(200)[..half].chunks(chunk) {
                arrived = arriving.read(part);
            }
            prop_assert_eq!(arrived, half);
        }
    }
}
