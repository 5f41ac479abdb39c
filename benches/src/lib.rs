//! The cost of the service, each figure beside the bound below it.
//!
//! | part | |
//! |---|---|
//! | [`fleet`] | made-up meters, their keys, and what they send |
//! | [`bare`] | the bound below: the same cryptography with nothing around it |
//! | [`home`] | a site in shared memory, and this program run again within it |
//! | [`site`] | the service's parts in this process, without the wire |
//! | [`echo`] | the bound below the wire: a server that sends the same bytes back |
//! | [`load`] | clients: streams, batches, single calls at a given rate |
//! | [`sealed`], [`token`] | sealed imports, beside a token that only unwraps and wraps |
//! | [`making`] | keys made for meters, beside a token that does the same and nothing else |
//! | [`rotating`] | keys staged for many meters, durable, beside a token that only makes them |
//! | [`grace`] | decryption while all meters have two versions of a key |
//! | [`measure`], [`process`] | medians of alternating rounds; what a process has used |
//! | [`report`] | all figures in one table |
//! | [`beside`] | two builds of the service under the same load |
//! | [`two_sites`], [`copying`] | replication between two sites, beside the database's own copy of the same rows |
//!
//! Figures of one row are taken in turns, within one run: on a machine that others use, ratios hold
//! where absolute figures don't.

mod again;
pub mod bare;
pub mod beside;
pub mod copying;
pub mod echo;
pub mod fleet;
pub mod grace;
pub mod home;
pub mod in_process;
pub mod load;
pub mod making;
pub mod measure;
pub mod on_the_wire;
pub mod process;
pub mod report;
pub mod rotating;
pub mod sealed;
pub mod site;
pub mod table;
pub mod token;
pub mod two_sites;

/// Any error; whoever benches wants its words and nothing else.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
