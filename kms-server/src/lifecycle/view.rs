//! A meter as it stands, for those who ask.

use kms_core::{BlockNo, MeterRecord};

/// A meter as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeterView {
    /// Its record.
    pub record: MeterRecord,
    /// The block that holds it.
    pub block: BlockNo,
}
