//! Every call passes here: who is it, may he, is there room, has a second person agreed; and its answer passes
//! here again. May name all of `rpc` but services and listeners.

pub(crate) mod answer;
pub(crate) mod layer;
pub(crate) mod recording;
