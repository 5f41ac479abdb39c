//! The failure of a call to the peer, judged by where it came from: did the peer answer, or did the transport break?

use std::error::Error as _;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::connector::NotConnected;
use crate::{
    replication::PeerError,
    rpc::{messages::sites::BadMessage, tls::in_use::chain},
};

/// Begins the library's sentence for an answer that it could not decode. It is our own, and comes without a source.
const NO_MESSAGE: &str = "failed to decode Protobuf message";

/// The failure of a call.
pub(super) fn of_status(status: &Status) -> PeerError {
    let Some(source) = status.source() else {
        let word = status.get_error_details().error_info().map(|info| info.reason.clone());
        let sentence = status.message().to_owned();
        if word.is_none() && status.code() == Code::Internal && sentence.starts_with(NO_MESSAGE) {
            return PeerError::Unreadable("a message that is none of the protocol");
        }
        return PeerError::Refused { word: word.unwrap_or_default(), sentence };
    };
    let mut causes = std::iter::successors(Some(source), |cause| (*cause).source());
    let unsent = causes.find_map(|cause| cause.downcast_ref::<NotConnected>());
    match unsent.map(ToString::to_string) {
        Some(why) => PeerError::NotReached(why),
        None => PeerError::Broken(chain(source)),
    }
}

/// The failure of a message that no site writes.
pub(super) fn of_message(BadMessage(what): BadMessage) -> PeerError {
    PeerError::Unreadable(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client is told of an answer of bytes at random.
    fn tonic_prost_decode_error() -> Status {
        let error = <kms_proto::v1::BlockUpdate as prost::Message>::decode(&[0xFF; 3][..]);
        Status::internal(error.unwrap_err().to_string())
    }

    #[test]
    fn what_the_peer_answered_is_told_from_what_broke_on_the_way_whatever_the_code() {
        let answered = Status::unavailable("later");
        assert!(matches!(of_status(&answered), PeerError::Refused { .. }));
        let decoded = tonic_prost_decode_error();
        assert!(matches!(of_status(&decoded), PeerError::Unreadable(_)), "{decoded:?}");
        let broke = Status::from_error(Box::new(std::io::Error::other("reset")));
        assert!(matches!(of_status(&broke), PeerError::Broken(_)));
    }
}
