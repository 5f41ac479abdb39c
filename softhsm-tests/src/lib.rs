//! A whole site on SoftHSM in one directory: token, certificates, database, server. For tests, for
//! `make demo` and for `make dev`; no part of the service uses it.
//!
//! | part | |
//! |---|---|
//! | [`module`] | the product that a site's token is of |
//! | [`namespace`] | a network of its own for a site |
//! | [`programs`] | where the built programs and the token library are |
//! | [`certificates`] | a development CA, and leaves that are right or wrong in one way |
//! | [`settings`] | `kms.toml`, `client.toml` and `softhsm2.conf` as text |
//! | [`site`] | the directory: [`Site::make`], [`Site::open`] |
//! | [`server`] | [`Site::init`], [`Site::start`], and the [`Running`] server |
//! | [`pair`] | two sites of one key domain, and the ceremony between them |
//! | [`sealing`] | sealed imports as operators do them |
//! | [`proxy`] | a TCP proxy that delays, cuts, resets, goes silent and swallows |
//! | [`tool`] | `ami-tool` as a child process |
//! | [`vectors`] | published telegrams; [`fleet`] makes meters and expectations of them |
//! | [`hostile`] | hostile load beside an honest caller: `make hostile` |
//! | [`failover`] | a load of reads while a site is killed |
//! | [`demo`], [`dev`] | what the two commands do; [`table`] prints |
//!
//! ```no_run
//! use softhsm_tests::{Programs, Role, Site, SiteOptions};
//!
//! let site = Site::make("/tmp/a-site".as_ref(), Programs::find()?, SiteOptions::default())?;
//! site.init()?;
//! let running = site.start()?;
//! site.ami_tool(Role::Dev).status()?;
//! running.stop()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod certificates;
pub mod demo;
pub mod dev;
pub mod failover;
mod files;
pub mod fleet;
pub mod hostile;
pub mod module;
pub mod namespace;
pub mod pair;
mod places;
pub mod programs;
pub mod proxy;
pub mod sealing;
pub mod server;
pub mod settings;
pub mod site;
pub mod table;
pub mod tool;
pub mod vectors;

pub use certificates::{Authority, Identity};
pub use module::Module;
pub use namespace::Namespace;
pub use pair::{Pair, PairError};
pub use places::Places;
pub use programs::Programs;
pub use server::{Running, ServerError};
pub use settings::{PeerOptions, Role, Setting, SiteOptions, Tokens};
pub use site::Site;
pub use tool::{AmiTool, DecryptRequest, DecryptResult};
