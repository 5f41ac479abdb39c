//! Every call passes here: who is it, may he, is there room, has a second person agreed; and its answer passes
//! here again. May name all of `rpc` but services and listeners.

mod answer;
mod call;
pub(crate) mod keeper;
pub(crate) mod layer;
pub(crate) mod peer;
mod permit;
pub(crate) mod recording;
pub(crate) mod seconds;
pub(crate) mod strangers;
