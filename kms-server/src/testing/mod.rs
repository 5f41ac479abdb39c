//! Keyring, lifecycle and ciphering over the token in memory and a SQLite file: what they do with a token
//! that is there, away or garbling, in milliseconds. That a real token does the same is kept by its
//! contract (`tests/hsm_contract`); the same parts on SoftHSM are in `tests/`.

mod adopting;
mod believed;
mod campaigns;
mod ciphering;
mod copies;
mod enrolled_anew;
mod enrolment;
mod facts;
mod floors;
mod forks;
mod forwarding;
mod group_sites;
mod groups;
mod handing;
mod hls;
mod hls_evidence;
mod hls_pairs;
mod home;
mod keks;
mod keyring;
mod lifecycle;
mod lying;
mod marks;
mod pair;
mod purposes;
mod readiness;
mod rebuilt;
mod replica;
mod restored;
mod roles;
mod rotation;
mod second_token;
mod secrets;
mod staging_many;
mod transmitting;
mod two_sites;

/// The home that the shared helpers build a site in.
mod hsm_common {
    pub(crate) use super::home::Home;
}

#[path = "../../tests/site_common/mod.rs"]
mod site_common;
