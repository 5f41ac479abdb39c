//! `[rotation]`: graces and delays in the lives of meters' keys.

use serde::Deserialize;

use super::{error::ConfigError, schedules_section::ScheduleSection, values::within};
use crate::lifecycle::Schedule;
use kms_core::life::Times;

const HOUR_MS: u64 = 60 * 60 * 1000;
/// Ten years.
const HOURS_MAX: u64 = 24 * 3653;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RotationSection {
    grace_hours: u64,
    retention_hours: u64,
    destroy_delay_hours: u64,
    schedules: Vec<ScheduleSection>,
}

impl Default for RotationSection {
    fn default() -> Self {
        let Times { grace_ms, retention_ms, destroy_delay_ms } = Times::default();
        Self {
            grace_hours: grace_ms / HOUR_MS,
            retention_hours: retention_ms / HOUR_MS,
            destroy_delay_hours: destroy_delay_ms / HOUR_MS,
            schedules: Vec::new(),
        }
    }
}

impl RotationSection {
    pub(super) fn read(self) -> Result<(Times, Vec<Schedule>), ConfigError> {
        let Self { grace_hours, retention_hours, destroy_delay_hours, schedules } = self;
        let hours = |key, value, least| {
            within::<u64>(key, value, least..=HOURS_MAX).map(|hours| hours * HOUR_MS)
        };
        let times = Times {
            grace_ms: hours("rotation.grace_hours", grace_hours, 1)?,
            retention_ms: hours("rotation.retention_hours", retention_hours, 1)?,
            destroy_delay_ms: hours("rotation.destroy_delay_hours", destroy_delay_hours, 1)?,
        };
        Ok((times, ScheduleSection::all(schedules)?))
    }
}
