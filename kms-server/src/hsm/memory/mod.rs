//! A token in memory, for tests of what stands above the token: it does what a token does with keys of this
//! process, and guards nothing. It keeps the contract that a real token keeps (`tests/hsm_contract`).

mod aead;
mod block_seals;
mod debug_only;
mod enrolling;
mod keys;
mod making;
mod sealed_file;
mod signing;
mod site_keks;
mod token;
mod wrapped_keys;

#[cfg(test)]
#[macro_use]
#[path = "../../../tests/hsm_contract/mod.rs"]
mod contract;
#[cfg(test)]
mod tests;

pub use token::MemoryToken;
