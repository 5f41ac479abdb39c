//! The server: its parts put together, served, and drained. On the top floor of `rpc`: it may name every room,
//! and none names it.

mod control;
mod error;
mod lists;
mod parts;
mod routes;
mod running;
mod serve;
mod sockets;
mod transport;

pub use control::{Bound, Control};
pub use error::RpcError;
pub use parts::{GateParts, Parts, Replicating};
pub use serve::{serve, serve_services};
