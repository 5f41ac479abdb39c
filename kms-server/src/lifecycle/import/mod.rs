//! Importing meters and their keys.
//!
//! An import is checked line by line ([`checks`]), laid beside what is known of the meter ([`merging`]) and
//! of its key values ([`values`]), staged ([`staging`]) and committed for all of its blocks at once
//! ([`run`]). What a sealed file must show before the token takes its keys ([`taking`]) is in
//! [`sealed_file`].

mod accepted;
pub(super) mod checks;
pub(super) mod known_kinds;
mod line;
mod merging;
pub(super) mod meter;
mod owners;
pub(super) mod ranges;
pub(super) mod run;
pub(super) mod sealed_file;
pub(super) mod signers;
mod staging;
mod taking;
pub(super) mod value;
mod values;
