//! From a listening socket to connections whose certificate was accepted. May name the gate, for who is at the
//! other end, and what lies below it.

pub(crate) mod accept;
mod connection;
mod crowd;
mod end_of_life;
mod handshake;
mod refusals;
