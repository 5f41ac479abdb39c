//! The `[rpc.limits]` section.

use std::time::Duration;

use serde::Deserialize;

use super::{
    error::ConfigError,
    values::{millis, seconds, within},
};
use crate::rpc::Limits;

/// Limits beyond which things are refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LimitsSection {
    message_bytes_max: u64,
    batch_items_max: u64,
    streams_per_connection_max: u64,
    connections_max: u64,
    handshakes_max: u64,
    calls_max: u64,
    caller_share_percent: u64,
    in_flight_items_max: u64,
    in_flight_mib_max: u64,
    handshake_timeout_ms: u64,
    message_timeout_ms: u64,
    answer_timeout_ms: u64,
    call_timeout_ms: u64,
    drain_timeout_ms: u64,
    connection_age_max_s: u64,
}

impl Default for LimitsSection {
    fn default() -> Self {
        let limits = Limits::default();
        let millis = |time: Duration| time.as_millis() as u64;
        Self {
            message_bytes_max: limits.message_bytes_max as u64,
            batch_items_max: limits.batch_items_max as u64,
            streams_per_connection_max: limits.streams_per_connection_max.into(),
            connections_max: limits.connections_max as u64,
            handshakes_max: limits.handshakes_max as u64,
            calls_max: limits.calls_max as u64,
            caller_share_percent: limits.caller_share_percent.into(),
            in_flight_items_max: limits.in_flight_items_max as u64,
            in_flight_mib_max: limits.in_flight_bytes_max as u64 >> 20,
            handshake_timeout_ms: millis(limits.handshake_timeout),
            message_timeout_ms: millis(limits.message_timeout),
            answer_timeout_ms: millis(limits.answer_timeout),
            call_timeout_ms: millis(limits.call_timeout),
            drain_timeout_ms: millis(limits.drain_timeout),
            connection_age_max_s: limits.connection_age_max.map_or(0, |age| age.as_secs()),
        }
    }
}

/// As the file says it.
macro_rules! key {
    ($name:ident) => {
        concat!("rpc.limits.", stringify!($name))
    };
}

impl TryFrom<LimitsSection> for Limits {
    type Error = ConfigError;

    fn try_from(section: LimitsSection) -> Result<Self, ConfigError> {
        let LimitsSection {
            message_bytes_max,
            batch_items_max,
            streams_per_connection_max,
            connections_max,
            handshakes_max,
            calls_max,
            caller_share_percent,
            in_flight_items_max,
            in_flight_mib_max,
            handshake_timeout_ms,
            message_timeout_ms,
            answer_timeout_ms,
            call_timeout_ms,
            drain_timeout_ms,
            connection_age_max_s,
        } = section;
        let limits = Self {
            message_bytes_max: within(
                key!(message_bytes_max),
                message_bytes_max,
                65_536..=268_435_456,
            )?,
            batch_items_max: within(key!(batch_items_max), batch_items_max, 1..=1_048_576)?,
            streams_per_connection_max: within(
                key!(streams_per_connection_max),
                streams_per_connection_max,
                1..=10_000,
            )?,
            connections_max: within(key!(connections_max), connections_max, 1..=100_000)?,
            handshakes_max: within(key!(handshakes_max), handshakes_max, 1..=100_000)?,
            calls_max: within(key!(calls_max), calls_max, 1..=1_000_000)?,
            caller_share_percent: within(
                key!(caller_share_percent),
                caller_share_percent,
                1..=100,
            )?,
            in_flight_items_max: within(
                key!(in_flight_items_max),
                in_flight_items_max,
                1..=16_777_216,
            )?,
            in_flight_bytes_max: within::<usize>(
                key!(in_flight_mib_max),
                in_flight_mib_max,
                1..=65_536,
            )? << 20,
            handshake_timeout: millis(
                key!(handshake_timeout_ms),
                handshake_timeout_ms,
                100..=60_000,
            )?,
            message_timeout: millis(key!(message_timeout_ms), message_timeout_ms, 100..=600_000)?,
            answer_timeout: millis(key!(answer_timeout_ms), answer_timeout_ms, 1_000..=3_600_000)?,
            call_timeout: millis(key!(call_timeout_ms), call_timeout_ms, 100..=600_000)?,
            drain_timeout: millis(key!(drain_timeout_ms), drain_timeout_ms, 1..=300_000)?,
            connection_age_max: Some(seconds(
                key!(connection_age_max_s),
                connection_age_max_s,
                1..=604_800,
            )?),
        };
        check_pairs(&limits)?;
        Ok(limits)
    }
}

/// Checks limits of which one has to fit into another.
fn check_pairs(limits: &Limits) -> Result<(), ConfigError> {
    if limits.in_flight_items_max < limits.batch_items_max {
        return Err(ConfigError::LessThan {
            key: "rpc.limits.in_flight_items_max",
            value: limits.in_flight_items_max,
            other: "rpc.limits.batch_items_max",
            bound: limits.batch_items_max,
        });
    }
    if limits.in_flight_bytes_max < limits.message_bytes_max {
        return Err(ConfigError::LessThan {
            key: "rpc.limits.in_flight_mib_max (in bytes)",
            value: limits.in_flight_bytes_max,
            other: "rpc.limits.message_bytes_max",
            bound: limits.message_bytes_max,
        });
    }
    Ok(())
}
