//! Why a call to the other site came to nothing.

/// The reason why a call to the other site came to nothing. It is judged by where it failed, not by its code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// There is no connection to it: nothing went out.
    #[error("the peer can't be reached: {0}")]
    NotReached(String),
    /// The connection broke, or nothing came in time: what became of the call is not known.
    #[error("the connection to the peer broke: {0}")]
    Broken(String),
    /// It answered, and refused.
    #[error("the peer refuses: {sentence} ({word})")]
    Refused {
        /// Its reason word; empty: it gave none.
        word: String,
        /// Its sentence.
        sentence: String,
    },
    /// It answered what no site of this release or an older one says.
    #[error("the peer says what can't be read: {0}")]
    Unreadable(&'static str),
}
