//! The client side of site to site, [`crate::replication::Peer`] over gRPC, and of node to node,
//! [`crate::transmitting::OtherNodes`]. TLS 1.3 with a certificate on both
//! sides; the server's own certificate is its identity here, too.

mod client;
mod connector;
mod failure;
mod nodes;

pub use client::PeerClient;
pub use nodes::NodesClient;
