//! Files of keys as makers of meters deliver them, opened on the sealing machine: the XML shipment, signed and
//! encrypted, and Kamstrup's KEM.
//!
//! One way for all: parse ([`xml`], within bounds), verify who signed ([`signature`], against the operator's
//! [`anchor`]), unwrap ([`encryption`]), lay it out as meters ([`generic`], [`kem`]). What comes out is what any import
//! file gives, and is sealed for the site's token like one. Nothing is decrypted before its signature was verified, and
//! nothing is read but what was signed. Of what a token could not unwrap itself no KEK is taken.

mod anchor;
mod c14n;
mod consignment;
mod encryption;
mod error;
mod generic;
mod kem;
mod opening;
mod signature;
mod supplier;
mod value;
mod xml;

pub use consignment::{Consignment, Delivered, Deliveries, LeftOut, Origin};
pub use error::ShipmentError;
pub use opening::{ShipmentFormat, open};
pub use supplier::Supplier;

#[cfg(test)]
mod tests;
