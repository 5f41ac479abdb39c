//! Records of an import file, and the face of what reads them.

use super::place::{BadRecord, Place};
use crate::meter::NewMeter;
use crate::secret::KeyBytes;

/// A meter of an import file, and where it stands there.
#[derive(Debug)]
pub struct MeterRecord {
    /// The place where it stands.
    pub place: Place,
    /// The meter that it describes.
    pub meter: NewMeter,
}

impl MeterRecord {
    /// The approximate number of bytes that it takes on the wire.
    pub(crate) fn weight(&self) -> usize {
        const MEMBERS: usize = 160;
        const A_TITLE: usize = 24;
        let NewMeter { meter_id, logical_device_name, keys, policy, .. } = &self.meter;
        let a_key = KeyBytes::LEN_MAX + 16;
        let titles = policy.as_ref().map_or(0, |policy| policy.client_titles.len());
        MEMBERS
            + titles * A_TITLE
            + meter_id.as_str().len()
            + logical_device_name.len()
            + keys.len() * a_key
    }
}

/// Reader of one format: the records of a file, one at a time. A bad one does not stop the others, and
/// every buffer that held one is wiped.
pub(super) trait ReadRecords: Iterator<Item = Result<MeterRecord, BadRecord>> {
    /// The number of bytes of the file that the records up to now took.
    fn position(&self) -> u64;
}
