//! Names of associations.

use kms_core::audit::NodeId;

/// The name of an association: the node that knows it, and a random number that nobody guesses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle {
    /// The node.
    pub node: NodeId,
    /// The number.
    pub number: [u8; 16],
}

impl Handle {
    /// In bytes.
    pub const LEN: usize = 32;

    /// As it goes out.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..16].copy_from_slice(&self.node.0);
        bytes[16..].copy_from_slice(&self.number);
        bytes
    }

    /// As it came; `None`: no handle has so many bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (node, number) = bytes.split_first_chunk::<16>()?;
        Some(Self { node: NodeId(*node), number: number.try_into().ok()? })
    }
}

/// Whoever has the number may go on with the association: it stands in no log.
impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("node", &self.node).finish_non_exhaustive()
    }
}
