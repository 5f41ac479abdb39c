//! HTTP/2 and its bounds.

use std::time::Duration;

use tonic::transport::Server;

use crate::rpc::config::Limits;

/// The interval at which a silent client is asked whether it is still there, and its time to answer.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));
/// All headers of one call. Ours need a few hundred bytes.
const HEADER_BYTES_MAX: u32 = 8 << 10;
/// Streams that a client may reset before they were accepted, per connection ("rapid reset").
const PENDING_RESETS_MAX: usize = 20;
/// Streams beyond `streams_per_connection_max` that HTTP/2 lets in, so that they can be told
/// `RESOURCE_EXHAUSTED`; a client that opens even more has to wait.
const STREAMS_TO_REFUSE: u32 = 64;
/// Bytes that a client may send before we have taken them up: for one stream, for one connection. They lie in
/// memory that nobody has taken account of, so they are few.
const WINDOWS: (u32, u32) = (256 << 10, 256 << 10);

/// HTTP/2 as it is spoken here.
pub(super) fn transport(limits: &Limits) -> Server {
    let server = Server::builder()
        .max_concurrent_streams(limits.streams_per_connection_max.saturating_add(STREAMS_TO_REFUSE))
        .http2_keepalive_interval(Some(KEEPALIVE.0))
        .http2_keepalive_timeout(Some(KEEPALIVE.1))
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS_MAX))
        .initial_stream_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1);
    match limits.connection_age_max {
        Some(age) => server.max_connection_age(age),
        None => server,
    }
}
